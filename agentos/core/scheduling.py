"""Which waiting call goes first: two policies behind one small interface."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Policy(Protocol[T]):
    """An ordered set of waiting items."""

    def push(self, key: str, item: T, priority: int) -> None:
        """Let an item wait. A key that waits already keeps its place and its item."""
        ...

    def pop(self) -> T | None:
        """Take the one that goes first; `None` when nothing waits."""
        ...

    def discard(self, key: str) -> T | None:
        """Take one out, wherever it stands; `None` when it does not wait."""
        ...

    def __len__(self) -> int: ...


class Fifo(Generic[T]):
    """First come, first served; the priority is ignored."""

    def __init__(self) -> None:
        self._items: OrderedDict[str, T] = OrderedDict()

    def push(self, key: str, item: T, priority: int = 0) -> None:  # noqa: ARG002 - the interface's
        """Add at the end."""
        self._items.setdefault(key, item)

    def pop(self) -> T | None:
        """Take the oldest."""
        return self._items.popitem(last=False)[1] if self._items else None

    def discard(self, key: str) -> T | None:
        """Take one out of the middle."""
        return self._items.pop(key, None)

    def __len__(self) -> int:
        return len(self._items)


class Priority(Generic[T]):
    """Higher priority first; among equals, first come, first served.

    A binary heap whose removed entries stay until they surface (the "lazy deletion" of Python's
    heapq documentation).
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, str]] = []
        self._items: dict[str, tuple[int, T]] = {}
        self._arrivals = 0

    def push(self, key: str, item: T, priority: int = 0) -> None:
        """Add behind those of the same priority."""
        if key in self._items:
            return
        self._arrivals += 1
        self._items[key] = (self._arrivals, item)
        heapq.heappush(self._heap, (-priority, self._arrivals, key))

    def pop(self) -> T | None:
        """Take the oldest of the highest priority."""
        while self._heap:
            _, arrival, key = heapq.heappop(self._heap)
            entry = self._items.get(key)
            if entry is not None and entry[0] == arrival:
                del self._items[key]
                return entry[1]
        return None

    def discard(self, key: str) -> T | None:
        """Take one out of the middle."""
        entry = self._items.pop(key, None)
        if entry is None:
            return None
        if len(self._heap) > 2 * len(self._items) + 64:
            live = {arrival for arrival, _ in self._items.values()}
            self._heap = [e for e in self._heap if e[1] in live]
            heapq.heapify(self._heap)
        return entry[1]

    def __len__(self) -> int:
        return len(self._items)


def make_policy(name: str) -> Policy[T]:
    """The policy of this name: `fifo` or `priority`."""
    policies: dict[str, type[Fifo[T]] | type[Priority[T]]] = {"fifo": Fifo, "priority": Priority}
    return policies[name]()
