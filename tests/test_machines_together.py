"""The machines together: every task ends rightly, whatever dies, stalls or gets lost on the way."""

from __future__ import annotations

import json
import zlib
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.graph import parse_graph
from tests.harness import Reply
from tests.watched import LIMITS, Watched, descriptions, echo, value_of

SETTLED_S = 0.05
"""The longest way that a stop travels: a handful of messages."""

few = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
STEPS = st.integers(0, 300)
SEEDS = st.integers(0, 2**32 - 1)


# -- nothing goes wrong ----------------------------------------------------------------------------


@settings(few, max_examples=40)
@given(text=descriptions(), regions=st.integers(1, 3), proxies=st.integers(1, 3), seed=SEEDS)
def test_every_graph_runs_to_its_end(text: str, regions: int, proxies: int, seed: int) -> None:
    """Any graph that is accepted ends with the right output, every row saved exactly once."""
    cluster = Watched(regions=regions, proxies=proxies, seed=seed)
    (task,) = cluster.start(text)
    cluster.finish(task)
    cluster.check_succeeded(task)
    ended = [q for q in cluster.mail["client/c"] if isinstance(q, m.Ended)]
    assert [(q.task_id, q.state) for q in ended] == [(task, "succeeded")]
    assert Counter(call.row for _, call in cluster.invoked(task)) == dict.fromkeys(
        (call.row for _, call in cluster.invoked(task)), 1
    )


@few
@given(text=descriptions(), seed=SEEDS)
def test_errors_within_the_retries_are_repaired(text: str, seed: int) -> None:
    """A node whose calls fail no more often than its retries succeeds as if they had not."""

    def flaky(call: m.Call) -> Reply:
        if call.attempt < (zlib.crc32(call.row.encode()) + seed) % 3:
            return Reply(error="not now")
        return echo(call)

    cluster = Watched(flaky, proxies=2, seed=seed)
    (task,) = cluster.start(text)
    cluster.finish(task)
    cluster.check_succeeded(task)


@few
@given(text=descriptions(), seed=SEEDS, retryable=st.booleans(), data=st.data())
def test_errors_beyond_the_retries_fail_the_task(
    text: str, seed: int, retryable: bool, data: st.DataObject
) -> None:
    """The task fails with the node named, and whatever was saved before stays readable."""
    graph = parse_graph(text, LIMITS)
    broken = data.draw(st.sampled_from(sorted(graph.nodes)))

    def script(call: m.Call) -> Reply:
        if call.row.startswith(f"{broken}/") and "/s" in call.row:
            return Reply(error="bad \0 luck", retryable=retryable)
        return echo(call)

    cluster = Watched(script, proxies=2, seed=seed)
    (task,) = cluster.start(text)
    cluster.finish(task)
    info = cluster.task(task)
    assert info.state == "failed"
    assert f"node '{broken}'" in info.error
    assert "bad" in info.error
    assert info.response is not None
    assert json.loads(info.response)["error"]["node"] == broken
    finished = {row.node_id for row in cluster.database.get_progress_list(task)}
    assert broken not in finished
    for name in finished & set(graph.nodes):
        row = cluster.database.get_progress(task, name)
        assert row is not None
        assert json.loads(row.result)["value"] == value_of(graph.nodes[name])
    attempts = Counter(c.row for _, c in cluster.invoked(task) if c.row.startswith(f"{broken}/"))
    assert max(attempts.values()) == (3 if retryable else 1)
    settled = cluster.now
    cluster.run_for(15.0)
    assert all(at <= settled for at, _ in cluster.invoked(task))


@few
@given(text=descriptions(), seed=SEEDS, steps=STEPS)
def test_a_cancelled_task_is_over(text: str, seed: int, steps: int) -> None:
    """Cancel ends a task as cancelled, or leaves it as it ended; then nothing is invoked for it."""
    cluster = Watched(regions=2, proxies=2, seed=seed)
    (task,) = cluster.start(text)
    cluster.run_steps(steps)
    before = cluster.task(task)
    cluster.send("client/c", m.GATEWAY, m.Cancel(task_id=task), "c1")
    cluster.finish(task)
    settled = next(at for at, e in cluster.sent(m.Cancelled)) + SETTLED_S
    cluster.run_for(15.0)
    after = cluster.task(task)
    if before.state in m.TERMINAL:
        assert after == before
    answers = [q for q in cluster.mail["client/c"] if isinstance(q, m.Cancelled)]
    assert [q.state for q in answers] == [after.state]
    assert all(at <= settled for at, _ in cluster.invoked(task))
    if after.state == "succeeded":
        cluster.check_succeeded(task)
    else:
        assert after.state == "cancelled"


