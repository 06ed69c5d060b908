"""Real `agentos` processes in tests: started, read, signalled, and ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

AGENTOS = [sys.executable, "-m", "agentos"]
DIAMOND = str(Path(__file__).parents[1] / "examples" / "graphs" / "diamond.json")
ANY = "tcp://127.0.0.1:*"


def eventually(condition: Callable[[], bool], within_s: float = 30.0) -> bool:
    """Wait for a condition, up to a deadline."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class Up:
    """An `agentos` process, with its log in a file."""

    def __init__(self, folder: Path, *arguments: str, **options: Any) -> None:
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*AGENTOS, *arguments], stdout=subprocess.PIPE, stderr=log, text=True, **options
            )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def json(self) -> dict[str, Any]:
        line = self.line()
        assert line, self.log.read_text()
        return json.loads(line)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def close(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.end()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def starter(folder: Path) -> Iterator[Callable[..., Up]]:
    """A function that starts `agentos` with some arguments; all that it started is ended after."""
    started: list[Up] = []

    def start(*arguments: str, **options: Any) -> Up:
        own = folder / f"process{len(started)}"
        own.mkdir()
        started.append(Up(own, *arguments, **options))
        return started[-1]

    try:
        yield start
    finally:
        for up in reversed(started):
            up.close()


def up(start: Callable[..., Up], data: str, *more: str) -> tuple[Up, dict[str, Any]]:
    """A small cluster that is ready, and its record."""
    process = start("up", "--proxies", "1", "--data", data, "--listen", ANY, "--json", *more)
    return process, process.json()


def role(record: dict[str, Any], name: str) -> int:
    return next(found["pid"] for found in record["roles"] if found["name"] == name)


def refused(*arguments: str, **options: Any) -> str:
    """The error of a command that must fail with exit code 2, in one line."""
    done = subprocess.run(
        [*AGENTOS, *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr
