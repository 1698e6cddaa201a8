"""The RabbitMQ driver: exchanges as topics, queues as subscriptions, one connection per sender and receiver."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from pika.channel import Channel

from brokerkit import driver as contract
from brokerkit.driver import Capabilities, Outcomes, ReceiverEvents, SenderEvents, Settled, Subscription
from brokerkit.errors import Closed, ConfigurationError, ConnectionLost, GuaranteeNotOffered, NotFound
from brokerkit.guarantees import Claims, Guarantee
from brokerkit.plugins import Url
from brokerkit_rabbitmq import topology
from brokerkit_rabbitmq.claims import Found, claims
from brokerkit_rabbitmq.receiver import RabbitReceiver
from brokerkit_rabbitmq.sender import RabbitSender
from brokerkit_rabbitmq.session import Session
from brokerkit_rabbitmq.settings import DEFAULT_HEARTBEAT, RabbitSettings, parameters

_ADMIN = 10.0
"""Seconds for one operation beside sending and receiving."""
_GUARANTEES = frozenset((Guarantee.AT_MOST_ONCE, Guarantee.AT_LEAST_ONCE))


class RabbitDriver(contract.Driver):
    blocking = False

    def __init__(self, url: Url, settings: RabbitSettings) -> None:
        self._settings = settings
        self._nodes = parameters(url, settings)
        self._first = 0
        """The node that answered last."""
        self._heartbeat = self._nodes[0].heartbeat or DEFAULT_HEARTBEAT
        self._version: tuple[int, ...] = ()
        self._known: dict[tuple[str, str | None], Mapping[str, Any]] = {}
        """Native settings of subscriptions declared or attached to, and of attached topics (subscription None)."""
        self._sessions: WeakSet[Session] = WeakSet()
        self._closed = False
        self.capabilities = Capabilities(
            _GUARANTEES, _GUARANTEES, delayed_send=True, max_body_bytes=settings.max_body_bytes
        )

    # ------------------------------------------------------------ what is there

    def claims(self, producer: Guarantee, consumer: Guarantee) -> Claims:
        attached = any("queue" in native for native in list(self._known.values()))
        found = Found(
            queue="unknown" if attached else self._settings.queue,
            persistent=self._settings.persistent,
            hasty=self._settings.new_queue_wait < 1.0,
            heartbeat=self._heartbeat,
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
                "tls": "yes" if admin.connection.params.ssl_options is not None else "no",
            }

    def depth(self, topic: str, subscription: str) -> int:
        """Messages that are ready. AMQP does not tell those handed out and not settled, nor delayed ones."""
        queue = topology.queue_name(topic, subscription, self._native(topic, subscription))
        with self._admin() as admin:
            return int(admin.call(Channel.queue_declare, queue, passive=True).method.message_count)

    # ------------------------------------------------------------ declaring

    def declare(self, topic: str, subscriptions: Sequence[Subscription], native: Mapping[str, Any]) -> None:
        topology.checked(native)
        for subscription in subscriptions:
            topology.no_earliest(subscription)
            topology.checked(subscription.native)
        created = False
        with self._admin() as admin:
            self._declare_exchange(admin, topic, native)
            for subscription in subscriptions:
                if subscription.dead_letter is not None:
                    self._declare_exchange(admin, subscription.dead_letter, {})
                    created |= self._declare_queue(admin, subscription.dead_letter, Subscription("dead"), {})
                created |= self._declare_queue(admin, topic, subscription, native)
        if created:
            time.sleep(self._settings.new_queue_wait)

    def _declare_exchange(self, admin: Session, topic: str, native: Mapping[str, Any]) -> None:
        if "exchange" in native:
            self._known[topic, None] = native
            if native["exchange"]:
                admin.call(Channel.exchange_declare, native["exchange"], passive=True)
        elif "queue" not in native or "exchange_arguments" in native:
            arguments = native.get("exchange_arguments")
            admin.call(Channel.exchange_declare, topic, "fanout", durable=True, arguments=arguments)

    def _declare_queue(self, admin: Session, topic: str, subscription: Subscription, native: Mapping[str, Any]) -> bool:
        """Whether it is new and not to be trusted yet."""
        own = {**native, **subscription.native}
        self._known[topic, subscription.name] = own
        name = topology.queue_name(topic, subscription.name, own)
        if "queue" in own:
            admin.call(Channel.queue_declare, name, passive=True)
            return False
        created = self._settings.queue == "quorum" and self._settings.new_queue_wait > 0 and not self._is_there(name)
        arguments = topology.queue_arguments(self._settings.queue, subscription, admin.version)
        admin.call(Channel.queue_declare, name, durable=True, arguments=arguments)
        exchange, routing_key = topology.route(topic, None, own)
        if exchange:
            admin.call(Channel.queue_bind, name, exchange, routing_key)
        return created

    def _is_there(self, queue: str) -> bool:
        try:
            with self._admin() as admin:
                admin.call(Channel.queue_declare, queue, passive=True)
        except NotFound:
            return False
        return True

    def delete(self, topic: str, subscription: str | None) -> None:
        """What was attached is only forgotten: it is not ours to delete. AMQP lists no bindings, so a topic takes with
        it the subscriptions that this driver declared; those of other processes are deleted by name."""
        declared = [name for known, name in list(self._known) if known == topic and name is not None]
        with self._admin() as admin:
            for name in declared if subscription is None else [subscription]:
                if "queue" not in self._known.pop((topic, name), {}):
                    admin.call(Channel.queue_delete, topology.queue_name(topic, name, {}))
            if subscription is None and self._known.pop((topic, None), None) is None:
                admin.call(Channel.exchange_delete, topic)

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
    ) -> contract.Sender:
        if guarantee is Guarantee.EXACTLY_ONCE:
            raise GuaranteeNotOffered(
                "RabbitMQ does not recognise a message that is sent twice: send at_least_once, and let the consumer "
                "recognise the id (transactions(store=…) keeps an inbox)"
            )
        route = topology.route(topic, subscription, self._native(topic, subscription, native))
        with self._opening(f"brokerkit-send-{topic}", timeout) as session:
            exchange, queue = route
            if exchange:
                session.call(Channel.exchange_declare, exchange, passive=True)
            elif subscription is not None:
                session.call(Channel.queue_declare, queue, passive=True)
            return RabbitSender(session, route, guarantee, self._settings, outcomes, events)

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
    ) -> contract.Receiver:
        if guarantee is Guarantee.EXACTLY_ONCE:
            raise GuaranteeNotOffered("RabbitMQ has no transactions: use at_least_once and an inbox for the effects")
        name = subscription.name
        queues = {
            topic: topology.queue_name(topic, name, self._native(topic, name, subscription.native)) for topic in topics
        }
        with self._opening(f"brokerkit-receive-{name}", timeout) as session:
            return RabbitReceiver(
                session,
                queues,
                topology.traits(self._settings.queue, subscription, session.version),
                settled,
                events,
                most_once=guarantee is Guarantee.AT_MOST_ONCE,
                prefetch=prefetch,
                prefetch_bytes=prefetch_bytes,
            )

    def close(self, timeout: float) -> None:
        self._closed = True
        deadline = time.monotonic() + timeout
        for session in list(self._sessions):
            session.close(max(0.1, deadline - time.monotonic()))

    # ------------------------------------------------------------ sessions

    def _native(
        self, topic: str, subscription: str | None, given: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        """Native settings as given now, or as they were declared."""
        if given:
            topology.checked(given)
            if subscription is not None and "queue" in given:
                self._known[topic, subscription] = given
            return given
        return self._known.get((topic, subscription), self._known.get((topic, None), {}))

    def _session(self, name: str, timeout: float) -> Session:
        """A session with the first node that answers; the one that answered last is asked first."""
        if self._closed:
            raise Closed("the driver is closed")
        deadline = time.monotonic() + timeout
        failure: ConnectionLost | None = None
        for turn in range(len(self._nodes)):
            place = (self._first + turn) % len(self._nodes)
            patience = (deadline - time.monotonic()) / (len(self._nodes) - turn)
            try:
                session = Session(name, self._nodes[place], patience)
            except ConnectionLost as error:
                failure = error
                continue
            session.deadline = deadline
            self._first = place
            self._version = session.version
            self._sessions.add(session)
            return session
        raise failure or ConnectionLost("no RabbitMQ node is configured")

    @contextmanager
    def _opening(self, name: str, timeout: float) -> Iterator[Session]:
        """Leaves no session behind when what follows its opening fails."""
        session = self._session(name, timeout)
        try:
            yield session
        except BaseException:
            session.close(1.0)
            raise

    @contextmanager
    def _admin(self) -> Iterator[Session]:
        session = self._session("brokerkit-admin", _ADMIN)
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
