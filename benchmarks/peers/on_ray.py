"""Ray: tasks, or the methods of two actors (`BENCH_MODE=actors`). Results live in memory only."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import ray

from benchmarks.peers import harness

ACTORS = 2
Begin = Callable[[str], Any]


@ray.remote(max_retries=3)
def node(task: str, name: str, *inputs: str) -> str:
    return harness.node(task, name, *inputs)


@ray.remote(max_restarts=3, max_task_retries=3)
class Runner:
    def node(self, task: str, name: str, *inputs: str) -> str:
        return harness.node(task, name, *inputs)


def start() -> Begin:
    """Start Ray; returns what begins a task."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200_000_000,
    )
    if os.environ.get("BENCH_MODE") == "actors":
        turns = itertools.cycle([Runner.remote().node.remote for _ in range(ACTORS)])
        return lambda task: begin(task, lambda: next(turns))
    return lambda task: begin(task, lambda: node.remote)


def begin(task: str, where: Callable[[], Callable[..., Any]]) -> Any:
    first = where()(task, "n1")
    middle = [where()(task, name, first) for name in harness.MIDDLE]
    return where()(task, "z", *middle)


def bench(tasks: int, alone: int) -> dict[str, float]:
    run = start()
    for i in range(2 * harness.WARM_UP):
        ray.get(run(f"warm{i}"))
    median = harness.alone_ms(lambda task: ray.get(run(task)), alone)
    begun = time.perf_counter()
    outputs = ray.get([run(f"t{i}") for i in range(tasks)], timeout=300)
    found = harness.rate(tasks, begun, outputs) | {"alone_ms": median}
    ray.shutdown()
    return found


def kill(tasks: int) -> dict[str, float]:
    marks = harness.Marks()
    run = start()
    ray.get([run(f"warm{i}") for i in range(harness.WARM_UP)])
    marks.clear()
    results = [run(f"k{i}") for i in range(tasks)]
    marks.await_half(tasks)
    os.kill(marks.runs()[-1][2], signal.SIGKILL)
    killed_at = time.monotonic()
    completed = 0
    for result in results:
        left = max(0.1, harness.KILL_LIMIT_S - (time.monotonic() - killed_at))
        try:
            completed += ray.get(result, timeout=left) == harness.OUTPUT
        except ray.exceptions.RayError:
            continue
    report = marks.report(tasks, killed_at, completed)
    ray.shutdown()
    return report


if __name__ == "__main__":
    harness.main("ray", bench, kill)