# -- something dies --------------------------------------------------------------------------------


@settings(few, max_examples=25)
@given(texts=st.lists(descriptions(), min_size=1, max_size=3), seed=SEEDS, steps=STEPS)
def test_a_dead_proxy_is_replaced(texts: list[str], seed: int, steps: int) -> None:
    """Its tasks go to another proxy under a newer epoch; no finished node is run again."""
    cluster = Watched(proxies=3, seed=seed)
    tasks = cluster.start(*texts)
    cluster.run_steps(steps)
    dead = cluster.task(tasks[0]).owner or "proxy/r0/0"
    before = {t: cluster.task(t) for t in tasks}
    cluster.kill(dead)
    cluster.finish(*tasks)
    for task in tasks:
        cluster.check_succeeded(task)
        if before[task].owner == dead and before[task].state == "running":
            assert cluster.task(task).epoch >= before[task].epoch


@settings(few, max_examples=25)
@given(text=descriptions(), seed=SEEDS, steps=STEPS, asleep=st.floats(0.5, 20.0))
def test_a_zombie_does_no_harm(text: str, seed: int, steps: int, asleep: float) -> None:
    """A proxy that stalls and comes back is refused, stops at once, and spoils nothing."""
    cluster = Watched(proxies=2, seed=seed)
    (task,) = cluster.start(text)
    cluster.run_steps(steps)
    zombie = cluster.task(task).owner or "proxy/r0/0"
    cluster.pause(zombie)
    cluster.run_for(asleep)
    cluster.resume(zombie)
    cluster.finish(task)
    cluster.check_succeeded(task)


@settings(few, max_examples=25)
@given(texts=st.lists(descriptions(), min_size=1, max_size=3), seed=SEEDS, steps=STEPS)
def test_a_dead_region_is_replaced(texts: list[str], seed: int, steps: int) -> None:
    """Its unfinished tasks go to another region at the next global epoch."""
    cluster = Watched(regions=2, proxies=2, seed=seed)
    tasks = cluster.start(*texts)
    cluster.run_steps(steps)
    before = {t: cluster.task(t) for t in tasks}
    for address in ("region/r0", "proxy/r0/0", "proxy/r0/1"):
        cluster.kill(address)
    cluster.finish(*tasks)
    for task in tasks:
        cluster.check_succeeded(task)
        if before[task].region == "region/r0" and cluster.task(task).region == "region/r1":
            assert cluster.task(task).epoch == Epoch(before[task].epoch.global_epoch + 1, 1)


@few
@given(text=descriptions(), seed=SEEDS, steps=STEPS, asleep=st.floats(0.5, 20.0))
def test_a_region_that_stalls_does_no_harm(text: str, seed: int, steps: int, asleep: float) -> None:
    """A region whose process hangs, and whose proxies work on, is replaced and comes back."""
    cluster = Watched(regions=2, proxies=2, seed=seed)
    (task,) = cluster.start(text)
    cluster.run_steps(steps)
    region = cluster.task(task).region or "region/r0"
    cluster.pause(region)
    cluster.run_for(asleep)
    cluster.resume(region)
    cluster.finish(task)
    cluster.check_succeeded(task)


@few
@given(texts=st.lists(descriptions(), min_size=1, max_size=3), seed=SEEDS, steps=STEPS)
def test_a_fresh_gateway_goes_on(texts: list[str], seed: int, steps: int) -> None:
    """What was accepted before the gateway was started anew ends all the same."""
    cluster = Watched(regions=2, proxies=2, seed=seed)
    tasks = cluster.start(*texts)
    cluster.run_steps(steps)
    cluster.start_gateway("gateway/a")
    cluster.finish(*tasks)
    for task in tasks:
        cluster.check_succeeded(task)


