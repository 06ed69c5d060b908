"""Make a failing run small: leave out tasks and faults for as long as the same rule is broken.

Delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002):
first large pieces are left out, then smaller ones, then single ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from agentos.simulation.campaign import Settings
from agentos.simulation.faults import Fault
from agentos.simulation.outcome import Keep, Outcome
from agentos.simulation.trace import Trace

T = TypeVar("T")


class Shrunk(msgspec.Struct, frozen=True):
    """The smallest run that was found.

    Args:
        outcome: the rule that it breaks.
        jobs: the tasks that are left.
        faults: the faults that are left.
        lines: its transcript, without heartbeats and the like.
        runs: how many runs it took to find.
    """

    outcome: Outcome
    jobs: list[str]
    faults: list[Fault]
    lines: list[str]
    runs: int


class _Search:
    def __init__(self, seed: int, rule: str, settings: Settings, until: float) -> None:
        self.runs = 0
        self._seed = seed
        self._rule = rule
        self._settings = settings
        self._until = until

    def fails(self, jobs: Sequence[str], faults: Sequence[int]) -> bool:
        """Whether what is left breaks the same rule."""
        if time.monotonic() > self._until:
            return False
        self.runs += 1
        keep = Keep(frozenset(faults), frozenset(jobs))
        return self._settings.simulation(self._seed, keep=keep).run().rule == self._rule


def shrink(outcome: Outcome, settings: Settings | None = None, *, within_s: float = 20.0) -> Shrunk:
    """Find a small run that breaks the same rule.

    Args:
        outcome: the run that broke it.
        settings: what it was run with.
        within_s: when to stop looking, in seconds.
    """
    settings = settings or Settings()
    search = _Search(outcome.seed, outcome.rule, settings, time.monotonic() + within_s)
    whole = settings.simulation(outcome.seed)
    # What comes after the violation has nothing to do with it.
    numbers = [f.number for f in whole.plan if f.at <= outcome.virtual_s]
    jobs = [job.name for job in whole.jobs]
    before = -1
    while before != len(jobs) + len(numbers):
        before = len(jobs) + len(numbers)
        jobs = _smallest(jobs, lambda some: search.fails(some, numbers))  # noqa: B023
        numbers = _smallest(numbers, lambda some: search.fails(jobs, some))  # noqa: B023
    lines: list[str] = []
    keep = Keep(frozenset(numbers), frozenset(jobs))
    last = settings.simulation(outcome.seed, keep=keep, trace=Trace(lines.append, short=True))
    return Shrunk(last.run(), jobs, list(last.plan), lines, search.runs)


def _smallest(items: list[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """A part of the items that still fails, from which nothing can be left out."""
    size = max(1, len(items) // 2)
    while items:
        at = 0
        while at < len(items):
            fewer = items[:at] + items[at + size :]
            if fails(fewer):
                items = fewer
            else:
                at += size
        if size == 1:
            return items
        size = max(1, size // 2)
    return items
