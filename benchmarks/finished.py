"""Whether a task costs the same when a million others lie finished in the database."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from agentos import AsyncClient
from benchmarks import clusters, job
from benchmarks.figures import Figure, at_most
from benchmarks.settings import Settings

TURNS = ("few", "many", "many", "few", "few", "many", "many", "few")
"""A run: neither is always first, and each is beside the other within a second or two. The speed of
a machine drifts by more, in less time than a cluster needs to start."""


def measure(settings: Settings) -> list[Figure]:
    """The same tasks beside few finished ones and beside many, in turn, on two clusters."""
    few, many = settings.size((100, 5_000), (1_000, 100_000), (1_000, 1_000_000))
    with tempfile.TemporaryDirectory(prefix="agentos-bench-") as root, ExitStack() as stack:
        ups: dict[str, clusters.Up] = {}
        for name, size in (("few", few), ("many", many)):
            settings.tell(f"filling a database with {size:,} finished tasks", 0)
            folder = Path(root) / name
            fill(folder, size)
            ups[name] = stack.enter_context(clusters.processes(settings.topology, data=folder))
        found = settings.repeat(
            f"{few:,} and {many:,} finished tasks", lambda: asyncio.run(_run(ups, settings))
        )

    def more(what: str) -> list[float]:
        pairs = zip(found[f"few {what}"], found[f"many {what}"], strict=True)
        return [100 * (big / small - 1) for small, big in pairs]

    here = f"{few:,} to {many:,} finished tasks in the database"
    cpu = f"CPU of a task beside {few:,} finished ones"
    return [
        Figure("finished", cpu, "µs", found["few cpu"]),
        Figure("finished", f"from {here}: growth of a task's CPU", "%", more("cpu"), at_most(10)),
        Figure("finished", f"from {here}: growth of a task's time", "%", more("wall"), at_most(10)),
    ]


async def _run(ups: Mapping[str, clusters.Up], settings: Settings) -> dict[str, float]:
    """CPU and time of a task on each cluster, in microseconds."""
    tasks = settings.size(100, 500)
    spent: defaultdict[str, float] = defaultdict(float)
    async with ups["few"].client() as beside_few, ups["many"].client() as beside_many:
        clients = {"few": beside_few, "many": beside_many}
        for client in clients.values():
            await job.until_ready(client, settings.topology.total)
            await job.throughput(client, tasks)
        for name in TURNS:
            before = clusters.all_cpu_s(ups[name])
            spent[f"{name} wall"] += 1e6 / await job.throughput(clients[name], tasks)
            spent[f"{name} cpu"] += 1e6 * (clusters.all_cpu_s(ups[name]) - before) / tasks
    turns = len(TURNS) / len(ups)
    return {what: microseconds / turns for what, microseconds in spent.items()}


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
