"""Which store a name means, and what is done with a cell that has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from brokerkit_conformance.books import Books
from brokerkit_conformance.checks.registry import checks
from brokerkit_conformance.faults import CannotInduce
from brokerkit_conformance.runner import Options, Plan, plan, run_cell
from brokerkit_conformance.stores import Stores
from brokerkit_conformance.targets import Target, understand

from brokerkit import once
from brokerkit.errors import BrokerkitError, ConfigurationError
from brokerkit.guarantees import Likelihood


def test_an_unknown_store_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ConfigurationError, match=r"no store 'nosuch': there are .*postgresql.*sqlite"):
        Stores(["nosuch"])
    with pytest.raises(ConfigurationError, match="no store serves nosuch"):
        Stores(["nosuch://localhost"])


def test_a_store_of_keys_is_one_too():
    assert Stores(["valkey://localhost"]).versions == {"valkey://localhost": {"product": "Valkey"}}


def test_a_check_of_stores_is_planned_with_each_store_and_skipped_by_name_without(tmp_path: Path):
    with Target(understand("sqlite")) as target:
        [without] = plan(target, Options(checks=["once.sent_twice"]))
        with_both = plan(target, Options(checks=["once.sent_twice"], stores=Stores(["sqlite", "postgresql"])))
        cell = run_cell(target, without, Options(), tmp_path)
    assert without.store == ""
    assert [some.store for some in with_both] == ["sqlite", "postgresql"]
    assert len({some.slug for some in with_both}) == 2
    assert (cell.verdict, cell.reason) == ("skipped", "no store was named to run it with: --store NAME")
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_had_leaves_its_cell_inconclusive(tmp_path: Path):
    missing = f"sqlite:///{tmp_path}/nowhere/store.db"
    with Target(understand("sqlite")) as target, Stores([missing]) as stores:
        some = Plan(target.name, checks()["once.sent_twice"], "at_least_once", "exactly_once", missing)
        cell = run_cell(target, some, Options(stores=stores), tmp_path)
    assert cell.verdict == "inconclusive"
    assert "the store did not start: " in cell.reason
    assert cell.store == missing


def test_each_cell_has_a_store_to_itself_and_the_next_has_it_after_it():
    with Stores(["sqlite"]) as stores:
        with stores.taken("sqlite") as first, stores.taken("sqlite") as second:
            assert first.url() != second.url()
            assert once.durability(first.url()).survives == "power_loss"
            assert first.claim.duplicate is Likelihood.NEVER
        with stores.taken("sqlite") as third:
            assert third in (first, second)
        assert stores.versions["sqlite"]["product"] == "SQLite"
        assert stores.versions["sqlite"]["synchronous"] == "full"


def test_a_store_of_somebody_else_is_neither_killed_nor_pruned_and_has_a_cell_at_a_time(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/store.db"
    with Stores([url]) as stores, stores.taken(url) as store:
        with pytest.raises(CannotInduce, match="not started here"):
            store.need_process()
        with pytest.raises(CannotInduce, match="not started here"):
            store.need_own()
        with pytest.raises(CannotInduce, match="none can be cut"):
            store.url(through=True)


def test_what_only_doubles_claims_so_and_names_the_condition():
    claim = once.Durability("power_loss", {}).claim()
    doubling = [spec for spec in checks().values() if spec.in_store and spec.of_store(claim).duplicate != "never"]
    assert [spec.name for spec in doubling] == ["once.sent_after_window", "once.dedup_in_memory"]
    for spec in doubling:
        changed = spec.of_store(claim)
        assert changed.duplicate is Likelihood.EXPECTED
        assert changed.condition
    assert "as the inbox is not pruned of it" in doubling[0].of_store(claim).condition


def test_the_ledger_cannot_be_read_without_its_tables():
    with Stores(["sqlite"]) as stores, stores.taken("sqlite") as store:
        books = Books(store.url(), "nobody")
        assert books.charged() == set()
        with pytest.raises(BrokerkitError, match="cannot be read: no such table"):
            books.charges()
        books.close()
