"""The provider chain takes the first way that works and can say why not the others."""

from __future__ import annotations

import socket

import pytest

from brokerkit.errors import NotSupported
from brokerkit.local.chain import PROVIDER, Chain, RunningBroker, url_variable
from brokerkit.local.contract import Chosen, StartFailed, Unavailable


class Way(RunningBroker):
    """A way that works, or does not for a reason."""

    def __init__(self, reason: str | None = None, *, excusable: bool = False) -> None:
        super().__init__("thing", "Thing", 1)
        self.reason = reason
        self.excusable = excusable
        self.asked = 0

    def provision(self) -> Chosen:
        self.asked += 1
        if self.reason:
            raise Unavailable(self.reason, excusable=self.excusable)
        return Chosen("recipe", "Thing", "1.0", "broker", "it works")


def test_the_first_way_that_works_is_taken_and_the_earlier_ones_are_told():
    last = Way()
    chain = Chain("thing", [("installed", Way("install it")), ("recipe", Way()), ("docker", last)])
    chosen = chain.provision()
    assert (chosen.provider, chosen.why, chosen.passed) == ("recipe", "it works", ("installed: install it",))
    assert last.asked == 0


def test_where_no_way_works_each_is_named_with_what_it_needs():
    chain = Chain(
        "thing", [("installed", Way("install it")), ("recipe", Way("needs apt")), ("docker", Way("start it"))]
    )
    with pytest.raises(Unavailable) as error:
        chain.provision()
    assert str(error.value).splitlines()[1:] == ["  installed: install it", "  recipe: needs apt", "  docker: start it"]


@pytest.mark.parametrize(("recipe", "excused"), [(True, True), (False, False)])
def test_it_is_excused_only_if_the_machine_lacks_both_by_nature(recipe, excused):
    chain = Chain(
        "thing",
        [("running", Way("no url")), ("recipe", Way("no", excusable=recipe)), ("docker", Way("no", excusable=True))],
    )
    with pytest.raises(Unavailable) as error:
        chain.provision()
    assert error.value.excusable is excused


def test_the_user_can_leave_ways_out(monkeypatch):
    monkeypatch.setenv(PROVIDER, "docker")
    chain = Chain("thing", [("recipe", Way()), ("docker", Way("start it"))])
    with pytest.raises(Unavailable, match="recipe: left out by BROKERKIT_PROVIDER=docker"):
        chain.provision()


def test_a_chain_that_is_not_started_says_so_and_can_be_stopped():
    chain = Chain("thing", [])
    with pytest.raises(StartFailed, match="thing is not started"):
        chain.url()
    chain.stop()


def test_each_target_has_its_own_variable():
    assert url_variable("rabbitmq:3.10") == "BROKERKIT_RABBITMQ_3_10_URL"


@pytest.fixture
def running(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("BROKERKIT_THING_URL", f"thing://me:secret@127.0.0.1:{port}/vhost?a=b")
        yield RunningBroker("thing", "Thing", 5672)


def test_a_running_broker_is_used_as_it_is_and_by_way_of_a_proxy(running, tmp_path):
    running.start(tmp_path, through=[("127.0.0.1", 7)], secure=True)
    assert running.url().endswith("/vhost?a=b")
    assert running.url(through=True) == "thing://me:secret@127.0.0.1:7/vhost?a=b"
    assert running.upstream()[0][0] == "127.0.0.1"
    assert running.pids() == []


def test_a_running_broker_is_neither_killed_nor_configured_from_here(running, tmp_path):
    with pytest.raises(NotSupported, match="was not started here and cannot be killed"):
        running.kill()
    with pytest.raises(StartFailed, match="not configured from here"):
        running.start(tmp_path, settings={"a": "b"})


def test_an_address_where_nothing_answers_is_named_without_the_password(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("BROKERKIT_THING_URL", f"thing://me:secret@127.0.0.1:{port}")
    with pytest.raises(StartFailed, match=f"nothing accepts connections at 127.0.0.1:{port}") as error:
        RunningBroker("thing", "Thing", 5672).start(tmp_path)
    assert "secret" not in str(error.value)


def test_hosts_without_a_port_get_the_products_own(monkeypatch):
    monkeypatch.setenv("BROKERKIT_THING_URL", "thing://a,b:7")
    assert RunningBroker("thing", "Thing", 5672).upstream() == [("a", 5672), ("b", 7)]
    monkeypatch.setenv("BROKERKIT_THING_URL", "thing://[::1]:9")
    assert RunningBroker("thing", "Thing", 5672).upstream() == [("::1", 9)]
