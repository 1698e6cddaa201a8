"""Free TCP ports on loopback that stay ours while a broker is down between `kill` and `restart`."""

from __future__ import annotations

import random
import socket
import sys
from contextlib import suppress
from pathlib import Path

LOOPBACK = "127.0.0.1"


class Ports:
    """Some ports, reserved among all brokerkit processes of this machine until `release` or the process's end.

    They lie below the range from which the system serves outgoing connections: a client that reconnects in a loop
    to a dead port of that range sooner or later connects to itself, and then holds the port that a restarted
    broker wants.
    """

    def __init__(self, count: int) -> None:
        self.numbers: list[int] = []
        self._reservations: list[socket.socket] = []
        first, last = _range()
        for _ in range(2000):
            if len(self.numbers) == count:
                return
            number = random.SystemRandom().randint(first, last)
            if number not in self.numbers and (reservation := _reserve(number)):
                self.numbers.append(number)
                self._reservations.append(reservation)
        self.release()
        raise OSError(f"no {count} free ports between {first} and {last} on {LOOPBACK}")

    def __getitem__(self, index: int) -> int:
        return self.numbers[index]

    def release(self) -> None:
        for reservation in self._reservations:
            reservation.close()
        self._reservations.clear()


def listening(host: str, port: int, timeout: float = 0.5) -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError:
        return False
    return True


def _range() -> tuple[int, int]:
    first, last = 20_000, 32_000
    with suppress(OSError, ValueError):
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        if low < last:  # an unusual machine: take the larger room, below or above
            first, last = (2_000, low - 1) if low > 65_535 - high + 2_000 else (high + 1, 65_535)
    return first, last


def _reserve(number: int) -> socket.socket | None:
    """A socket whose life is the reservation, or None if the port is taken.

    On Linux the reservation is a name in the abstract socket space, which leaves the port itself free for the
    broker to bind; elsewhere there is none, and the port is only known to be free now.
    """
    reservation = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if sys.platform == "linux":
            reservation.bind(f"\0brokerkit-port-{number}")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", number))
    except OSError:
        reservation.close()
        return None
    return reservation