@few
@given(text=descriptions(), seed=SEEDS, steps=STEPS)
def test_a_fresh_region_leaves_the_owners_alone(text: str, seed: int, steps: int) -> None:
    """A region that was started anew adopts the tasks whose proxies are alive as they are."""
    cluster = Watched(proxies=2, seed=seed)
    (task,) = cluster.start(text)
    cluster.run_steps(steps)
    before = cluster.task(task)
    cluster.start_region("region/r0")
    cluster.finish(task)
    cluster.check_succeeded(task)
    runs = [e.message for _, e in cluster.sent(m.Run) if isinstance(e.message, m.Run)]
    if before.epoch in [run.epoch for run in runs]:  # its owner had heard of its claim
        assert cluster.task(task).epoch == before.epoch


@few
@given(text=descriptions(), seed=SEEDS, steps=STEPS)
def test_everything_is_killed_and_started_again(text: str, seed: int, steps: int) -> None:
    """Only the database survives: the task goes on from it, and no finished node is run again."""
    cluster = Watched(proxies=2, seed=seed)
    (task,) = cluster.start(text)
    cluster.run_steps(steps)
    cluster.start_gateway("gateway/a")
    cluster.start_region("region/r0")
    cluster.start_proxy("proxy/r0/0")
    cluster.start_proxy("proxy/r0/1")
    cluster.finish(task)
    cluster.check_succeeded(task)


# -- something gets lost ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [m.TaskCreated, m.Claimed, m.Recorded, m.TasksFound, m.Progress])
@settings(few, max_examples=6)
@given(text=descriptions(), seed=SEEDS)
def test_lost_answers_of_the_store_are_asked_for_again(
    kind: type[m.Message], text: str, seed: int
) -> None:
    """When half of the store's answers of one kind get lost, asking again makes it whole."""
    cluster = Watched(proxies=2, seed=seed)
    cluster.fault = lambda e: int(not isinstance(e.message, kind) or cluster.random.random() < 0.5)
    (task,) = cluster.start(text)
    cluster.run_steps(50)
    cluster.kill("proxy/r0/0")
    cluster.finish(task, max_s=1_000)  # ten losses in a row cost a minute: each wait is longer
    cluster.check_succeeded(task)


@settings(few, max_examples=25)
@given(
    texts=st.lists(descriptions(), min_size=1, max_size=3),
    seed=SEEDS,
    lost=st.floats(0.0, 0.2),
    twice=st.floats(0.0, 0.2),
    cancel=st.booleans(),
)
def test_a_bad_network_loses_no_task(
    texts: list[str], seed: int, lost: float, twice: float, cancel: bool
) -> None:
    """Messages are lost and doubled on every link for a while; once it heals, every task ends."""
    cluster = Watched(regions=2, proxies=2, seed=seed)

    def fault(_: m.Envelope) -> int:
        draw = cluster.random.random()
        return 0 if draw < lost else 2 if draw > 1 - twice else 1

    cluster.fault = fault
    tasks = cluster.start(*texts)
    if cancel:
        cluster.send("client/c", m.GATEWAY, m.Cancel(task_id=tasks[0]), "c")
    cluster.run_for(10.0)
    cluster.fault = lambda _: 1
    # An executor's answer that was lost is asked after when the call's time is over twice.
    cluster.finish(*tasks, max_s=400.0)
    for task in tasks:
        if not cancel or cluster.task(task).state != "cancelled":
            cluster.check_succeeded(task)


# -- several gateways ------------------------------------------------------------------------------


@few
@given(texts=st.lists(descriptions(), min_size=2, max_size=4), seed=SEEDS, steps=STEPS)
def test_two_gateways_share_a_database(texts: list[str], seed: int, steps: int) -> None:
    """Two gateways that both see a region's death claim its tasks once: the database decides."""
    cluster = Watched(regions=2, proxies=1, seed=seed)
    cluster.start_gateway("gateway/b")
    for address in ("region/r1", "client/d"):
        cluster.attach(address, "gateway/b")
    cluster.run_for(2.0)
    tasks = [cluster.submit(text, client=f"client/{'cd'[i % 2]}") for i, text in enumerate(texts)]
    cluster.run_steps(steps)
    cluster.kill("region/r0")
    cluster.kill("proxy/r0/0")
    cluster.finish(*tasks)
    for task in tasks:
        cluster.check_succeeded(task)
