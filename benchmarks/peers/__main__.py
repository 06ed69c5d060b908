"""`make bench-peers`: the same job on other runners, beside ours, in one run.

What cannot be set up here, fails or hangs is reported as not run, with the reason. A wrong result,
or a failure of ours, fails the run; a ratio does not. Ctrl-C shows what there is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import children
from benchmarks.figures import DOCUMENT, Bar, machine_line, write_json
from benchmarks.peers import report
from benchmarks.peers.catalogue import OURS, PEERS, Peer
from benchmarks.peers.environments import ROOT, NotThere, prepare
from benchmarks.peers.report import Found

LIMIT_S = 180.0
"""How long one run may take; a peer that takes longer is not run again."""
RUN_S, KILL_S = 13.0, 15.0
"""About how long a run takes on two cores, on average."""
SPEED_SHARE = 0.65
"""Of the minutes; the rest is for the kills."""
SHORT = (OURS, "dbos-sqlite")
SAVED = "build/bench-peers.json"


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
        command = [python, "-m", f"benchmarks.peers.{peer.module}", *arguments]
        try:
            with peer.server(folder, environment) as told:
                said = children.output(command, LIMIT_S, env | told, folder)
            found: dict[str, Any] = json.loads((said.splitlines() or [""])[-1])
        except (children.ChildFailed, OSError, subprocess.SubprocessError, ValueError) as error:
            raise NotThere(" ".join(str(error).split())[: children.SAID]) from error
        finally:
            children.kill(children.marked("BENCH_FOLDER", name))
    return found


def rounds(count: int, end: float) -> Iterator[int]:
    """Count, until so many or until another round like the last would end too late (monotonic)."""
    for number in range(count):
        began = time.monotonic()
        yield number
        if 2 * time.monotonic() - began > end:
            return


def compare(options: argparse.Namespace, found: Sequence[Found], bar: Bar) -> Iterator[None]:
    """Every peer once, and again, in turn: the machine's speed drifts for all alike.

    Yields when all have been run once more.
    """
    done_s = 0.0
    begun, seconds = time.monotonic(), 60 * options.minutes
    for one in found:
        if one.peer.packages:
            bar.tell(f"environment of {one.peer.name}", 0)
            try:
                prepare(one.peer.environment, one.peer.packages, one.peer.npm)
            except (NotThere, OSError) as error:
                one.reason = str(error)
    for number in rounds(options.runs, begun + SPEED_SHARE * seconds):
        for one in found:
            if not one.reason:
                bar.tell(f"{one.peer.name}, run {number + 1} of {options.runs}", done_s)
                try:
                    tasks = round(options.tasks * one.peer.share)
                    one.runs.append(run(one.peer, "bench", str(tasks), str(options.alone)))
                except NotThere as error:
                    one.reason = str(error)
            done_s += RUN_S
        yield
    for number in rounds(options.kills, begun + seconds):
        for one in found:
            if not one.peer.killed:
                continue
            if one.runs and not one.kill_reason:
                what = f"{one.peer.name}, kill -9 half way"
                bar.tell(f"{what}, run {number + 1} of {options.kills}", done_s)
                try:
                    one.kills.append(run(one.peer, "kill", str(options.tasks), marks=True))
                except NotThere as error:
                    one.kill_reason = str(error)
            done_s += KILL_S
        yield


def main() -> None:
    """Run the peers that are asked for, print the tables, and write them down."""
    options = _options()
    whole = not (options.only or options.short or options.keep_document)
    if options.short:
        options.runs, options.kills, options.tasks, options.alone = 1, 0, 100, 20
        options.only = options.only or list(SHORT)
    found = [Found(peer) for peer in PEERS if not options.only or peer.name in options.only]
    where = machine_line()
    killed = sum(bool(one.peer.killed) for one in found)
    seconds = options.runs * len(found) * RUN_S + options.kills * killed * KILL_S
    stopped = False
    try:
        with Bar(seconds) as bar:
            for _ in compare(options, found, bar):
                if options.json != "-":
                    write_json(options.json, report.as_json(found))
                if whole:
                    report.write(found, f"{options.tasks:,} tasks", where)
    except KeyboardInterrupt:
        stopped = True
    report.show(found)
    write_json(options.json, report.as_json(found))
    for line in failures(found):
        print(line, file=sys.stderr)
    if stopped:
        print("stopped by Ctrl-C", file=sys.stderr)
    elif whole:
        Console(stderr=True).print(f"written into {DOCUMENT}")
    sys.exit(1 if stopped or failures(found) else 0)


def failures(found: Sequence[Found]) -> list[str]:
    """What must not be: wrong results of anybody, and a run of ours that fails or loses tasks."""
    lines = [f"WRONG: {one.title}: {one.wrong} results" for one in found if one.wrong]
    for one in found:
        if one.peer.name == OURS:
            lines += [f"{OURS}: {why}" for why in (one.reason, one.kill_reason) if why]
            left = sum(kill["incomplete"] + kill["lost"] for kill in one.kills)
            lines += [f"{OURS}: {left} tasks not ended or nodes lost"] if left else []
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    names = [peer.name for peer in PEERS]
    parser.add_argument("--only", action="append", choices=names, help="one; may be repeated")
    parser.add_argument("--runs", type=int, default=5, help="of each (default 5)")
    parser.add_argument("--tasks", type=int, default=1_000, help="in each run (default 1,000)")
    parser.add_argument("--alone", type=int, default=50, help="tasks one at a time (default 50)")
    parser.add_argument("--kills", type=int, default=3, help="runs with a kill (default 3)")
    parser.add_argument(
        "--minutes", type=float, default=25, help="fewer runs if all would take longer (default 25)"
    )
    parser.add_argument("--short", action="store_true", help="100 tasks, beside DBOS on SQLite")
    parser.add_argument(
        "--json", metavar="FILE", default=SAVED, help=f"every value, to a file ({SAVED}) or to -"
    )
    parser.add_argument("--keep-document", action="store_true", help="leave the document alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
