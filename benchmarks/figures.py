"""Figures: what was measured, how often, against which goal; as a table, as JSON, in a document."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

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
        if self.goal.met(self.median):
            return "yes"
        if not self.goal.bound or self.median <= 0:
            return "no"
        factor = self.median / self.goal.bound
        return f"no ({factor if factor > 1 else 1 / factor:.1f} times off)"

    def columns(self) -> tuple[str, str, str, str, str]:
        """What, the median, its spread, the goal, and whether it is met."""
        few = len(self.values) < 2
        spread = "" if few else f"{_short(min(self.values))} to {_short(max(self.values))}"
        figure = f"{_short(self.median)} {self.unit}"
        return self.what, figure, spread, str(self.goal or ""), self.verdict


HEAD = ("what", "figure (median)", "smallest to largest", "goal", "met")


@dataclass
class Measured:
    """What a run of the benchmark has found so far."""

    figures: list[Figure] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Counts that are not as they must be: a benchmark of wrong results is worth nothing."""

    def table(self, title: str) -> Table:
        """For a terminal."""
        table = Table(title=title)
        for name, align in zip(HEAD, ("left", "right", "right", "right", "left"), strict=True):
            table.add_column(name, justify=align)  # type: ignore[arg-type]
        part = ""
        for figure in self.figures:
            if part and figure.part != part:
                table.add_section()
            part = figure.part
            table.add_row(*figure.columns())
        return table

    def markdown(self) -> str:
        """For a document."""
        return markdown_table(HEAD, [figure.columns() for figure in self.figures])

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
            "wrong": self.wrong,
        }


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown writes it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.system(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load_before": round(psutil.getloadavg()[0], 1),
    }


def machine_line() -> str:
    """The same in words, for above a table."""
    on = machine()
    return (
        f"{on['cores']} cores, {on['memory_gb']} GB, {on['system']}, CPython {on['python']}, "
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
        Path(path).write_text(text)


def console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def progress() -> Progress:
    """A bar on standard error, which leaves standard output to the figures."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


Tell = Callable[[str], None]
"""Told what is being measured now."""


def _short(value: float) -> str:
    """Three digits, or all of a large number."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if size < 1 else f"{value:.{2 if size < 10 else 1}f}"
