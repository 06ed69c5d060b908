"""The testing client's patterns: what is sent when, and in what order the responses come."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos import AsyncClient, Cluster, EchoAgent, LocalProtocolError
from agentos.loadtest import (
    Report,
    Response,
    Run,
    send_all,
    send_batch_interval,
    send_dynamic_batch_interval,
    send_in_interval,
    send_req,
    sending,
)
from tests.loads import BARRIER, load_cluster, request, using

SENDERS: dict[str, Callable[..., Awaitable[list[Response]]]] = {
    "all": send_all,
    "interval": lambda url, reqs, **o: send_in_interval(url, reqs, (0.0, 0.004), **o),
    "batch": lambda url, reqs, **o: send_batch_interval(url, reqs, (0.0, 0.004), 3, **o),
    "dynamic": lambda url, reqs, **o: send_dynamic_batch_interval(
        url, reqs, (0.0, 0.004), (1, 4), **o
    ),
}


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


@pytest.mark.parametrize("name", SENDERS)
def test_every_pattern_over_tcp(url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pattern sends everything over one connection, and answers in the order of the list."""
    made: list[AsyncClient] = []

    class Counted(AsyncClient):
        def __init__(self, *args: Any, **options: Any) -> None:
            made.append(self)
            super().__init__(*args, **options)

    monkeypatch.setattr(sending, "AsyncClient", Counted)
    prompts = [f"prompt {i}" for i in range(10)]
    reqs = [request(prompt=prompt) for prompt in prompts]
    responses = asyncio.run(SENDERS[name](url, reqs, poll_s=None))
    assert [response.output for response in responses] == prompts
    assert len({response.task_id for response in responses}) == 10
    assert len(made) == 1


def test_results_are_in_the_order_of_the_list(cluster: Cluster) -> None:
    """Always, whatever ends first, in whatever pattern, from whatever seed."""

    @settings(max_examples=25)
    @given(
        name=st.sampled_from(sorted(SENDERS)),
        naps=st.lists(st.integers(0, 20), max_size=10),
        seed=st.integers(0, 2**32),
    )
    def always(name: str, naps: list[int], seed: int) -> None:
        prompts = [f"{ms} {i}" for i, ms in enumerate(naps)]
        reqs = [request("nap", prompt) for prompt in prompts]
        chance = {} if name == "all" else {"seed": seed}
        run = Run()
        options = {"poll_s": None, "client": client, "run": run, **chance}
        responses = loop.run_until_complete(SENDERS[name]("", reqs, **options))
        assert [response.output for response in responses] == prompts
        assert (run.in_flight, len(run.responses), run.failed) == ({}, len(naps), 0)

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        client = runner.run(cluster.async_client().connect())
        try:
            always()
        finally:
            runner.run(client.close())


def test_nothing_waits_for_an_earlier_batch(cluster: Cluster) -> None:
    """All are gathered at the very end: calls that end only together, end, in batches of one."""
    reqs = [request("meet", str(i)) for i in range(BARRIER)]
    work = lambda c: send_batch_interval("", reqs, (0, 0.001), 1, client=c, poll_s=None)  # noqa: E731
    assert [response.outcome for response in using(cluster, work)] == ["succeeded"] * BARRIER


def batches(responses: Sequence[Response]) -> tuple[list[int], list[float]]:
    """The sizes of the batches, and the seconds between two."""
    groups = [(at, len(list(g))) for at, g in itertools.groupby(r.intended_at for r in responses)]
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(groups)]
    return [size for _, size in groups], gaps


@given(
    seed=st.integers(0, 2**64),
    interval=st.tuples(st.floats(0, 5), st.floats(0, 5)).map(lambda pair: tuple(sorted(pair))),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=30),
)
def test_a_schedule_keeps_its_range_and_its_seed(
    seed: int, interval: tuple[float, float], sizes: list[int]
) -> None:
    """Always a pause within the range before each batch but the first, and never another."""
    first, again = (list(sending._offsets(sizes, interval, random.Random(seed))) for _ in range(2))
    assert first == again
    assert len(first) == sum(sizes)
    starts = [first[sum(sizes[:i])] for i in range(len(sizes))]
    assert first == [start for start, size in zip(starts, sizes, strict=True) for _ in range(size)]
    assert starts[0] == 0
    for earlier, later in itertools.pairwise(starts):
        assert interval[0] - 1e-9 <= later - earlier <= interval[1] + 1e-9


def test_nothing_is_sent_before_it_is_due(cluster: Cluster) -> None:
    """It sleeps before each but the first: at no moment have more been sent than were due."""
    reqs = [request()] * 5
    work = lambda c: send_in_interval("", reqs, (0.03, 0.06), client=c, poll_s=None)  # noqa: E731
    assert all(r.sent_at >= r.intended_at - 0.001 for r in using(cluster, work))


