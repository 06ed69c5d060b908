"""Whether a task costs the same when a million others lie finished in the database."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from agentos import AsyncClient
from benchmarks import clusters, job
from benchmarks.figures import Figure, at_most
from benchmarks.settings import Settings


def measure(settings: Settings) -> list[Figure]:
    """The same tasks on a small database and on a large one, in turn."""
    sizes = settings.size((100, 5_000), (1_000, 100_000), (1_000, 1_000_000))
    tasks = settings.size(200, 2_000)
    orders = itertools.cycle([sizes[::-1], sizes])
    with tempfile.TemporaryDirectory(prefix="agentos-bench-") as root:
        folders = {size: Path(root) / str(size) for size in sizes}
        for size, folder in folders.items():
            settings.tell(f"filling a database with {size:,} finished tasks", 0)
            fill(folder, size)

        def once() -> dict[str, float]:
            values: dict[str, float] = {}
            for size in next(orders):  # neither always first: the machine's speed drifts
                with clusters.processes(settings.topology, data=folders[size]) as up:
                    cpu_us, wall_us = asyncio.run(_run(up, settings, tasks))
                values |= {f"cpu {size}": cpu_us, f"wall {size}": wall_us}
            return values

        found = settings.repeat(f"{sizes[0]:,} and {sizes[1]:,} finished tasks", once)
    few, many = sizes

    def more(what: str) -> list[float]:
        pairs = zip(found[f"{what} {few}"], found[f"{what} {many}"], strict=True)
        return [100 * (big / small - 1) for small, big in pairs]

    cpu_us = found[f"cpu {few}"]
    here = f"{few:,} to {many:,} finished tasks in the database"
    return [
        Figure("finished", f"CPU of a task beside {few:,} finished ones", "µs", cpu_us),
        Figure("finished", f"from {here}: growth of a task's CPU", "%", more("cpu"), at_most(10)),
        Figure("finished", f"from {here}: growth of a task's time", "%", more("wall"), at_most(10)),
    ]


async def _run(up: clusters.Up, settings: Settings, tasks: int) -> tuple[float, float]:
    """CPU and time of a task, in microseconds."""
    async with up.client() as client:
        await job.until_ready(client, settings.topology.total)
        await job.throughput(client, 200)
        before = clusters.all_cpu_s(up)
        wall_us = 1e6 / await job.throughput(client, tasks)
        return 1e6 * (clusters.all_cpu_s(up) - before) / tasks, wall_us


def fill(folder: Path, tasks: int) -> None:
    """Make a database in which so many tasks have ended: one real one, and copies of its rows."""
    with clusters.embedded(clusters.Topology(1, 1), data=folder) as client:
        asyncio.run(_one(client))
    with closing(sqlite3.connect(folder / "agentos.db", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = MEMORY")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -1000000")
        database.execute("BEGIN")
        _copy(database, tasks - 1)
        database.execute("COMMIT")
        database.execute("PRAGMA journal_mode = WAL")
        found = database.execute("SELECT count(*) FROM Tasks WHERE state = 'succeeded'").fetchone()
    if found != (tasks,):
        raise job.WrongCount(f"the database has {found[0]} finished tasks, not {tasks}")


async def _one(client: AsyncClient) -> None:
    async with client:
        await job.throughput(client, 1)


def _copy(database: sqlite3.Connection, times: int) -> None:
    """Copy the only task with its rows; keys are shifted, everything else stays."""
    numbered = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {times})"
    shifted = {
        "Documents": {"doc_id": "doc_id + 2 * i"},
        "Tasks": {
            "task_id": "task_id + i",
            "task_key": "task_key || '-' || i",
            "request_doc_id": "request_doc_id + 2 * i",
            "response_doc_id": "response_doc_id + 2 * i",
        },
        "Progress": {"task_id": "task_id + i"},
    }
    for table, keys in shifted.items():
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        values = ", ".join(keys.get(column, column) for column in columns)
        source = f"(SELECT * FROM {table}) CROSS JOIN n" if table == "Progress" else f"{table}, n"
        database.execute(
            f"{numbered} INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {source}"
        )
