"""The proxy's machine: whom it listens to, and what it owes to its region and its tasks."""

from __future__ import annotations

import gc
import itertools
import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.limits import Limits
from agentos.core.proxy import ProxyMachine
from tests.clusters import Cluster
from tests.harness import Reply
from tests.hostile import SENDERS, changes, from_anybody, known, state_of
from tests.machines import GRAPH, kinds, sizes
from tests.proxies import (
    E11,
    E12,
    ME,
    OTHER,
    REGION,
    STRANGER,
    beat,
    placed,
    proxy,
    result,
    run,
    running,
    tell,
)

fuzzed = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


# -- whom it listens to ----------------------------------------------------------------------------


@fuzzed
@given(steps=st.integers(0, 120), seed=st.integers(0, 99), data=st.data())
def test_nothing_raises_in_any_state(steps: int, seed: int, data: st.DataObject) -> None:
    """Whatever message comes from whomever, at whatever moment, the machine goes on."""
    cluster = Cluster(lambda _: Reply("x", after_s=0.1), proxies=2, seed=seed)
    cluster.run_for(1.0)
    for _ in range(2):
        cluster.submit(GRAPH)
    cluster.run_steps(steps)
    machine = cluster.machine(ME)
    for envelope in data.draw(st.lists(from_anybody(ME, ("", "1:(1, 1)")), max_size=8)):
        machine.handle(envelope, cluster.now)
        machine.handle(m.Envelope(ME, ME, m.Tick()), cluster.now)
        due = machine.next_deadline()
        assert due is not None
        assert due > cluster.now


@fuzzed
@given(message=known(), sender=st.sampled_from([STRANGER, "region/r1", "region", "proxy"]))
def test_strangers_change_nothing(message: m.Message, sender: str) -> None:
    """Another region and its proxies have no say here, whatever they send."""
    machine, _ = running()
    assert changes(machine, m.Envelope(ME, sender, message), 0.0) == (False, [])


@fuzzed
@given(data=st.data())
def test_what_belongs_to_an_older_claim_changes_nothing(data: st.DataObject) -> None:
    """Answers for an epoch that is over are noise; a call placed too late is aborted."""
    answers: list[type[m.Message]] = [m.Recorded, m.CallResult, m.Placed, m.CallRefused]
    answers += [m.Stop, m.Run]
    message = data.draw(known(data.draw(st.sampled_from(answers))))
    machine, _ = running()
    epoch = data.draw(st.sampled_from([Epoch(0, 0), Epoch(1, 0)]))
    message = msgspec.structs.replace(message, epoch=epoch, task_id=1)
    sender = message.proxy if isinstance(message, m.CallResult) else REGION
    changed, sends = changes(machine, m.Envelope(ME, sender, message), 0.0)
    assert not changed
    assert all(isinstance(send.message, m.AbortCalls) for send in sends)


def test_only_the_executor_of_a_call_may_answer_it() -> None:
    """A proxy that was not given the call cannot answer it, in its own name or in another's."""
    machine, call = running()
    for sender, by in ((OTHER, ME), (ME, OTHER), ("proxy/r0/2", OTHER), ("proxy/r0/2",) * 2):
        assert changes(machine, m.Envelope(ME, sender, result(call, by)), 0.0) == (False, [])
    assert kinds(tell(machine, OTHER, result(call, OTHER))) == [("store", m.Record)]


def test_an_answer_counts_although_its_placing_was_lost() -> None:
    """While the owner does not know who has the call, whoever of its region answers has it."""
    machine, call = running()
    call = msgspec.structs.replace(call, row="a/1/s1")
    assert kinds(tell(machine, OTHER, result(call, OTHER))) == [("store", m.Record)]


def test_an_answer_of_the_proxy_before_counts() -> None:
    """A call that was placed a second time is answered by the first of the two; the other stops."""
    machine, call = running()
    tell(machine, REGION, m.PeerDown(proxies=(OTHER,)))
    tell(machine, REGION, placed(call, "proxy/r0/2"))
    assert kinds(tell(machine, OTHER, result(call, OTHER))) == [
        ("proxy/r0/2", m.AbortCalls),
        ("store", m.Record),
        ("agents", m.Revoke),  # it was tried at home as well
    ]


def test_a_claim_that_is_over_is_not_begun_again() -> None:
    """A `Run` that comes late, after a stop or a refusal, starts nothing."""
    for said in ("stop", "stale"):
        machine, call = running()
        if said == "stop":
            tell(machine, REGION, m.Stop(task_id=call.task_id, epoch=call.epoch.next_global()))
        else:
            newer = call.epoch.next_regional()
            stale = m.Recorded(
                task_id=call.task_id,
                epoch=call.epoch,
                outcome="stale",
                nodes=(),
                ended=False,
                current=newer,
                state="running",
            )
            tell(machine, "store", stale)
        assert kinds(tell(machine, REGION, run(call.task_id, call.epoch))) == [(REGION, m.Dropped)]


