"""The job that everything is measured by: tasks of five no-op nodes, 1 -> 3 -> 1."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from agentos import AsyncClient

GRAPH: dict[str, Any] = {
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


def own_graph(number: int) -> Mapping[str, Any]:
    """The job with a graph that no other task has: another time limit for its first node."""
    first = {**GRAPH["nodes"]["n1"], "timeout_s": 60 + number / 1000}
    return {**GRAPH, "nodes": {**GRAPH["nodes"], "n1": first}}


async def throughput(
    client: AsyncClient,
    tasks: int,
    graph: Mapping[str, Any] = GRAPH,
    output: str = OUTPUT,
    timeout_s: float = 300,
    in_flight: int = IN_FLIGHT,
    graph_of: Callable[[int], Mapping[str, Any]] | None = None,
) -> float:
    """Tasks per second, from the first submit to the last result, `in_flight` at a time at most.

    With `graph_of`, each task has the graph of its number.

    Raises:
        WrongCount: a result is wrong.
    """
    outputs: list[Any] = []
    graphs = [graph if graph_of is None else graph_of(number) for number in range(tasks)]
    left = iter(graphs)

    async def one_after_another() -> None:
        for each in left:
            task = await client.submit(each)
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
