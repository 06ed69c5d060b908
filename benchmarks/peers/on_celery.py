"""Celery on Redis: a chain of a task, a chord of three, and its callback.

Acknowledged late and given back when a worker is lost, as its documentation advises for tasks that
may run twice. Redis keeps an append-only file, synced every second or at each write
(`BENCH_APPENDFSYNC`). A message that a dead worker held comes back after the visibility timeout,
which is an hour by default; the kill uses 10 s, looked for every 10 s instead of every 100
(`unacked_restore_throttle`), and says so.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import redis
from celery import Celery, chain, chord, group

from benchmarks.peers import harness

URL = os.environ["BENCH_URL"]
KILLED = {"visibility_timeout": 10, "unacked_restore_throttle": 1}
WORKER = ("worker", "--loglevel", "ERROR", "--without-gossip", "--without-mingle")

app = Celery("benchmarks.peers.on_celery", broker=URL, backend=URL)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_transport_options=KILLED if os.environ.get("BENCH_MARKS") else {},
    broker_connection_retry_on_startup=True,
)


@app.task(name="first")
def first(task: str) -> str:
    return harness.node(task, "n1")


@app.task(name="middle")
def middle(given: str, task: str, name: str) -> str:
    return harness.node(task, name, given)


@app.task(name="last")
def last(given: list[str], task: str) -> str:
    return harness.node(task, "z", *given)


def begin(task: str):
    three = group(middle.s(task, name) for name in harness.MIDDLE)
    return chain(first.s(task), chord(three, last.s(task))).apply_async()


def start_worker(name: str, processes: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.peers.on_celery", *WORKER]
    return subprocess.Popen(
        [*command, "--concurrency", str(processes), "--hostname", f"{name}@bench"],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 the worker with its pool."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def bench(tasks: int, alone: int) -> dict[str, float]:
    process = start_worker("w1", 2)
    try:
        for i in range(harness.WARM_UP):
            begin(f"warm{i}").get(timeout=60)
        median = harness.alone_ms(lambda task: begin(task).get(timeout=60), alone)
        start = time.perf_counter()
        results = [begin(f"t{i}") for i in range(tasks)]
        outputs = [result.get(timeout=300) for result in results]
        return harness.rate(tasks, start, outputs) | {"alone_ms": median}
    finally:
        end(process)


def kill(tasks: int) -> dict[str, float]:
    marks = harness.Marks()
    workers = [start_worker("w1", 1), start_worker("w2", 1)]
    try:
        for i in range(harness.WARM_UP):
            begin(f"warm{i}").get(timeout=60)
        marks.clear()
        results = [begin(f"k{i}") for i in range(tasks)]
        marks.await_half(tasks)
        killed_at = time.monotonic()
        end(workers.pop())
        backend = redis.Redis.from_url(URL)
        keys = ["celery-task-meta-" + result.id for result in results]

        def done() -> int:
            return sum(b'"SUCCESS"' in (value or b"") for value in backend.mget(keys))

        completed = harness.until(done, tasks, killed_at)
        return marks.report(tasks, killed_at, completed)
    finally:
        for process in workers:
            end(process)


if __name__ == "__main__":
    harness.main("celery", bench, kill)
