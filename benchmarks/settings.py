"""How much is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from benchmarks.clusters import Topology
from benchmarks.figures import Tell

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How often, how long, on what.

    Args:
        runs: of each figure; the median is what counts.
        short: one small run of everything: whether it works, and every count is right.
        long: what takes many minutes too.
        topology: of clusters with processes, and of embedded ones.
        tell: told what is being measured.
    """

    runs: int = 5
    short: bool = False
    long: bool = False
    topology: Topology = field(default_factory=Topology)
    tell: Tell = lambda _what: None

    def size(self, short: T, usual: T, long: T | None = None) -> T:
        """The size of something: for a short run, a usual one, and a long one if it differs."""
        if self.short:
            return short
        return long if self.long and long is not None else usual

    def each_run(self, what: str) -> Iterator[int]:
        """Count the runs, saying which it is."""
        for run in range(self.runs):
            self.tell(f"{what}, run {run + 1} of {self.runs}")
            yield run
