"""The machines together: every task ends rightly, whatever dies, stalls or gets lost on the way."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.graph import Graph, Node, parse_graph
from agentos.core.limits import Limits
from agentos.core.ports import SaveOutcome
from agentos.storage.memory import MemoryDatabase
from tests.clusters import Cluster
from tests.harness import Reply, Script

LIMITS = Limits()
OFFERS = {"echo": 2, "other": 1}
SETTLED_S = 0.05
"""The longest way that a stop travels: a handful of messages."""

few = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
STEPS = st.integers(0, 300)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def descriptions(draw: st.DrawFn) -> str:
    """Any graph of up to seven nodes, in an order that has nothing to do with its edges."""
    names = [f"n{i}" for i in range(draw(st.integers(1, 7)))]
    nodes: dict[str, Any] = {}
    for i, name in enumerate(names):
        earlier = st.lists(st.sampled_from(names[:i]), max_size=3) if i else st.just([])
        references = " ".join(f"${{{other}}}" for other in draw(earlier))
        samples = draw(st.integers(1, 3))
        nodes[name] = {
            "agent": draw(st.sampled_from(sorted(OFFERS))),
            "prompt": f"{name} ${{input.x}} {references}",
            "needs": draw(earlier),
            "rounds": draw(st.integers(1, 2)),
            "samples": samples,
            "voters": draw(st.integers(0, 2)) if samples > 1 else 0,
            "retries": 2,
            **draw(st.sampled_from([{}, {"schema": {"type": "object"}}])),
        }
    order = draw(st.permutations(names))
    top = {"output": draw(st.sampled_from(names))} if draw(st.booleans()) else {}
    return json.dumps({"input": {"x": [1]}, "nodes": {n: nodes[n] for n in order}, **top})


def answer(row: str) -> Any:
    """What the agents answer: decided by the row alone, and often the same for several samples."""
    chance = zlib.crc32(row.encode())
    if row.rpartition("/")[2].startswith("v"):
        return [{"choice": chance % 3}, {"choice": "0"}, "the first"][chance // 7 % 3]
    return [{"text": row.partition("/")[0]}, "${n0} stays text", chance % 2, None][chance % 4]


def echo(call: m.Call) -> Reply:
    """Answer after a moment that depends on the call."""
    return Reply(answer(call.row), after_s=zlib.crc32(call.row.encode()) % 5 * 0.05)


def value_of(node: Node) -> Any:
    """A node's value by the rules of the manual, worked out the slow way."""
    best: Any = None
    for round_ in range(1, node.rounds + 1):
        values = [answer(m.call_row(node.name, round_, f"s{i}")) for i in range(node.samples)]
        votes = [json.dumps(value, sort_keys=True) for value in values]
        scores = [votes.count(vote) for vote in votes]
        if node.voters:
            ballots = [answer(m.call_row(node.name, round_, f"v{i}")) for i in range(node.voters)]
            choices = [b["choice"] for b in ballots if isinstance(b, dict)]
            scores = [choices.count(i) for i in range(node.samples)]
        best = values[scores.index(max(scores))]
    return best


def rows_of(graph: Graph) -> set[str]:
    """Every row that a finished task has."""
    rows = set(graph.nodes)
    for node in graph.nodes.values():
        if node.samples > 1 or node.rounds > 1:
            slots = [f"s{i}" for i in range(node.samples)] + [f"v{i}" for i in range(node.voters)]
            rows |= {
                m.call_row(node.name, round_ + 1, slot)
                for round_ in range(node.rounds)
                for slot in slots
            }
    return rows


class WatchedDatabase(MemoryDatabase):
    """A database that counts how often each row was written."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: 0.0)
        self.writes: Counter[tuple[int, str]] = Counter()

    def record(
        self,
        task_id: int,
        epoch: Epoch,
        rows: Sequence[m.Row],
        end: m.End | None = None,
        *,
        writer: str = "",
    ) -> SaveOutcome:
        before = {row.node_id: self.get_progress(task_id, row.node_id) for row in rows}
        outcome = super().record(task_id, epoch, rows, end, writer=writer)
        for row_id, old in before.items():
            if self.get_progress(task_id, row_id) != old:
                self.writes[task_id, row_id] += 1
        return outcome


class Watched(Cluster):
    """A cluster that is checked at every message."""

    database: WatchedDatabase

    def __init__(self, script: Script = echo, **options: Any) -> None:
        super().__init__(
            script, offers=OFFERS, limits=LIMITS, database=WatchedDatabase(), **options
        )
        self._seen = 0
        self._stale: set[tuple[str, int, Epoch]] = set()
        self.checks += [self._persisted_first, self._stale_stops]
        self.run_for(2.0)

    def start(self, *texts: str) -> list[int]:
        """Submit these."""
        return [self.submit(text) for text in texts]

    def finish(self, *tasks: int, max_s: float = 120.0) -> None:
        """Run until all of these have ended, and a little longer."""
        self.run_until(lambda: self.ended(*tasks), max_s)
        self.run_for(0.5)

    def check_succeeded(self, task_id: int) -> None:
        """It succeeded with the right output, and each of its rows was written exactly once."""
        text = self.database.get_task_description(task_id)
        assert text is not None
        graph = parse_graph(text, LIMITS)
        task = self.task(task_id)
        assert (task.state, task.error) == ("succeeded", "")
        assert task.response is not None
        values = {name: value_of(node) for name, node in graph.nodes.items()}
        assert json.loads(task.response)["output"] == graph.result(values)
        assert {row.node_id for row in self.database.get_progress_list(task_id)} == rows_of(graph)
        written = {row: n for (of, row), n in self.database.writes.items() if of == task_id}
        assert written == dict.fromkeys(rows_of(graph), 1)

    def invoked(self, task_id: int) -> list[tuple[float, m.Call]]:
        """The calls that reached an agent, and when."""
        return [
            (at, e.message.call)
            for at, e in self.sent(m.Invoke)
            if isinstance(e.message, m.Invoke) and e.message.call.task_id == task_id
        ]

    def _persisted_first(self, envelope: m.Envelope) -> None:
        """No call is sent before everything that its question rests on is committed."""
        q = envelope.message
        if not isinstance(q, m.Invoke):
            return
        text = self.database.get_task_description(q.call.task_id)
        assert text is not None
        graph = parse_graph(text, LIMITS)
        name, round_, slot = q.call.row.split("/")
        node = graph.nodes[name]
        needed = set(node.dependencies)
        samples = [f"s{i}" for i in range(node.samples)]
        if slot.startswith("v"):
            needed |= {m.call_row(name, int(round_), s) for s in samples}
        if int(round_) > 1:
            needed |= {m.call_row(name, int(round_) - 1, s) for s in samples}
        for row in needed:
            assert self.database.get_progress(q.call.task_id, row) is not None, (q.call.row, row)

    def _stale_stops(self, envelope: m.Envelope) -> None:
        """An owner that was told that it is stale starts no call under that epoch any more."""
        for _, e in self.log[self._seen :]:
            if isinstance(e.message, m.Recorded) and e.message.outcome == "stale":
                self._stale.add((e.to, e.message.task_id, e.message.epoch))
        self._seen = len(self.log)
        if isinstance(envelope.message, m.Invoke | m.Place | m.Call):
            call = envelope.message.call if not isinstance(envelope.message, m.Call) else None
            if call is not None and call.owner == envelope.sender:
                assert (envelope.sender, call.task_id, call.epoch) not in self._stale


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
