"""Every mutant, with the target, the check and the guarantees at which it must be caught, and the words of why."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

from brokerkit_conformance.cell import Cell
from brokerkit_conformance.mutants import harness

ALO = "at_least_once"
EXACTLY = "exactly_once"


@dataclass(frozen=True, slots=True)
class Mutant:
    """`name` is a function of `adapters`, `once` or `harness`, as `kind` says. `verdict` and `reason` (a pattern) are
    what the check `caught_by` must come to; any other end, held above all, means that the suite is broken."""

    name: str
    caught_by: str
    verdict: Literal["violated", "not witnessed", "inconclusive"]
    reason: str
    target: str = "sqlite"
    guarantee: str = ALO
    producer_guarantee: str = ALO
    kind: Literal["adapter", "once", "harness"] = "adapter"
    trials: int = 1
    store: str = ""

    @property
    def id(self) -> str:
        return f"{self.name}-on-{self.where.replace(' ', '-')}-caught-by-{self.caught_by}"

    @property
    def where(self) -> str:
        return f"{self.target} with {self.store}" if self.store else self.target

    @property
    def adapter(self) -> str | None:
        """What actors are told to put around their broker."""
        module = {"adapter": "adapters", "once": "once"}.get(self.kind)
        return None if module is None else f"brokerkit_conformance.mutants.{module}:{self.name}"

    def at_work(self) -> AbstractContextManager[None]:
        """The context in which the suite is broken; of an adapter, one in which it is not."""
        broken: Callable[[], AbstractContextManager[None]] = (
            getattr(harness, self.name) if self.kind == "harness" else nullcontext
        )
        return broken()

    def escaped(self, cell: Cell) -> str:
        """Why `cell` does not show that this mutant was caught, and for its reason; empty when it does."""
        if cell.verdict != self.verdict:
            return f"{self.name} escaped: {cell.check} says {cell.verdict} ({cell.reason})"
        if not re.search(self.reason, cell.reason):
            return f"{self.name} was caught for another reason: {cell.reason}"
        return ""


def _transactional(name: str, caught_by: str, reason: str, trials: int = 1) -> Mutant:
    return Mutant(name, caught_by, "violated", reason, "kafka", EXACTLY, EXACTLY, trials=trials)


def _harness(name: str, caught_by: str, verdict: str, reason: str, target: str = "sqlite") -> Mutant:
    return Mutant(name, caught_by, verdict, reason, target, kind="harness")  # type: ignore[arg-type]


def _once(name: str, caught_by: str, reason: str, store: str, target: str = "sqlite", trials: int = 1) -> Mutant:
    return Mutant(
        name, f"once.{caught_by}", "violated", reason, target, EXACTLY, kind="once", trials=trials, store=store
    )


_STOOD = r"does not say that it stood there"
_CUT = r"journal ends at line \d+, and \d+ were written"
_AGAIN = r"effected twice, and the claim says never"
_KEPT = r"ack is settled: got|no lease was lost: got"
_NOT_TOLD = r"is told so, and stores nothing: got ok"
_NOT_REFUSED = r"the same key with another body is refused: got ok"
_LOST = r"\d+ lost, and the claim says never"

MUTANTS = [
    Mutant("acks_before_processing", "consumer_killed_before_processing", "violated", _LOST),
    Mutant("ack_does_nothing", "clean_shutdown", "violated", _AGAIN),
    Mutant("commits_the_highest", "consumer_killed_before_processing", "violated", _LOST),
    Mutant("late_ack_reported_settled", "consumer_frozen", "violated", r"late ack"),
    Mutant("late_ack_reported_settled", "lease_expired", "violated", r"late ack"),
    Mutant("forgets_to_extend", "lease_kept", "violated", _AGAIN),
    Mutant("extends_only_what_is_worked_on", "buffered_lease", "violated", _AGAIN),
    Mutant("extends_for_dead_handlers", "lease_released", "violated", r"is back within"),
    Mutant("drops_prefetched_on_close", "clean_shutdown", "violated", _LOST),
    Mutant("swallows_exceptions_and_acks", "nack_delay", "violated", r"given back comes again|" + _LOST),
    Mutant("dedups_by_body", "bodies_and_headers", "violated", _LOST),
    Mutant("confirmed_on_write", "producer_killed", "violated", _LOST),
    Mutant("forgets_that_it_was_forked", "settle_errors", "violated", r"ack in another process raises Forked: got no"),
    Mutant("ignores_returns", "send_refused", "violated", r"refused as unroutable: got confirmed"),
    _harness("kill_is_sigterm", "consumer_killed_before_ack", "inconclusive", r"that was no SIGKILL"),
    _harness("barrier_never_reached", "consumer_killed_before_ack", "inconclusive", r"did not say AT"),
    _harness("strikes_without_waiting", "consumer_killed_before_ack", "inconclusive", _STOOD),
    _harness("reader_dedups", "consumer_killed_before_ack", "not witnessed", r"no message was duplicated"),
    _harness("reader_stops_at_the_count", "consumer_killed_before_ack", "inconclusive", r"the drain read for"),
    _harness("journal_loses_its_last_line", "consumer_killed_before_ack", "inconclusive", _CUT),
    _harness("journal_loses_its_last_line", "clean_shutdown", "inconclusive", _CUT),
    _harness("proxy_matches_nothing", "confirm_lost", "inconclusive", r"came by the proxy", "rabbitmq"),
    *(
        mutant
        for target in ("rabbitmq", "kafka")
        for mutant in (
            Mutant("acks_before_processing", "consumer_killed_before_processing", "violated", _LOST, target),
            Mutant("commits_the_highest", "consumer_killed_before_processing", "violated", _LOST, target),
            Mutant("drops_prefetched_on_close", "clean_shutdown", "violated", _LOST, target),
            Mutant("ack_does_nothing", "clean_shutdown", "violated", _AGAIN, target),
        )
    ),
    Mutant("old_tag_on_a_new_channel", "consumer_frozen", "violated", r"late ack", "rabbitmq"),
    Mutant("ignores_returns", "send_refused", "violated", r"refused as unroutable: got confirmed", "rabbitmq"),
    Mutant("retries_with_a_fresh_id", "confirm_lost", "violated", r"nobody sent it", "rabbitmq"),
    Mutant("confirmed_on_write", "producer_killed", "violated", _LOST, "rabbitmq"),
    Mutant("confirmed_on_write", "producer_killed", "violated", _LOST, "kafka"),
    Mutant("late_ack_reported_settled", "consumer_frozen", "violated", r"late ack", "kafka"),
    Mutant("polls_between_messages", "lease_kept", "violated", _KEPT, "kafka"),
    Mutant("late_ack_reported_settled", "consumer_frozen", "violated", r"late ack", "sqs"),
    Mutant("forgets_to_extend", "lease_kept", "violated", _KEPT, "sqs"),
    Mutant("late_ack_reported_settled", "hazard_stale_handle_accepted", "violated", r"late ack", "sqs"),
    Mutant("uses_the_first_handle", "hazard_received_again", "violated", r"the ack is settled: got|is deleted", "sqs"),
    Mutant("ignores_failed_entries", "hazard_batch_failed_in_part", "violated", _LOST, "sqs"),
    _transactional("offsets_outside_the_transaction", "txn_killed", r"without offsets|" + _AGAIN, trials=4),
    _transactional("reads_uncommitted", "txn_aborted", r"aborted read"),
    _transactional("new_id_at_each_start", "txn_killed", r"successor", trials=2),  # only the second is sure to be open
    _transactional("producer_kept_after_an_unknown_commit", "txn_delayed_requests", r"aborted read"),
    _transactional("no_rewind_after_abort", "txn_aborted", _LOST),
    _once("dedups_in_memory", "killed_before_ack", _AGAIN, "sqlite"),
    _once("dedups_in_memory", "killed_before_ack", _AGAIN, "postgresql"),
    _once("marks_in_another_transaction", "killed_before_commit", _LOST, "sqlite"),
    _once("marks_in_another_transaction", "killed_before_commit", _LOST, "postgresql"),
    _once("prunes_too_early", "sent_twice", _AGAIN, "sqlite"),
    _once("prunes_too_early", "sent_twice", _AGAIN, "postgresql"),
    # SQLite lets in one writer at a time: who looks there has the lock already, and sees all that was marked.
    _once("looks_and_then_marks", "two_workers", _AGAIN, "postgresql"),
    # A SQLite file has no connection that could be lost between the two.
    _once("acks_before_commit", "commit_lost", _LOST, "postgresql"),
    _once("moves_before_the_effects", "checkpoint", _LOST, "postgresql", "kafka", 1),
    _once("trusts_the_broker_s_place", "checkpoint", _AGAIN, "sqlite", "kafka", 2),
    _once("marks_before_confirm", "relay_killed", _LOST, "sqlite"),
    _once("marks_before_confirm", "relay_killed", _LOST, "postgresql"),
    _once("finishes_whoever_holds", "key_holder_frozen", _NOT_TOLD, "sqlite"),
    _once("finishes_whoever_holds", "key_holder_frozen", _NOT_TOLD, "valkey"),
    _once("keys_without_fingerprint", "key_with_another_body", _NOT_REFUSED, "sqlite"),
    _once("keys_without_fingerprint", "key_with_another_body", _NOT_REFUSED, "valkey"),
    _once("keys_from_the_clock", "key_holder_killed", _AGAIN, "sqlite"),
    _once("keys_from_the_clock", "key_holder_killed", _AGAIN, "valkey"),
]
