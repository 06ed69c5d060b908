"""Wide and deep graphs: what a node of them costs, as a multiple of a node of the usual job."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from benchmarks import clusters, job
from benchmarks.figures import Figure, at_most
from benchmarks.settings import Settings


def fan_out(width: int) -> dict[str, Any]:
    """1 -> `width` -> 1, each node no-op; its output is `width` letters x."""
    middle = {f"m{i}": {"agent": "echo", "prompt": "${first}"} for i in range(width)}
    last = {"agent": "echo", "prompt": "".join(f"${{{name}}}" for name in middle)}
    first = {"agent": "echo", "prompt": "x"}
    return {"nodes": {"first": first, **middle, "last": last}, "output": "last"}


def chain(length: int) -> dict[str, Any]:
    """One no-op node after another; its output is the letter x."""
    nodes = {"n0": {"agent": "echo", "prompt": "x"}}
    nodes |= {f"n{i}": {"agent": "echo", "prompt": f"${{n{i - 1}}}"} for i in range(1, length)}
    return {"nodes": nodes, "output": f"n{length - 1}"}


def measure(settings: Settings) -> list[Figure]:
    """Many of each at once, with as many nodes in all; then a chain alone."""
    size = settings.size(100, 1_000)
    graphs = settings.size(4, 50)
    nodes = graphs * size
    kinds: Mapping[str, tuple[int, int, Mapping[str, Any], str]] = {
        # name: tasks, nodes in each, graph, output
        "usual": (nodes // job.NODES, job.NODES, job.GRAPH, job.OUTPUT),
        "fan": (graphs, size + 2, fan_out(size), "x" * size),
        "chain": (graphs, size, chain(size), "x"),
    }
    wall: defaultdict[str, list[float]] = defaultdict(list)
    cpu: defaultdict[str, list[float]] = defaultdict(list)
    alone: defaultdict[str, list[float]] = defaultdict(list)

    async def run(up: clusters.Up) -> None:
        async with up.client() as client:
            await job.until_ready(client, settings.topology.total)
            await job.throughput(client, 100)
            for name, (tasks, each, graph, output) in kinds.items():
                before = clusters.all_cpu_s(up)
                rate = await job.throughput(client, tasks, graph, output)
                wall[name].append(1e6 / (rate * each))
                cpu[name].append(1e6 * (clusters.all_cpu_s(up) - before) / (tasks * each))
            # Three nodes of the usual job stand one after another.
            usual_ms = await job.latency_ms(client, settings.size(10, 100))
            alone["usual"].append(1000 * usual_ms / 3)
            chain_ms = await job.latency_ms(client, 1, chain(size), "x")
            alone["chain"].append(1000 * chain_ms / size)

    for _ in settings.each_run("wide and deep graphs"):
        with clusters.processes(settings.topology) as up:
            asyncio.run(run(up))

    def times(found: Mapping[str, list[float]], name: str) -> list[float]:
        return [one / usual for one, usual in zip(found[name], found["usual"], strict=True)]

    usual = f"{kinds['usual'][0]:,} usual tasks"
    many = f"{graphs} at once"
    figures = [Figure("wide", f"a node of {usual}, time", "µs", wall["usual"])]
    for name, what in (
        ("fan", f"fan-out 1 → {size:,} → 1, {many}"),
        ("chain", f"chain of {size:,}, {many}"),
    ):
        unit = "times the usual node"
        figures += [
            Figure("wide", f"{what}: time of a node", unit, times(wall, name), at_most(2)),
            Figure("wide", f"{what}: CPU of a node", unit, times(cpu, name), at_most(2)),
        ]
    step = f"chain of {size:,}, alone: time of a step"
    unit = "times a step of the usual task alone"
    figures.append(Figure("wide", step, unit, times(alone, "chain"), at_most(2)))
    return figures
