"""What the peers have shown: as tables, in the document, and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table

from benchmarks.figures import (
    HEAD,
    Figure,
    at_least,
    console,
    machine,
    markdown_table,
    write_section,
)
from benchmarks.peers.catalogue import OURS, Peer

GOALS = ((15.0, "the best durable peer's"), (6.0, "Ray's actors'"))
SPEED = ("", "tasks/s", "smallest to largest", "ours is", "one alone, p50", "durable")
WORST = ("tasks not ended (worst)", "nodes lost (worst)", "nodes run twice (worst)")
KILL_COUNTS = ("incomplete", "lost", "twice")
KILL = ("killed half way with -9", "s to the end (median)", *WORST)
Rows = list[tuple[str, ...]]


@dataclass
class Found:
    """What one peer has shown."""

    peer: Peer
    runs: list[dict[str, Any]] = field(default_factory=list)
    kills: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""
    """Why it was not run, or not as often as the others."""
    kill_reason: str = ""

    def median(self, name: str) -> float:
        return float(statistics.median(run[name] for run in self.runs))

    @property
    def wrong(self) -> int:
        """How many results were not what they should be."""
        return sum(int(run["wrong"]) for run in self.runs)

    @property
    def title(self) -> str:
        version = self.runs[0]["version"] if self.runs else ""
        name, comma, rest = self.peer.title.partition(",")
        return f"{name} {version}{comma}{rest}" if version else self.peer.title


def ratios(ours: Found, other: Found) -> list[float]:
    """How many times as fast ours is, for each pair of runs beside each other."""
    pairs = zip(ours.runs, other.runs, strict=False)
    return [mine["tasks_s"] / theirs["tasks_s"] for mine, theirs in pairs]


def speed_rows(found: Sequence[Found]) -> Rows:
    """Fastest first; then those that could not be run."""
    ours = next((one for one in found if one.peer.name == OURS and one.runs), None)
    ran = sorted((one for one in found if one.runs), key=lambda one: -one.median("tasks_s"))
    rows: Rows = []
    for one in ran:
        rates = [run["tasks_s"] for run in one.runs]
        beside = ""
        if ours and one is not ours:
            beside = f"{statistics.median(ratios(ours, one)):,.1f} times as fast"
        few = f"; after {len(one.runs)} runs: {one.reason}" if one.reason else ""
        wrong = f"; WRONG: {one.wrong} results" if one.wrong else ""
        rows.append(
            (
                f"{one.title}{wrong}{few}",
                f"{one.median('tasks_s'):,.0f}",
                f"{min(rates):,.0f} to {max(rates):,.0f}" if len(rates) > 1 else "",
                beside,
                f"{one.median('alone_ms'):.1f} ms",
                one.peer.durable,
            )
        )
    failed = [one for one in found if one.reason and not one.runs]
    return rows + [(one.title, f"not run: {one.reason}", *[""] * 4) for one in failed]


def kill_rows(found: Sequence[Found]) -> Rows:
    """In the order of the catalogue."""
    rows: Rows = []
    for one in found:
        what = f"{one.title}: {one.peer.killed}"
        if one.kills:
            seconds = statistics.median(kill["seconds"] for kill in one.kills)
            worst = (max(kill[name] for kill in one.kills) for name in KILL_COUNTS)
            few = f"; after {len(one.kills)} runs: {one.kill_reason}" if one.kill_reason else ""
            rows.append((f"{what}{few}", f"{seconds:.1f}", *map(str, worst)))
        elif one.kill_reason:
            rows.append((what, f"not run: {one.kill_reason}", "", "", ""))
    return rows


def goals(found: Sequence[Found]) -> list[Figure]:
    """The goals that compare us with others."""
    ran = {one.peer.name: one for one in found if one.runs}
    ours = ran.get(OURS)
    durable = [one for one in ran.values() if one.peer.is_durable and one is not ours]
    best = max(durable, key=lambda one: one.median("tasks_s"), default=None)
    figures = []
    for (bound, whose), other in zip(GOALS, (best, ran.get("ray-actors")), strict=True):
        if ours and other:
            what = f"ours as a multiple of {whose} tasks/s ({other.title})"
            figures.append(Figure("peers", what, "times", ratios(ours, other), at_least(bound)))
    return figures


def show(found: Sequence[Found]) -> None:
    """Print the tables."""
    out = console()
    goal_rows = [figure.columns() for figure in goals(found)]
    for head, rows in ((SPEED, speed_rows(found)), (KILL, kill_rows(found)), (HEAD, goal_rows)):
        if rows:
            table = Table()
            for name in head:
                table.add_column(name, justify="left" if name in {*HEAD[:2], head[0]} else "right")
            for row in rows:
                table.add_row(*map(escape, row))
            out.print(table)


def write(found: Sequence[Found], what: str, where: str) -> None:
    """Write the tables into the document: what there is so far."""
    runs = max(len(one.runs) for one in found)
    intro = f"{what}, medians of {runs} runs, in turn. {where}"
    write_section("bench-peers", f"{intro}\n\n{markdown_table(SPEED, speed_rows(found))}")
    figures = [figure.columns() for figure in goals(found)]
    write_section("bench-ratios", markdown_table(HEAD, figures))
    if rows := kill_rows(found):
        kills = f"{what}, medians and worst of {max(len(one.kills) for one in found)} runs."
        write_section("bench-kill", f"{kills}\n\n{markdown_table(KILL, rows)}")


def as_json(found: Sequence[Found]) -> Mapping[str, Any]:
    """For a machine: every value."""
    return {
        "machine": machine(),
        "peers": [
            {
                "name": one.peer.name,
                "runs": one.runs,
                "kills": one.kills,
                "not_run": one.reason or None,
                "kill_not_run": one.kill_reason or None,
            }
            for one in found
        ],
        "goals": [
            {"what": figure.what, "ratio": figure.median, "goal": str(figure.goal)}
            for figure in goals(found)
        ],
    }
