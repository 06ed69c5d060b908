"""`python -m tests.mutants`: break each rule in a copy of the project, and see who notices.

The simulator is asked first, then the tests that the catalogue names. The copy without a mutant
runs first: whatever fails there proves nothing. Ends with status 1 when a mutant survives.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from agentos.cli import output
from tests.mutants.catalogue import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
PARTS = ("agentos", "storage", "transports", "tests", "docs", "examples")
PATIENCE_S = 600.0
SIMULATE = "import sys; from agentos.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True)
class Verdict:
    """Who noticed a mutant ("" for nobody), and how long that took, in seconds."""

    mutant: Mutant
    caught_by: str
    seconds: float


class Copy:
    """The project in a folder of its own, laid out as it installs.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__")
        for part in PARTS:
            inside = folder / "agentos" if part in {"storage", "transports"} else folder
            shutil.copytree(ROOT / part, inside / part, ignore=ignore)
        for part in ("storage", "transports"):  # tests that read the sources look here
            (folder / part).symlink_to(folder / "agentos" / part)
        for file in ("pyproject.toml", "setup.py", "Makefile", "README.md"):
            shutil.copy(ROOT / file, folder)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python on the copy."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def mutate(self, mutant: Mutant) -> None:
        """Break a rule.

        Raises:
            SystemExit: the text is not there, or not once: the catalogue is out of date.
        """
        file = self.folder / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(f"{mutant.file} has {text.count(mutant.old)} times: {mutant.old!r}")
        file.write_text(text.replace(mutant.old, mutant.new))

    def simulate(self, seeds: int) -> str:
        """The rule that the simulator saw broken; "" for none."""
        try:
            done = self.run("-c", SIMULATE, "simulate", "--seeds", str(seeds), "--json")
        except subprocess.TimeoutExpired:
            return "simulator: it never ends"
        if not done.returncode:
            return ""
        try:
            failures = json.loads(done.stdout)["failures"]
        except (ValueError, KeyError):
            return f"simulator: {_last(done.stderr)}"
        if not failures:
            return "simulator: what it covers was never reached"
        return f"simulator, seed {failures[0]['seed']}: {failures[0]['rule']}"

    def test(self, files: str) -> str:
        """The test that failed; "" for none."""
        options = ("-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=1")
        done = self.run("-m", "pytest", *options, *files.split())
        if not done.returncode:
            return ""
        failed = re.search(
            r"^(?:FAILED|ERROR) \S*?([\w.]+(?:::\S+)?)(?: |$)", done.stdout, re.MULTILINE
        )
        return failed.group(1) if failed else _last(done.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="of the simulator, for each mutant")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="mutants with this in their rule or file")
    options = parser.parse_args(argv)
    chosen = [q for q in MUTANTS if options.only in q.rule or options.only in q.file]
    if (fault := _control(chosen, options.seeds)) is not None:
        output.line(f"error: without any mutant: {fault}", to_stderr=True)
        return 1
    verdicts = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        work = bar.add_task("mutants", total=len(chosen))
        with ThreadPoolExecutor(options.jobs) as pool:
            for verdict in pool.map(lambda q: _judge(q, options.seeds), chosen):
                verdicts.append(verdict)
                bar.advance(work)
    _print(verdicts)
    return int(any(not verdict.caught_by for verdict in verdicts))


def _control(mutants: Sequence[Mutant], seeds: int) -> str | None:
    """What fails in the project as it is."""
    files = " ".join(sorted({file for q in mutants for file in q.tests.split()}))
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder) / "copy")
        return copy.simulate(seeds) or copy.test(files) or None


def _judge(mutant: Mutant, seeds: int) -> Verdict:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder) / "copy")
        copy.mutate(mutant)
        caught = copy.simulate(seeds) or copy.test(mutant.tests)
    return Verdict(mutant, caught, time.monotonic() - begun)


def _print(verdicts: Sequence[Verdict]) -> None:
    rows = [
        (q.mutant.rule, q.mutant.how, q.caught_by or "SURVIVED", f"{q.seconds:.0f}")
        for q in verdicts
    ]
    output.table(["rule", "mutant", "caught by", "s"], rows)
    dead = sum(bool(verdict.caught_by) for verdict in verdicts)
    simulated = sum(verdict.caught_by.startswith("simulator") for verdict in verdicts)
    output.line(f"{dead} of {len(verdicts)} mutants caught, {simulated} of them by the simulator")


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else "failed without a word"


if __name__ == "__main__":
    sys.exit(main())
