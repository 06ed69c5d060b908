"""Who has room for a task: proxies by what they offer, with the tasks that each has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

Offered = frozenset[str]


class Rooms:
    """Proxies that have room for another task, kept up to date one by one.

    With a thousand proxies it would cost more to collect them for each task than everything else
    that is done for one.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Offered, int, int]] = {}
        """What each offers, the tasks that it has, and how many it can have."""
        self._rooms: defaultdict[Offered, dict[str, float]] = defaultdict(dict)

    def put(self, address: str, offered: Offered, tasks: int, capacity: int) -> None:
        """Note what a proxy offers, has, and can have."""
        known = self._known.get(address)
        if known is not None and known[0] != offered:
            self._leave(address, known[0])
        self._known[address] = offered, tasks, capacity
        if tasks < capacity:
            self._rooms[offered][address] = float(tasks)
        else:
            self._leave(address, offered)

    def add(self, address: str, tasks: int) -> None:
        """A proxy has so many tasks more, or fewer; of one that is not known nothing is noted."""
        if (known := self._known.get(address)) is not None:
            offered, before, capacity = known
            self.put(address, offered, max(0, before + tasks), capacity)

    def drop(self, address: str) -> None:
        """A proxy is not to be given anything."""
        if (known := self._known.pop(address, None)) is not None:
            self._leave(address, known[0])

    def for_task(self, agents: Collection[str]) -> Mapping[str, float]:
        """Proxies with room for a task of these agents, with the tasks that each has.

        Those that offer the most of its agents, if any of them has room: what an owner runs itself
        crosses no network.
        """
        best: list[dict[str, float]] = []
        most = 0
        for offered, room in self._rooms.items():
            common = len(offered.intersection(agents))
            if common > most:
                best, most = [], common
            if common == most:
                best.append(room)
        return (
            best[0] if len(best) == 1 else {a: tasks for room in best for a, tasks in room.items()}
        )

    def _leave(self, address: str, offered: Offered) -> None:
        room = self._rooms.get(offered)
        if room is not None and room.pop(address, None) is not None and not room:
            del self._rooms[offered]
