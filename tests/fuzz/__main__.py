"""`python -m tests.fuzz`: every target for a while; a table; what was found is kept.

Guided by coverage where atheris is installed (`pip install atheris`), else good inputs are damaged
at random, from a seed that is printed. A failing input is written to `tests/fuzz/corpus`, where
`tests/test_fuzz.py` finds it from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import re
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests.fuzz.making import MAKERS, damaged
from tests.fuzz.targets import TARGETS, timed

CORPUS = Path(__file__).parent / "corpus"
SEEDS = 500
"""Good inputs that a guided run begins with."""


class Outcome(NamedTuple):
    """What became of one target."""

    target: str
    engine: str
    runs: int
    seconds: float
    failures: list[str]


def known(target: str) -> list[Path]:
    """What was found before."""
    return sorted(CORPUS.glob(f"{target}-*"))


def keep(target: str, data: bytes) -> str:
    """Write a failing input down; its name."""
    CORPUS.mkdir(exist_ok=True)
    file = CORPUS / f"{target}-{hashlib.sha256(data).hexdigest()[:12]}"
    file.write_bytes(data)
    return file.name


def at_random(target: str, seconds: float, seed: int) -> Outcome:
    """Damage good inputs until the time is over; stops at ten different failures."""
    rng = random.Random(f"{seed} {target}")
    made = [MAKERS[target](rng) for _ in range(200)]
    runs, failures, start = 0, dict[str, str](), time.monotonic()
    while time.monotonic() < start + seconds and len(failures) < 10:
        data = damaged(rng.choice(made), rng.choice(made), rng)
        runs += 1
        if runs % 50 == 0:  # not always from the same ones
            made[rng.randrange(len(made))] = MAKERS[target](rng)
        try:
            timed(target, data)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            where = f"{type(error).__name__}: {str(error)[:80]}"
            if where not in failures:
                failures[where] = f"{keep(target, data)} ({where})"
    took = time.monotonic() - start
    return Outcome(target, f"random, seed {seed}", runs, took, list(failures.values()))


def guided(target: str, seconds: float, seed: int) -> Outcome:
    """Let atheris look for new paths; it stops at the first failure."""
    with tempfile.TemporaryDirectory(prefix="agentos-fuzz-") as folder:
        rng, seeds = random.Random(seed), Path(folder) / "seeds"
        seeds.mkdir()
        for i in range(SEEDS):
            (seeds / str(i)).write_bytes(MAKERS[target](rng))
        command = [sys.executable, "-m", "tests.fuzz.guided", target]
        command += [f"-max_total_time={max(1, round(seconds))}", f"-seed={seed}", "-max_len=20000"]
        command += ["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1", "-verbosity=1"]
        command += [f"-artifact_prefix={folder}/", str(seeds)]
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        took = time.monotonic() - start
        found = [
            file
            for file in Path(folder).iterdir()
            if file.name.startswith(("crash-", "timeout-", "oom-", "slow-unit-"))
        ]
        failures = [f"{keep(target, file.read_bytes())} ({file.name[:8]})" for file in found]
        units = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        if done.returncode and not failures:
            failures = [f"exit {done.returncode}: {done.stderr[-300:]}"]
        runs = int(units[1]) if units else 0
    return Outcome(target, f"atheris, seed {seed}", runs, took, failures)


def main() -> int:
    """Fuzz; returns 1 if anything was found, or is still wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--engine", choices=("atheris", "random"), default=None)
    parser.add_argument("--only", choices=sorted(TARGETS), action="append")
    options = parser.parse_args()
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    engine = options.engine or ("atheris" if importlib.util.find_spec("atheris") else "random")
    names = options.only or list(TARGETS)
    table = Table("target", "engine", "runs", "runs/s", "known inputs", "failures")
    failed = False
    for name in names:
        again = []
        for file in known(name):
            try:
                timed(name, file.read_bytes())
            except Exception as error:  # noqa: BLE001
                again.append(f"{file.name} is still wrong: {error}")
        run = guided if engine == "atheris" else at_random
        found = run(name, options.minutes * 60 / len(names), seed)
        failures = again + found.failures
        failed |= bool(failures)
        rate = f"{found.runs / max(found.seconds, 0.001):,.0f}"
        shown = "\n".join(failures) or "none"
        table.add_row(name, found.engine, f"{found.runs:,}", rate, str(len(known(name))), shown)
    Console(width=140).print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
