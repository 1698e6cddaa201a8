"""What the layer makes of a transactor: what a transaction takes in, how it ends, who is told, what runs again."""

import time

import pytest

import brokerkit
from brokerkit.driver import Incoming, Subscription, Transactor
from brokerkit.errors import Closed, ConfigurationError, ConnectionLost, LeaseLost, NotFound, SendRefused
from brokerkit.events import Reporter
from brokerkit.message import stamped
from brokerkit.transactions import Retry, Transactions


class Raw(Incoming):
    def __init__(self, number):
        self.token = number
        self.id, self.id_source, self.body = f"id-{number}", "producer", b"%d" % number
        self.key, self.all_headers, self.content_type, self.published_at = None, {"brokerkit-x": "y", "a": "b"}, None, 0
        self.position, self.attempt, self.lane, self.topic, self.native, self.size = None, 1, 0, "in", None, 10


class Script(Transactor):
    """Numbers in order. `fail` maps a call's name to errors it raises, the first ones first."""

    def __init__(self, driver):
        self.driver = driver
        self.longest = driver.longest
        self.closed = False
        self.reset()

    def reset(self):
        self.place = self.driver.place
        self.sent, self.acks, self.rejects = [], [], []

    def raise_for(self, name):
        self.driver.calls.append(name)
        errors = self.driver.fail.get(name)
        if errors and (error := errors.pop(0)) is not None:
            raise error

    def begin(self):
        self.raise_for("begin")
        self.reset()

    def receive(self, max_messages, timeout):
        self.raise_for("receive")
        self.driver.asked.append(max_messages)
        most = min(max_messages, self.driver.chunk)
        found = [Raw(n) for n in range(self.place, min(self.place + most, self.driver.count))]
        self.place += len(found)
        return found

    def send(self, topic, fields):
        self.raise_for("send")
        self.sent.append(stamped(fields))

    def settle(self, acks, rejects=()):
        self.raise_for("settle")
        self.acks, self.rejects = list(acks), list(rejects)

    def commit(self):
        self.raise_for("commit")
        self.driver.place = self.place
        self.driver.committed += [message.body for message in self.sent]
        self.driver.dead += [(raw.token, reason) for raw, reason in self.rejects]
        self.reset()

    def abort(self):
        self.raise_for("abort")
        self.reset()

    def close(self, timeout):
        self.closed = True


class Driver:
    def __init__(self, count=10):
        self.count, self.place, self.chunk, self.longest = count, 0, 1000, None
        self.calls, self.asked, self.committed, self.dead, self.opened = [], [], [], [], []
        self.fail = {}

    def transactor(self, topics, subscription, *, instance):
        if errors := self.fail.get("open"):
            raise errors.pop(0)
        self.opened.append(Script(self))
        return self.opened[-1]


@pytest.fixture
def driver():
    return Driver()


@pytest.fixture
def events():
    return []


@pytest.fixture
def over(driver, events):
    made = []

    def make(**options):
        options = {"instance": "a", "on_error": "raise", "max_messages": 100, "timeout": 0.2, **options}
        reporter = Reporter("transactions", [lambda event: events.append(str(event.kind))])
        made.append(Transactions(driver, ["in"], Subscription("sub"), reporter, **options))
        return made[-1]

    yield make
    for transactions in made:
        driver.fail.clear()
        transactions.close()


def copy(transaction):
    with transaction:
        for delivery in transaction.deliveries:
            transaction.send("out", delivery.body)
    return transaction.state


NUMBERS = [b"%d" % n for n in range(10)]


def test_leaving_the_block_commits_what_came_and_what_was_sent(driver, over):
    assert copy(over().receive()) == "committed"
    assert driver.committed == NUMBERS
    assert driver.calls[-2:] == ["settle", "commit"]


def test_without_seconds_a_transaction_is_what_one_call_brought(driver, over):
    driver.chunk = 4
    assert copy(over(max_messages=6).receive()) == "committed"
    assert driver.committed == NUMBERS[:4]
    assert driver.asked == [6]


def test_with_seconds_iterating_takes_in_more_up_to_the_count(driver, over):
    driver.chunk = 3
    transactions = over(max_messages=8, max_seconds=5.0)
    transaction = transactions.receive()
    assert len(transaction.deliveries) == 3
    assert copy(transaction) == "committed"
    assert driver.committed == NUMBERS[:8]
    assert len(transaction.deliveries) == 8


