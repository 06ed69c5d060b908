"""Many proxies, and a long backlog: what a task costs then, and what idling does."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from agentos import AsyncClient
from benchmarks import clusters, job, standins
from benchmarks.clusters import Topology, Up
from benchmarks.figures import Figure, at_most
from benchmarks.settings import Settings

FEW = Topology(1, 4)
OTHER = "other"
"""An agent that no task of the job needs."""
WINDOW = 1_000
"""Submissions on their way at a time."""
COUNTED_S = 30.0


def proxies(settings: Settings) -> list[Figure]:
    """The job on 4 proxies, and on 4 of many, in turn."""
    many = settings.size(24, 1_000)
    tasks = settings.size(200, 2_000)
    found: defaultdict[str, list[float]] = defaultdict(list)
    for _ in settings.each_run(f"{FEW.total} and {many:,} connected proxies"):
        for name, agent in (("few", ""), ("other", OTHER), ("capable", "echo")):
            with _connected(agent, many - FEW.total) as up:
                total = many if agent else FEW.total
                asyncio.run(_cost(up, total, tasks, settings, found, name))

    def more(what: str, name: str) -> list[float]:
        pairs = zip(found[f"{name} {what}"], found[f"few {what}"], strict=True)
        return [100 * (with_many / with_few - 1) for with_many, with_few in pairs]

    here = f"from {FEW.total} to {many:,} connected proxies"
    beats = [100 * share for share in found["other idle"]]
    return [
        Figure(
            "flat",
            f"{here}, {FEW.total} of which offer the agent: growth of a task's CPU "
            "(all roles and the client, heartbeats taken off)",
            "%",
            more("all", "other"),
            at_most(10),
        ),
        Figure(
            "flat",
            f"{here}, all of which offer the agent: growth of a task's CPU in gateway, store and "
            "region (heartbeats taken off)",
            "%",
            more("core", "capable"),
            at_most(10),
        ),
        Figure("flat", f"heartbeats of {many:,} proxies: CPU of region and gateway", "%", beats),
    ]


@contextmanager
def _connected(agent: str, more: int) -> Iterator[Up]:
    """A cluster of few proxies, and with `agent` so many more which offer that."""
    with clusters.processes(FEW) as up:
        roles = json.loads((up.data / "cluster.json").read_text())["roles"]
        region = next(role["address"] for role in roles if role["name"] == "region/r1")
        with standins.running(region, more, agent) if agent else nullcontext():
            yield up


async def _cost(
    up: Up,
    proxies: int,
    tasks: int,
    settings: Settings,
    found: defaultdict[str, list[float]],
    name: str,
) -> None:
    async with up.client() as client:
        await job.until_ready(client, proxies)
        await job.throughput(client, 200)
        idle_s = settings.size(1.0, 5.0)
        idle = {"core": up.cpu_s("gateway", "region"), "all": clusters.all_cpu_s(up)}
        await asyncio.sleep(idle_s)
        core, every = up.cpu_s("gateway", "region"), clusters.all_cpu_s(up)
        rates = {"core": (core - idle["core"]) / idle_s, "all": (every - idle["all"]) / idle_s}
        seconds = tasks / await job.throughput(client, tasks)
        used = {
            "core": up.cpu_s("gateway", "region") - core - rates["core"] * seconds,
            "all": clusters.all_cpu_s(up) - every - rates["all"] * seconds,
        }
        found[f"{name} core"].append(1e6 * used["core"] / tasks)
        found[f"{name} all"].append(1e6 * used["all"] / tasks)
        found[f"{name} idle"].append(rates["core"])


def idle(settings: Settings) -> list[Figure]:
    """The CPU of a cluster that has nothing to do: a process for each proxy."""
    topology = settings.size(Topology(1, 4), Topology(1, 100))
    seconds = settings.size(2.0, 10.0)
    shares = []
    settings.tell(f"starting {topology.total} proxies that will idle")
    with clusters.processes(topology) as up:

        async def watch() -> None:
            async with up.client() as client:
                await job.until_ready(client, topology.total)
            for _ in settings.each_run(f"{topology.total} idle proxies"):
                before = up.cpu_s()
                await asyncio.sleep(seconds)
                shares.append(100 * (up.cpu_s() - before) / seconds)

        asyncio.run(watch())
    what = f"idle cluster of {topology.total} proxies, a process each: CPU of all processes"
    return [Figure("flat", what, "% of a core", shares, at_most(2))]


def backlog(settings: Settings) -> list[Figure]:
    """Submit tasks that wait for an agent that nobody offers; look at the gateway's memory."""
    waiting = settings.size(1_000, 20_000, 1_000_000)
    graph = {"nodes": {"n": {"agent": "absent", "prompt": "x"}}, "output": "n"}
    settings.tell(f"a backlog of {waiting:,} tasks")
    with clusters.processes(settings.topology) as up:

        async def submit(client: AsyncClient, numbers: Iterator[int]) -> None:
            for _ in numbers:
                await client.submit(graph)

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
        Figure("flat", "gateway's memory before a backlog", "MB", [before]),
        Figure("flat", what, "MB", [after], at_most(300)),
    ]


async def _until_counted(client: AsyncClient, waiting: int) -> None:
    """The gateway counts what is unfinished once in every sweep."""
    deadline = time.monotonic() + COUNTED_S
    while (left := (await client.cluster()).unfinished) != waiting:
        if time.monotonic() > deadline:
            raise job.WrongCount(f"{left} tasks are unfinished, not {waiting}")
        await asyncio.sleep(0.2)
