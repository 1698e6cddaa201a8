"""The fault proxy over real sockets, with a toy protocol: one line a frame, its first word the kind."""

from __future__ import annotations

import gc
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from brokerkit_conformance.faults import DidNotFire
from brokerkit_conformance.faults.proxy import Changed, Proxy

from brokerkit.driver import Frame


class Lines:
    """The toy codec: `ack m1\\n` is one frame of kind `ack` that carries `m1`."""

    def __init__(self) -> None:
        self._rest = {"client": b"", "broker": b""}

    def client(self, data: bytes) -> list[Frame]:
        return self._frames("client", data)

    def broker(self, data: bytes) -> list[Frame]:
        return self._frames("broker", data)

    def _frames(self, way: str, data: bytes) -> list[Frame]:
        *lines, self._rest[way] = (self._rest[way] + data).split(b"\n")
        return [self._frame(line) for line in lines]

    def _frame(self, line: bytes) -> Frame:
        kind, _, id = line.decode().partition(" ")
        if kind == "garbage":
            raise ValueError("this is not the protocol")
        return Frame(line + b"\n", kind, f"toy.{kind}", (id,) if id else ())


class Echo(socketserver.StreamRequestHandler):
    """A broker that answers every line with `confirm` and the same line."""

    def handle(self) -> None:
        try:
            for line in self.rfile:
                self.server.seen.append(line)  # type: ignore[attr-defined]
                self.wfile.write(b"confirm " + line)
        except ConnectionError:
            return


@pytest.fixture
def broker() -> Iterator[socketserver.ThreadingTCPServer]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        server.seen = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(broker: socketserver.ThreadingTCPServer) -> Iterator[Proxy]:
    made = Proxy(1, Lines)
    made.watch(os.getpid())
    made.serve([broker.server_address])  # type: ignore[list-item]
    yield made
    made.stop()


def connect(proxy: Proxy) -> socket.socket:
    made = socket.create_connection(proxy.addresses[0], timeout=5)
    made.settimeout(5)
    return made


def ask(connection: socket.socket, line: str) -> bytes:
    connection.sendall(line.encode() + b"\n")
    return connection.recv(100)


def is_reset(connection: socket.socket) -> bool:
    try:
        for _ in range(20):
            connection.sendall(b"anything\n")
            if connection.recv(100) == b"":
                return False
            time.sleep(0.05)
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


def resets_a_new_one(proxy: Proxy) -> bool:
    """Whether a connection made now is reset; that may come before it is said to be made."""
    try:
        with closing(connect(proxy)) as made:
            return is_reset(made)
    except ConnectionResetError:
        return True


def hears_nothing(connection: socket.socket, seconds: float = 0.3) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(100) is None
    except TimeoutError:
        return True
    finally:
        connection.settimeout(5)


def test_it_forwards_both_ways(proxy: Proxy) -> None:
    with closing(connect(proxy)) as client:
        assert ask(client, "publish m1") == b"confirm publish m1\n"


def test_it_drops_exactly_the_named_frame_of_the_broker_and_resets(proxy: Proxy) -> None:
    with closing(connect(proxy)) as client:
        assert ask(client, "publish m1") == b"confirm publish m1\n"
        rule = proxy.drop_frame("confirm", way="broker", of=os.getpid(), then="cut")
        client.sendall(b"publish m2\n")
        evidence = rule.wait(5)
        assert evidence["frames"] == 1
        assert evidence["frame"] == "toy.confirm"
        assert evidence["ids"] == ["publish m2"]
        with pytest.raises(ConnectionResetError):
            client.recv(100)


def test_the_frame_before_a_dropped_answer_has_reached_the_broker(
    proxy: Proxy, broker: socketserver.ThreadingTCPServer
) -> None:
    with closing(connect(proxy)) as client:
        rule = proxy.drop_frame("confirm", way="broker", then="cut")
        client.sendall(b"publish m1\n")
        rule.wait(5)
        assert broker.seen == [b"publish m1\n"]  # type: ignore[attr-defined]


def test_a_dropped_frame_of_the_client_never_reaches_the_broker(
    proxy: Proxy, broker: socketserver.ThreadingTCPServer
) -> None:
    with closing(connect(proxy)) as client:
        rule = proxy.drop_frame("ack", way="client", then="pass")
        client.sendall(b"publish m1\nack m0\npublish m2\n")
        assert rule.wait(5)["ids"] == ["m0"]
        got = b""
        while got.count(b"\n") < 2:
            got += client.recv(100)
        assert broker.seen == [b"publish m1\n", b"publish m2\n"]  # type: ignore[attr-defined]


