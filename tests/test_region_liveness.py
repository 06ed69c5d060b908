"""Whom the region takes for dead: the silent, those that rest, and those that it asks first."""

from __future__ import annotations

import math

import pytest

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.region import RegionMachine
from tests.regions import E10, E11, ME, P0, P1, assign, beat, call, claimed, owning, region, tell
from tests.test_proxy import kinds


def test_a_silent_proxy_is_replaced() -> None:
    """After three missed heartbeats its tasks are claimed for another, and the others are told."""
    machine, owner = owning(P0, P1)
    other = P1 if owner == P0 else P0
    sends: list[m.Send] = []
    now = 0.0
    while now < 2.0:
        now += 0.25
        tell(machine, other, beat(), now)
        sends += tell(machine, ME, m.Tick(), now)
    told = [s.message for s in sends if s.to == other and not isinstance(s.message, m.Rouse)]
    assert told == [m.PeerDown(proxies=(owner,))]
    (claim,) = {s.message for s in sends if isinstance(s.message, m.Claim)}
    assert (claim.expected, claim.owner) == (E11, other)


def test_one_that_rests_is_expected_at_once_when_it_is_given_something() -> None:
    """An idle proxy may be silent for longer; with a task its silence is noticed as fast as any."""
    machine = region(P0)
    looks = [n / 4 for n in range(1, 13)]
    assert not any(tell_down(machine, now) for now in looks)  # three seconds: it rests
    (claim,) = tell(machine, "gateway/a", assign(), 3.0)
    tell(machine, "store", claimed(claim.message), 3.0)
    looks = [3 + n / 4 for n in range(1, 13)]
    assert next(now for now in looks if tell_down(machine, now)) == 5.0


def test_a_region_that_rests_wakes_for_heartbeats_and_sweeps_only() -> None:
    """A cluster with nothing to do is not woken for nothing: each of its looks is at a heartbeat."""
    machine = region(P0, P1)
    said: list[set[type[m.Message]]] = []
    for _ in range(40):
        now = machine.next_deadline()
        assert now is not None
        sends = tell(machine, ME, m.Tick(), now)
        said.append({type(send.message) for send in sends})
        for send in sends:
            if isinstance(send.message, m.FindTasks):
                none = m.TasksFound(region=ME, agents=None, tasks=())
                machine.handle(m.Envelope(ME, "store", none, send.ref), now)
    assert all({m.RegionBeat, m.FindTasks} & words for words in said[6:])


@pytest.mark.parametrize("late_s", [1.9, 2.1, 5.0])
def test_a_slow_store_is_read_all_the_same(late_s: float) -> None:
    """A reading that was given up too soon is waited for longer the next time."""
    machine = region(P0)
    brief = m.TaskBrief(1, Epoch(1, 0), ME, "", ("echo",), 0, 0)
    answers: list[tuple[float, str]] = []
    claimed_at = math.inf
    for step in range(300):
        now = step / 10
        sends = tell(machine, P0, beat(), now) if step % 5 == 0 else []
        sends += tell(machine, ME, m.Tick(), now)
        while answers and answers[0][0] <= now:
            _, ref = answers.pop(0)
            found = m.TasksFound(region=ME, agents=None, tasks=(brief,))
            sends += machine.handle(m.Envelope(ME, "store", found, ref), now)
        for send in sends:
            if isinstance(send.message, m.FindTasks):
                answers.append((now + late_s, send.ref))
            if isinstance(send.message, m.Claim):
                claimed_at = min(claimed_at, now)
    assert claimed_at < 20.0


def test_one_that_never_heard_of_its_task_is_asked_and_not_suspected() -> None:
    """A lost `Run` costs a second: the resting owner is roused until it holds what it was given."""
    machine = region(P0)
    for n in range(1, 13):
        tell(machine, ME, m.Tick(), n / 4)
    (claim,) = tell(machine, "gateway/a", assign(), 3.1)
    tell(machine, "store", claimed(claim.message), 3.1)  # the Run is lost
    again: m.Claim | None = None
    for n in range(13, 40):
        sends = tell(machine, ME, m.Tick(), n / 4)
        assert not any(isinstance(s.message, m.PeerDown | m.Declined) for s in sends)
        assert (P0, m.Rouse) in kinds(sends)
        answer = tell(machine, P0, beat(), n / 4)
        if claims := [s.message for s in answer if isinstance(s.message, m.Claim)]:
            (again,) = claims
            tell(machine, "store", claimed(again), n / 4)
            break
    assert again is not None
    assert (again.owner, again.expected, n / 4) == (P0, E10, 4.25)  # the same claim: told again
    tell(machine, P0, beat(m.Held(1, E11)), 4.3)
    assert (P0, m.Rouse) not in kinds(tell(machine, ME, m.Tick(), 4.5))


def test_a_heartbeat_that_crosses_what_is_given_is_not_taken_for_an_answer() -> None:
    """That a proxy rests is believed of a heartbeat only that is later than what it was given."""
    machine, owner = owning(P0, P1)
    other = P1 if owner == P0 else P0
    for n in range(1, 5):
        tell(machine, owner, beat(m.Held(1, E11), slots=1), n / 4)
        tell(machine, ME, m.Tick(), n / 4)
    question = m.Place(call=call(owner), rows=("a/1/s0", "a/1/s1"))
    assert (other, m.Call) in kinds(tell(machine, owner, question, 1.1))
    tell(machine, other, beat(), 1.15)  # it was on its way already
    tell(machine, owner, beat(m.Held(1, E11)), 1.2)
    assert (other, m.Rouse) in kinds(tell(machine, ME, m.Tick(), 1.25))
    tell(machine, other, beat(), 1.3)
    tell(machine, owner, beat(m.Held(1, E11)), 1.4)
    assert (other, m.Rouse) not in kinds(tell(machine, ME, m.Tick(), 1.5))


def test_when_one_is_dead_those_that_rest_are_asked_as_well() -> None:
    """A machine may have died long ago with many that rested: they are all found out together."""
    machine, owner = owning(P0, P1, "proxy/r0/2", "proxy/r0/3")
    others = sorted({P0, P1, "proxy/r0/2", "proxy/r0/3"} - {owner})
    living = others[0]
    down: dict[str, float] = {}
    for n in range(1, 25):
        sends = tell(machine, ME, m.Tick(), n / 4)
        if (living, m.Rouse) in kinds(sends):
            tell(machine, living, beat(), n / 4)
        for send in sends:
            if send.to == living and isinstance(send.message, m.PeerDown):
                down |= dict.fromkeys(send.message.proxies, n / 4)
    assert down == {owner: 1.75, others[1]: 3.5, others[2]: 3.5}


def tell_down(machine: RegionMachine, now: float) -> bool:
    """Whether the region hands its task back for want of a proxy, or takes its owner for dead."""
    sends = tell(machine, ME, m.Tick(), now)
    reports = [s.message for s in sends if isinstance(s.message, m.RegionBeat)]
    return any(isinstance(s.message, m.Declined) for s in sends) or any(
        not info.alive for report in reports for info in report.proxies
    )


def test_many_that_come_at_once_are_one_report() -> None:
    """A thousand proxies that greet together cost one report, not one of all for each."""
    machine = region()
    sends = []
    for number in range(1_000):
        sends += tell(machine, f"proxy/r0/{number}", beat(), now=1.0 + number / 10_000)
    assert sends == []
    (report,) = tell(machine, ME, m.Tick(), now=1.2)
    assert isinstance(report.message, m.RegionBeat)
    assert len(report.message.proxies) == 1_000
