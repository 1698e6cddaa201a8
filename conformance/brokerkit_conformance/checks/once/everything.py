"""Workers, the broker and the store fail in an order and at moments that a seed gives."""

from collections.abc import Callable, Iterator

from brokerkit_conformance.charging import ChargerActor, Charging
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.faults import CannotInduce
from brokerkit_conformance.story import Story

_WORKERS = 3


@check(
    name="once.everything",
    point="once.everything",
    asked="Under load workers are killed and frozen, connections to the store lost in the middle of commits, the store "
    "and the broker killed and restarted, in an order and at moments drawn from the seed: do the workers go on by "
    "themselves, and is every message charged once?",
    varies="store",
    exclusive=True,
    trials=6,
)
def everything(story: Story) -> None:
    scene = _Scene(story)
    faults = scene.drawn()
    for _ in story.trials():
        story.wait(lambda: False, story.random.uniform(0.1, 0.8))
        while not scene.tried(next(faults)):
            pass
        before = len(scene.charging.books.charged())
        recovered = scene.charging.wait_charged(20, timeout=60.0, since=before)
        charged = len(scene.charging.books.charged()) - before
        story.expect("the workers go on by themselves", recovered, f"{charged} charged")
    scene.end()


class _Scene:
    def __init__(self, story: Story) -> None:
        self.story = story
        self.charging = Charging(story)
        self.producer = story.producer()
        self.workers = [self._worker() for _ in range(_WORKERS)]
        self.producer.start(100_000, rate=100, keys=16)
        self.charging.wait_charged(20)

    def drawn(self) -> Iterator[Callable[[], None]]:
        """Every fault once, in any order, again and again."""
        faults = [self._kill_worker, self._freeze_worker, self._lose_commit, self._break_store, self._break_broker]
        while True:
            self.story.random.shuffle(faults)
            yield from faults

    def tried(self, fault: Callable[[], None]) -> bool:
        """Whether it can be done here."""
        try:
            fault()
        except CannotInduce as why:
            self.story.note(str(why))
            return False
        return True

    def end(self) -> None:
        self.producer.stop()
        self.charging.wait_charged(timeout=20.0)
        self.charging.drain()

    def _worker(self) -> ChargerActor:
        return self.charging.charger(through=self.charging.store.proxy is not None, batch=10, work=0.003)

    def _replaced(self) -> ChargerActor:
        """One of the workers, with a successor in its place."""
        place = self.story.random.randrange(_WORKERS)
        gone, self.workers[place] = self.workers[place], self._worker()
        return gone

    def _kill_worker(self) -> None:
        self.story.kill(self._replaced(), "at any point of its work")

    def _freeze_worker(self) -> None:
        worker = self._replaced()
        self.story.freeze(worker, "at any point of its work")
        # Where its transaction is open, nobody gets at the rows it holds before it wakes up.
        self.story.wait(lambda: False, self.story.random.uniform(0.5, 2.0))
        self.story.thaw(worker)

    def _lose_commit(self) -> None:
        kind, way = self.story.random.choice([("commit", "client"), ("commit_answer", "broker")])
        rule = self.charging.store.network.drop_frame(kind, way=way, then="cut")  # type: ignore[arg-type]
        self.charging.lost_in_commit(rule, "a worker", f"{kind}_dropped")

    def _break_store(self) -> None:
        self.charging.store.need_process()
        self.charging.break_store()

    def _break_broker(self) -> None:
        self.story.need_broker_process()
        self.story.break_broker()
