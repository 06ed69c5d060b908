"""Which claims are over: for each task the epoch from which on a claim of it may stand."""

from __future__ import annotations

from collections import OrderedDict

from agentos.core.epoch import Epoch


class Floors:
    """The newest floor of each task; what comes late under an older epoch meets it.

    Args:
        most: tasks that are remembered; the oldest are forgotten first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._floors: OrderedDict[int, Epoch] = OrderedDict()

    def lift(self, task_id: int, floor: Epoch) -> None:
        """Claims of this task under epochs older than `floor` are over."""
        self._floors[task_id] = max(floor, self._floors.pop(task_id, floor))
        if len(self._floors) > self._most:
            self._floors.popitem(last=False)

    def of(self, task_id: int) -> Epoch:
        """The floor of a task; the oldest epoch if none is known."""
        return self._floors.get(task_id, Epoch())
