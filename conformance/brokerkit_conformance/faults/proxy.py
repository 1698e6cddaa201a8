"""A TCP proxy that understands frames through a codec it is handed, and spoils exactly what a rule names.

One proxy stands before every node of a broker and is shared by all that run at once: a rule belongs to one
process (or to all), and the proxy finds out which process each connection comes from.

    rule = proxy.drop_frame("confirm", of=producer.pid, then="cut")   # swallow that answer, reset the connection
    …
    evidence = rule.wait(10.0)                                        # raises DidNotFire
    proxy.heal()
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from brokerkit.driver import Codec, Frame
from brokerkit_conformance.faults import DidNotFire
from brokerkit_conformance.faults.owners import owner_of

T = TypeVar("T")
Way = Literal["client", "broker"]
"""Who speaks: `client` is what goes to the broker, `broker` what comes from it."""
Action = Literal["refuse", "cut", "delay", "blackhole", "drop_frame", "change_frame", "hold_frame", "see_frame"]


class Changed(NamedTuple):
    """What becomes of a frame: `on` goes on in its place, `back` is answered to whoever sent it."""

    on: bytes = b""
    back: bytes = b""


Change = Callable[[Frame], Changed | None]
"""Says what becomes of a frame, or None to let it pass as if it had not been looked at."""

_RESET = struct.pack("ii", 1, 0)
_CHUNK = 65536


@dataclass(slots=True, eq=False)
class Rule:
    """One fault in the network. `evidence` has one entry for each time it bit."""

    action: Action
    of: int | None = None
    way: Way = "client"
    kinds: frozenset[str] = frozenset()
    then: Literal["cut", "swallow", "pass"] = "pass"
    times: int = 1
    seconds: float = 0.0
    change: Change | None = None
    held: _Held | None = None
    trouble: Sequence[str] = ()
    """What the proxy could not read, of all its connections."""
    evidence: list[dict[str, Any]] = field(default_factory=list)
    fired: threading.Event = field(default_factory=threading.Event)

    def bit(self, **what: Any) -> None:
        self.evidence.append({"at": time.monotonic_ns(), **what})
        self.fired.set()

    def wait(self, timeout: float) -> dict[str, Any]:
        """The evidence, as soon as there is some: what it bit and how often. Raises DidNotFire."""
        if not self.fired.wait(timeout):
            what = " or ".join(sorted(self.kinds)) or "connection"
            blind = f"; it could not read what came: {self.trouble[-1]}" if self.trouble else ""
            raise DidNotFire(f"no {what} came by the proxy to {self.action} within {timeout:.0f} s{blind}")
        unit = "frames" if self.action.endswith("_frame") else "connections"
        return {unit: len(self.evidence), **self.evidence[0]}

    def forget(self) -> None:
        """What it held never arrives. On the loop's thread."""
        if self.held is not None:
            self.held.writer.transport.abort()
            self.held = None