def test_a_task_that_comes_after_the_drain_is_handed_back() -> None:
    """A proxy that is stopping begins nothing: what was on its way to it goes to another."""
    machine = proxy(echo=1)
    tell(machine, ME, m.Drain())
    assert kinds(tell(machine, "store", run())) == [(REGION, m.Dropped)]


def test_a_slow_store_is_asked_for_pages_less_and_less_often() -> None:
    """What is late is not asked for every second: a page may be 2 MB of what it is behind with."""
    machine = proxy(echo=1)
    asked = [now for now, _ in [(0.0, tell(machine, REGION, run(saved=3)))]]
    while len(asked) < 6:
        now = machine.next_deadline()
        assert now is not None
        sends = tell(machine, ME, m.Tick(), now=now)
        asked += [now for send in sends if isinstance(send.message, m.GetProgress)]
    pauses = [later - before for before, later in itertools.pairwise(asked)]
    assert pauses == pytest.approx([1.0, 2.0, 4.0, 8.0, 8.0], abs=0.6)


def test_an_answer_of_an_older_attempt_does_not_count() -> None:
    """Once a call is repeated, the answer of the attempt before is noise."""
    machine, call = running()
    tell(machine, OTHER, result(call, OTHER, value=None, error="no", retryable=True))
    late = m.Envelope(ME, OTHER, result(call, OTHER))
    assert changes(machine, late, 0.0) == (False, [])


def test_only_its_owner_may_send_or_abort_a_call() -> None:
    """A call is taken from its owner or from the region, and given up for its owner alone."""
    machine = proxy()
    call = m.Call(
        task_id=9, epoch=E11, row="a/1/s0", owner=OTHER, agent="echo", prompt="", timeout_s=1
    )
    forged = m.Envelope(ME, "proxy/r0/2", call)
    assert changes(machine, forged, 0.0) == (False, [])
    assert kinds(tell(machine, REGION, call)) == [("agents", m.Invoke)]
    abort = m.AbortCalls(task_id=9, epoch=E12)
    assert changes(machine, m.Envelope(ME, "proxy/r0/2", abort), 0.0) == (False, [])
    assert kinds(tell(machine, OTHER, abort)) == [("agents", m.Revoke)]


def test_clients_watch_for_themselves_only() -> None:
    """A client has itself sent events by way of the gateway, which knows who asks; not here."""
    machine, _ = running()
    for client in ("client/c", "client/d"):
        watch = m.Watch(task_id=1, client=client)
        assert changes(machine, m.Envelope(ME, "client/c", watch), 0.0) == (False, [])


def test_state_of_sees_everything() -> None:
    """The comparison that these tests rest on notices a change deep inside."""
    machine, call = running()
    before = state_of(machine)
    tell(machine, OTHER, result(call, OTHER))
    assert state_of(machine) != before
    assert ME in SENDERS


# -- claims ----------------------------------------------------------------------------------------


def test_the_same_claim_again_starts_nothing_twice() -> None:
    """A `Run` that is repeated changes nothing, and neither does one that is older."""
    machine, _ = running()
    assert tell(machine, REGION, run()) == []
    assert tell(machine, REGION, run(epoch=Epoch(1, 0))) == []


def test_a_newer_claim_replaces_the_run() -> None:
    """The proxy gives up what it did under the older epoch, and reads what was saved."""
    machine, _ = running()
    sends = tell(machine, REGION, run(epoch=E12, saved=2))
    assert (OTHER, m.AbortCalls) in kinds(sends)
    assert ("store", m.GetProgress) in kinds(sends)


def test_pages_that_an_earlier_claim_asked_for_are_not_read() -> None:
    """They may lack a node that was finished since: it would be run a second time."""
    machine = proxy()
    old = tell(machine, REGION, run(saved=1))[-1]
    new = tell(machine, REGION, run(epoch=E12, saved=1))[-1]
    assert old.ref != new.ref
    page = m.Progress(task_id=1, rows=(), more=False)
    assert changes(machine, m.Envelope(ME, "store", page, old.ref), 0.0) == (False, [])
    assert (REGION, m.Place) in kinds(tell(machine, "store", page, new.ref))


def test_a_claim_for_the_process_before_it_is_not_its_own() -> None:
    """A repeated claim may be granted when its owner's name is another process's: one runs it."""
    machine = proxy()
    late = msgspec.structs.replace(run(), incarnation="0")
    assert tell(machine, "store", late) == []
    assert kinds(tell(machine, "store", msgspec.structs.replace(run(), incarnation="1"))) == [
        (REGION, m.Place)
    ]


