"""The proxy's heartbeats: what they name, how often they come, and what a pause means."""

from __future__ import annotations

import json

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.limits import Limits
from tests.machines import kinds
from tests.proxies import E11, E12, ME, REGION, beat, placed, proxy, result, run, tell


def test_its_heartbeat_names_what_it_holds() -> None:
    """From the claim on, while the saved rows are read and while the graph is walked."""
    machine = proxy()
    tell(machine, REGION, run(1))
    tell(machine, REGION, run(2, E12, saved=1))
    assert set(beat(machine).claims) == {m.Held(1, E11), m.Held(2, E12)}


def test_after_a_pause_its_own_waiting_calls_are_not_begun() -> None:
    """A slot that becomes free after a pause is not given to a task that may be another's now."""
    graph = json.dumps({"nodes": {n: {"agent": "echo", "prompt": ""} for n in "ab"}})
    machine = proxy(echo=1)
    invoke, place = tell(machine, REGION, run(graph=graph))
    assert isinstance(invoke.message, m.Invoke)
    assert isinstance(place.message, m.Place)
    call = place.message.call
    tell(machine, REGION, placed(call, ME))
    tell(machine, REGION, call)  # it waits for the one slot
    sends = tell(machine, m.AGENTS, result(invoke.message.call, ME), now=60.0)
    assert m.Invoke not in [kind for _, kind in kinds(sends)]
    sends += tell(
        machine,
        "store",
        m.Recorded(
            task_id=1,
            epoch=E11,
            outcome="applied",
            current=E11,
            state="running",
            nodes=("a",),
            ended=False,
        ),
        now=60.1,
    )
    sends += tell(machine, ME, m.Tick(), now=61.0)
    assert (m.AGENTS, m.Invoke) in kinds(sends)  # confirmed: it may go on


def test_it_says_seldom_that_it_has_nothing_to_do() -> None:
    """An idle proxy's heartbeats are further apart; with a task they come as often as ever."""
    machine, limits = proxy(), Limits()
    assert machine.next_deadline() == 0.5  # until it is certain that one of them was heard
    beat(machine)
    beat(machine)
    assert machine.next_deadline() == 1.0 + limits.idle_beat_s == 31.0
    tell(machine, REGION, run(1), now=7.0)
    assert machine.next_deadline() == 7.0 + limits.heartbeat_s
    assert beat(machine).claims
    assert machine.next_deadline() == 7.0 + 2 * limits.heartbeat_s


def test_what_is_done_at_once_needs_no_heartbeat() -> None:
    """A proxy that rests, and ends what it was given within a heartbeat, goes on resting."""
    machine = proxy()
    for _ in range(3):
        beat(machine)
    due = machine.next_deadline()
    tell(machine, REGION, run(1), now=7.0)
    tell(machine, REGION, m.Stop(task_id=1, epoch=Epoch(9, 9)), now=7.2)
    assert tell(machine, ME, m.Tick(), now=7.5) == []
    assert machine.next_deadline() == due
    tell(machine, REGION, run(2), now=8.0)
    tell(machine, REGION, m.Stop(task_id=2, epoch=Epoch(9, 9)), now=8.1)
    tell(machine, REGION, m.Rouse(), now=8.2)  # who asks is answered all the same
    assert [type(s.message) for s in tell(machine, ME, m.Tick(), now=8.2)] == [m.ProxyBeat]
    tell(machine, REGION, run(3), now=9.0)
    for now in (9.1, 9.2):
        tell(machine, REGION, m.Rouse(), now=now)
        assert machine.next_deadline() == now
    assert beat(machine).claims


def test_it_beats_when_it_is_asked_to() -> None:
    """A proxy that rests answers its region, or a new link, at once; several that came, once."""
    machine = proxy()
    for _ in range(3):
        beat(machine)
    for sender in (REGION, REGION, m.NEIGHBOUR):
        assert tell(machine, sender, m.Rouse(), now=3.0) == []
    assert machine.next_deadline() == 3.0
    (heard,) = tell(machine, ME, m.Tick(), now=3.0)
    assert (heard.to, type(heard.message)) == (REGION, m.ProxyBeat)
    assert machine.next_deadline() == 3.0 + Limits().idle_beat_s
    assert tell(machine, "region/r1", m.Rouse(), now=4.0) == []
    assert machine.next_deadline() == 3.0 + Limits().idle_beat_s
