"""Agent OS on the same job: `agentos up`, a process for each role. The kill: one of its proxies."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from agentos.logs import configure
from benchmarks import clusters, job
from benchmarks.peers import harness

CONFIG = """[agents.node]
type = "function"
path = "benchmarks.peers.on_agentos:node"
"""
GRAPH = {
    "nodes": {
        "n1": {"agent": "node", "prompt": "${input.task} n1"},
        **{
            name: {"agent": "node", "prompt": f"${{input.task}} {name} ${{n1}}"}
            for name in harness.MIDDLE
        },
        "z": {"agent": "node", "prompt": "${input.task} z ${a} ${b} ${c}"},
    },
    "output": "z",
}
"""The same job with the task's name in each prompt, so that every run can be counted."""


async def node(prompt: str) -> str:
    """The agent of the kill: marks that it ran."""
    return harness.node(*prompt.split())


def bench(tasks: int, alone: int) -> dict[str, float]:
    topology = clusters.Topology()

    async def run(up: clusters.Up) -> dict[str, float]:
        async with up.client() as client:
            await job.until_ready(client, topology.total)
            await job.throughput(client, harness.WARM_UP)
            median = await job.latency_ms(client, alone)
            return {"tasks_s": await job.throughput(client, tasks), "alone_ms": median, "wrong": 0}

    with clusters.processes(topology) as up:
        return asyncio.run(run(up))


def kill(tasks: int) -> dict[str, float]:
    marks = harness.Marks()
    topology = clusters.Topology()

    async def run(up: clusters.Up) -> dict[str, float]:
        async with up.client() as client:
            await job.until_ready(client, topology.total)

            async def one(i: int) -> object:
                task = await client.submit({"input": {"task": f"k{i}"}, **GRAPH})
                return await task.result(timeout_s=harness.KILL_LIMIT_S)

            running = asyncio.gather(*map(one, range(tasks)))
            await asyncio.to_thread(marks.await_half, tasks)
            os.kill(up.roles["proxy/r1/1"], signal.SIGKILL)
            killed_at = time.monotonic()
            outputs = await running
            return marks.report(tasks, killed_at, tasks - harness.wrong(outputs))

    with clusters.processes(topology, CONFIG) as up:
        return asyncio.run(run(up))


if __name__ == "__main__":
    configure("error")
    harness.main("agentos-cluster", bench, kill)
