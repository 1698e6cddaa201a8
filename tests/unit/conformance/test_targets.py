"""What a user may name as a target, and how a URL is shown and led through the fault proxy."""

from __future__ import annotations

import pytest
from brokerkit_conformance import targets
from brokerkit_conformance.targets import Target, understand

from brokerkit.errors import ConfigurationError


def test_a_url_is_shown_without_its_password_and_options() -> None:
    asked = understand("rabbitmq://me:p%40ss@one:1,two:2/vhost")
    assert asked.name == "rabbitmq://me@one:1,two:2/vhost"
    assert asked.plugin.name == "rabbitmq"
    assert asked.url == "rabbitmq://me:p%40ss@one:1,two:2/vhost"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("carrier-pigeon://x", "installed:"),
        ("rabbitmq://me:sesame@host:99999", "65535"),
        ("rabbitmq://me:sesame@[::1", "brackets"),
        ("rabbitmq://me:sesame@host/?nope=1", "nope"),
        ("nosuch", "there are"),
        ("nosuch:3nodes?a=b", "there are"),
    ],
)
def test_what_is_no_target_is_refused_before_anything_starts_and_without_its_secret(name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as error:
        understand(name)
    assert "sesame" not in str(error.value)


def test_a_local_target_takes_nodes_and_settings_from_its_name() -> None:
    asked = understand("kafka:3nodes?client.acks=1&x=")
    assert (asked.nodes, dict(asked.settings), asked.url) == (3, {"client.acks": "1", "x": ""}, None)


@pytest.mark.parametrize(
    ("url", "address"), [("rabbitmq://[::1]:5", ("::1", 5)), ("rabbitmq://a:1,b:2", None), ("rabbitmq://a", None)]
)
def test_a_proxy_stands_before_one_host_with_its_port(
    url: str, address: tuple[str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[str, int]] = []

    class Recorder:
        def __init__(self, nodes: int, codec: object) -> None: ...

        def serve(self, upstream: list[tuple[str, int]]) -> None:
            served.extend(upstream)

    monkeypatch.setattr(targets, "Proxy", Recorder)
    found = targets._proxy_before(url, understand(url).plugin)
    assert (found is not None) == (address is not None)
    assert served == ([address] if address else [])


def test_what_runs_elsewhere_has_no_process_that_could_be_killed() -> None:
    assert Target(understand("memory://")).nodes == 0