class Proxy:
    """Listens at once, one address a node, and forwards once `serve` was called. Thread-safe."""

    def __init__(self, nodes: int, codec: Callable[[], Codec] | None) -> None:
        self._codec = codec
        self._sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(nodes)]
        self.addresses: list[tuple[str, int]] = [some.getsockname()[:2] for some in self._sockets]
        self.rules: list[Rule] = []
        self.trouble: list[str] = []
        self._watched: list[int] = []
        self._connections: set[_Connection] = set()
        self._forwarding: set[asyncio.Task[None]] = set()
        self._upstream: Sequence[tuple[str, int]] = ()
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)

    @property
    def sees_frames(self) -> bool:
        return self._codec is not None

    def serve(self, upstream: Sequence[tuple[str, int]]) -> None:
        """Forwards connections to node i to `upstream[i]` from now on."""
        self._upstream = upstream
        self._thread.start()

    def watch(self, pid: int) -> None:
        """Tells of a process to look for at the other end. It may have connected already: it was started before."""
        self._watched.append(pid)
        self._call(self._recognise)

    # ------------------------------------------------------------ rules

    def refuse(self, of: int | None = None) -> Rule:
        """Resets what is open, and every new connection as soon as it is made, until healed."""
        rule = self._arm(Rule("refuse", of))
        self._cut(rule)
        return rule

    def cut(self, of: int | None = None) -> Rule:
        """Resets what is open now; new connections are let through."""
        rule = Rule("cut", of)
        self._cut(rule)
        return rule

    def delay(self, seconds: float, of: int | None = None) -> Rule:
        return self._arm(Rule("delay", of, seconds=seconds))

    def blackhole(self, way: Way, of: int | None = None) -> Rule:
        """Swallows all that goes one way, silently, until healed (which resets those connections)."""
        return self._arm(Rule("blackhole", of, way=way))

    def drop_frame(
        self,
        *kinds: str,
        way: Way,
        of: int | None = None,
        then: Literal["cut", "swallow", "pass"] = "cut",
        times: int = 1,
    ) -> Rule:
        """Swallows the next frame of one of these kinds. Then `cut`: resets that process's connections;
        `swallow`: everything that follows from that process is swallowed and new connections are reset, until
        healed; `pass`: goes on."""
        return self._arm(Rule("drop_frame", of, way, frozenset(kinds), then, times))

    def change_frame(self, *kinds: str, way: Way, change: Change, of: int | None = None, times: int = 1) -> Rule:
        """Lets `change` say what becomes of frames of these kinds, until it has done so `times` times. It runs on the
        proxy's thread: quick, and without a wait."""
        return self._arm(Rule("change_frame", of, way, frozenset(kinds), "pass", times, change=change))

    def hold_frame(self, *kinds: str, of: int | None = None) -> Rule:
        """Keeps the next frame of one of these kinds on its way to the broker until `let_in`. Its connection is reset
        at the client's end; at the broker's it stays open, as if the broker had not come to read it yet."""
        return self._arm(Rule("hold_frame", of, "client", frozenset(kinds)))

    def let_in(self, rule: Rule, answer: str, timeout: float = 10.0) -> dict[str, Any]:
        """What the broker answers, with a frame of that kind, to the one that was held. Raises DidNotFire."""
        if rule.held is None:
            raise DidNotFire("nothing was held that could be let in")
        going = asyncio.run_coroutine_threadsafe(rule.held.go_on(answer), self._loop)
        try:
            frame = going.result(timeout)
        except TimeoutError:
            going.cancel()
            raise DidNotFire(f"no {answer} to what had been held within {timeout:.0f} s") from None
        return {"answer": frame.native}

    def see_frame(self, *kinds: str, way: Way, of: int | None = None) -> Rule:
        """Lets everything pass, and tells of the next frame of one of these kinds."""
        return self._arm(Rule("see_frame", of, way, frozenset(kinds)))

    def heal(self, rule: Rule | None = None) -> None:
        """Takes this rule away, or all; connections that lost bytes are reset."""
        self._call(self._heal, rule)

    def stop(self) -> None:
        """Resets everything and ends the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(10.0)
        for some in self._sockets:
            some.close()
        if not self._loop.is_running():
            self._loop.close()

    # ------------------------------------------------------------ inside; on the loop's thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())

    async def _listen(self) -> None:
        """Serves until it is told to end; returns when every connection's task has ended."""
        servers = [await self._server(node, some) for node, some in enumerate(self._sockets)]
        await self._ended.wait()
        for server in servers:
            server.close()
        for connection in list(self._connections):
            connection.reset()
        for rule in self.rules:
            rule.forget()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _server(self, node: int, listening: socket.socket) -> asyncio.Server:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # A task of our own: of one that asyncio makes from a coroutine here, its end by cancelling is an error.
            task = self._loop.create_task(self._forward(node, reader, writer))
            self._forwarding.add(task)
            task.add_done_callback(self._forwarding.discard)

        return await asyncio.start_server(accepted, sock=listening, limit=4 * _CHUNK)

    async def _forward(self, node: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports = (writer.get_extra_info("peername")[1], self.addresses[node][1])
        connection = _Connection(self, ports, self._owner(*ports), writer, self._new_codec())
        for rule in self.rules:
            if rule.action == "refuse" and connection.belongs_to(rule):
                rule.bit(connection="refused", node=node)
                connection.reset()
                return
        self._connections.add(connection)
        try:
            await connection.run(reader, self._upstream[node])
        except OSError:
            # The broker's end is down, or either end was reset: so is the other, then.
            connection.reset()
        finally:
            self._connections.discard(connection)

    def _recognise(self) -> None:
        for connection in self._connections:
            if connection.owner is None:
                connection.owner = self._owner(*connection.ports)

    def _owner(self, port: int, listening: int) -> int | None:
        return owner_of(port, listening, list(self._watched))

    def _new_codec(self) -> Codec | None:
        try:
            return None if self._codec is None else self._codec()
        except Exception as error:
            self.trouble.append(f"no codec: {type(error).__name__}: {error}")
            return None

    def _arm(self, rule: Rule) -> Rule:
        rule.trouble = self.trouble
        self._call(self.rules.append, rule)
        return rule

    def _cut(self, rule: Rule) -> None:
        def cut() -> None:
            for connection in self._of(rule):
                rule.bit(connection="reset")
                connection.reset()

        self._call(cut)

    def _of(self, rule: Rule) -> list[_Connection]:
        return [connection for connection in self._connections if connection.belongs_to(rule)]

    def keep_away(self, rule: Rule) -> None:
        """From now on nothing of that process gets through, and it cannot come back. On the loop's thread."""
        self.rules.append(Rule("refuse", rule.of))
        self.rules.append(Rule("blackhole", rule.of, way="client"))

    def reset_all_of(self, rule: Rule) -> None:
        for connection in self._of(rule):
            connection.reset()

    def _heal(self, rule: Rule | None) -> None:
        gone = [some for some in self.rules if rule is None or some is rule or some.of == rule.of]
        self.rules = [some for some in self.rules if some not in gone]
        for some in gone:
            some.forget()
        for connection in list(self._connections):
            if connection.lost_bytes and any(connection.belongs_to(some) for some in gone):
                connection.reset()

    def _call(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Runs `call` on the loop's thread and returns when it is done."""
        if not self._thread.is_alive():
            call(*arguments)
            return
        done = threading.Event()

        def run() -> None:
            try:
                call(*arguments)
            finally:
                done.set()

        self._loop.call_soon_threadsafe(run)
        if not done.wait(10.0):
            raise RuntimeError("the fault proxy does not answer")


@dataclass(slots=True)
class _Held:
    """A frame, and the broker's end of the connection that it was on."""

    frame: Frame
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    codec: Codec

    async def go_on(self, answer: str) -> Frame:
        """Sends it on; returns the broker's answer."""
        self.writer.write(self.frame.raw)
        while data := await self.reader.read(_CHUNK):
            for frame in self.codec.broker(data):
                if frame.kind == answer:
                    return frame
        raise DidNotFire("the broker closed the connection instead of answering what had been held")


class _Connection:
    """One client's connection and the one behind it."""

    def __init__(
        self,
        proxy: Proxy,
        ports: tuple[int, int],
        owner: int | None,
        client: asyncio.StreamWriter,
        codec: Codec | None,
    ) -> None:
        """`ports`: the client's, and ours that it connected to. `owner`: the watched process that has it."""
        self._proxy = proxy
        self.ports = ports
        self.owner = owner
        self._writers = [client]
        self._broker: asyncio.StreamReader | None = None
        self._codec = codec
        self._reset = False
        self.lost_bytes = False

    def belongs_to(self, rule: Rule) -> bool:
        return rule.of is None or rule.of == self.owner

    def reset(self) -> None:
        """RST both ways, at once."""
        self._reset = True
        for writer in self._writers:
            handle = writer.get_extra_info("socket")
            if handle is not None and handle.fileno() >= 0:
                with contextlib.suppress(OSError):  # the other end was faster
                    handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def run(self, client: asyncio.StreamReader, upstream: tuple[str, int]) -> None:
        broker, to_broker = await asyncio.open_connection(*upstream, limit=4 * _CHUNK)
        to_client = self._writers[0]
        self._writers.append(to_broker)
        self._broker = broker
        if self._reset:
            self.reset()
            return
        ways = [
            asyncio.ensure_future(self._pump("client", client, to_broker)),
            asyncio.ensure_future(self._pump("broker", broker, to_client)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for writer in self._writers:
                writer.close()

    async def _pump(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            passed = self._filter(way, data)
            if self._reset:
                return
            if wait := max((r.seconds for r in self._rules("delay")), default=0.0):
                await asyncio.sleep(wait)
            if passed:
                writer.write(passed)
                await writer.drain()

    def _rules(self, action: Action) -> Iterable[Rule]:
        return [rule for rule in self._proxy.rules if rule.action == action and self.belongs_to(rule)]

    def _filter(self, way: Way, data: bytes) -> bytes:
        """What of `data` may pass; frames are seen even where everything passes, so that the codec keeps up."""
        frames = self._frames(way, data)
        if frames is None:
            return self._unless_blackholed(way, data)
        passed = bytearray()
        for frame in frames:
            if rule := self._to_hold(way, frame):
                self._hold(rule, frame, bytes(passed))
                return b""
            if not self._dropped(way, frame):
                passed += self._unless_blackholed(way, self._changed(way, frame))
            if self._reset:
                return b""
        return bytes(passed)

    def _frames(self, way: Way, data: bytes) -> list[Frame] | None:
        if self._codec is None:
            return None
        try:
            return list(self._codec.client(data) if way == "client" else self._codec.broker(data))
        except Exception as error:
            # A codec that cannot read this stream makes frame rules blind, which they report by not firing.
            self._proxy.trouble.append(f"{way}: {type(error).__name__}: {error}")
            self._codec = None
            return None

    def _to_hold(self, way: Way, frame: Frame) -> Rule | None:
        if way == "broker":
            return None
        rules = self._rules("hold_frame")
        return next((rule for rule in rules if frame.kind in rule.kinds and not rule.evidence), None)

    def _hold(self, rule: Rule, frame: Frame, before: bytes) -> None:
        """What came before the frame goes on; what comes after it is lost with the client's end."""
        assert self._broker is not None
        assert self._codec is not None
        rule.bit(frame=frame.native, kind=frame.kind, ids=list(frame.ids), bytes=len(frame.raw))
        to_broker = self._writers.pop()
        to_broker.write(before)
        rule.held = _Held(frame, self._broker, to_broker, self._codec)
        self.reset()

    def _dropped(self, way: Way, frame: Frame) -> bool:
        for rule in self._rules("see_frame"):
            if rule.way == way and frame.kind in rule.kinds and not rule.evidence:
                rule.bit(frame=frame.native, kind=frame.kind, bytes=len(frame.raw))
        for rule in self._rules("drop_frame"):
            if rule.way == way and frame.kind in rule.kinds and len(rule.evidence) < rule.times:
                rule.bit(frame=frame.native, kind=frame.kind, ids=list(frame.ids), bytes=len(frame.raw))
                self.lost_bytes = True
                if rule.then == "cut":
                    self._proxy.reset_all_of(rule)
                elif rule.then == "swallow":
                    self._proxy.keep_away(rule)
                return True
        return False

    def _changed(self, way: Way, frame: Frame) -> bytes:
        """The frame, or what a rule makes of it; the codec sees what is answered in the broker's place."""
        for rule in self._rules("change_frame"):
            if rule.way != way or frame.kind not in rule.kinds or len(rule.evidence) >= rule.times:
                continue
            assert rule.change is not None
            changed = rule.change(frame)
            if changed is None:
                continue
            rule.bit(frame=frame.native, kind=frame.kind, ids=list(frame.ids), bytes=len(frame.raw))
            if changed.back:
                self._frames("broker" if way == "client" else "client", changed.back)
                self._writers[0 if way == "client" else 1].write(changed.back)
            return changed.on
        return frame.raw

    def _unless_blackholed(self, way: Way, data: bytes) -> bytes:
        for rule in self._rules("blackhole"):
            if rule.way == way:
                if not rule.fired.is_set():
                    rule.bit(swallowed=way)
                self.lost_bytes = True
                return b""
        return data
