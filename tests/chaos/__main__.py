"""`make chaos`: kill, stop, cut, lock and fill for minutes, and then look whether all is right."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from agentos.logs import configure
from tests.chaos import parts
from tests.chaos.cluster import Attacked, Shape, small_disk
from tests.chaos.hand import schedule
from tests.chaos.verdict import Report, report

SAY_S = 10.0


def main() -> int:
    """Run what was asked for; returns 0 if everything was right."""
    options = _options()
    configure("error")
    seed: int = options.seed if options.seed is not None else secrets.randbelow(1 << 32)
    shape = Shape(
        gateways=options.gateways,
        regions=options.regions,
        proxies=options.proxies,
        workers=options.workers,
    )
    with _folder(options.keep) as folder, small_disk(folder / "data") as room:
        disk = f"a tmpfs of {room >> 20} MB" if room else "the disk (full: RLIMIT_FSIZE)"
        say(f"seed {seed}, {len(shape.roles)} processes, data on {disk}, folder {folder}")
        attacked = Attacked(folder, shape, room)
        begun = time.monotonic()
        try:
            if options.pauses:
                faults = parts.pauses(attacked, options.pauses, say)
            elif options.alone:
                faults = parts.alone(attacked, options.alone, seed, say)
            elif options.everything:
                faults = parts.everything(attacked, options.everything, seed, say)
            else:
                kills = 22 if options.short else options.kills
                gap_s = 0.7 if options.short else options.gap
                longest_s = 5.0 if options.short else 30.0
                attack(attacked, seed, kills, options.minutes * 60, gap_s, longest_s)
                faults = []
            if not attacked.settle():
                left = list(attacked.load.unfinished().values())
                faults.append(f"tasks that are not finished in the end: {left}")
            if status := attacked.stop():
                faults.append(f"the orderly stop ended with status {status}")
        finally:
            if attacked.up.poll() is None:
                attacked.kill_everything()
        found = report(attacked, seed, time.monotonic() - begun)
        found.faults[:0] = faults
        if options.keep:
            shutil.copy(attacked.data / "agentos.db", folder)  # a tmpfs goes with the campaign
    show(found)
    if options.json:
        Path(options.json).write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    if found.faults:
        say(f"seed {seed}: {len(found.faults)} faults; --seed {seed} does the same to a cluster")
    # The goal of a machine that is ours; in CI others share it.
    return 1 if found.faults or not (found.within_goal or options.short) else 0


def attack(
    attacked: Attacked, seed: int, kills: int, seconds: float, gap_s: float, longest_s: float
) -> None:
    """Let the hand do its worst: for so many kills, or for so long, whatever comes first."""
    time.sleep(3.0)
    begun = said = time.monotonic()
    killed = 0
    for act in schedule(seed, attacked.shape.roles, gap_s, longest_s):
        time.sleep(act.after)
        now = time.monotonic()
        if killed >= kills or now - begun > seconds:
            break
        attacked.hand.do(act)
        killed = sum(deed.act.what == "kill" for deed in attacked.hand.done)
        if attacked.up.poll() is not None:
            raise SystemExit(f"the cluster has ended: {attacked.log.read_text()[-2000:]}")
        if now - said > SAY_S:
            said = now
            load = attacked.load
            say(
                f"{now - begun:5.0f} s  {killed} kills, {len(attacked.hand.done)} deeds, "
                f"{len(load.accepted)} tasks accepted, {len(load.finished)} finished, "
                f"{len(load.faults) + len(attacked.watch.faults)} faults"
            )


def show(found: Report) -> None:
    """Print the table."""
    table = Table(title=f"Chaos: seed {found.seed}, {found.seconds:.0f} s")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for what, count in found.deeds.items():
        table.add_row(what, str(count))
    table.add_section()
    table.add_row("kills", str(found.kills))
    table.add_row("tasks accepted and finished", str(found.tasks))
    table.add_row("requests that clients repeated", str(found.client_retries))
    table.add_row("a task, p50 / p99 / longest", _times(found.task_s))
    table.add_section()
    table.add_row("calls to agents", str(found.calls))
    table.add_row("of them repeated", str(sum(found.repeated.values())))
    for why, count in found.repeated.items():
        table.add_row(f"  {why}", str(count))
    table.add_section()
    for kind, times in found.takeovers.items():
        number = f"takeover after the kill of a {kind} ({times['n']:.0f}), p50 / p99 / longest"
        table.add_row(number, _times(times))
    table.add_row("goal for a proxy, alone: p99", f"{found.goal_s:.2f} s")
    table.add_section()
    table.add_row("faults", str(len(found.faults)))
    Console(width=max(100, Console().width)).print(table)
    for fault in found.faults[:50]:
        say(f"FAULT: {fault}")


def _times(times: dict[str, float]) -> str:
    return " / ".join(f"{times[k]:.2f}" for k in ("p50", "p99", "max")) + " s" if times else "-"


def say(text: str) -> None:
    """A line for whoever waits."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _folder(keep: str | None) -> Iterator[Path]:
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
        yield Path(keep).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the hand's schedule; drawn if not given")
    parser.add_argument("--kills", type=int, default=1_000, help="stop after so many (1000)")
    parser.add_argument("--minutes", type=float, default=120.0, help="or after so long (120)")
    parser.add_argument("--gap", type=float, default=2.0, help="seconds between deeds (2)")
    parser.add_argument("--short", action="store_true", help="22 kills in half a minute")
    parser.add_argument(
        "--pauses",
        type=float,
        nargs="?",
        const=30.0,
        metavar="SECONDS",
        help="instead: stop one of each role for 30 s, each alone",
    )
    parser.add_argument(
        "--everything", type=int, metavar="TIMES", help="instead: kill everything at once, so often"
    )
    parser.add_argument(
        "--alone", type=int, metavar="KILLS", help="instead: so many kills, each alone"
    )
    parser.add_argument(
        "--gateways",
        type=int,
        default=2,
        help="2, with a store apart; in one, the store is with it",
    )
    parser.add_argument("--regions", type=int, default=3)
    parser.add_argument("--proxies", type=int, default=3, help="in each region")
    parser.add_argument("--workers", type=int, default=16, help="tasks on their way at a time")
    parser.add_argument("--json", metavar="FILE", help="write the report there as well")
    parser.add_argument("--keep", metavar="DIR", help="work there, and leave it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
