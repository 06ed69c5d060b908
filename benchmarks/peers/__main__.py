"""`make bench-peers`: the same job on other runners, beside ours, in one run.

What cannot be set up here is reported as not run, with the reason. A wrong result fails the run;
a ratio does not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import (
    DOCUMENT,
    console,
    machine,
    machine_line,
    markdown_table,
    progress,
    write_json,
    write_section,
)
from benchmarks.peers.catalogue import OURS, PEERS, Peer
from benchmarks.peers.environments import ROOT, NotThere, prepare

LONGEST_S = 900
SHORT = (OURS, "dbos-sqlite")
GOALS = ((15.0, "the best durable peer"), (6.0, "Ray's actors"))


@dataclass
class Found:
    """What one peer has shown."""

    peer: Peer
    runs: list[dict[str, Any]] = field(default_factory=list)
    kills: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""
    """Why it was not run."""
    kill_reason: str = ""

    def median(self, name: str) -> float:
        return statistics.median(run[name] for run in self.runs)

    @property
    def title(self) -> str:
        version = self.runs[0]["version"] if self.runs else ""
        name, comma, rest = self.peer.title.partition(",")
        return f"{name} {version}{comma}{rest}" if version else self.peer.title


def run(peer: Peer, *arguments: str, marks: bool = False) -> dict[str, Any]:
    """One run of a peer in a fresh folder, with a fresh server.

    Raises:
        NotThere: it could not be run; the message says why.
    """
    environment = prepare(peer.environment, peer.packages, peer.npm) if peer.packages else ROOT
    python = str(environment / "bin" / "python") if peer.packages else sys.executable
    with tempfile.TemporaryDirectory(prefix="agentos-peer-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        env = {key: value for key, value in os.environ.items() if not key.startswith("BENCH_")}
        env |= {
            "PYTHONPATH": str(ROOT),
            "BENCH_FOLDER": name,
            "TMPDIR": name,
            "RAY_USAGE_STATS_ENABLED": "0",
            **peer.env,
        }
        if marks:
            env["BENCH_MARKS"] = str(folder / "marks")
        with peer.server(folder, environment) as told, (folder / "errors").open("w+") as errors:
            command = [python, "-m", f"benchmarks.peers.{peer.module}", *arguments]
            try:
                done = subprocess.run(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=env | told,
                    cwd=folder,
                    text=True,
                    timeout=LONGEST_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise NotThere(f"it has not ended within {LONGEST_S} s") from None
            errors.seek(0)
            said = [line for line in errors.read().splitlines() if line.strip()]
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise NotThere(f"it failed: {said[-1][:200] if said else done.returncode}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def compare(options: argparse.Namespace, tell: Callable[[str], None]) -> list[Found]:
    """Every peer once, and again, in turn: the machine's speed drifts for all alike."""
    found = [Found(peer) for peer in PEERS if peer.name in options.only]
    for one in found:
        if one.peer.packages:
            tell(f"environment of {one.peer.name}")
            try:
                prepare(one.peer.environment, one.peer.packages, one.peer.npm)
            except NotThere as error:
                one.reason = str(error)
    for number in range(options.runs):
        for one in found:
            if one.reason:
                continue
            tell(f"{one.peer.name}, run {number + 1} of {options.runs}")
            try:
                tasks = round(options.tasks * one.peer.share)
                one.runs.append(run(one.peer, "bench", str(tasks), str(options.alone)))
            except NotThere as error:
                one.reason = str(error)
    for number in range(options.kills):
        for one in found:
            if not one.runs or not one.peer.killed or one.kill_reason:
                continue
            tell(f"{one.peer.name}, kill -9 half way, run {number + 1} of {options.kills}")
            try:
                one.kills.append(run(one.peer, "kill", str(options.tasks), marks=True))
            except NotThere as error:
                one.kill_reason = str(error)
    return found


# -- what is shown ---------------------------------------------------------------------------------

SPEED = ("", "tasks/s", "smallest to largest", "ours is", "one alone, p50", "durable")
WORST = ("tasks not ended (worst)", "nodes lost (worst)", "nodes run twice (worst)")
KILL_COUNTS = ("incomplete", "lost", "twice")
KILL = ("killed half way with -9", "s to the end (median)", *WORST)


def speed_rows(found: Sequence[Found]) -> list[tuple[str, ...]]:
    """Fastest first."""
    ours = next((one for one in found if one.peer.name == OURS and one.runs), None)
    ran = sorted((one for one in found if one.runs), key=lambda one: -one.median("tasks_s"))
    rows = []
    for one in ran:
        rates = [run["tasks_s"] for run in one.runs]
        times = ratio(ours, one) if ours else 0
        rows.append(
            (
                one.title,
                f"{one.median('tasks_s'):,.0f}",
                f"{min(rates):,.0f} to {max(rates):,.0f}",
                "" if one is ours or not ours else f"{times:,.1f} times as fast",
                f"{one.median('alone_ms'):.1f} ms",
                one.peer.durable,
            )
        )
    blank = ("",) * 4
    rows += [(one.title, f"not run: {one.reason}", *blank) for one in found if not one.runs]
    return rows


