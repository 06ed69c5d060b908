"""Where it goes: two ways of choosing a place behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol


class Balancer(Protocol):
    """Chooses one of several places."""

    def choose(self, loads: Mapping[str, float], avoid: Collection[str] = ()) -> str | None:
        """One of `loads` (place to load, any unit), outside `avoid` if possible; `None` for none."""
        ...


class LeastLoaded:
    """The least loaded place; among equals the first by name, so that a run can be repeated."""

    def choose(self, loads: Mapping[str, float], avoid: Collection[str] = ()) -> str | None:
        """The place with the smallest load."""
        if not avoid:  # two quick passes: there may be a thousand places
            low = min(loads.values(), default=0.0)
            return min((place for place, load in loads.items() if load == low), default=None)
        return min(loads, key=lambda place: (place in avoid, loads[place], place), default=None)


class Random:
    """Any place, all equally likely.

    Args:
        chance: returns a float in [0, 1), like `random.random`.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance

    def choose(self, loads: Mapping[str, float], avoid: Collection[str] = ()) -> str | None:
        """A place drawn by lot."""
        places = sorted(p for p in loads if p not in avoid) or sorted(loads)
        return places[int(self._chance() * len(places))] if places else None


def make_balancer(name: str, chance: Callable[[], float]) -> Balancer:
    """The balancer of this name: `least-loaded` or `random`."""
    return Random(chance) if name == "random" else LeastLoaded()
