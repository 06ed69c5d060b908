"""DBOS Transact: a durable workflow of five steps, on SQLite or PostgreSQL.

Throughput and latency: `start_workflow_async` in one process, as in its tutorial. The kill: a
durable queue, filled by a client, and one worker process, started again at once under the same
executor id, which is how DBOS recovers without its paid Conductor.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

from dbos import DBOS, DBOSClient

from benchmarks.peers import harness

QUEUE = "jobs"


def database() -> str:
    return os.environ.get("BENCH_URL") or f"sqlite:///{harness.folder() / 'dbos.sqlite'}"


@DBOS.step()
async def step(task: str, name: str, *inputs: str) -> str:
    return harness.node(task, name, *inputs)


@DBOS.workflow()
async def job(task: str) -> str:
    first = await step(task, "n1")
    middle = await asyncio.gather(*(step(task, name, first) for name in harness.MIDDLE))
    return await step(task, "z", *middle)


def launch() -> None:
    DBOS(
        config={
            "name": "bench",
            "system_database_url": database(),
            "log_level": "ERROR",
            "application_version": "1",
            "executor_id": "worker",
        }
    )
    DBOS.launch()


def bench(tasks: int, alone: int) -> dict[str, float]:
    launch()

    async def one(task: str) -> str:
        return await (await DBOS.start_workflow_async(job, task)).get_result()

    async def run() -> dict[str, float]:
        for i in range(harness.WARM_UP):
            await one(f"warm{i}")
        median = await harness.alone_ms_async(one, alone)
        start = time.perf_counter()
        handles = [await DBOS.start_workflow_async(job, f"t{i}") for i in range(tasks)]
        outputs = [await handle.get_result() for handle in handles]
        return harness.rate(tasks, start, outputs) | {"alone_ms": median}

    return asyncio.run(run())


def worker() -> None:
    launch()
    DBOS.register_queue(QUEUE, polling_interval_sec=0.05, worker_concurrency=32)
    print("ready", flush=True)
    while True:
        time.sleep(60)


def start_worker() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.peers.on_dbos", "worker"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def kill(tasks: int) -> dict[str, float]:
    marks = harness.Marks()
    process = start_worker()  # the first one makes the schema
    client = DBOSClient(system_database_url=database())
    options = {"queue_name": QUEUE, "workflow_name": job.__qualname__, "app_version": "1"}
    try:
        for i in range(tasks):
            client.enqueue({**options, "workflow_id": f"k{i}"}, f"k{i}")
        marks.await_half(tasks)
        process.kill()
        killed_at = time.monotonic()
        process.wait()
        process = start_worker()

        def done() -> int:
            ended = client.list_workflows(status="SUCCESS", load_input=False, load_output=False)
            return len(ended)

        completed = harness.until(done, tasks, killed_at)
        return marks.report(tasks, killed_at, completed)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        worker()
    harness.main("dbos", bench, kill)
