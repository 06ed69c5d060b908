"""Wide and deep graphs: what a node of them costs, as a multiple of a node of the usual job."""

from __future__ import annotations

import asyncio
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

    async def run(up: clusters.Up) -> dict[str, float]:
        values: dict[str, float] = {}
        async with up.client() as client:
            await job.until_ready(client, settings.topology.total)
            await job.throughput(client, 100)
            for name, (tasks, each, graph, output) in kinds.items():
                before = clusters.all_cpu_s(up)
                rate = await job.throughput(client, tasks, graph, output)
                values[f"wall {name}"] = 1e6 / (rate * each)
                cpu_s = clusters.all_cpu_s(up) - before
                values[f"cpu {name}"] = 1e6 * cpu_s / (tasks * each)
            # Three nodes of the usual job stand one after another.
            usual_ms = await job.latency_ms(client, settings.size(10, 100))
            values["alone usual"] = 1000 * usual_ms / 3
            chain_ms = await job.latency_ms(client, 1, chain(size), "x")
            values["alone chain"] = 1000 * chain_ms / size
        return values

    def once() -> dict[str, float]:
        with clusters.processes(settings.topology) as up:
            return asyncio.run(run(up))

    found = settings.repeat("wide and deep graphs", once)

    def times(what: str, name: str) -> list[float]:
        pairs = zip(found[f"{what} {name}"], found[f"{what} usual"], strict=True)
        return [one / usual for one, usual in pairs]

    usual = f"{kinds['usual'][0]:,} usual tasks"
    many = f"{graphs} at once"
    figures = [Figure("wide", f"a node of {usual}, time", "µs", found["wall usual"])]
    for name, what in (
        ("fan", f"fan-out 1 → {size:,} → 1, {many}"),
        ("chain", f"chain of {size:,}, {many}"),
    ):
        unit = "times"
        figures += [
            Figure(
                "wide",
                f"{what}: time of a node, beside a usual one's",
                unit,
                times("wall", name),
                at_most(2),
            ),
            Figure(
                "wide",
                f"{what}: CPU of a node, beside a usual one's",
                unit,
                times("cpu", name),
                at_most(2),
            ),
        ]
    step = f"chain of {size:,}, alone: time of a step, beside one of a usual task alone"
    figures.append(Figure("wide", step, "times", times("alone", "chain"), at_most(2)))
    return figures