def test_a_stream_takes_in_more_too_and_lets_go_of_what_it_handed_out(driver, over):
    driver.chunk = 3
    transaction = over(max_messages=8, max_seconds=5.0).receive()
    kept = []
    with transaction:
        for delivery in transaction.stream():
            transaction.send("out", delivery.body)
            kept.append(len(transaction.deliveries))
    assert transaction.state == "committed"
    assert (driver.committed, transaction.taken) == (NUMBERS[:8], 8)
    assert kept == [0] * 8


def test_a_stream_that_is_left_early_goes_on_where_it_was(driver, over):
    driver.chunk = 4
    transaction = over(max_messages=8, max_seconds=5.0).receive()
    with transaction:
        first = next(transaction.stream()).body
        left = [delivery.body for delivery in transaction.deliveries[:2]]
        rest = [delivery.body for delivery in transaction.stream()]
    assert [first, *rest] == NUMBERS[:8]
    assert left == NUMBERS[1:3]


def test_all_that_a_transaction_took_in_is_settled_by_its_commit_however_much_was_looked_at(driver, over):
    with over(max_seconds=5.0).receive() as transaction:
        stream = transaction.stream()
        next(stream)
        settled = driver.opened[0]
        seen = []
        commit, settled.commit = settled.commit, lambda: (seen.extend(settled.acks), commit())
    assert seen == list(range(10))


def test_poison_in_a_stream_is_found_as_well(driver, over):
    transactions = over(on_error=Retry(attempts=2), max_seconds=0.5)
    for _ in range(40):
        transaction = transactions.receive()
        if transaction is not None:
            with transaction:
                for delivery in transaction.stream():
                    assert delivery.body != b"3"
                    transaction.send("out", delivery.body)
    assert driver.committed == [number for number in NUMBERS if number != b"3"]
    assert [token for token, _ in driver.dead] == [3]


@pytest.mark.parametrize("bound", [{"max_bytes": 30}, {"max_seconds": 0.000001}])
def test_bytes_and_time_end_it_too(driver, over, bound):
    driver.chunk = 3
    assert copy(over(**{"max_seconds": 5.0, **bound}).receive()) == "committed"
    assert len(driver.committed) == 3


def test_it_ends_when_nothing_comes(driver, over):
    began = time.monotonic()
    assert copy(over(max_seconds=60.0).receive()) == "committed"
    assert time.monotonic() - began < 5.0


def test_an_exception_aborts_and_reaches_the_user(driver, over):
    transactions = over()
    transaction = transactions.receive()
    with pytest.raises(ZeroDivisionError), transaction:
        transaction.send("out", b"never")
        raise ZeroDivisionError
    assert (transaction.state, driver.calls[-1]) == ("aborted", "abort")
    assert copy(transactions.receive()) == "committed"
    assert driver.committed == NUMBERS


def test_an_error_of_the_brokers_is_an_event_and_no_exception(driver, over, events):
    transactions = over()
    driver.fail = {"commit": [LeaseLost("fenced")]}
    assert copy(transactions.receive()) == "aborted"
    driver.fail = {"commit": [ConnectionLost("who knows")]}
    assert copy(transactions.receive(2.0)) == "unknown"
    assert copy(transactions.receive(2.0)) == "committed"
    assert (driver.committed, events, len(driver.opened)) == (NUMBERS, ["lost", "lost"], 1)


@pytest.mark.parametrize("where", ["send", "receive"])
def test_so_is_one_inside_the_block(driver, over, events, where):
    driver.chunk = 5
    transactions = over(max_seconds=5.0)
    transaction = transactions.receive()
    driver.fail = {where: [LeaseLost("work moved")]}
    assert copy(transaction) == "aborted"
    assert copy(transactions.receive(2.0)) == "committed"
    assert driver.committed == NUMBERS
    assert events == ["lost"]


def test_a_user_who_swallows_it_still_commits_nothing(driver, over):
    transactions = over()
    transaction = transactions.receive()
    driver.fail = {"send": [LeaseLost("work moved")]}
    with transaction:
        with pytest.raises(LeaseLost):
            transaction.send("out", b"x")
    assert transaction.state == "aborted"
    assert driver.committed == []


def test_when_even_the_abort_fails_a_new_session_goes_on(driver, over, events):
    transactions = over()
    driver.fail = {
        "commit": [ConnectionLost("gone")],
        "abort": [ConnectionLost("gone")],
        "open": [ConnectionLost("not yet")],
    }
    assert copy(transactions.receive()) == "unknown"
    assert copy(transactions.receive(5.0)) == "committed"
    assert driver.opened[0].closed
    assert (driver.committed, events) == (NUMBERS, ["disconnected", "reconnected"])


