"""`make bench`: every goal with its figure, on fresh clusters: medians, and how far they spread.

Every result of every task is checked; a wrong count is the one thing that makes it fail.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping

from rich.console import Console

from agentos.logs import configure
from benchmarks import finished, many, overhead, parts, speed, start, wide
from benchmarks.clusters import Topology
from benchmarks.figures import (
    DOCUMENT,
    Figure,
    Measured,
    console,
    machine_line,
    progress,
    write_json,
    write_section,
)
from benchmarks.job import WrongCount
from benchmarks.settings import Settings

PARTS: Mapping[str, Callable[[Settings], list[Figure]]] = {
    "speed": speed.measure,
    "overhead": overhead.measure,
    "finished": finished.measure,
    "proxies": many.proxies,
    "backlog": many.backlog,
    "idle": many.idle,
    "wide": wide.measure,
    "start": start.measure,
    "parts": parts.measure,
}


def main() -> None:
    """Measure, print the table, and write it down."""
    options = _options()
    configure("error")
    measured = Measured()
    chosen = options.only or list(PARTS)
    with progress() as bar:
        task = bar.add_task("", total=len(chosen))
        settings = Settings(
            runs=1 if options.short else options.runs,
            short=options.short,
            long=options.long,
            topology=options.topology,
            tell=lambda what: bar.update(task, description=what),
        )
        where = machine_line()
        for name in chosen:
            try:
                measured.figures += PARTS[name](settings)
            except WrongCount as error:
                measured.wrong.append(f"{name}: {error}")
            bar.advance(task)
    runs = "one run" if settings.runs == 1 else f"medians of {settings.runs} runs"
    console().print(measured.table(f"Agent OS on this machine: {runs}"))
    if options.json:
        write_json(options.json, measured.as_json())
    whole = not options.short and not options.only and not measured.wrong
    if whole and not options.keep_document:
        write_section("bench", f"{runs.capitalize()}. {where}\n\n{measured.markdown()}")
        Console(stderr=True).print(f"written into {DOCUMENT}")
    for wrong in measured.wrong:
        Console(stderr=True).print(f"WRONG: {wrong}")
    sys.exit(1 if measured.wrong else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; may be repeated")
    parser.add_argument("--runs", type=int, default=5, help="of each figure (default 5)")
    parser.add_argument("--short", action="store_true", help="one small run: are the counts right?")
    parser.add_argument("--long", action="store_true", help="with a backlog of a million tasks")
    parser.add_argument("--json", metavar="FILE", help="every value, to a file or to - ")
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
