"""Many seeds: run them, add up what they reached, and say what was never reached."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from typing import Any

import msgspec

from agentos.simulation import coverage
from agentos.simulation.agents import Answer
from agentos.simulation.faults import Faults
from agentos.simulation.outcome import Outcome, Shape
from agentos.simulation.world import Simulation, Wire

WIRED_EVERY = 10
"""Of so many seeds, one sends every message through the codec: it costs more than all the rest."""
ENOUGH = 200
"""Seeds from which on everything must have been reached: with fewer, chance may leave some out."""
MOST_FAILURES = 10
"""Broken rules after which there is enough to think about."""
CHUNK = 10
"""Seeds that a worker process takes at a time."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What all runs of a campaign have in common; see `Simulation`."""

    shape: Shape = Shape()
    faults: Faults = Faults()
    graph: str | None = None
    answer: Answer | None = None
    wire: Wire | None = None

    def simulation(self, seed: int, **more: Any) -> Simulation:
        """The run of one seed."""
        return Simulation(
            seed,
            shape=self.shape,
            faults=self.faults,
            graph=self.graph,
            answer=self.answer,
            wire=self.wire if seed % WIRED_EVERY == 0 else None,
            **more,
        )


class Report(msgspec.Struct):
    """What became of a campaign.

    Args:
        settings: what its runs had in common.
        seeds: how many were run.
        steps: messages and ticks that were handled.
        virtual_s: how much time went by in them.
        wall_s: how long it took.
        reached: faults and states, with how often.
        failures: runs in which a rule was broken.
        interrupted: whether Ctrl-C ended it.
    """

    settings: Settings
    seeds: int = 0
    steps: int = 0
    virtual_s: float = 0.0
    wall_s: float = 0.0
    reached: Counter[str] = msgspec.field(default_factory=Counter)
    failures: list[Outcome] = []
    interrupted: bool = False

    def add(self, outcome: Outcome) -> None:
        """Add a run."""
        self.seeds += 1
        self.steps += outcome.steps
        self.virtual_s += outcome.virtual_s
        self.reached.update(outcome.reached)
        if outcome.rule:
            self.failures.append(outcome)

    @property
    def missing(self) -> list[str]:
        """The faults that the rates can cause, and the states, that were never reached."""
        return coverage.missing(self.reached, coverage.possible(self.settings.faults))

    @property
    def ok(self) -> bool:
        """No rule was broken, and, where it claims to, it reached everything."""
        return not self.failures and not (self.judges_coverage and self.missing)

    @property
    def judges_coverage(self) -> bool:
        """Whether it was large enough, of the usual kind, to have reached everything."""
        settings = self.settings
        usual = (settings.shape, settings.faults, settings.graph) == (Shape(), Faults(), None)
        return self.seeds >= ENOUGH and usual


def simulate(
    seeds: int | Iterable[int],
    settings: Settings | None = None,
    *,
    jobs: int = 1,
    most_failures: int = MOST_FAILURES,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> Report:
    """Run many seeds.

    Args:
        seeds: which; or how many, from 0.
        settings: what they have in common.
        jobs: processes that share the work; what is in `settings` must then be picklable.
        most_failures: after so many broken rules, no more seeds are run.
        on_outcome: told of each run as it ends.

    Returns:
        what became of them; after Ctrl-C, of those that had ended.
    """
    settings = settings or Settings()
    report = Report(settings)
    begun = time.perf_counter()
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    try:
        for outcome in _outcomes(numbers, settings, jobs):
            report.add(outcome)
            if on_outcome is not None:
                on_outcome(outcome)
            if len(report.failures) >= most_failures:
                break
    except KeyboardInterrupt:
        report.interrupted = True
    report.wall_s = time.perf_counter() - begun
    return report


def run_seed(seed: int, settings: Settings) -> Outcome:
    """Run one seed."""
    return settings.simulation(seed).run()


def _run_seeds(seeds: Sequence[int], settings: Settings) -> list[Outcome]:
    return [run_seed(seed, settings) for seed in seeds]


def _outcomes(seeds: Iterable[int], settings: Settings, jobs: int) -> Iterator[Outcome]:
    if jobs <= 1:
        for seed in seeds:
            yield run_seed(seed, settings)
        return
    rest = iter(seeds)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running: set[Future[list[Outcome]]] = set()
        try:
            while True:
                while len(running) < 2 * jobs and (chunk := list(islice(rest, CHUNK))):
                    running.add(pool.submit(_run_seeds, chunk, settings))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
