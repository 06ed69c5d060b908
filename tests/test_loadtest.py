"""The testing client: what it sends when, what it hands back, and what it measures."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos import (
    AsyncClient,
    Cluster,
    ClusterUnreachable,
    ConfigError,
    EchoAgent,
    FunctionAgent,
    LocalProtocolError,
)
from agentos.core.limits import Limits
from agentos.loadtest import (
    Latency,
    Outcome,
    Report,
    Request,
    Response,
    Row,
    Run,
    compare,
    percentile,
    plots,
    send_all,
    send_batch_interval,
    send_dynamic_batch_interval,
    send_in_interval,
    send_req,
    sending,
)

SENDERS: dict[str, Callable[..., Awaitable[list[Response]]]] = {
    "all": send_all,
    "interval": lambda url, reqs, **o: send_in_interval(url, reqs, (0.0, 0.004), **o),
    "batch": lambda url, reqs, **o: send_batch_interval(url, reqs, (0.0, 0.004), 3, **o),
    "dynamic": lambda url, reqs, **o: send_dynamic_batch_interval(
        url, reqs, (0.0, 0.004), (1, 4), **o
    ),
}
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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
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


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A cluster that is reached over TCP."""
    with Cluster([EchoAgent()], listen="tcp://127.0.0.1:*") as running:
        yield running.url


def request(agent: str = "echo", prompt: str = "hi", **fields: Any) -> Request:
    graph = {"nodes": {"a": {"agent": agent, "prompt": prompt, "retries": 0}}, "output": "a"}
    return Request(**({"user_id": 1, "task_type": "load", "task_description": graph} | fields))


def using(cluster: Cluster, work: Callable[[AsyncClient], Awaitable[Any]]) -> Any:
    """What a coroutine returns that is given a connected client of an embedded cluster."""

    async def run() -> Any:
        async with cluster.async_client() as client:
            return await work(client)

    return asyncio.run(run())


# -- one request -----------------------------------------------------------------------------------


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


# -- many ------------------------------------------------------------------------------------------


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


# -- figures ---------------------------------------------------------------------------------------

SECONDS = st.floats(0, 1e6)


@given(st.lists(SECONDS, min_size=1), st.floats(0.1, 100))
def test_a_percentile_is_a_value_that_was_seen(values: list[float], percent: float) -> None:
    """So many percent are not above it, and fewer are below: the nearest rank."""
    values.sort()
    found = percentile(values, percent)
    needed = len(values) * percent / 100
    assert sum(value <= found for value in values) >= needed
    assert sum(value < found for value in values) < max(needed, 1)


@given(st.lists(SECONDS, min_size=1))
def test_a_distribution_is_in_order(values: list[float]) -> None:
    """The percentiles never go down, and the mean is between the least and the most."""
    found = Latency.of(values)
    assert found is not None
    assert min(values) <= found.p50_s <= found.p90_s <= found.p99_s <= found.max_s == max(values)
    assert min(values) <= found.mean_s <= found.max_s
    assert found.count == len(values)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A run, whole or interrupted: what ended, what is in flight, what was not sent."""
    run = Run()
    indices = draw(st.lists(st.integers(0, 40), unique=True))
    run.begin(max(indices, default=0) + draw(st.integers(1, 5)))
    assert run.begun_at is not None
    run.begun_at = 0.0
    for index in indices:
        intended, late, took = draw(SECONDS), draw(SECONDS), draw(SECONDS)
        outcome: Outcome | None = draw(
            st.sampled_from(["succeeded", "failed", "refused", "unanswered", None])
        )
        run.in_flight[index] = (intended, intended + late)
        if outcome is not None:
            cause = "" if outcome == "succeeded" else f"{outcome}: {draw(st.sampled_from('ab'))}"
            usage = {"calls": draw(st.integers(0, 9)), "retries": 1}
            document = {"usage": usage} if outcome == "succeeded" else None
            ended = intended + late + took
            response = Response(
                outcome, index, document, cause, cause, intended, intended + late, ended
            )
            run.take(index, response)
    run.ended_at = max([0.0, *(s for _, s in run.in_flight.values())]) + 1e7
    return run


@given(runs())
def test_every_request_is_counted_once(run: Run) -> None:
    """Always: all that were asked for = succeeded + failed by cause + in flight + not sent."""
    report = Report.of(run, {})
    s = report.summary
    assert s.requests == s.succeeded + sum(s.failed.values()) + s.in_flight + s.not_sent
    assert sum(s.failed.values()) == run.failed
    assert len(report.requests) == s.requests - s.not_sent
    assert (s.latency.count if s.latency else 0) == s.succeeded + run.failed
    assert (s.latency_succeeded.count if s.latency_succeeded else 0) == s.succeeded
    assert s.usage["retries"] == s.succeeded
    moments, counts = plots.in_flight(report.requests)
    assert moments == sorted(moments)
    assert (counts[-1] if counts else 0) == s.in_flight


@settings(max_examples=25)
@given(run=runs())
def test_a_report_is_read_as_it_was_written(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`report.json` holds all of it."""
    file = tmp_path_factory.mktemp("report") / "report.json"
    report = Report.of(run, {"pattern": "all", "seed": 4})
    report.write(file)
    assert Report.read(file) == report


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    """The message names the file and what is wrong with it."""
    file = tmp_path / "x.json"
    with pytest.raises(ConfigError, match=r"cannot read .*x\.json: No such file"):
        Report.read(file)
    for text in ("", "[]", '{"settings": {}}', '{"format": "other"}', "\x00"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"x\.json is no report"):
            Report.read(file)
    with pytest.raises(ConfigError, match="cannot write"):
        Report.of(Run(), {}).write(tmp_path / "nowhere" / "x.json")


