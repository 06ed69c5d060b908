"""Many proxies, and a long backlog: what a task costs then, and what idling does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from agentos import AsyncClient
from benchmarks import clusters, job, standins
from benchmarks.clusters import Topology, Up
from benchmarks.figures import Figure, at_most
from benchmarks.settings import Settings

FEW = Topology(1, 4)
OTHER = "other"
"""An agent that no task of the job needs."""
SPREAD = 64
"""Tasks in flight: few enough that the two cores of a small machine can run 1,000 proxies too."""
WINDOW = 1_000
"""Submissions on their way at a time."""
COUNTED_S = 30.0
IDLERS = (Topology(1, 4), Topology(1, 100))
"""The clusters that idle: a short run's, and the one that the goal is about."""
IDLE_LIMIT = at_most(2)
"""Percent of a core that an idle cluster of 100 proxies may use."""


def proxies(settings: Settings) -> list[Figure]:
    """The job on 4 proxies, and on 4 of many, in turn."""
    many = settings.size(24, 1_000)
    tasks = settings.size(200, 2_000)

    def once() -> dict[str, float]:
        values: dict[str, float] = {}
        for name, agent in (("few", ""), ("idle", OTHER), ("capable", "echo")):
            with _connected(agent, many - FEW.total) as up:
                total = many if agent else FEW.total
                found = asyncio.run(_cost(up, total, tasks, settings))
            values |= {f"{name} {what}": value for what, value in found.items()}
        return values

    found = settings.repeat(f"{FEW.total} and {many:,} connected proxies", once)

    def more(what: str, name: str) -> list[float]:
        pairs = zip(found[f"{name} {what}"], found[f"few {what}"], strict=True)
        return [100 * (with_many / with_few - 1) for with_many, with_few in pairs]

    here = f"from {FEW.total} to {many:,} connected proxies"
    beats = [100 * share for share in found["idle beats"]]
    return [
        Figure(
            "proxies",
            f"{here}, {FEW.total} of which offer the agent: growth of a task's CPU "
            "(all roles and the client, heartbeats taken off)",
            "%",
            more("all", "idle"),
            at_most(10),
        ),
        Figure(
            "proxies",
            f"{here}, all of which offer the agent: growth of a task's CPU in gateway, store and "
            "region (heartbeats taken off)",
            "%",
            more("core", "capable"),
            at_most(10),
        ),
        Figure("proxies", f"heartbeats of {many:,} proxies: region and gateway", "% CPU", beats),
    ]


@contextmanager
def _connected(agent: str, more: int) -> Iterator[Up]:
    """A cluster of few proxies, and with `agent` so many more which offer that."""
    with clusters.processes(FEW) as up:
        roles = json.loads((up.data / "cluster.json").read_text())["roles"]
        region = next(role["address"] for role in roles if role["name"] == "region/r1")
        with standins.running(region, up.url, more, agent) if agent else nullcontext():
            yield up


async def _cost(up: Up, proxies: int, tasks: int, settings: Settings) -> dict[str, float]:
    """Microseconds of CPU of a task, of gateway and region (`core`) and of all; idle CPU's share."""
    async with up.client() as client:
        await job.until_ready(client, proxies)
        await job.throughput(client, 200, in_flight=SPREAD)
        idle_s = settings.size(1.0, 5.0)
        idle = {"core": up.cpu_s("gateway", "region"), "all": clusters.all_cpu_s(up)}
        await asyncio.sleep(idle_s)
        core, every = up.cpu_s("gateway", "region"), clusters.all_cpu_s(up)
        rates = {"core": (core - idle["core"]) / idle_s, "all": (every - idle["all"]) / idle_s}
        seconds = tasks / await job.throughput(client, tasks, in_flight=SPREAD)
        used = {
            "core": up.cpu_s("gateway", "region") - core - rates["core"] * seconds,
            "all": clusters.all_cpu_s(up) - every - rates["all"] * seconds,
        }
        costs = {name: 1e6 * cpu_s / tasks for name, cpu_s in used.items()}
        return costs | {"beats": rates["core"]}


def idle(settings: Settings) -> list[Figure]:
    """The CPU of a cluster that has nothing to do: a process for each proxy."""
    topology = settings.size(*IDLERS)
    settings.tell(f"starting {topology.total} proxies that will idle", 0)
    what = f"idle cluster of {topology.total} proxies, a process each: CPU of all processes"
    with clusters.processes(topology) as up:
        return [_idle(settings, "idle", what, up.client(), up.cpu_s)]


def idle_embedded(settings: Settings) -> list[Figure]:
    """The CPU of an embedded cluster that has nothing to do."""
    topology = settings.size(*IDLERS)
    settings.tell(f"starting {topology.total} embedded proxies that will idle", 0)
    what = f"idle embedded cluster of {topology.total} proxies: CPU of its process"
    with clusters.embedded(topology) as client:
        return [_idle(settings, "idle-embedded", what, client, time.process_time)]


def _idle(
    settings: Settings, part: str, what: str, client: AsyncClient, cpu_s: Callable[[], float]
) -> Figure:
    """Wait until all proxies are there, and leave them alone; `cpu_s` is what they have used."""
    topology, seconds = settings.size(*IDLERS), settings.size(2.0, 8.0)
    asyncio.run(_settled(client, topology))

    def once() -> dict[str, float]:
        before = cpu_s()
        time.sleep(seconds)
        return {"share": 100 * (cpu_s() - before) / seconds}

    shares = settings.repeat(f"{topology.total} idle proxies", once)["share"]
    return Figure(part, what, "% of a core", shares, IDLE_LIMIT)


async def _settled(client: AsyncClient, topology: Topology) -> None:
    """Wait until all proxies are there, and it has done some work; then leave it alone."""
    async with client:
        await job.until_ready(client, topology.total)
        await job.throughput(client, 20)


def backlog(settings: Settings) -> list[Figure]:
    """Submit tasks that wait for an agent that nobody offers; look at the gateway's memory."""
    waiting = settings.size(1_000, 20_000, 1_000_000)
    graph = {"nodes": {"n": {"agent": "absent", "prompt": "x"}}, "output": "n"}
    settings.tell(f"a backlog of {waiting:,} tasks", 0)
    with clusters.processes(settings.topology) as up:

        async def submit(client: AsyncClient, numbers: Iterator[int]) -> None:
            for number in numbers:
                await client.submit(graph)
                if number % 10_000 == 0:
                    settings.tell(f"a backlog of {waiting:,} tasks", number / waiting)

        async def fill() -> tuple[float, float]:
            async with up.client() as client:
                await job.until_ready(client, settings.topology.total)
                await job.throughput(client, 200)
                before = up.memory_mb()["gateway/main"]
                numbers = iter(range(waiting))
                await asyncio.gather(*(submit(client, numbers) for _ in range(WINDOW)))
                after = up.memory_mb()["gateway/main"]
                await _until_counted(client, waiting)
                await job.throughput(client, 200)
                return before, after

        before, after = asyncio.run(fill())
    what = f"gateway's memory with a backlog of {waiting:,} tasks"
    return [
        Figure("backlog", "gateway's memory before a backlog", "MB", [before]),
        Figure("backlog", what, "MB", [after], at_most(300)),
    ]


async def _until_counted(client: AsyncClient, waiting: int) -> None:
    """The gateway counts what is unfinished once in every sweep."""
    deadline = time.monotonic() + COUNTED_S
    while (left := (await client.cluster()).unfinished) != waiting:
        if time.monotonic() > deadline:
            raise job.WrongCount(f"{left} tasks are unfinished, not {waiting}")
        await asyncio.sleep(0.2)