def test_a_task_that_was_deleted_is_let_go() -> None:
    """When the store does not know the task any more, it does not keep its place for ever."""
    machine = proxy()
    ask = tell(machine, REGION, run(saved=1))[-1]
    gone = m.Refused(code="task_not_found", reason="no task has the id 1")
    assert kinds(tell(machine, "store", gone, ask.ref)) == [(REGION, m.Dropped)]
    assert beat(machine).claims == ()


def test_stale_means_stop() -> None:
    """A refused owner aborts its calls, tells its region, and holds the task no more."""
    machine, _ = running()
    stale = m.Recorded(
        task_id=1, epoch=E11, outcome="stale", nodes=(), ended=False, current=E12, state="running"
    )
    abort, dropped = tell(machine, "store", stale)
    assert (abort.to, type(abort.message)) == (OTHER, m.AbortCalls)
    assert (dropped.to, type(dropped.message)) == (REGION, m.Dropped)
    assert beat(machine).claims == ()


def test_a_call_that_is_placed_too_late_is_not_run() -> None:
    """What a slow region places after the owner was stopped is not started, and aborted elsewhere."""
    machine, call = running()
    tell(machine, REGION, m.Stop(task_id=1, epoch=E12))
    assert tell(machine, REGION, call) == []
    assert kinds(tell(machine, REGION, placed(call, OTHER))) == [(OTHER, m.AbortCalls)]


@pytest.mark.parametrize("rows", [["[]"], ['{"x":1}'], ["{"], ['{"value":1,"usage":7}']])
def test_rows_that_cannot_be_read_fail_the_task(rows: list[str]) -> None:
    """Somebody changed them in the database: the task ends with the reason, the proxy goes on."""
    machine = proxy()
    ask = tell(machine, REGION, run(saved=1))[-1]
    saved = tuple(m.SavedRow("a/1/s0", E11, row) for row in rows)
    page = m.Progress(task_id=1, rows=saved, more=False)
    (send,) = tell(machine, "store", page, ask.ref)
    assert isinstance(send.message, m.Record)
    assert send.message.end is not None
    assert "cannot be read" in send.message.end.error


# -- bounds ----------------------------------------------------------------------------------------


def test_no_room_is_said() -> None:
    """A proxy that walks as many tasks as it may hands a further one back."""
    machine = proxy(Limits(tasks_per_proxy=1))
    tell(machine, REGION, run(1))
    assert kinds(tell(machine, REGION, run(2))) == [(REGION, m.Dropped)]


def test_single_calls_spread_when_home_is_full() -> None:
    """Of three nodes that are ready at once, only as many start at home as have room there."""
    graph = json.dumps({"nodes": {n: {"agent": "echo", "prompt": ""} for n in "abc"}})
    sends = tell(proxy(echo=1), REGION, run(graph=graph))
    assert [kind for _, kind in kinds(sends)] == [m.Invoke, m.Place, m.Place]


def test_it_stays_as_small_as_its_tasks() -> None:
    """When its tasks have ended, nothing of them is left."""
    cluster = Cluster(lambda _: Reply("x"), proxies=2)
    cluster.run_for(1.0)
    empty = sizes(cluster.machine(ME))
    tasks = [cluster.submit(GRAPH) for _ in range(10)]
    cluster.run_until(lambda: cluster.ended(*tasks), 60)
    cluster.run_for(1.0)
    assert sizes(cluster.machine(ME)) == empty


def walk(machine: ProxyMachine, task_id: int) -> int:
    """Run a task to its end: answer every call, confirm every record; how many there were."""
    waiting = tell(machine, REGION, run(task_id))
    asked = 0
    while waiting:
        message = waiting.pop(0).message
        if isinstance(message, m.Invoke):
            asked += 1
            value = '{"choice":0}' if message.call.schema else '"hi"'
            waiting += tell(machine, "agents", result(message.call, ME, value=value))
        elif isinstance(message, m.Place):
            for row in message.rows:
                call = msgspec.structs.replace(message.call, row=row)
                waiting += tell(machine, REGION, placed(call, ME)) + tell(machine, ME, call)
        elif isinstance(message, m.Record):
            recorded = m.Recorded(
                task_id=task_id,
                epoch=message.epoch,
                outcome="applied",
                nodes=tuple(row.node_id for row in message.rows),
                ended=message.end is not None,
                current=message.epoch,
                state="succeeded" if message.end else "running",
            )
            waiting += tell(machine, "store", recorded)
    return asked


def test_what_has_ended_is_freed_at_once() -> None:
    """A task leaves nothing behind that only the collector of cycles could find."""
    machine = proxy(echo=10)
    assert walk(machine, 1) == 9
    gc.collect()
    gc.disable()
    try:
        for task_id in range(2, 12):
            assert walk(machine, task_id) == 9
        assert gc.collect() == 0
    finally:
        gc.enable()
