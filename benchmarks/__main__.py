"""`make bench`: every goal with its figure, on fresh clusters: medians, and how far they spread.

Every result of every task is checked. What fails, or hangs, is a line in the table and makes the
command fail at its end; the rest is measured all the same. Ctrl-C shows what there is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rich.console import Console

from agentos.logs import configure
from benchmarks import finished, many, overhead, parts, speed, start, wide
from benchmarks.clusters import Topology
from benchmarks.figures import (
    DOCUMENT,
    Bar,
    Failure,
    Figure,
    Measured,
    console,
    machine_line,
    write_json,
    write_section,
)
from benchmarks.settings import Settings
from benchmarks.watch import Watch

SAVED = "build/bench.json"


class Part(NamedTuple):
    """One part, and about how many seconds it takes on two cores: to begin, and for each run."""

    measure: Callable[[Settings], list[Figure]]
    begin_s: float
    run_s: float
    long_s: float = 0.0
    """How much longer `--long` takes."""

    def estimate_s(self, settings: Settings) -> float:
        """About how long it takes."""
        if settings.short:
            return 10.0
        return self.begin_s + settings.runs * self.run_s + (self.long_s if settings.long else 0)

    def limit_s(self, settings: Settings) -> float:
        """When it is given up."""
        return 60 + 3 * self.estimate_s(settings)


PARTS: Mapping[str, Part] = {
    "speed": Part(speed.measure, 0, 28),
    "overhead": Part(overhead.measure, 1, 52),
    "finished": Part(finished.measure, 5, 5, 40),
    "proxies": Part(many.proxies, 45, 12),
    "backlog": Part(many.backlog, 5, 0, 90),
    "idle": Part(many.idle, 15, 8),
    "idle-embedded": Part(many.idle_embedded, 3, 8),
    "wide": Part(wide.measure, 0, 28),
    "start": Part(start.measure, 1, 2),
    "parts": Part(parts.measure, 0, 4),
}


def main() -> None:
    """Measure, print the table, and write it down."""
    options = _options()
    configure("error")
    where = machine_line()
    measured = Measured()
    whole = _measure(options, measured)
    runs = "one run" if _runs(options) == 1 else f"medians of {options.runs} runs"
    console().print(measured.table(f"Agent OS on this machine: {runs}"))
    write_json(options.json, measured.as_json())
    if whole and not (options.short or options.only or options.keep_document):
        write_section("bench", f"{runs.capitalize()}. {where}\n\n{measured.markdown()}")
        Console(stderr=True).print(f"written into {DOCUMENT}")
    sys.exit(1 if measured.failures or not whole else 0)


def _measure(options: argparse.Namespace, measured: Measured) -> bool:
    """Measure part by part, saving what there is after each; false if Ctrl-C has ended it."""
    watch = Watch()
    stopped = False
    done_s = 0.0
    name = ""

    def failed(what: str, error: BaseException) -> None:
        nonlocal stopped
        interrupted = isinstance(error, KeyboardInterrupt)
        stopped = stopped or (interrupted and not watch.overdue)
        why = _why_interrupted(watch, limit_s) if interrupted else _why(error)
        measured.failures.append(Failure(name, f"{what}: {why}" if what else why))

    def tell(what: str, share: float) -> None:
        bar.tell(f"{name}: {what}", done_s + share * part.estimate_s(settings))

    settings = Settings(
        runs=_runs(options),
        short=options.short,
        long=options.long,
        topology=options.topology,
        tell=tell,
        failed=failed,
    )
    chosen: Sequence[str] = options.only or list(PARTS)
    with Bar(sum(PARTS[each].estimate_s(settings) for each in chosen)) as bar:
        for name in chosen:
            part = PARTS[name]
            limit_s = part.limit_s(settings)
            tell("begins", 0)
            try:
                with watch.limit(limit_s):
                    figures = part.measure(settings)
                measured.figures += figures
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (the others count)
                failed("", error)
            done_s += part.estimate_s(settings)
            if options.json != "-":
                write_json(options.json, measured.as_json())
            if stopped:
                break
    return not stopped


def _why(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _why_interrupted(watch: Watch, limit_s: float) -> str:
    return f"given up after {limit_s:,g} s" if watch.overdue else "stopped by Ctrl-C"


def _runs(options: argparse.Namespace) -> int:
    return 1 if options.short else int(options.runs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; may be repeated")
    parser.add_argument("--runs", type=int, default=5, help="of each figure (default 5)")
    parser.add_argument("--short", action="store_true", help="one small run: are the counts right?")
    parser.add_argument(
        "--long", action="store_true", help="with a million tasks finished, and a million waiting"
    )
    parser.add_argument(
        "--json", metavar="FILE", default=SAVED, help=f"every value, to a file ({SAVED}) or to -"
    )
    parser.add_argument("--keep-document", action="store_true", help="leave the document alone")
    parser.add_argument(
        "--topology",
        type=Topology.parse,
        default=Topology(),
        metavar="RxP",
        help="regions x proxies in each (default 1x2, the default of `agentos up`)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
