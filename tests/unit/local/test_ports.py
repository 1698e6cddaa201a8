"""Ports stay with the broker that reserved them, also while it is down."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from brokerkit.local import ports
from brokerkit.local.ports import Ports, listening


def test_ports_are_different_and_can_be_bound():
    reserved = Ports(20)
    try:
        assert len(set(reserved.numbers)) == 20
        for number in reserved.numbers:
            with socket.socket() as server:
                server.bind(("127.0.0.1", number))
    finally:
        reserved.release()


@pytest.mark.skipif(sys.platform != "linux", reason="reservations among processes need Linux")
def test_another_process_does_not_get_a_port_that_is_reserved_and_not_bound(monkeypatch):
    reserved = Ports(1)
    code = f"from brokerkit.local import ports; print(ports._reserve({reserved[0]}))"
    try:
        taken = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
        assert taken.stdout.strip() == "None"
    finally:
        reserved.release()
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert "socket" in again.stdout


def test_a_port_that_somebody_listens_on_is_not_taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert ports._reserve(server.getsockname()[1]) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's range of outgoing ports")
def test_ports_lie_outside_of_the_range_from_which_clients_connect():
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    reserved = Ports(5)
    reserved.release()
    assert all(number < low or number > high for number in reserved.numbers)


def test_asking_for_more_than_there_are_is_an_error_that_names_the_range(monkeypatch):
    monkeypatch.setattr(ports, "_range", lambda: (20_000, 20_002))
    with pytest.raises(OSError, match="no 9 free ports between 20000 and 20002"):
        Ports(9)


def test_listening_tells_a_server_from_a_closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listening("127.0.0.1", port)
    assert not listening("127.0.0.1", port)