def test_receive_returns_in_time_while_there_is_no_session(driver, over):
    transactions = over()
    driver.fail = {"receive": [ConnectionLost("gone")], "abort": [ConnectionLost("gone")]}
    assert transactions.receive() is None
    driver.fail = {"open": [ConnectionLost("not yet")] * 100}
    began = time.monotonic()
    assert transactions.receive(0.3) is None
    assert time.monotonic() - began < 2.0


def test_a_message_that_can_never_be_stored_is_the_users(driver, over):
    driver.fail = {"commit": [SendRefused("too large", "too_large")]}
    with pytest.raises(SendRefused):
        copy(over().receive())
    assert driver.calls[-1] == "abort"


def test_what_is_missing_is_the_users_too(driver, over):
    driver.fail = {"send": [NotFound("no such topic")]}
    with pytest.raises(NotFound):
        copy(over().receive())
    assert driver.committed == []


def fail_on(transactions, bad, runs=60):
    """Copies, failing whenever one of `bad` is among what came; how often each was seen alone."""
    alone = 0
    for _ in range(runs):
        transaction = transactions.receive()
        if transaction is None:
            continue
        with transaction:
            for delivery in transaction.deliveries:
                transaction.send("out", delivery.body)
            failed = [delivery.body for delivery in transaction.deliveries if delivery.body in bad]
            alone += bool(failed) and len(transaction.deliveries) == 1
            assert not failed
    return alone


def test_poison_is_found_by_halves_and_goes_to_the_dead_letters(driver, over, events):
    assert fail_on(over(on_error=Retry(attempts=3)), {b"3", b"8"}) == 6
    assert driver.committed == [number for number in NUMBERS if number not in (b"3", b"8")]
    assert driver.dead == [(3, "AssertionError in 3 transactions"), (8, "AssertionError in 3 transactions")]
    assert events == ["dead_lettered", "dead_lettered"]


def test_without_dead_letters_the_poison_is_raised_after_its_attempts(driver, over):
    transactions = over(on_error=Retry(attempts=2, dead_letter=False))
    with pytest.raises(AssertionError):
        fail_on(transactions, {b"3"})
    assert (driver.committed, driver.dead) == (NUMBERS[:3], [])


def test_after_the_poison_a_transaction_is_as_large_as_before(driver, over):
    driver.count = 100
    fail_on(over(on_error=Retry(attempts=1), max_messages=20), {b"5"})
    assert len(driver.committed) == 99
    assert driver.asked[-1] == 20


@pytest.mark.parametrize(
    ("misuse", "said"),
    [
        (lambda many, one: one.send("out", b"x"), "inside"),
        (lambda many, one: many.receive(), "nest"),
        (lambda many, one: (one.__enter__(), many.receive()), "nest"),
        (lambda many, one: (one.__enter__(), one.__enter__()), "nest"),
    ],
)
def test_misuse_names_the_cause(over, misuse, said):
    transactions = over()
    with pytest.raises(ConfigurationError, match=said):
        misuse(transactions, transactions.receive())


def test_what_has_ended_takes_nothing_more(over):
    transactions = over()
    transaction = transactions.receive()
    copy(transaction)
    with pytest.raises(Closed, match="committed"):
        transaction.send("out", b"x")
    with pytest.raises(Closed), transaction:
        pass
    transactions.close()
    with pytest.raises(Closed):
        transactions.receive()


def test_closing_aborts_what_is_open(driver, over):
    transactions = over()
    with transactions.receive() as transaction:
        transaction.send("out", b"x")
        transactions.close()
    assert (driver.committed, driver.calls[-1], driver.opened[0].closed) == ([], "abort", True)
    assert transaction.state == "aborted"


def test_a_transaction_may_not_last_longer_than_the_broker_keeps_it(driver, over):
    driver.longest = 60.0
    with pytest.raises(ConfigurationError, match="60 s"):
        over(max_seconds=60.0)
    assert driver.opened[0].closed


def test_brokerkits_own_headers_are_not_the_users(over):
    with over().receive() as transaction:
        assert transaction.deliveries[0].headers == {"a": "b"}
        assert transaction.deliveries[0].message.headers == {"a": "b"}
        assert [delivery.id for delivery in transaction.deliveries[:2]] == ["id-0", "id-1"]


def test_retry_is_what_the_package_exports():
    assert brokerkit.Retry is Retry