def test_batches_have_the_sizes_that_were_asked_for(cluster: Cluster) -> None:
    """A batch has its size or one of the range, the last what is left; a seed repeats them."""
    reqs = [request() for _ in range(20)]

    async def work(client: AsyncClient) -> list[list[Response]]:
        options: Any = {"client": client, "poll_s": None}
        dynamic = send_dynamic_batch_interval
        return [
            await send_batch_interval("", reqs, (0.002, 0.01), 6, **options),
            await dynamic("", reqs, (0.002, 0.01), (2, 5), seed=7, **options),
            await dynamic("", reqs, (0.002, 0.01), (2, 5), seed=7, **options),
        ]

    (fixed, gaps), (sizes, one), (again, other) = map(batches, using(cluster, work))
    assert fixed == [6, 6, 6, 2]
    assert all(gap + 1e-6 >= 0.002 and gap - 1e-6 <= 0.01 for gap in [*gaps, *one])
    assert sizes == again
    assert one == pytest.approx(other, abs=1e-6)
    assert sum(sizes) == 20
    assert set(sizes[:-1]) <= {2, 3, 4, 5}


def test_a_stall_counts_for_all_that_were_due_in_it(cluster: Cluster) -> None:
    """Who was due while everything stood still waited for it too (coordinated omission)."""
    stall: list[float] = []

    async def work(client: AsyncClient) -> list[Response]:
        async def stand_still() -> None:
            await asyncio.sleep(0.05)
            stall.append(time.perf_counter())
            time.sleep(0.3)
            stall.append(time.perf_counter())

        still = asyncio.create_task(stand_still())
        options: Any = {"client": client, "poll_s": None, "run": run}
        responses = await send_in_interval("", [request()] * 50, (0.01, 0.01), **options)
        await still
        return responses

    run = Run()
    responses = using(cluster, work)
    begun, ended = stall
    due = [response for response in responses if begun < response.intended_at < ended]
    assert len(due) >= 20
    assert all(response.latency_s >= ended - response.intended_at for response in due)
    # The schedule went on meanwhile: it does not begin again after the stall.
    assert all(gap == pytest.approx(0.01, abs=1e-6) for gap in batches(responses)[1])
    summary = Report.of(run, {}).summary
    assert summary.late_s >= 0.2
    assert summary.latency is not None
    assert summary.latency.max_s >= 0.2


def test_a_cancelled_run_keeps_what_there_is(cluster: Cluster) -> None:
    """Whoever gives a `Run` has the responses so far, and knows what is in flight and unsent."""
    run = Run()
    reqs = [request(), request("broken"), request("slow"), request("slow"), request(), request()]

    async def work(client: AsyncClient) -> None:
        options: Any = {"client": client, "poll_s": None, "run": run}
        sent = asyncio.create_task(send_batch_interval("", reqs, (60, 60), 4, **options))
        while len(run.responses) < 2:
            await asyncio.sleep(0.005)
        sent.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sent

    using(cluster, work)
    summary = Report.of(run, {}).summary
    assert (summary.requests, summary.succeeded, summary.in_flight, summary.not_sent) == (
        6,
        1,
        2,
        2,
    )
    assert list(summary.failed.values()) == [1]
    assert summary.oldest_s > 0


def test_wrong_arguments_are_refused_before_anything_is_sent(cluster: Cluster) -> None:
    """A range the wrong way round, a size of 0, a negative wait: the value is named."""

    async def work(client: AsyncClient) -> None:
        reqs, options = [request(task_type="wrong")], {"client": client}
        wrong: list[tuple[Awaitable[Any], str]] = [
            (send_in_interval("", reqs, (2, 1), **options), "(2, 1)"),
            (send_in_interval("", reqs, (-1, 1), **options), "(-1, 1)"),
            (send_in_interval("", reqs, (0, math.inf), **options), "inf"),
            (send_in_interval("", reqs, (0, math.nan), **options), "nan"),
            (send_batch_interval("", reqs, (0, 0), 0, **options), "(0, 0)"),
            (send_dynamic_batch_interval("", reqs, (0, 0), (3, 2), **options), "(3, 2)"),
            (send_all("", reqs, poll_s=0, **options), "poll_s"),
            (send_req("", reqs[0], timeout_s=-1, **options), "timeout_s"),
        ]
        for sent, name in wrong:
            with pytest.raises(LocalProtocolError) as caught:
                await sent
            assert name in str(caught.value)
        run = Run()
        assert await send_all("", [], run=run, **options) == []
        with pytest.raises(LocalProtocolError, match="of its own"):
            await send_all("", [], run=run, **options)
        tasks = [task for task in await client.list() if task.task_type == "wrong"]
        assert tasks == []

    using(cluster, work)
