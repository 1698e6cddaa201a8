"""The threads around boto3: items pile up, and each thread takes up to ten of them to one call.

A batch that is not full waits `linger` seconds for more, one at a time. Threads come when there is work for another
one, run nothing but `work`, and are gone when `close` returns, as far as their calls let them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

MOST = 10
"""Entries that a batch call of SQS takes."""


class Batches(Generic[T]):
    """`work` must not raise, and must see each item to its end."""

    def __init__(
        self, name: str, threads: int, linger: float, work: Callable[[Sequence[T]], None], *, most: int = MOST
    ) -> None:
        self._name = name
        self._most_threads = threads
        self._linger = linger
        self._work = work
        self._most = most
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._busy = 0
        self._lingering = False
        self._hurry = False
        self.closing = threading.Event()

    def put(self, items: Iterable[T]) -> None:
        with self._changed:
            self._items.extend(items)
            self._staff()

    def put_back(self, items: Sequence[T]) -> None:
        """What has to be tried again goes before everything else."""
        with self._changed:
            self._items.extendleft(reversed(items))
            self._staff()

    def __len__(self) -> int:
        return len(self._items)

    def hurry(self) -> None:
        """What is there now waits for nothing more."""
        with self._changed:
            if self._items:
                self._hurry = True
                self._changed.notify_all()

    def close(self, timeout: float) -> list[T]:
        """Works off what is there within `timeout` seconds; returns what was not begun by then."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            while self._items or self._busy:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            self.closing.set()
            left_over = list(self._items)
            self._items.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        return left_over

    def _run(self) -> None:
        while True:
            batch = self._take()
            if not batch:
                return
            try:
                self._work(batch)
            finally:
                with self._changed:
                    self._busy -= 1
                    if not self._items and not self._busy:
                        self._changed.notify_all()

    def _take(self) -> list[T]:
        """The next batch; empty when it is time to end."""
        items = self._items
        with self._changed:
            while True:
                if self.closing.is_set():
                    return []
                if len(items) >= self._most or (items and (self._hurry or not self._linger)):
                    break
                if items and not self._lingering:
                    self._wait_for_more()
                    if items:
                        break
                    continue
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            batch = [items.popleft() for _ in range(min(len(items), self._most))]
            self._busy += 1
            if items:
                self._staff()
            else:
                self._hurry = False
            return batch

    def _staff(self) -> None:
        """Wakes a thread, or starts one, if there is work for another."""
        if not self._items or (self._lingering and len(self._items) < self._most):
            return
        if self._idle:
            self._changed.notify()
        elif len(self._threads) < self._most_threads and not self.closing.is_set():
            thread = threading.Thread(target=self._run, name=f"brokerkit sqs {self._name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _wait_for_more(self) -> None:
        self._lingering = True
        self._idle += 1
        deadline = time.monotonic() + self._linger
        try:
            while len(self._items) < self._most and not self._hurry and not self.closing.is_set():
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)
        finally:
            self._idle -= 1
            self._lingering = False