def some_report(latencies: Sequence[float]) -> Report:
    run = Run()
    run.begin(len(latencies) + 2)
    run.begun_at = 0.0
    for i, latency in enumerate(latencies):
        run.in_flight[i] = (i / 10, i / 10)
        outcome: Outcome = "failed" if i % 7 == 6 else "succeeded"
        cause = "failed: <b>$x" if outcome == "failed" else ""
        run.take(i, Response(outcome, i, None, cause, cause, i / 10, i / 10, i / 10 + latency))
    run.in_flight[len(latencies)] = (0.5, 0.5)
    run.ended_at = 10.0
    return Report.of(run, {"pattern": "<i>"})


def test_two_runs_compare() -> None:
    """Each figure of the one stands beside that of the other, none where there was none."""
    now, then = some_report([0.1, 0.2, 0.3]).summary, some_report([0.2, 0.4]).summary
    rows = {name: (new, old) for name, new, old, _ in compare(now, then)}
    assert rows["p50"] == pytest.approx((0.2, 0.2))
    assert rows["max"] == pytest.approx((0.3, 0.4))
    assert rows["succeeded"] == (3, 2)
    none = {name: old for name, _, old, _ in compare(now, some_report([]).summary)}
    assert (none["p99"], none["tasks/s"]) == (None, 0)


# -- pictures --------------------------------------------------------------------------------------


def test_a_report_is_drawn(tmp_path: Path) -> None:
    """As a page with the figures, with another run behind it; the page runs nothing."""
    file = tmp_path / "r.html"
    plots.check(file)
    report = some_report([0.01 * i for i in range(1, 20)])
    tables = [("causes <b>", ("cause", "failed"), [("failed: <b>$x", 2)])]
    plots.save(report, file, against=some_report([0.3]), tables=tables)
    page = file.read_text()
    assert page.startswith("<!doctype html>")
    assert "failed: &lt;b&gt;$x" in page
    assert [text for text in ("<b>", "<i>", "<script", " src=") if text in page] == []
    assert page.count("<svg") == 1


def test_a_run_without_an_end_is_drawn(tmp_path: Path) -> None:
    """Nothing sent, or all at once and with no end: there is a picture all the same."""
    file = tmp_path / "r.png"
    row, empty = Row(0.0, 0.0, 0.0, "succeeded"), Report.of(Run(), {})
    for report in (empty, Report({}, empty.summary, [row, row])):
        plots.save(report, file, against=empty)
        assert file.read_bytes().startswith(b"\x89PNG")


def test_matplotlib_is_imported_for_drawing_only() -> None:
    """Neither the library nor the command line needs it, or waits for it."""
    code = (
        "import sys, agentos.cli, agentos.loadtest.plots\n"
        "print(sorted({'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_without_matplotlib_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the run, not after it."""
    with pytest.raises(ConfigError, match=r"\.html, \.png, \.svg"):
        plots.check(tmp_path / "r.pdf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"agentos-cluster\[load\]"):
        plots.check(tmp_path / "r.png")