def test_swallow_keeps_the_process_away_until_healed(proxy: Proxy, broker: socketserver.ThreadingTCPServer) -> None:
    with closing(connect(proxy)) as client:
        rule = proxy.drop_frame("ack", way="client", of=os.getpid(), then="swallow")
        client.sendall(b"ack m1\npublish m2\n")
        rule.wait(5)
        assert hears_nothing(client)
        assert resets_a_new_one(proxy)
        proxy.heal(rule)
        with closing(connect(proxy)) as after:
            assert ask(after, "publish m3") == b"confirm publish m3\n"
        assert broker.seen == [b"publish m3\n"]  # type: ignore[attr-defined]


def test_refuse_resets_what_is_open_and_what_is_new_until_healed(proxy: Proxy) -> None:
    with closing(connect(proxy)) as client:
        ask(client, "publish m1")
        rule = proxy.refuse()
        assert is_reset(client)
        assert resets_a_new_one(proxy)
        assert rule.wait(1)["connections"] >= 2
        proxy.heal(rule)
        with closing(connect(proxy)) as after:
            assert ask(after, "publish m2") == b"confirm publish m2\n"


def test_cut_resets_what_is_open_and_lets_new_connections_through(proxy: Proxy) -> None:
    with closing(connect(proxy)) as client, closing(connect(proxy)) as bystander:
        ask(client, "publish m1")
        ask(bystander, "publish m1")
        assert proxy.cut().wait(1)["connections"] == 2
        assert is_reset(client)
        with closing(connect(proxy)) as after:
            assert ask(after, "publish m2") == b"confirm publish m2\n"


def test_a_blackhole_swallows_one_way_only(proxy: Proxy, broker: socketserver.ThreadingTCPServer) -> None:
    with closing(connect(proxy)) as client:
        rule = proxy.blackhole("broker")
        client.sendall(b"publish m1\n")
        rule.wait(5)
        assert hears_nothing(client)
        assert broker.seen == [b"publish m1\n"]  # type: ignore[attr-defined]


def test_delay_holds_back_and_loses_nothing(proxy: Proxy) -> None:
    with closing(connect(proxy)) as client:
        rule = proxy.delay(0.3)
        began = time.monotonic()
        assert ask(client, "publish m1") == b"confirm publish m1\n"
        assert time.monotonic() - began >= 0.3
        proxy.heal(rule)


def test_a_rule_bites_only_the_process_it_names(proxy: Proxy) -> None:
    program = (
        "import socket,sys\n"
        "sys.stdin.readline()\n"
        f"s=socket.create_connection({proxy.addresses[0]!r}, timeout=5)\n"
        "s.sendall(b'publish m1\\n')\n"
        "try: print(s.recv(100).decode().strip(), flush=True)\n"
        "except ConnectionResetError: print('reset', flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        proxy.watch(child.pid)
        rule = proxy.drop_frame("confirm", way="broker", of=child.pid, then="cut")
        with closing(connect(proxy)) as client:
            assert ask(client, "publish mine") == b"confirm publish mine\n"
            assert child.stdin is not None
            answer, _ = child.communicate("go\n", timeout=20)
            assert answer.strip() == "reset"
            assert rule.wait(1)["ids"] == ["publish m1"]
            assert ask(client, "publish mine") == b"confirm publish mine\n"
    finally:
        child.kill()
        child.wait()


def test_a_process_that_connected_before_it_was_watched_is_recognised(
    broker: socketserver.ThreadingTCPServer,
) -> None:
    proxy = Proxy(1, Lines)
    proxy.serve([broker.server_address])  # type: ignore[list-item]
    try:
        with closing(connect(proxy)) as client:
            assert ask(client, "publish m1") == b"confirm publish m1\n"
            proxy.watch(os.getpid())
            assert proxy.cut(of=os.getpid()).wait(1)["connections"] == 1
            with pytest.raises(ConnectionResetError):
                client.recv(100)
    finally:
        proxy.stop()


def test_a_thread_with_the_number_of_a_process_that_has_ended_is_not_taken_for_it(
    broker: socketserver.ThreadingTCPServer,
) -> None:
    proxy = Proxy(1, Lines)
    proxy.serve([broker.server_address])  # type: ignore[list-item]
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        proxy.watch(thread.native_id)
        proxy.watch(os.getpid())
        with closing(connect(proxy)) as client:
            assert ask(client, "publish m1") == b"confirm publish m1\n"
            assert proxy.cut(of=os.getpid()).wait(1)["connections"] == 1
    finally:
        over.set()
        thread.join()
        proxy.stop()


def test_a_rule_that_nothing_falls_into_says_so(proxy: Proxy) -> None:
    with closing(connect(proxy)) as client:
        rule = proxy.drop_frame("commit", way="client")
        ask(client, "publish m1")
        with pytest.raises(DidNotFire, match="no commit came by"):
            rule.wait(0.1)


def test_a_codec_that_cannot_read_the_stream_makes_rules_blind_which_they_say_and_loses_no_byte(proxy: Proxy) -> None:
    with closing(connect(proxy)) as client:
        rule = proxy.drop_frame("confirm", way="broker")
        assert ask(client, "garbage") == b"confirm garbage\n"
        assert ask(client, "publish m1") == b"confirm publish m1\n"
        with pytest.raises(DidNotFire, match=r"could not read what came: .*not the protocol"):
            rule.wait(0.1)


def test_stop_leaves_no_task_and_no_coroutine_behind_whatever_comes_in_that_moment(
    broker: socketserver.ThreadingTCPServer, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(record=True) as caught, ExitStack() as clients:
        warnings.simplefilter("always")
        for round in range(15):
            proxy = Proxy(2, Lines)
            proxy.serve([broker.server_address, broker.server_address])  # type: ignore[list-item]
            for _ in range(round):
                ask(clients.enter_context(closing(connect(proxy))), "publish m1")
            # Some are not accepted yet when the end comes, some not yet connected to the broker.
            for _ in range(10):
                hasty = clients.enter_context(closing(socket.socket()))
                hasty.setblocking(False)
                hasty.connect_ex(proxy.addresses[0])
            proxy.stop()
            assert not proxy._thread.is_alive()
        gc.collect()
    assert [str(some.message) for some in caught if some.category is not ResourceWarning] == []
    assert [record.getMessage() for record in caplog.records] == []


def test_a_proxy_that_never_served_and_one_stopped_twice_end_quietly() -> None:
    Proxy(1, None).stop()
    proxy = Proxy(1, None)
    proxy.serve([("127.0.0.1", 9)])
    proxy.stop()
    proxy.stop()


def test_a_broker_that_is_down_looks_like_a_reset_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    proxy = Proxy(1, None)
    proxy.serve([address])
    try:
        with pytest.raises(ConnectionResetError), closing(connect(proxy)) as client:
            client.recv(100)
    finally:
        proxy.stop()


def test_a_changed_frame_goes_on_in_its_new_form_and_counts_as_evidence(
    proxy: Proxy, broker: socketserver.ThreadingTCPServer
) -> None:
    with closing(connect(proxy)) as client:
        rule = proxy.change_frame("ack", way="client", change=lambda frame: Changed(frame.raw.replace(b"m1", b"m2")))
        assert ask(client, "ack m1") == b"confirm ack m2\n"
        assert ask(client, "ack m1") == b"confirm ack m1\n", "once is enough"
        evidence = rule.wait(5)
        assert (evidence["frames"], evidence["frame"], evidence["ids"]) == (1, "toy.ack", ["m1"])


def test_a_frame_can_be_answered_in_the_broker_s_place(proxy: Proxy, broker: socketserver.ThreadingTCPServer) -> None:
    with closing(connect(proxy)) as client:
        proxy.change_frame("ack", way="client", change=lambda _: Changed(back=b"confirm nothing\n"))
        assert ask(client, "ack m1") == b"confirm nothing\n"
        assert ask(client, "publish m2") == b"confirm publish m2\n"
        assert broker.seen == [b"publish m2\n"]  # type: ignore[attr-defined]


def test_a_frame_that_a_change_leaves_alone_is_no_evidence(proxy: Proxy) -> None:
    with closing(connect(proxy)) as client:
        rule = proxy.change_frame("ack", way="client", change=lambda frame: None)
        assert ask(client, "ack m1") == b"confirm ack m1\n"
        with pytest.raises(DidNotFire):
            rule.wait(0.1)


def test_a_held_frame_arrives_later_on_the_brokers_end_of_a_connection_that_is_gone(
    proxy: Proxy, broker: socketserver.ThreadingTCPServer
) -> None:
    rule = proxy.hold_frame("ack", of=os.getpid())
    with closing(connect(proxy)) as first, closing(connect(proxy)) as second:
        first.sendall(b"publish m1\nack m1\nack m2\n")
        assert rule.wait(5)["frame"] == "toy.ack"
        assert is_reset(first)
        assert ask(second, "ack m3") == b"confirm ack m3\n"
        assert b"ack m1\n" not in broker.seen  # type: ignore[attr-defined]
        assert proxy.let_in(rule, "confirm") == {"answer": "toy.confirm"}
        _until(lambda: b"ack m1\n" in broker.seen)  # type: ignore[attr-defined]
        assert broker.seen[0] == b"publish m1\n"  # type: ignore[attr-defined]
        assert b"ack m2\n" not in broker.seen  # type: ignore[attr-defined]


def test_what_is_held_when_all_is_healed_never_arrives(proxy: Proxy, broker: socketserver.ThreadingTCPServer) -> None:
    rule = proxy.hold_frame("ack", of=os.getpid())
    with closing(connect(proxy)) as connection:
        connection.sendall(b"ack m1\n")
        rule.wait(5)
        proxy.heal(rule)
        with pytest.raises(DidNotFire, match="nothing was held"):
            proxy.let_in(rule, "confirm")
        assert broker.seen == []  # type: ignore[attr-defined]


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
