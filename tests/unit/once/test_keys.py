"""What needs no store: fingerprints, derived keys, and arguments that are refused."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from brokerkit import once
from brokerkit.errors import ConfigurationError
from brokerkit.once import Keys, derived_key, fingerprint


def test_a_derived_key_is_the_same_each_time_and_another_for_another_part():
    key = derived_key("ledger", "evt-1", "charge")
    assert key == derived_key("ledger", "evt-1", "charge") == "eabff8af-13df-51ce-a6fc-a5005f5a8e2e"
    others = {
        derived_key("ledger", "evt-1", "refund"),
        derived_key("ledger", "evt-2", "charge"),
        derived_key("l", "edgerevt-1", "charge"),
    }
    assert len(others | {key}) == 4
    with pytest.raises(ConfigurationError, match="derives from"):
        derived_key("ledger", "", "charge")


def test_a_fingerprint_knows_bytes_text_and_json_and_not_the_order_of_keys():
    assert fingerprint({"b": [1, 2], "a": None}) == fingerprint({"a": None, "b": (1, 2)})
    different = [b"1", "1", 1, [1], {"a": 1}, b'{"a":1}', "\ud800", None]
    assert len({fingerprint(each) for each in different}) == len(different)
    assert fingerprint(b"x") == fingerprint(bytearray(b"x")) == fingerprint(memoryview(b"x"))


@pytest.mark.parametrize("request_", [object(), {"when": timedelta(1)}, float("nan"), {("a",): 1}, {1, 2}])
def test_what_cannot_be_fingerprinted_says_so(request_: Any):
    with pytest.raises(ConfigurationError, match=r"cannot be fingerprinted.*give bytes, text, or what JSON can say"):
        fingerprint(request_)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": ""}, "keys have a name"),
        ({"name": "x" * 256}, "keys have a name"),
        ({"keep": 259_200}, r"a datetime\.timedelta, not int"),
        ({"keep": timedelta(seconds=10)}, "less than the key is kept"),
        ({"lease": 0.01}, "at least 0.1 s"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_opened(arguments: dict[str, Any], words: str):
    with pytest.raises(ConfigurationError, match=words):
        Keys("sqlite:///never-opened.db", **{"name": "api", **arguments})


def test_a_store_of_keys_alone_needs_no_tables():
    for call in (once.init, once.script, once.durability):
        with pytest.raises(ConfigurationError, match="keeps idempotency keys and nothing else"):
            call("valkey://localhost:6379/0")


def test_a_decorated_function_s_result_must_be_json_and_its_failure_may_be_tried_again(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    once.init(url)
    with Keys(url, "api") as keys:

        @keys.once(key=str, request=lambda number: number)
        def work(number: int) -> Any:
            return object()

        for _ in range(2):
            with pytest.raises(ConfigurationError, match=r"the result of .*work cannot be stored as JSON"):
                work(7)
        assert keys.hold("7", 7).attempts == 3
