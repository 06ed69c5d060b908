"""Dask distributed: futures of five calls on two worker processes. Results live in memory only."""

from __future__ import annotations

import logging
import os
import signal
import time

from distributed import Client, Future, LocalCluster

from benchmarks.peers import harness


def node(task: str, name: str, *inputs: str) -> str:
    return harness.node(task, name, *inputs)


def begin(client: Client, task: str) -> Future:
    first = client.submit(node, task, "n1", pure=False)
    middle = [client.submit(node, task, name, first, pure=False) for name in harness.MIDDLE]
    return client.submit(node, task, "z", *middle, pure=False)


def cluster() -> LocalCluster:
    return LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)


def bench(tasks: int, alone: int) -> dict[str, float]:
    with cluster() as workers, Client(workers) as client:
        for i in range(harness.WARM_UP):
            begin(client, f"warm{i}").result()
        median = harness.alone_ms(lambda task: begin(client, task).result(), alone)
        start = time.perf_counter()
        outputs = client.gather([begin(client, f"t{i}") for i in range(tasks)])
        return harness.rate(tasks, start, outputs) | {"alone_ms": median}


def kill(tasks: int) -> dict[str, float]:
    marks = harness.Marks()
    with cluster() as workers, Client(workers) as client:
        begin(client, "warm").result()
        marks.clear()
        futures = [begin(client, f"k{i}") for i in range(tasks)]
        marks.await_half(tasks)
        os.kill(marks.runs()[-1][2], signal.SIGKILL)
        killed_at = time.monotonic()
        outputs = client.gather(futures, errors="skip")
        return marks.report(tasks, killed_at, len(outputs))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    harness.main("distributed", bench, kill)
