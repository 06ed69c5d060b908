"""The testing client: how it sends one request, and what it hands back."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from agentos import AsyncClient, Cluster, ClusterUnreachable, EchoAgent
from agentos.core.limits import Limits
from agentos.loadtest import (
    Request,
    Response,
    Run,
    send_all,
    send_batch_interval,
    send_dynamic_batch_interval,
    send_in_interval,
    send_req,
    sending,
)
from tests.loads import load_cluster, request, using


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """An embedded cluster with quick, slow and failing agents."""
    with load_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A cluster that is reached over TCP."""
    with Cluster([EchoAgent()], listen="tcp://127.0.0.1:*") as running:
        yield running.url


@pytest.mark.parametrize("poll_s", [0.01, None])
def test_a_request_returns_the_tasks_response(url: str, poll_s: float | None) -> None:
    """`send_req` gives the response document, the task's number and the time, polled or pushed."""
    found = asyncio.run(send_req(url, request(prompt="hello"), poll_s=poll_s))
    assert (found.outcome, found.output, found.error, found.cause) == ("succeeded", "hello", "", "")
    assert found.response is not None
    assert found.response["task_id"] == found.task_id
    assert found.response["usage"]["calls"] == 1
    assert found.latency_s == found.ended_at - found.intended_at > 0
    assert found.intended_at <= found.sent_at <= found.ended_at


def test_the_names_and_the_leading_arguments_are_those_of_the_specification() -> None:
    """The five coroutines take what the specification gives them, in its order; polling is 3 s."""
    leading = {
        send_req: ["url", "req"],
        send_all: ["url", "req_list"],
        send_in_interval: ["url", "req_list", "interval_range"],
        send_batch_interval: ["url", "req_list", "interval_range", "batch_size"],
        send_dynamic_batch_interval: ["url", "req_list", "interval_range", "batch_range"],
    }
    for function, names in leading.items():
        parameters = inspect.signature(function).parameters.values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert (positional, inspect.iscoroutinefunction(function)) == (names, True)
    assert inspect.signature(send_req).parameters["poll_s"].default == sending.POLL_S == 3
    fields = ["user_id", "task_type", "task_description", "key"]
    assert list(inspect.signature(Request).parameters) == fields


def test_polling_asks_at_the_interval(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `poll_s` the status is asked for until the end, not once; without, never."""
    asked: list[int] = []
    status = sending.AsyncTask.status

    async def counted(task: Any) -> Any:
        asked.append(task.task_id)
        return await status(task)

    monkeypatch.setattr(sending.AsyncTask, "status", counted)
    for poll_s, expected in ((0.02, True), (None, False)):
        asked.clear()
        work = lambda c, p=poll_s: send_req("", request("nap", "150"), client=c, poll_s=p)  # noqa: E731
        assert using(cluster, work).output == "150"
        assert (len(asked) > 1) is expected


def test_a_failed_task_is_a_response(cluster: Cluster) -> None:
    """What fails, is cancelled, refused or not answered in time is told, and never raised."""

    async def work(client: AsyncClient) -> list[Response]:
        slow, patient = request("slow", key="cancelled"), {"client": client, "poll_s": None}
        waiting = asyncio.create_task(send_req("", slow, **patient))
        while not (known := [t for t in await client.list() if t.key == "cancelled"]):
            await asyncio.sleep(0.005)
        await client.task(known[0].task_id).cancel()
        return [
            await send_req("", request("broken"), **patient),
            await waiting,
            await send_req("", request(task_description={"nodes": {}}), **patient),
            await send_req("", request(user_id=-1), **patient),
            await send_req("", request("slow"), timeout_s=0.05, **patient),
            await send_req("", request("slow"), timeout_s=0.05, client=client, poll_s=0.01),
        ]

    failed, cancelled, refused, wrong, pushed, polled = using(cluster, work)
    assert failed.outcome == "failed"
    assert "node 'a'" in failed.error
    assert "no such luck" in failed.cause
    assert failed.response["error"]["node"] == "a"
    assert (cancelled.outcome, cancelled.cause) == ("cancelled", "cancelled")
    assert (refused.outcome, refused.task_id) == ("refused", None)
    assert refused.cause.startswith("refused: bad_graph: nodes")
    assert (wrong.outcome, wrong.task_id) == ("refused", None)
    for late in (pushed, polled):
        assert (late.outcome, late.cause) == ("unanswered", "unanswered: result_timeout")
        assert late.task_id is not None
        assert late.latency_s >= 0.05


def test_a_cluster_that_goes_away_is_an_outcome() -> None:
    """When nobody answers any more, each request that was sent says so, and the run ends."""
    run = Run()

    async def work() -> list[Response]:
        with Cluster([EchoAgent("slow", delay_s=60)], limits=Limits(stop_grace_s=0.1)) as running:
            async with running.async_client(timeout_s=0.3) as client:
                options: Any = {"client": client, "run": run, "poll_s": 0.05}
                sent = asyncio.create_task(send_all("", [request("slow")] * 3, **options))
                while len(await client.list()) < 3:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(running.stop)
                return await sent

    assert {r.cause for r in asyncio.run(work())} == {"unanswered: unreachable"}


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no gateway answers at all, that is raised, and nothing was sent."""
    monkeypatch.setattr("agentos.client.CONNECT_S", 0.2)
    run = Run()
    with pytest.raises(ClusterUnreachable):
        asyncio.run(send_all("tcp://127.0.0.1:9", [request()], run=run))
    assert (run.begun_at, run.responses) == (None, {})
