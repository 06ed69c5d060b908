"""`make bench-profile`: where a task's time goes, as a picture and as tables. Needs Linux."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from agentos.logs import configure
from benchmarks.clusters import Topology
from benchmarks.figures import DOCUMENT, console, machine_line, write_section
from benchmarks.life import account, draw

PICTURE = DOCUMENT.parent / "images" / "task-life.png"


def main() -> None:
    """Take the account, show it, and write it down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.life", description=__doc__)
    parser.add_argument("--tasks", type=int, default=5_000, help="in each of its two runs")
    parser.add_argument("--topology", type=Topology.parse, default=Topology(), metavar="RxP")
    parser.add_argument("--keep-document", action="store_true", help="leave the document alone")
    parser.add_argument("--picture", type=Path, default=None, help=f"default {PICTURE.name}")
    options = parser.parse_args()
    configure("error")
    where = machine_line()
    found = account.take(options.topology, options.tasks)
    for title, head, rows in (
        ("by thread", draw.THREADS, draw.thread_rows(found)),
        ("by what is done", draw.DONE, draw.step_rows(found)),
        ("message by message", draw.MESSAGES, draw.message_rows(found)),
    ):
        table = Table(title=f"µs of CPU of one task, {title}")
        for name in head:
            table.add_column(name)
        for row in rows:
            table.add_row(*row)
        console().print(table)
    if options.picture or not options.keep_document:
        draw.picture(found, options.picture or PICTURE)
    if not options.keep_document:
        intro = (
            f"`agentos up`, {options.topology}, {options.tasks:,} tasks at once at "
            f"{found.tasks_s:,.0f} tasks/s: {found.total_us:,.0f} µs of CPU for each, in all "
            f"processes. {where}"
        )
        write_section("bench-profile", draw.markdown(found, intro))
        console().print(f"written into {DOCUMENT} and {PICTURE}")


if __name__ == "__main__":
    main()
