"""What the tests of the client share: graphs, a cluster, and an agent that answers when it is let."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentos import Cluster, EchoAgent
from agentos.agents.function import FunctionAgent
from tests.switches import FAST, TCP

DIAMOND = {
    "input": {"topic": "queues"},
    "nodes": {
        "a": {"agent": "echo", "prompt": "about ${input.topic}"},
        "b": {"agent": "echo", "prompt": "${a}, left"},
        "c": {"agent": "echo", "prompt": "${a}, right"},
        "d": {"agent": "echo", "prompt": "${b} and ${c}"},
    },
    "output": "d",
}
RESULT = "about queues, left and about queues, right"


def one(agent: str, prompt: str = "x", **fields: Any) -> dict[str, Any]:
    """A graph of one node."""
    return {"nodes": {"only": {"agent": agent, "prompt": prompt, **fields}}, "output": "only"}


class Gate:
    """An agent that answers when it is let, and notices its cancellation."""

    name = "gate"
    max_concurrency = 100

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.calls = 0
        self.cancelled = 0

    async def __call__(self, prompt: str) -> str:
        self.calls += 1
        try:
            while not self.opened.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return f"let: {prompt}"


def broken(prompt: str) -> str:
    """An agent that fails."""
    raise ValueError(f"cannot do {prompt}")


@contextlib.contextmanager
def gated_cluster(transport: str, gate: Gate, data: Path) -> Iterator[Cluster]:
    """A cluster with an agent that echoes, one that waits for `gate`, and one that fails."""
    agents = [EchoAgent(), FunctionAgent(gate, name="gate"), broken]
    listen = TCP if transport == "tcp" else None
    with Cluster(agents, data=data, proxies=2, listen=listen, limits=FAST) as made:
        yield made


def rows_of(cluster: Cluster) -> list[int]:
    """How many rows each table has, read beside the running cluster."""
    with contextlib.closing(sqlite3.connect(f"{cluster._data}/agentos.db")) as connection:
        return [
            connection.execute(query).fetchone()[0]
            for query in (
                "SELECT count(*) FROM Documents",
                "SELECT count(*) FROM Tasks",
                "SELECT count(*) FROM Progress",
            )
        ]
