"""Clients in a crowd: who waits for a turn or for room, and what is said when there is none."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from agentos import AsyncClient, Cluster
from agentos import client as client_module
from agentos.agents.function import FunctionAgent
from agentos.core import messages as m
from agentos.core.errors import Overloaded, ResultTimeout
from agentos.runtime.asking import AsyncAsker
from agentos.testing.transport_recorder import eventually
from tests.clients import Gate, gated_cluster, one, rows_of
from tests.switches import FAST


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module", params=["inproc", "tcp"])
def cluster(
    request: pytest.FixtureRequest, gate: Gate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with gated_cluster(request.param, gate, tmp_path_factory.mktemp("clients")) as made:
        yield made


def test_a_full_cluster_says_so(gate: Gate) -> None:
    """Over `max_unfinished` a submission waits for room as long as it may, and is refused then."""
    gate.opened.clear()
    limits = msgspec.structs.replace(FAST, max_unfinished=2)
    with (
        Cluster([FunctionAgent(gate, name="gate")], limits=limits) as full,
        full.client(timeout_s=1.0) as client,
        full.client(timeout_s=20.0) as patient,
    ):
        tasks = [client.submit(one("gate")) for _ in range(2)]
        eventually(lambda: client.cluster().unfinished == 2)
        with pytest.raises(Overloaded, match="2 tasks are unfinished") as caught:
            client.submit(one("gate"))
        assert caught.value.retry_after_s > 0
        opener = threading.Timer(0.5, gate.opened.set)
        opener.start()
        assert patient.submit(one("gate")).result(20) == "let: x"
        assert [task.result(20) for task in tasks] == ["let: x"] * 2
        opener.join()


def test_a_crowd_waits_its_turn(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many submissions at once only some are on their way; all are accepted, each once."""
    monkeypatch.setattr(client_module, "ON_THEIR_WAY", 3)
    seen: list[int] = []
    ask = AsyncAsker.ask

    async def watched(self: AsyncAsker, *arguments: Any) -> m.Message:
        seen.append(len(self._open) + 1)
        return await ask(self, *arguments)

    monkeypatch.setattr(AsyncAsker, "ask", watched)

    async def work() -> None:
        async with cluster.async_client(timeout_s=30) as client:
            tasks = await asyncio.gather(*(client.submit(one("echo", str(i))) for i in range(40)))
            assert len({task.task_id for task in tasks}) == 40

    _, before, _ = rows_of(cluster)
    asyncio.run(work())
    assert rows_of(cluster)[1] == before + 40
    assert 2 <= max(seen) <= 3


def test_waiting_for_a_turn_is_not_held_against_the_cluster(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waited while others were answered has the whole timeout; who heard nothing, none more."""
    monkeypatch.setattr(client_module, "ON_THEIR_WAY", 1)
    deadlines: list[float] = []

    async def slow(self: AsyncClient, *arguments: Any) -> m.Message:
        deadlines.append(arguments[-1] - time.monotonic())
        await asyncio.sleep(0.3)
        if len(deadlines) < 3:
            self._connected().heard_at = time.monotonic()
        return m.Submitted(task_id=1, state="accepted", created=True)

    monkeypatch.setattr(AsyncClient, "_answer", slow)

    async def work() -> None:
        async with cluster.async_client(timeout_s=0.5) as client:
            await asyncio.gather(*(client.submit(one("echo")) for _ in range(5)))

    asyncio.run(work())
    assert min(deadlines[:4]) > 0.15  # the fourth begins 0.3 s after the last word at most
    assert deadlines[4] < deadlines[2]


def test_too_many_watchers(gate: Gate) -> None:
    """Where the gateway cannot tell everybody, the others find out by themselves."""
    gate.opened.clear()
    limits = msgspec.structs.replace(FAST, max_watchers=1)
    with Cluster([FunctionAgent(gate, name="gate")], limits=limits) as few, few.client() as client:
        tasks = [client.submit(one("gate")) for _ in range(2)]
        with few.client() as other:
            handles = [other.task(task.task_id) for task in tasks]
            with pytest.raises(ResultTimeout):
                handles[1].result(0.2)
            gate.opened.set()
            assert [handle.result(30) for handle in handles] == ["let: x"] * 2
        assert [task.result(30) for task in tasks] == ["let: x"] * 2
