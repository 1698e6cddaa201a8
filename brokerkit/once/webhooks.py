"""Webhooks as https://www.standardwebhooks.com says them: signed, sent again for three days, done once."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from brokerkit.consumer import Delivery
from brokerkit.errors import ConfigurationError, WebhookRefused
from brokerkit.once.calls import Call, send
from brokerkit.once.http import Answer
from brokerkit.once.keys import Held, Keys, derived_key

_LONGEST_PAUSE = 8 * 3600.0
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,255}")
_GONE = 410


def sign(secret: str, event_id: str, at: int, body: bytes) -> str:
    """The signature of one attempt at `at`, in seconds since the epoch. `secret` is `whsec_` and at least 24 bytes in
    base64; ConfigurationError otherwise."""
    signed = f"{event_id}.{at}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode()


class Sender:
    """Sends events to one endpoint, from a queue: write the event into the outbox, or send it to a topic, and let a
    worker give each delivery to `deliver`. Thread-safe.

    The first of `secrets` is the newest; all of them sign, so that a receiver can change over. `first`: seconds until
    the second attempt; each pause is as long as the event is old, up to 8 hours.
    """

    def __init__(
        self,
        url: str,
        secrets: Sequence[str],
        *,
        give_up: timedelta = timedelta(days=3),
        first: float = 5.0,
        send: Callable[[Call], Answer] = send,
    ) -> None:
        if not isinstance(give_up, timedelta):
            raise ConfigurationError(f"give_up is a datetime.timedelta, not {type(give_up).__name__}")
        self._url = url
        self._secrets = _checked(secrets)
        self._give_up = give_up.total_seconds()
        self._first = first
        self._send = send

    def deliver(self, delivery: Delivery) -> bool:
        """One attempt, after which the delivery is settled: acked when the endpoint took it (2xx), given back with a
        delay when not, and sent to the dead letters after `give_up`, or when the endpoint says 410, never again.

        Returns whether the endpoint took it. The subscription needs dead letters and more attempts than there are (some
        25 in three days). Raises ConfigurationError for a message that says no time, and as `Delivery.nack`."""
        if not delivery.published_at:
            raise ConfigurationError("this message does not say when it was published, so its age is not known")
        event_id = delivery.id if _PLAIN.fullmatch(delivery.id) else derived_key("webhook", delivery.id, "id")
        try:
            answer = self._send(self._call(event_id, delivery))
            said = f"the endpoint said {answer.status}"
        except (OSError, http.client.HTTPException) as error:
            answer, said = None, f"{type(error).__name__}: {error}"
        age = max(0.0, time.time() - delivery.published_at / 1000)
        if answer is not None and 200 <= answer.status < 300:
            delivery.ack()
            return True
        if age > self._give_up or (answer is not None and answer.status == _GONE):
            delivery.reject(said)
        else:
            delivery.nack(min(max(age, self._first), _LONGEST_PAUSE) * random.uniform(0.9, 1.1))
        return False

    def _call(self, event_id: str, delivery: Delivery) -> Call:
        at, body = int(time.time()), delivery.body or b""
        headers = {
            "content-type": delivery.content_type or "application/json",
            "webhook-id": event_id,
            "webhook-timestamp": str(at),
            "webhook-signature": " ".join(sign(secret, event_id, at, body) for secret in self._secrets),
        }
        return Call("POST", self._url, body, headers)


class Receiver:
    """Takes events in: checks who sent them and when, and hands each out once. Thread-safe.

    An event is known again for as long as `keys` are kept: three days by default, as long as senders try.
    `tolerance`: how far the attempt's time may be from this machine's clock, so that nobody replays an old one.
    """

    def __init__(self, keys: Keys, secrets: Sequence[str], *, tolerance: timedelta = timedelta(minutes=5)) -> None:
        if not isinstance(tolerance, timedelta):
            raise ConfigurationError(f"tolerance is a datetime.timedelta, not {type(tolerance).__name__}")
        self._keys = keys
        self._secrets = _checked(secrets)
        self._tolerance = tolerance.total_seconds()

    def verify(self, headers: Mapping[str, str], body: bytes) -> str:
        """The event's id. Raises WebhookRefused, to be answered with 401; `body` as it came, before anything parsed
        it."""
        found = {name.lower(): value for name, value in headers.items()}
        try:
            event_id, at, signatures = (found[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
        except KeyError as missing:
            raise WebhookRefused(f"the header {missing.args[0]} is missing") from None
        if not re.fullmatch(r"\d{1,12}", at, re.ASCII):
            raise WebhookRefused("webhook-timestamp is no number of seconds")
        expected = [sign(secret, event_id, int(at), body) for secret in self._secrets]
        given = signatures.encode("utf-8", "replace").split()
        if not any(hmac.compare_digest(one.encode(), other) for one in expected for other in given):
            raise WebhookRefused("no signature fits: it was signed with another secret, or changed on the way")
        off = int(at) - time.time()
        if abs(off) > self._tolerance:
            raise WebhookRefused(f"it was sent {abs(off):.0f} s {'after' if off > 0 else 'before'} this clock's time")
        return event_id

    def receive(self, headers: Mapping[str, str], body: bytes) -> Held:
        """The event, to be entered with `with` and handled if it is `fresh`. Raises as `verify` and `Keys.hold`: answer
        KeyInUse with 409, and the sender comes again."""
        return self._keys.hold(self.verify(headers, body), body)


def _checked(secrets: Sequence[str]) -> tuple[str, ...]:
    if isinstance(secrets, str) or not secrets:
        raise ConfigurationError("secrets is a list, of one secret or, while they change, more")
    for secret in secrets:
        _key(secret)
    return tuple(secrets)


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith("whsec_") or len(key) < 24:
        raise ConfigurationError("a webhook's secret is whsec_ and at least 24 random bytes in base64")
    return key
