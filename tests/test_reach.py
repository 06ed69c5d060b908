"""How a client finds its cluster, and how long it bears with one that is not there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from agentos import AsyncClient, Client, Cluster, ConfigError, EchoAgent, Limits, connect
from agentos.core import messages as m
from agentos.core.errors import ClusterUnreachable, ResultTimeout
from agentos.reach import DEFAULT_URL, urls_of
from agentos.runtime.switch import Switch
from tests.switches import FAST, TCP, Net, net


@pytest.fixture
def world() -> Iterator[Net]:
    with net() as made:
        yield made


@pytest.mark.parametrize("value", [None, "", " , "])
def test_an_empty_variable_names_no_gateway(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """`AGENTOS_URL` that is set to nothing counts as not set, as every other variable does."""
    monkeypatch.delenv("AGENTOS_URL", raising=False)
    if value is not None:
        monkeypatch.setenv("AGENTOS_URL", value)
    assert urls_of(None) == [DEFAULT_URL]
    assert urls_of("tcp://a:1") == ["tcp://a:1"]


def bare(world: Net) -> Switch:
    """A switch that clients can connect to, without a gateway on it yet."""
    switch = world.switch("t", alone=True)
    switch.attach(m.STORE, lambda batch: None)
    return switch


def test_a_gateway_that_starts_anew_is_waited_for(world: Net) -> None:
    """That its actor is not there is known at once; it may be in a moment, and time is left."""
    top = bare(world)
    url = top.listen(TCP)
    info = m.ClusterInfo(gateway=m.GATEWAY, regions=(), unfinished=0, backlog=0, counters={})

    def answer(batch: list[m.Envelope]) -> None:
        top.send([m.Envelope(e.sender, m.GATEWAY, info, e.ref) for e in batch])

    async def work() -> None:
        async with AsyncClient(url, timeout_s=2.5, limits=FAST) as client:
            asking = asyncio.ensure_future(client.cluster())
            await asyncio.sleep(0.3)
            top.attach(m.GATEWAY, answer)
            assert await asking == info
            top.detach(m.GATEWAY)
            begun = time.monotonic()
            with pytest.raises(ClusterUnreachable, match=r"within 2\.5 s"):
                await client.cluster()
            assert time.monotonic() - begun > 2.0, "it said that it had waited"

    asyncio.run(asyncio.wait_for(work(), 60))


def test_without_time_one_look_is_taken() -> None:
    """`timeout_s=0` asks whether the result is there, and a task that has ended has one."""
    slow = {"nodes": {"a": {"agent": "slow", "prompt": "x"}}}

    async def answer(prompt: str) -> str:
        await asyncio.sleep(60)
        return prompt

    answer.__name__ = "slow"
    with Cluster([EchoAgent(), answer], limits=FAST) as cluster, cluster.client() as client:
        done = client.submit({"nodes": {"a": {"agent": "echo", "prompt": "hi"}}})
        assert done.result(20) == "hi"
        with cluster.client() as another:
            assert another.task(done.task_id).result(0) == "hi"
            running = client.submit(slow)
            for task in (running, another.task(running.task_id)):
                with pytest.raises(ResultTimeout, match="goes on"):
                    task.result(0)
            running.cancel()


@pytest.mark.parametrize(
    "use",
    [
        lambda limits: Client("tcp://127.0.0.1:9", limits=limits),
        lambda limits: AsyncClient("tcp://127.0.0.1:9", limits=limits),
        lambda limits: connect("tcp://127.0.0.1:9", limits=limits).__enter__(),
        lambda limits: Cluster(limits=limits).__enter__(),
    ],
    ids=["client", "async client", "connect", "cluster"],
)
def test_limits_are_checked_wherever_they_enter(use: Callable[[Limits], object]) -> None:
    """Limits that contradict each other are refused before anything is tried."""
    with pytest.raises(ConfigError, match="suspect_after"):
        use(Limits(suspect_after=1))