def ratio(ours: Found, other: Found) -> float:
    """How many times as fast ours is: the median over the pairs of runs beside each other."""
    pairs = zip(ours.runs, other.runs, strict=False)
    return statistics.median(mine["tasks_s"] / theirs["tasks_s"] for mine, theirs in pairs)


def kill_rows(found: Sequence[Found]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for one in found:
        what = f"{one.title}: {one.peer.killed}"
        if one.kill_reason:
            rows.append((what, f"not run: {one.kill_reason}", "", "", ""))
        elif one.kills:
            seconds = statistics.median(kill["seconds"] for kill in one.kills)
            worst = (max(kill[name] for kill in one.kills) for name in KILL_COUNTS)
            rows.append((what, f"{seconds:.1f}", *map(str, worst)))
    return rows


def goal_lines(found: Sequence[Found]) -> list[str]:
    """The goals that compare us with others."""
    ran = {one.peer.name: one for one in found if one.runs}
    ours = ran.get(OURS)
    durable = [one for one in ran.values() if one.peer.is_durable and one is not ours]
    best = max(durable, key=lambda one: one.median("tasks_s"), default=None)
    lines = []
    for (goal, what), other in zip(GOALS, (best, ran.get("ray-actors")), strict=True):
        if ours and other:
            times = ratio(ours, other)
            met = "met" if times >= goal else "not met"
            lines.append(
                f"{times:.1f} times {what} ({other.title}): the goal of {goal:g} is {met}."
            )
    return lines


def show(found: Sequence[Found]) -> None:
    """Print the tables."""
    out = console()
    for head, rows in ((SPEED, speed_rows(found)), (KILL, kill_rows(found))):
        if rows:
            table = Table()
            for name in head:
                table.add_column(name, justify="left" if name in (SPEED[0], KILL[0]) else "right")
            for row in rows:
                table.add_row(*row)
            out.print(table)
    for line in goal_lines(found):
        out.print(line)


def write(found: Sequence[Found], options: argparse.Namespace, where: str) -> None:
    """Write the tables into the document."""
    intro = f"{options.tasks:,} tasks, medians of {options.runs} runs, in turn. {where}"
    goals = "\n".join(f"- {line}" for line in goal_lines(found))
    tables = [markdown_table(SPEED, speed_rows(found)), goals]
    write_section("bench-peers", "\n\n".join([intro, *tables]))
    if rows := kill_rows(found):
        write_section("bench-kill", markdown_table(KILL, rows))
    Console(stderr=True).print(f"written into {DOCUMENT}")


def as_json(found: Sequence[Found]) -> Mapping[str, Any]:
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
        "goals": goal_lines(found),
    }


def main() -> None:
    """Run the peers that are asked for, print the tables, and write them down."""
    options = _options()
    whole = not options.only and not options.short
    if options.short:
        options.runs, options.kills, options.tasks, options.alone = 1, 0, 100, 20
        options.only = options.only or list(SHORT)
    options.only = options.only or [peer.name for peer in PEERS]
    where = machine_line()
    with progress() as bar:
        task = bar.add_task("", total=None)
        found = compare(options, lambda what: bar.update(task, description=what))
    show(found)
    if options.json:
        write_json(options.json, as_json(found))
    wrong = [one for one in found for run in one.runs if run["wrong"]]
    ours = [one for one in found if one.peer.name == OURS]
    for one in wrong:
        print(f"WRONG: {one.title}: results are wrong", file=sys.stderr)
    left = [kill for one in ours for kill in one.kills if kill["incomplete"]]
    failed = bool(wrong or left or any(one.reason or one.kill_reason for one in ours))
    if whole and not failed and not options.keep_document:
        write(found, options, where)
    sys.exit(1 if failed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    names = [peer.name for peer in PEERS]
    parser.add_argument("--only", action="append", choices=names, help="one; may be repeated")
    parser.add_argument("--runs", type=int, default=5, help="of each (default 5)")
    parser.add_argument("--tasks", type=int, default=1_000, help="in each run (default 1,000)")
    parser.add_argument("--alone", type=int, default=50, help="tasks one at a time (default 50)")
    parser.add_argument("--kills", type=int, default=3, help="runs with a kill (default 3)")
    parser.add_argument("--short", action="store_true", help="100 tasks, beside DBOS on SQLite")
    parser.add_argument("--json", metavar="FILE", help="every value, to a file or to - ")
    parser.add_argument("--keep-document", action="store_true", help="leave the document alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
