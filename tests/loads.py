"""What the tests of the testing client share: a cluster to send to, and what is sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from agentos import AsyncClient, Cluster, EchoAgent, FunctionAgent
from agentos.core.limits import Limits
from agentos.loadtest import Request

BARRIER = 6


async def nap(prompt: str) -> str:
    """Sleep for as many milliseconds as the prompt's first word says."""
    await asyncio.sleep(int(prompt.split(maxsplit=1)[0]) / 1000)
    return prompt


def broken(_prompt: str) -> str:
    raise ValueError("no such luck")


def together(barrier: threading.Barrier) -> Callable[[str], str]:
    """An agent that answers when as many calls as the barrier has parties are in flight."""

    def meet(prompt: str) -> str:
        barrier.wait(timeout=20)
        return prompt

    return meet


@contextmanager
def load_cluster() -> Iterator[Cluster]:
    """An embedded cluster with quick, slow and failing agents."""
    agents = [
        EchoAgent(),
        EchoAgent("slow", delay_s=120),
        FunctionAgent(nap),
        FunctionAgent(broken),
        FunctionAgent(together(threading.Barrier(BARRIER)), name="meet"),
    ]
    with Cluster(agents, limits=Limits(stop_grace_s=0.2)) as running:
        yield running


def request(agent: str = "echo", prompt: str = "hi", **fields: Any) -> Request:
    graph = {"nodes": {"a": {"agent": agent, "prompt": prompt, "retries": 0}}, "output": "a"}
    return Request(**({"user_id": 1, "task_type": "load", "task_description": graph} | fields))


def using(cluster: Cluster, work: Callable[[AsyncClient], Awaitable[Any]]) -> Any:
    """What a coroutine returns that is given a connected client of an embedded cluster."""

    async def run() -> Any:
        async with cluster.async_client() as client:
            return await work(client)

    return asyncio.run(run())
