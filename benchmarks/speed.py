"""Tasks per second, and one task alone: beside the bare parts, measured in turn with them.

`python -m benchmarks.speed up|embedded RxP ALONE TASKS…` is one run in a fresh process, which is
the client's: nothing that was measured before it is in its memory. It prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys

from agentos import AsyncClient
from agentos.logs import configure
from benchmarks import ceiling, children, clusters, job
from benchmarks.clusters import Topology, Up
from benchmarks.figures import Figure, Goal, at_least, at_most
from benchmarks.settings import Settings

BARE_ALONE_MS = 1.7
"""What the bare parts took when the goals were set: 3 and 5 ms are so many times that."""
WARM_UP = 100
"""Tasks before the clock starts."""


def measure(settings: Settings) -> list[Figure]:
    """Alternate: `agentos up`, embedded, bare parts."""
    sizes = settings.size((200, 400), (1_000, 10_000))
    alone = settings.size(30, 300)

    def once() -> dict[str, float]:
        values: dict[str, float] = {}
        for place in ("up", "embedded"):
            for name, value in _in_a_fresh_process(place, settings.topology, alone, sizes).items():
                values[f"{place} {name}"] = value
        for tasks in sizes:
            values[f"bare {tasks}"] = ceiling.measured(tasks, job.IN_FLIGHT)["tasks_s"]
        return values | {"bare alone": ceiling.measured(alone, in_flight=1)["p50_ms"]}

    found = settings.repeat("throughput and one task alone", once)
    where = f"`agentos up`, {settings.topology}, client included"
    home = f"embedded, {settings.topology}"
    figures = []

    def add(what: str, unit: str, values: list[float], goal: Goal | None = None) -> None:
        figures.append(Figure("speed", what, unit, values, goal))

    for tasks in sizes:
        up_s, bare_s = found[f"up {tasks}"], found[f"bare {tasks}"]
        ratio = [100 * ours / bare for ours, bare in zip(up_s, bare_s, strict=True)]
        add(f"{tasks:,} tasks of 5 nodes, {where}", "tasks/s", up_s, at_least(3000))
        add(f"the same on bare parts (nothing to recover with), {tasks:,} tasks", "tasks/s", bare_s)
        add(f"ours as a share of the bare parts', {tasks:,} tasks", "%", ratio, at_least(25))
        cpu = found[f"up cpu {tasks}"]
        add(f"CPU of a task, all processes and the client, {tasks:,} tasks", "µs", cpu)
        add(f"{tasks:,} tasks of 5 nodes, {home}", "tasks/s", found[f"embedded {tasks}"])
    own = f"the same of {sizes[0]:,} tasks, no two of which have the same graph, `agentos up`"
    add(own, "tasks/s", found["up own"])
    add(f"one task alone, p50, {home}", "ms", found["embedded alone"], at_most(3))
    add(f"one task alone, p50, {where}", "ms", found["up alone"], at_most(5))
    add("one task alone on bare parts, p50", "ms", found["bare alone"])
    for name, place, goal_ms in (("embedded", home, 3.0), ("up", where, 5.0)):
        pairs = zip(found[f"{name} alone"], found["bare alone"], strict=True)
        times = [ours / bare for ours, bare in pairs]
        goal = at_most(round(goal_ms / BARE_ALONE_MS, 2))
        add(f"one task alone, beside the bare parts', {place}", "times", times, goal)
    return figures


def _in_a_fresh_process(
    place: str, topology: Topology, alone: int, sizes: tuple[int, ...]
) -> dict[str, float]:
    shape = f"{topology.regions}x{topology.proxies}"
    command = [sys.executable, "-m", "benchmarks.speed", place, shape, *map(str, (alone, *sizes))]
    found: dict[str, float] = json.loads(children.output(command).splitlines()[-1])
    return found


async def _run(
    client: AsyncClient, topology: Topology, alone: int, sizes: list[int], up: Up | None
) -> dict[str, float]:
    async with client:
        await job.until_ready(client, topology.total)
        await job.throughput(client, WARM_UP)
        found = {"alone": await job.latency_ms(client, alone)}
        for tasks in sizes:
            before = clusters.all_cpu_s(up)
            found[f"{tasks}"] = await job.throughput(client, tasks)
            found[f"cpu {tasks}"] = 1e6 * (clusters.all_cpu_s(up) - before) / tasks
        found["own"] = await job.throughput(client, sizes[0], graph_of=job.own_graph)
        return found


def main(place: str, shape: str, alone: str, *sizes: str) -> None:
    """One run."""
    configure("error")
    topology, numbers = Topology.parse(shape), [int(size) for size in sizes]
    if place == "up":
        with clusters.processes(topology) as up:
            found = asyncio.run(_run(up.client(), topology, int(alone), numbers, up))
    else:
        with clusters.embedded(topology) as client:
            found = asyncio.run(_run(client, topology, int(alone), numbers, None))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
