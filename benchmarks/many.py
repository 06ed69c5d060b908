"""Many proxies, and a long backlog: what a task costs then, and what idling does."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext

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
TURNS = (*("few", "idle", "capable"), *("capable", "idle", "few"), *("few", "capable", "idle"))
"""A run. The speed of a machine drifts in less time than a thousand proxies need to start."""
WINDOW = 1_000
"""Submissions on their way at a time."""
COUNTED_S = 30.0
IDLERS = (Topology(1, 4), Topology(1, 100))
"""The clusters that idle: a short run's, and the one that the goal is about."""
IDLE_LIMIT = at_most(2)
"""Percent of a core that an idle cluster of 100 proxies may use."""


def proxies(settings: Settings) -> list[Figure]:
    """The job on 4 proxies, on 4 of many, and on many: three clusters at once, one after another."""
    many = settings.size(24, 1_000)
    with ExitStack() as stack:
        ups: dict[str, Up] = {}
        for name, agent in (("few", ""), ("idle", OTHER), ("capable", "echo")):
            settings.tell(f"starting clusters of {FEW.total} and {many:,} proxies", 0)
            ups[name] = stack.enter_context(_connected(agent, many - FEW.total))
        found = settings.repeat(
            f"{FEW.total} and {many:,} connected proxies",
            lambda: asyncio.run(_costs(ups, many, settings)),
        )

    def more(what: str, name: str) -> list[float]:
        pairs = zip(found[f"{name} {what}"], found[f"few {what}"], strict=True)
        return [100 * (with_many / with_few - 1) for with_many, with_few in pairs]

    here = f"from {FEW.total} to {many:,} connected proxies"
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
        Figure(
            "proxies",
            f"heartbeats of {many:,} proxies: region and gateway",
            "% CPU",
            [100 * share for share in found["beats"]],
        ),
    ]


@contextmanager
def _connected(agent: str, more: int) -> Iterator[Up]:
    """A cluster of few proxies, and with `agent` so many more which offer that."""
    with clusters.processes(FEW) as up:
        roles = json.loads((up.data / "cluster.json").read_text())["roles"]
        region = next(role["address"] for role in roles if role["name"] == "region/r1")
        with standins.running(region, up.url, more, agent) if agent else nullcontext():
            yield up


async def _costs(ups: Mapping[str, Up], many: int, settings: Settings) -> dict[str, float]:
    """Microseconds of CPU of a task on each cluster, of gateway and region (`core`) and of all.

    And of the cluster whose proxies have nothing to do, the share of a core that they take.
    """
    tasks, idle_s = settings.size((100, 1.0), (500, 5.0))
    async with AsyncExitStack() as stack:
        clients = {n: await stack.enter_async_context(up.client()) for n, up in ups.items()}
        for name, client in clients.items():
            await job.until_ready(client, FEW.total if name == "few" else many)
            await job.throughput(client, 200, in_flight=SPREAD)
        before = {name: _used_s(up) for name, up in ups.items()}
        await asyncio.sleep(idle_s)
        rates = {
            name: {
                what: (cpu_s - before[name][what]) / idle_s for what, cpu_s in _used_s(up).items()
            }
            for name, up in ups.items()
        }
        spent: defaultdict[str, float] = defaultdict(float)
        for name in TURNS:
            start = _used_s(ups[name])
            seconds = tasks / await job.throughput(clients[name], tasks, in_flight=SPREAD)
            for what, cpu_s in _used_s(ups[name]).items():
                spent[f"{name} {what}"] += cpu_s - start[what] - rates[name][what] * seconds
    measured = tasks * len(TURNS) / len(ups)
    costs = {what: 1e6 * cpu_s / measured for what, cpu_s in spent.items()}
    return costs | {"beats": rates["idle"]["core"]}


def _used_s(up: Up) -> dict[str, float]:
    """CPU seconds so far."""
    return {"core": up.cpu_s("gateway", "region"), "all": clusters.all_cpu_s(up)}


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
