"""What every peer's module uses: the job's node, the clock, the count of runs. Standard library only.

A module is run as `python -m benchmarks.peers.on_NAME bench TASKS ALONE` or `… kill TASKS`, with
`BENCH_FOLDER`, a fresh folder, and what its server needs, in the environment. Its last line of
output is one JSON object.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

NODES = ("n1", "a", "b", "c", "z")
MIDDLE = ("a", "b", "c")
OUTPUT = "xaxbxc"
LETTERS = {"n1": "x", "a": "a", "b": "b", "c": "c", "z": ""}
WARM_UP = 20
"""Tasks before the clock starts."""
KILL_LIMIT_S = 60.0
"""How long after the kill is waited for what is left."""


def node(task: str, name: str, *inputs: str) -> str:
    """The no-op node: what came in, and its own letter."""
    mark(task, name)
    return "".join(inputs) + LETTERS[name]


def mark(task: str, name: str) -> None:
    """Note that a node ran, if that is counted; one short append is atomic."""
    path = os.environ.get("BENCH_MARKS")
    if path:
        file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(file, f"{task} {name} {os.getpid()}\n".encode())
        os.close(file)


def folder() -> Path:
    """A folder that is empty at the start."""
    return Path(os.environ["BENCH_FOLDER"])


def wrong(outputs: Iterable[object]) -> int:
    """How many results are not what they should be."""
    return sum(output != OUTPUT for output in outputs)


def alone_ms(run: Callable[[str], object], count: int) -> float:
    """Median milliseconds of one task, one at a time."""
    times = []
    for i in range(count):
        start = time.perf_counter()
        output = run(f"alone{i}")
        times.append(time.perf_counter() - start)
        if output != OUTPUT:
            raise SystemExit(f"{output!r} is not {OUTPUT!r}")
    return 1000 * statistics.median(times)


async def alone_ms_async(run: Callable[[str], Awaitable[object]], count: int) -> float:
    """The same for what is awaited."""
    times = []
    for i in range(count):
        start = time.perf_counter()
        output = await run(f"alone{i}")
        times.append(time.perf_counter() - start)
        if output != OUTPUT:
            raise SystemExit(f"{output!r} is not {OUTPUT!r}")
    return 1000 * statistics.median(times)


class Marks:
    """Which nodes ran, and how often."""

    def __init__(self) -> None:
        self._path = Path(os.environ["BENCH_MARKS"])
        self.clear()

    def clear(self) -> None:
        """Forget what ran; workers append to the same file all along."""
        self._path.write_text("")

    def runs(self) -> list[tuple[str, str, int]]:
        """Task, node, process of each run."""
        lines = self._path.read_text().splitlines()
        return [(task, name, int(pid)) for task, name, pid in map(str.split, lines)]

    def await_half(self, tasks: int) -> None:
        """Wait until half of the nodes have run."""
        deadline = time.monotonic() + 300
        while self._path.read_bytes().count(b"\n") < len(NODES) * tasks // 2:
            if time.monotonic() > deadline:
                raise SystemExit("half of the nodes have not run within 300 s")
            time.sleep(0.005)

    def report(self, tasks: int, killed_at: float, completed: int) -> dict[str, float]:
        """What became of it, now that all is over or the limit is reached."""
        seconds = time.monotonic() - killed_at
        counts = Counter((task, name) for task, name, _ in self.runs())
        return {
            "seconds": seconds,
            "incomplete": tasks - completed,
            "lost": len(NODES) * tasks - len(counts),
            "twice": sum(count > 1 for count in counts.values()),
        }


def until(done: Callable[[], int], tasks: int, killed_at: float) -> int:
    """Wait until so many tasks have ended, or the limit; returns how many have."""
    while (count := done()) < tasks and time.monotonic() - killed_at < KILL_LIMIT_S:
        time.sleep(0.05)
    return count


def main(
    package: str,
    bench: Callable[[int, int], dict[str, float]],
    kill: Callable[[int], dict[str, float]] | None = None,
) -> None:
    """Do what the command line says, and print what was found."""
    what, *numbers = sys.argv[1:]
    chosen: Callable[..., dict[str, Any]] | None = bench if what == "bench" else kill
    if chosen is None:
        raise SystemExit(f"{what} is not measured here")
    found = chosen(*map(int, numbers))
    version = os.environ.get("BENCH_VERSION") or metadata.version(package)
    say(found | {"version": version})


def say(found: dict[str, Any]) -> None:
    """The last line; then leave without waiting for anybody's threads."""
    print(json.dumps(found), flush=True)
    sys.stderr.flush()
    os._exit(0)


def rate(tasks: int, start: float, outputs: Sequence[object]) -> dict[str, float]:
    """Tasks per second since `start` (`perf_counter`), and how many results are wrong."""
    return {"tasks_s": tasks / (time.perf_counter() - start), "wrong": wrong(outputs)}
