"""The RabbitMQ driver: exchanges as topics, queues as subscriptions, one connection per sender and receiver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from brokerkit.driver import (
    Capabilities,
    Driver,
    Outcomes,
    Receiver,
    ReceiverEvents,
    Sender,
    SenderEvents,
    Settled,
    Subscription,
)
from brokerkit.errors import (
    BrokerkitError,
    Closed,
    ConfigurationError,
    ConnectionLost,
    GuaranteeNotOffered,
    NotFound,
)
from brokerkit.guarantees import Claims, Guarantee
from brokerkit.plugins import Url
from brokerkit_rabbitmq import topology
from brokerkit_rabbitmq.claims import Found, claims, traits
from brokerkit_rabbitmq.receiver import RabbitReceiver, split
from brokerkit_rabbitmq.sender import RabbitSender
from brokerkit_rabbitmq.session import Request, Session
from brokerkit_rabbitmq.settings import (
    DEFAULT_HEARTBEAT,
    RabbitSettings,
    client_options,
    hosts,
    parameters,
    secure,
    tls_context,
)

_ADMIN = 10.0
"""Seconds for one operation beside sending and receiving."""
_GUARANTEES = frozenset((Guarantee.AT_MOST_ONCE, Guarantee.AT_LEAST_ONCE))


class RabbitDriver(Driver):
    blocking = False

    def __init__(self, url: Url, settings: RabbitSettings) -> None:
        self._url = url
        self._settings = settings
        self._options = client_options(settings)
        self._tls = tls_context(settings) if secure(url, settings) else None
        self._hosts = hosts(url, settings)
        self._first = 0
        self._version: tuple[int, ...] = ()
        self._attached: dict[tuple[str, str | None], Mapping[str, Any]] = {}
        self._subscriptions: dict[str, set[str]] = {}
        self._open: set[Session] = set()
        self._lock = threading.Lock()
        self._closed = False
        self.capabilities = Capabilities(
            _GUARANTEES, _GUARANTEES, delayed_send=True, max_body_bytes=settings.max_body_bytes
        )

    # ------------------------------------------------------------ what is there

    def claims(self, producer: Guarantee, consumer: Guarantee) -> Claims:
        attached = any("queue" in native for native in self._attached.values())
        found = Found(
            queue="unknown" if attached else self._settings.queue,
            persistent=self._settings.persistent,
            heartbeat=int(self._options.get("heartbeat") or DEFAULT_HEARTBEAT),
            max_body=self._settings.max_body_bytes,
            version=self._version,
            attached=attached,
        )
        return claims(found, producer, consumer)

    def describe(self) -> Mapping[str, str]:
        with self._admin() as admin:
            return {
                "product": str(admin.server.get("product", "RabbitMQ")),
                "version": str(admin.server.get("version", "unknown")),
                "cluster": str(admin.server.get("cluster_name", "")),
                "queue": self._settings.queue,
                "messages": "persistent" if self._settings.persistent else "transient",
                "heartbeat": f"{admin.connection.params.heartbeat} s",
                "tls": "yes" if self._tls is not None else "no",
            }

    def depth(self, topic: str, subscription: str) -> int:
        """Messages that are ready. AMQP does not tell those handed out and not settled, nor delayed ones."""
        queue = topology.queue_name(topic, subscription, self._native(topic, subscription, None))
        with self._admin() as admin:
            answer = admin.call(
                lambda channel, answered: channel.queue_declare(queue, passive=True, callback=answered), _ADMIN
            )
            return int(answer.method.message_count)

    # ------------------------------------------------------------ declaring

    def declare(self, topic: str, subscriptions: Sequence[Subscription], native: Mapping[str, Any]) -> None:
        topology.checked(native)
        for subscription in subscriptions:
            topology.no_earliest(subscription)
            topology.checked(subscription.native)
        with self._admin() as admin:
            self._declare_exchange(admin, topic, native)
            for subscription in subscriptions:
                if subscription.dead_letter is not None:
                    self._declare_exchange(admin, subscription.dead_letter, {})
                    self._declare_queue(admin, subscription.dead_letter, Subscription("dead"), {})
                self._declare_queue(admin, topic, subscription, native)

    def _declare_exchange(self, admin: Session, topic: str, native: Mapping[str, Any]) -> None:
        name = topology.exchange_name(topic, native)
        if "exchange" in native:
            self._attached[topic, None] = native
        if "exchange" in native or ("queue" in native and "exchange_arguments" not in native):
            if name and "exchange" in native:
                admin.call(lambda channel, ok: channel.exchange_declare(name, passive=True, callback=ok), _ADMIN)
            return
        arguments = native.get("exchange_arguments")
        admin.call(
            lambda channel, answered: channel.exchange_declare(
                name, "fanout", durable=True, arguments=arguments, callback=answered
            ),
            _ADMIN,
        )

    def _declare_queue(self, admin: Session, topic: str, subscription: Subscription, native: Mapping[str, Any]) -> None:
        own = {**native, **subscription.native}
        name = topology.queue_name(topic, subscription.name, own)
        if "queue" in own:
            self._attached[topic, subscription.name] = own
            admin.call(lambda channel, answered: channel.queue_declare(name, passive=True, callback=answered), _ADMIN)
            return
        arguments = topology.queue_arguments(
            self._settings.queue, subscription, admin.version, subscription.dead_letter
        )
        admin.call(
            lambda channel, answered: channel.queue_declare(name, durable=True, arguments=arguments, callback=answered),
            _ADMIN,
        )
        exchange, routing_key = topology.route(topic, None, own)
        if exchange:
            admin.call(
                lambda channel, answered: channel.queue_bind(name, exchange, routing_key, callback=answered), _ADMIN
            )
        self._subscriptions.setdefault(topic, set()).add(subscription.name)

    def delete(self, topic: str, subscription: str | None) -> None:
        """What was attached is only forgotten: it is not ours to delete. AMQP lists no bindings, so a topic takes with
        it the subscriptions that this driver declared; those of other processes are deleted by name."""
        names = [subscription] if subscription is not None else sorted(self._subscriptions.get(topic, ()))
        with self._admin() as admin:
            for name in names:
                self._subscriptions.get(topic, set()).discard(name)
                if "queue" not in self._attached.pop((topic, name), {}):
                    self._delete_queue(admin, topology.queue_name(topic, name, {}))
            if subscription is None and self._attached.pop((topic, None), None) is None:
                admin.call(lambda channel, answered: channel.exchange_delete(topic, callback=answered), _ADMIN)

    def _delete_queue(self, admin: Session, name: str) -> None:
        admin.call(lambda channel, answered: channel.queue_delete(name, callback=answered), _ADMIN)

    # ------------------------------------------------------------ sending and receiving

    def sender(
        self,
        topic: str,
        guarantee: Guarantee,
        outcomes: Outcomes,
        events: SenderEvents,
        *,
        subscription: str | None = None,
        native: Mapping[str, Any] | None = None,
        delivery_timeout: float = 30.0,
        timeout: float = 10.0,
    ) -> Sender:
        if guarantee is Guarantee.EXACTLY_ONCE:
            raise GuaranteeNotOffered(
                "RabbitMQ does not recognise a message that is sent twice: send at_least_once, and let the consumer "
                "recognise the id (transactions(store=…) keeps an inbox)"
            )
        route = topology.route(topic, subscription, self._native(topic, subscription, native))
        sender = RabbitSender(
            route,
            topology.delayed(route),
            guarantee,
            self._settings.persistent,
            self._settings.max_body_bytes,
            outcomes,
            events,
        )
        deadline = time.monotonic() + timeout
        session = self._session(f"brokerkit-send-{topic}", sender.ended, timeout)
        with self._closing(session):
            if route[0]:
                self._ask(session, deadline, lambda ch, ok: ch.exchange_declare(route[0], passive=True, callback=ok))
            elif subscription is not None:
                self._ask(session, deadline, lambda ch, ok: ch.queue_declare(route[1], passive=True, callback=ok))
            sender.start(session, max(0.1, deadline - time.monotonic()))
        return sender

    def receiver(
        self,
        topics: Sequence[str],
        subscription: Subscription,
        guarantee: Guarantee,
        settled: Settled,
        events: ReceiverEvents,
        *,
        prefetch: int = 500,
        prefetch_bytes: int = 64 * 1024 * 1024,
        timeout: float = 10.0,
    ) -> Receiver:
        if guarantee is Guarantee.EXACTLY_ONCE:
            raise GuaranteeNotOffered("RabbitMQ has no transactions: use at_least_once and an inbox for the effects")
        topology.checked(subscription.native)
        queues = {
            topic: topology.queue_name(
                topic, subscription.name, self._native(topic, subscription.name, subscription.native)
            )
            for topic in topics
        }
        deadline = time.monotonic() + timeout
        receiver = RabbitReceiver(settled, events, prefetch, prefetch_bytes, guarantee is Guarantee.AT_MOST_ONCE)
        session = self._session(f"brokerkit-receive-{subscription.name}", receiver.ended, timeout)
        with self._closing(session):
            kind = self._settings.queue
            fixed = topology.takes_timeout(kind, session.version)
            receiver.traits = traits(
                kind,
                session.version,
                subscription.attempts,
                subscription.dead_letter,
                subscription.handling_seconds if fixed else None,
            )
            receiver.start(session, queues, split(prefetch, queues), max(0.1, deadline - time.monotonic()))
        return receiver

    def close(self, timeout: float) -> None:
        self._closed = True
        deadline = time.monotonic() + timeout
        with self._lock:
            left, self._open = self._open, set()
        for session in left:
            session.close(max(0.1, deadline - time.monotonic()))

    # ------------------------------------------------------------ sessions

    def _native(self, topic: str, subscription: str | None, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
        if given:
            if subscription is not None and "queue" in given:
                self._attached[topic, subscription] = given
            return topology.checked(given)
        return self._attached.get((topic, subscription), self._attached.get((topic, None), {}))

    def _session(self, name: str, ended: Callable[[str], None], timeout: float) -> Session:
        """A session with the first node that answers; the one that answered last is asked first."""
        if self._closed:
            raise Closed("the driver is closed")
        deadline = time.monotonic() + timeout
        failure: BrokerkitError | None = None
        for turn in range(len(self._hosts)):
            place = (self._first + turn) % len(self._hosts)
            patience = max(0.1, (deadline - time.monotonic()) / (len(self._hosts) - turn))
            session = Session(name, ended)
            try:
                session.open(
                    parameters(self._url, self._settings, self._options, self._tls, self._hosts[place], patience),
                    patience,
                )
            except ConnectionLost as error:
                session.abort()
                failure = error
                continue
            except BaseException:
                session.abort()
                raise
            self._first = place
            self._version = session.version
            with self._lock:
                self._open = {each for each in self._open if each.over is None} | {session}
            return session
        raise failure or ConnectionLost("no RabbitMQ node is configured")

    @contextmanager
    def _closing(self, session: Session) -> Iterator[None]:
        """Leaves no session behind when what follows its opening fails."""
        try:
            yield
        except BaseException:
            session.close(1.0)
            raise

    @contextmanager
    def _admin(self) -> Iterator[Session]:
        session = self._session("brokerkit-admin", lambda _: None, _ADMIN)
        try:
            yield session
        except ConfigurationError as error:
            raise ConfigurationError(
                f"it is there with other settings, and is never changed: {error}. Declare it as it is, delete it "
                "first, or attach to it with native={'queue': …} or native={'exchange': …}"
            ) from None
        except NotFound as error:
            raise NotFound(f"{error}: declare it first, or attach to what exists with native=") from None
        finally:
            session.close(2.0)

    def _ask(self, session: Session, deadline: float, request: Request) -> None:
        session.call(request, max(0.1, deadline - time.monotonic()))
