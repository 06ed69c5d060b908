"""The job that everything is measured by: tasks of five no-op nodes, 1 -> 3 -> 1."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from typing import Any

from agentos import AsyncClient

GRAPH = {
    "nodes": {
        "n1": {"agent": "echo", "prompt": "x"},
        "a": {"agent": "echo", "prompt": "${n1}a"},
        "b": {"agent": "echo", "prompt": "${n1}b"},
        "c": {"agent": "echo", "prompt": "${n1}c"},
        "z": {"agent": "echo", "prompt": "${a}${b}${c}"},
    },
    "output": "z",
}
OUTPUT = "xaxbxc"
NODES = 5
IN_FLIGHT = 1_000
"""Tasks that one client has under way at most; 1,000 tasks are all handed in at once."""


class WrongCount(Exception):
    """Not every result came, or one is wrong: the figures are worth nothing."""


async def throughput(
    client: AsyncClient,
    tasks: int,
    graph: Mapping[str, Any] = GRAPH,
    output: str = OUTPUT,
    timeout_s: float = 300,
    in_flight: int = IN_FLIGHT,
) -> float:
    """Tasks per second, from the first submit to the last result, `in_flight` at a time at most.

    Raises:
        WrongCount: a result is wrong.
    """
    outputs: list[Any] = []
    left = iter(range(tasks))

    async def one_after_another() -> None:
        for _ in left:
            task = await client.submit(graph)
            outputs.append(await task.result(timeout_s=timeout_s))

    start = time.perf_counter()
    await asyncio.gather(*(one_after_another() for _ in range(min(tasks, in_flight))))
    seconds = time.perf_counter() - start
    wrong = tasks - sum(found == output for found in outputs)
    if wrong:
        raise WrongCount(f"{wrong} of {tasks} results are wrong")
    return tasks / seconds


async def latency_ms(
    client: AsyncClient,
    tasks: int,
    graph: Mapping[str, Any] = GRAPH,
    output: str = OUTPUT,
) -> float:
    """Median milliseconds from submit to result, one task at a time.

    Raises:
        WrongCount: a result is wrong.
    """
    times = []
    for _ in range(tasks):
        start = time.perf_counter()
        task = await client.submit(graph)
        found = await task.result(timeout_s=60)
        times.append(time.perf_counter() - start)
        if found != output:
            raise WrongCount(f"{found!r} is not {output!r}")
    return 1000 * statistics.median(times)


async def until_ready(client: AsyncClient, proxies: int, timeout_s: float = 60) -> None:
    """Wait until the gateway knows this many living proxies."""
    deadline = time.monotonic() + timeout_s
    alive = 0
    while time.monotonic() < deadline:
        regions = (await client.cluster()).regions
        alive = sum(p.alive for region in regions for p in region.proxies)
        if alive >= proxies:
            return
        await asyncio.sleep(0.05)
    raise WrongCount(f"{alive} of {proxies} proxies are there after {timeout_s:g} s")
