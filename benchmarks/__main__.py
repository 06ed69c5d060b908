"""`python -m benchmarks [--short]`: a table of medians, on fresh clusters."""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from agentos import AsyncClient
from agentos.logs import configure
from benchmarks import job, parts

REGIONS, PROXIES = 2, 2


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--short", action="store_true", help="one small run of each")
    parser.add_argument("--runs", type=int, default=5, help="runs of each (default 5)")
    options = parser.parse_args()
    configure("error")
    short: bool = options.short
    runs = 1 if short else options.runs
    tasks, alone, messages, writes = (
        (200, 50, 20_000, 5_000) if short else (1000, 300, 200_000, 50_000)
    )

    table = Table(title=f"Agent OS on this machine: median of {runs} (min to max)")
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("unit")

    def add(what: str, unit: str, figures: list[float], digits: int = 0) -> None:
        low, high = min(figures), max(figures)
        spread = f" ({low:,.{digits}f} to {high:,.{digits}f})" if len(figures) > 1 else ""
        table.add_row(what, f"{statistics.median(figures):,.{digits}f}{spread}", unit)

    def times(run: Callable[[], float]) -> list[float]:
        return [run() for _ in range(runs)]

    topology = f"{REGIONS} regions x {PROXIES} proxies"
    rates, medians = [], []
    for _ in range(runs):
        with job.embedded(REGIONS, PROXIES) as client:
            rate, median = asyncio.run(_both(client, tasks, alone))
        rates.append(rate)
        medians.append(median)
    add(f"{tasks} tasks of 5 nodes, embedded, {topology}", "tasks/s", rates)
    add("one task alone, embedded, p50", "ms", medians, 2)

    rates, medians = [], []
    for _ in range(runs):
        with job.processes(REGIONS, PROXIES) as (client, memory):
            rate, median = asyncio.run(_both(client, tasks, alone))
        rates.append(rate)
        medians.append(median)
    add(f"{tasks} tasks of 5 nodes, `agentos up`, {topology}", "tasks/s", rates)
    add("one task alone, `agentos up`, p50", "ms", medians, 2)
    for role, megabytes in memory.items():
        add(f"memory of {role} afterwards", "MB", [megabytes])

    add(
        "messages of 200 bytes through a switch, tcp",
        "messages/s",
        times(lambda: parts.switch_messages_per_s(messages)),
    )
    for batch in (1, 100):
        count = writes // (20 if batch == 1 else 1)
        figures = times(lambda count=count, batch=batch: parts.fenced_writes_per_s(count, batch))
        add(f"fenced writes, {batch} in a transaction", "writes/s", figures)
    Console().print(table)


async def _both(client: AsyncClient, tasks: int, alone: int) -> tuple[float, float]:
    async with client:
        await job.until_ready(client, REGIONS * PROXIES)
        median = await job.latency_ms(client, alone)
        return await job.throughput(client, tasks), median


if __name__ == "__main__":
    main()
