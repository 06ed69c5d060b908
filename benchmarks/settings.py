"""How much is measured, and what happens when it fails."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from benchmarks.clusters import Topology

T = TypeVar("T")
Tell = Callable[[str, float], None]
"""Told what is being measured now, and which share of its part's runs is done."""
Failed = Callable[[str, BaseException], None]
"""Told what has failed, and of what."""


@dataclass(frozen=True)
class Settings:
    """How often, how long, on what.

    Args:
        runs: of each figure; the median is what counts.
        short: one small run of everything: whether it works, and every count is right.
        long: what takes many minutes too.
        topology: of clusters with processes, and of embedded ones.
        tell: told what is being measured.
        failed: told of a run that failed after others have succeeded.
    """

    runs: int = 5
    short: bool = False
    long: bool = False
    topology: Topology = field(default_factory=Topology)
    tell: Tell = lambda _what, _share: None
    failed: Failed = lambda _what, _error: None

    def size(self, short: T, usual: T, long: T | None = None) -> T:
        """The size of something: for a short run, a usual one, and a long one if it differs."""
        if self.short:
            return short
        return long if self.long and long is not None else usual

    def repeat(self, what: str, once: Callable[[], Mapping[str, float]]) -> dict[str, list[float]]:
        """What each run finds, by name. A run that fails is the last; those before it count.

        Args:
            what: is measured.
            once: measures it, and returns the same names every time.

        Raises:
            Exception: the first run's, of any kind; there is nothing to be shown then.
        """
        found: defaultdict[str, list[float]] = defaultdict(list)
        for run in range(self.runs):
            which = f"run {run + 1} of {self.runs}"
            self.tell(f"{what}, {which}", run / self.runs)
            try:
                values = once()
            except (Exception, KeyboardInterrupt) as error:
                if not found:
                    raise
                self.failed(which, error)
                break
            for name, value in values.items():
                found[name].append(value)
        return dict(found)
