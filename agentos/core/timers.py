"""Deadlines by key: a heap with lazy deletion (Python's heapq documentation)."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

MOST_DOUBLINGS = 3


def patience(resend_s: float, repeats: int) -> float:
    """Seconds to wait for an answer before asking again: twice as long each time, up to eightfold.

    A store that is behind gets further behind if everybody repeats what it has not come to yet
    (congestion collapse: RFC 5681; the doubling is that of RFC 6298, section 5.5).

    Args:
        resend_s: how long to wait for the answer to the first question, in seconds.
        repeats: how often it has been repeated.
    """
    return resend_s * 2.0 ** min(repeats, MOST_DOUBLINGS)


class Timers(Generic[K]):
    """What is due when. One deadline for each key; setting it again replaces it."""

    def __init__(self) -> None:
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._count = 0

    def set(self, key: K, due: float) -> None:
        """Want `key` at `due`, instead of whenever it was wanted before."""
        self._due[key] = due
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, key))
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(due, n, key) for n, (key, due) in enumerate(self._due.items())]
            self._count = len(self._heap)
            heapq.heapify(self._heap)

    def cancel(self, key: K) -> None:
        """Want `key` no more."""
        self._due.pop(key, None)

    def pop_due(self, now: float) -> list[K]:
        """Take every key that is due, in order of their deadlines."""
        keys = []
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                keys.append(key)
        return keys

    def next(self) -> float | None:
        """The earliest deadline; `None` when nothing is wanted."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) == due:
                return due
            heapq.heappop(self._heap)
        return None

    def __len__(self) -> int:
        return len(self._due)
