"""Figures: what was measured, how often, against which goal; as a table, as JSON, in a document."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from agentos.build import is_compiled

WIDTH = 150
DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"


@dataclass(frozen=True)
class Goal:
    """What a figure should be: `at_most` or `at_least` a bound."""

    kind: Literal["at_most", "at_least"]
    bound: float

    def met(self, value: float) -> bool:
        """Whether a figure is as it should be."""
        return value <= self.bound if self.kind == "at_most" else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.kind == 'at_most' else '≥'} {_short(self.bound)}"


def at_most(bound: float) -> Goal:
    return Goal("at_most", bound)


def at_least(bound: float) -> Goal:
    return Goal("at_least", bound)


@dataclass(frozen=True)
class Figure:
    """One figure: the median of its values.

    Args:
        part: the part of the benchmark that it belongs to.
        what: what was measured, with all that a reader must know to repeat it.
        unit: of the values.
        values: one for each run.
        goal: what it should be; None if it is there to be compared with.
    """

    part: str
    what: str
    unit: str
    values: Sequence[float]
    goal: Goal | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """Whether the goal is met, and by what factor the figure lies beside it."""
        if self.goal is None:
            return ""
        met = self.goal.met(self.median)
        words = "yes" if met else "no"
        if not self.goal.bound or self.median <= 0:
            return words
        factor = self.median / self.goal.bound
        factor = max(factor, 1 / factor)
        if met and factor < 1.05:
            return words
        decimals = 0 if factor >= 10 else 1 if factor >= 1.05 else 2
        return f"{words} ({factor:.{decimals}f} times {'better' if met else 'off'})"

    def columns(self) -> tuple[str, ...]:
        """The part, what, the median, its spread, the goal, and whether it is met."""
        few = len(self.values) < 2
        spread = "" if few else f"{_short(min(self.values))} to {_short(max(self.values))}"
        figure = f"{_short(self.median)} {self.unit}"
        return self.part, self.what, figure, spread, str(self.goal or ""), self.verdict


@dataclass(frozen=True)
class Failure:
    """A part, or a run of it, that has no figure; and why."""

    part: str
    why: str

    def columns(self) -> tuple[str, ...]:
        """As a figure's."""
        return self.part, f"FAILED: {self.why}", "", "", "", ""


HEAD = ("part", "what", "figure (median)", "smallest to largest", "goal", "met")


@dataclass
class Measured:
    """What a run of the benchmark has found so far."""

    figures: list[Figure] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def lines(self) -> list[Figure | Failure]:
        """The figures, and behind those of each part what failed of it."""
        lines: list[Figure | Failure] = [*self.figures, *self.failures]
        parts = list(dict.fromkeys(line.part for line in lines))
        return sorted(lines, key=lambda line: parts.index(line.part))

    def table(self, title: str) -> Table:
        """For a terminal."""
        table = Table(title=title)
        for name in HEAD:
            table.add_column(name, justify="right" if name in HEAD[2:5] else "left")
        part = ""
        for line in self.lines:
            if part and line.part != part:
                table.add_section()
            part = line.part
            table.add_row(*map(escape, line.columns()))
        return table

    def markdown(self) -> str:
        """For a document."""
        return markdown_table(HEAD, [line.columns() for line in self.lines])

    def as_json(self) -> dict[str, Any]:
        """For a machine: every value."""
        return {
            "machine": machine(),
            "figures": [
                {
                    "part": figure.part,
                    "what": figure.what,
                    "unit": figure.unit,
                    "median": figure.median,
                    "values": list(figure.values),
                    "goal": str(figure.goal) if figure.goal else None,
                    "met": figure.goal.met(figure.median) if figure.goal else None,
                }
                for figure in self.figures
            ],
            "failures": [{"part": one.part, "why": one.why} for one in self.failures],
        }


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown writes it."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.system(),
        "python": platform.python_version(),
        "compiled": is_compiled(),
        "sqlite": sqlite3.sqlite_version,
        "load_before": round(psutil.getloadavg()[0], 1),
    }


def machine_line() -> str:
    """The same in words, for above a table."""
    on = machine()
    how = "compiled with mypyc" if on["compiled"] else "plain Python, not compiled"
    return (
        f"Agent OS {how}; {on['cores']} cores, {on['memory_gb']} GB, {on['system']}, "
        f"CPython {on['python']}, "
        f"SQLite {on['sqlite']} (WAL, `synchronous=FULL`); load before it began: {on['load_before']}."
    )


def write_section(name: str, text: str, document: Path = DOCUMENT) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a document.

    Raises:
        ValueError: the document has no such place.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = document.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{document} has no {begin} … {end}")
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def write_json(path: str, content: Mapping[str, Any]) -> None:
    """To a file, or to standard output if it is called `-`."""
    text = json.dumps(content, indent=2) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


class Bar:
    """What is being done, how long it has taken, and about how long it will: on standard error.

    Standard output is left to the figures. Where it is no terminal, a line for each thing done.
    """

    def __init__(self, seconds: float) -> None:
        self._console = Console(stderr=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("of about {task.fields[minutes]} min"),
        )
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task("", total=seconds, minutes=f"{max(1, seconds / 60):.0f}")
        self._start = time.monotonic()

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tell(self, what: str, done_s: float) -> None:
        """Say what is done now, and how much of the estimated seconds should lie behind us."""
        self._bar.update(self._task, description=what, completed=done_s)
        if not self._console.is_terminal:
            passed = time.monotonic() - self._start
            self._console.print(f"{passed:5.0f} s  {escape(what)}", highlight=False)


def _short(value: float) -> str:
    """Three digits, or all of a large number."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if size < 1 else f"{value:.{2 if size < 10 else 1}f}"
