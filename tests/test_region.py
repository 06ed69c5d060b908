"""The region's machine: whom it listens to, how it places tasks and calls, what it remembers."""

from __future__ import annotations

from typing import cast

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.holdings import REMEMBERED
from agentos.core.places import REMEMBERED as PLACEMENTS
from agentos.core.region import RegionMachine
from tests.clusters import Cluster
from tests.harness import Reply
from tests.hostile import changes, from_anybody, known
from tests.machines import GRAPH, kinds, sizes
from tests.regions import (
    E10,
    E11,
    E12,
    E20,
    LIMITS,
    ME,
    P0,
    P1,
    STRANGER,
    assign,
    beat,
    call,
    claimed,
    owning,
    region,
    tell,
    ticks,
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
    for envelope in data.draw(st.lists(from_anybody(ME), max_size=8)):
        machine.handle(envelope, cluster.now)
        machine.handle(m.Envelope(ME, ME, m.Tick()), cluster.now)
        due = machine.next_deadline()
        assert due is not None
        assert due > cluster.now


@fuzzed
@given(message=known(), sender=st.sampled_from([STRANGER, "region/r1", "region", "proxy"]))
def test_strangers_change_nothing(message: m.Message, sender: str) -> None:
    """Another region and its proxies have no say here, whatever they send."""
    machine, _ = owning(P0, P1)
    assert changes(machine, m.Envelope(ME, sender, message), 0.0) == (False, [])


@fuzzed
@given(data=st.data(), kind=st.sampled_from([m.Ended, m.Dropped]))
def test_only_the_owner_speaks_for_a_task(data: st.DataObject, kind: type[m.Message]) -> None:
    """Another proxy, or the owner of an earlier claim, cannot end or drop it."""
    machine, owner = owning(P0, P1)
    message = msgspec.structs.replace(data.draw(known(kind)), task_id=1)
    sender = data.draw(st.sampled_from([P0, P1]))
    if (sender, message.epoch) != (owner, E11):
        assert changes(machine, m.Envelope(ME, sender, message), 0.0) == (False, [])


def test_whoever_watches_hears_from_every_owner() -> None:
    """The region knows who wants to hear of a task's progress, and tells each owner that it gets."""
    machine, owner = owning(P0, P1)
    watch = m.Watch(task_id=1, client="client/c")
    assert tell(machine, "client/c", watch) == []  # only the gateway says who watches
    assert tell(machine, "gateway/a", watch) == [m.Send(owner, watch)]
    restarted = tell(machine, owner, beat(incarnation="2"))  # loses its task to another
    (claim,) = [send for send in restarted if isinstance(send.message, m.Claim)]
    sends = tell(machine, "store", claimed(claim.message))
    assert [type(send.message) for send in sends] == [m.Event, m.Watch]
    assert sends[0].to == "client/c"
    another = sends[1].to
    enough = m.Unwatch(task_id=1, client="client/c")
    assert tell(machine, "client/c", enough) == []
    assert tell(machine, "gateway/a", enough) == [m.Send(another, enough)]
    (claim,) = [s for s in tell(machine, another, beat(incarnation="3")) if s.to == m.STORE]
    sends = tell(machine, "store", claimed(claim.message))
    assert not [send for send in sends if isinstance(send.message, m.Watch | m.Event)]


@fuzzed
@given(answer=known(m.Claimed))
def test_a_claim_that_is_not_under_way_is_not_answered(answer: m.Claimed) -> None:
    """An answer to a claim that was answered already changes nothing."""
    machine, _ = owning(P0, P1)
    assert changes(machine, m.Envelope(ME, "store", answer), 0.0) == (False, [])


def test_the_answer_to_an_earlier_claim_is_not_taken_for_ours() -> None:
    """Neither a grant for another owner or epoch, nor a refusal that is older than the claim."""
    machine = region(P0)
    (claim,) = tell(machine, "gateway/a", assign(epoch=E20))
    for fields in (
        {"owner": P1},
        {"epoch": E11},
        {"granted": False, "epoch": E11},
        {"granted": False, "epoch": E20},
    ):
        answer = m.Envelope(ME, "store", claimed(claim.message, **fields))
        assert changes(machine, answer, 0.0) == (False, [])
    tell(machine, "store", claimed(claim.message))
    assert [task.owner for _, task in machine._tasks.items()] == [P0]


def test_older_assignments_are_noise() -> None:
    """An `Assign` that is repeated, or that belongs to an earlier claim of a gateway, is nothing."""
    machine, _ = owning(P0)
    for epoch in (Epoch(0, 9), E10, E11):
        again = m.Envelope(ME, "gateway/a", assign(epoch=epoch))
        assert changes(machine, again, 0.0) == (False, [])


def test_a_proxy_places_its_own_calls_only() -> None:
    """A proxy cannot have a call placed in another one's name."""
    machine, _ = owning(P0, P1)
    place = m.Place(call=call(P0), rows=("a/1/s0",))
    assert changes(machine, m.Envelope(ME, P1, place), 0.0) == (False, [])


# -- tasks -----------------------------------------------------------------------------------------


def test_a_refused_claim_stops_the_old_owner() -> None:
    """When the store says that the task has moved on, whoever still works on it here stops."""
    machine, owner = owning(P0)
    tell(machine, owner, m.Dropped(task_id=1, epoch=E11, reason="refused"))
    (claim,) = [s for s in ticks(machine, LIMITS.resend_s) if isinstance(s.message, m.Claim)]
    lost = claimed(claim.message, granted=False, epoch=E20, state="cancelled")
    assert kinds(tell(machine, "store", lost)) == [(P0, m.Stop), (m.GATEWAY, m.Ended)]


def test_a_task_that_has_an_owner_is_watched_over() -> None:
    """The gateway chose it, the store has told it: it is replaced like any other when it dies."""
    machine = region(P0, P1)
    assert tell(machine, "gateway/a", assign(epoch=E11, owner=P0)) == []
    now = 0.0
    sends: list[m.Send] = []
    while now < 2.0:
        now += 0.25
        tell(machine, P1, beat(), now)
        sends += tell(machine, ME, m.Tick(), now)
    (claim,) = {s.message for s in sends if isinstance(s.message, m.Claim)}
    assert (claim.expected, claim.owner, claim.lost) == (E11, P1, True)


def test_an_owner_that_is_dead_is_replaced_at_once() -> None:
    """What the gateway knows is a heartbeat old: its choice may have died since."""
    machine, dead = owning(P0, P1)
    other = P1 if dead == P0 else P0
    now = 0.0
    while now < 2.0:
        now += 0.25
        tell(machine, other, beat(), now)
        tell(machine, ME, m.Tick(), now)
    (send,) = tell(machine, "gateway/a", assign(2, E11, owner=dead), now)
    assert isinstance(send.message, m.Claim)
    assert (send.message.expected, send.message.owner, send.message.lost) == (E11, other, True)


def test_an_owner_that_is_not_known_yet_is_left_alone() -> None:
    """A region that came back may hear of its tasks before it hears of its proxies."""
    machine = region(P1)
    empty = sizes(machine)
    assert tell(machine, "gateway/a", assign(epoch=E11, owner=P0)) == []
    assert sizes(machine) == empty


def test_a_region_that_stops_asks_for_a_new_task_back() -> None:
    """The task came while the region was stopping: its owner gives it up, and another has it.

    What it is asked may overtake the task, on another way: it is asked again when it has it.
    """
    machine = region(P0)
    tell(machine, ME, m.Drain())
    back = m.Send(P0, m.Yield(task_id=1, epoch=E11))
    assert tell(machine, "gateway/a", assign(epoch=E11, owner=P0)) == [back]
    assert tell(machine, P0, beat(), 0.5) == []
    assert tell(machine, P0, beat(m.Held(1, E11)), 1.0) == [back]
    assert not machine.drained
    (declined,) = tell(machine, P0, m.Dropped(task_id=1, epoch=E11, reason="handed back"), 1.1)
    assert isinstance(declined.message, m.Declined)
    assert machine.drained


def test_an_owner_that_is_stopping_is_replaced_at_once() -> None:
    """The gateway did not know yet. One that has the task gives it back when its calls are saved."""
    machine = region(P0, P1)
    tell(machine, P0, beat(m.Held(2, E11), capacity=0))
    (send,) = tell(machine, "gateway/a", assign(1, E11, owner=P0))
    assert isinstance(send.message, m.Claim)
    assert (send.message.expected, send.message.owner, send.message.lost) == (E11, P1, False)
    assert tell(machine, "gateway/a", assign(2, E11, owner=P0)) == []


def tasks_of(machine: RegionMachine, now: float) -> int:
    """How many tasks it says that it has."""
    (report,) = [s.message for s in tell(machine, ME, m.Tick(), now) if s.to == m.GATEWAY]
    assert isinstance(report, m.RegionBeat)
    return report.tasks


def test_an_end_may_come_before_its_task() -> None:
    """They come on different ways: a task that has ended, or was taken back, is not watched over."""
    machine = region(P0)
    tell(machine, P0, m.Ended(task_id=1, epoch=E11, state="succeeded"))
    assert tell(machine, "gateway/a", assign(1, E11, owner=P0)) == []
    tell(machine, "gateway/a", m.Stop(task_id=2, epoch=E20))
    assert tell(machine, "gateway/a", assign(2, E11, owner=P0)) == []
    assert tasks_of(machine, 0.6) == 0
    tell(machine, P0, m.Ended(task_id=3, epoch=E12, state="succeeded"))  # of another claim
    tell(machine, P1, m.Ended(task_id=4, epoch=E11, state="succeeded"))  # by somebody else
    tell(machine, "gateway/a", assign(3, E11, owner=P0))
    tell(machine, "gateway/a", assign(4, E11, owner=P0))
    assert tasks_of(machine, 1.2) == 2


def test_an_end_may_come_before_its_claims_answer() -> None:
    """The store tells the owner and the region: whoever is quicker."""
    machine = region(P0)
    (send,) = tell(machine, "gateway/a", assign())
    tell(machine, P0, m.Ended(task_id=1, epoch=E11, state="succeeded"))
    assert tell(machine, "store", claimed(send.message)) == []
    assert tasks_of(machine, 0.6) == 0


def test_an_owner_that_restarts_while_it_is_claimed_for() -> None:
    """The claim was for the process that is gone: what it made committed is claimed once more."""
    machine = region(P0)
    (first,) = tell(machine, "gateway/a", assign())
    assert isinstance(first.message, m.Claim)
    assert first.message.incarnation == "1"
    tell(machine, P0, beat(incarnation="2"))
    (again,) = [s.message for s in ticks(machine, LIMITS.resend_s) if s.to == m.STORE]
    assert again == first.message  # for the same process as before
    (second,) = tell(machine, "store", claimed(first.message), 1.5)
    assert isinstance(second.message, m.Claim)
    assert (second.message.expected, second.message.incarnation) == (E11, "2")


def test_a_dropped_task_does_not_go_round_at_once() -> None:
    """Proxies that are full hand a task round once a second, not as fast as messages go."""
    machine, owner = owning(P0, P1)
    assert tell(machine, owner, m.Dropped(task_id=1, epoch=E11, reason="no room")) == []
    (claim,) = [s for s in ticks(machine, LIMITS.resend_s) if isinstance(s.message, m.Claim)]
    assert isinstance(claim.message, m.Claim)
    assert claim.message.owner != owner


def test_a_task_without_a_place_is_handed_back() -> None:
    """No capable proxy or no room: the gateway is told, and nothing is kept."""
    machine = region(P0, capacity=1)
    empty = sizes(machine)
    assert kinds(tell(machine, "gateway/a", assign(agents=("nobody",)))) == [
        (m.GATEWAY, m.Declined)
    ]
    assert sizes(machine) == empty
    tell(machine, "gateway/a", assign(1))
    assert kinds(tell(machine, "gateway/a", assign(2))) == [(m.GATEWAY, m.Declined)]


def test_a_proxy_that_holds_an_older_claim_is_stopped() -> None:
    """A zombie's own heartbeat tells the region, and the answer is `Stop`."""
    machine, owner = owning(P0)
    sends = tell(machine, owner, beat(m.Held(1, E10)))
    assert [(s.to, s.message) for s in sends] == [(owner, m.Stop(task_id=1, epoch=E11))]


def test_a_restarted_proxy_gets_its_tasks_anew() -> None:
    """A new incarnation has forgotten what it held: the region claims again, at a newer epoch."""
    machine, owner = owning(P0)
    sends = tell(machine, owner, beat(incarnation="2"))
    (claim,) = [s.message for s in sends if isinstance(s.message, m.Claim)]
    assert claim.expected == E11


# -- calls -----------------------------------------------------------------------------------------


def test_samples_go_to_different_proxies() -> None:
    """The samples of one round are spread over as many proxies as there are."""
    machine, _ = owning(P0, P1)
    rows = ("a/1/s0", "a/1/s1", "a/1/s2", "a/1/s3")
    sends = tell(machine, P0, m.Place(call=call(), rows=rows))
    calls = [(s.to, s.message.row) for s in sends if isinstance(s.message, m.Call)]
    assert [row for _, row in calls] == list(rows)
    assert sorted(to for to, _ in calls) == [P0, P0, P1, P1]
    assert calls[0][0] != calls[1][0]


def test_a_call_is_placed_where_it_was() -> None:
    """Asked again, the region names the same proxy: what still runs is not started elsewhere."""
    machine, _ = owning(P0, P1)
    place = m.Place(call=call(), rows=("a/1/s0",))
    first = tell(machine, P0, place)
    assert [tell(machine, P0, place) for _ in range(5)] == [first] * 5


def test_calls_of_a_stopped_epoch_are_not_placed() -> None:
    """A call that was on its way when its task was cancelled meets the stop in the region."""
    machine, owner = owning(P0, P1)
    tell(machine, "gateway/a", m.Stop(task_id=1, epoch=E20))
    sends = tell(machine, owner, m.Place(call=call(owner), rows=("a/1/s0",)))
    assert [(s.to, s.message) for s in sends] == [(owner, m.Stop(task_id=1, epoch=E20))]


# -- time and bounds -------------------------------------------------------------------------------


def test_what_it_remembers_is_bounded() -> None:
    """Neither placements nor stops pile up, whatever the number of calls and tasks."""
    machine, _ = owning(P0)
    for i in range(REMEMBERED + 50):
        tell(machine, "gateway/a", m.Stop(task_id=i + 2, epoch=E20))
        one = msgspec.structs.replace(call(), row=f"a/{i}/s0")
        tell(machine, P0, m.Place(call=one, rows=(one.row,)))
    held = {"_stops": sizes(machine._tasks._stops)["_floors"], **sizes(machine._places)}
    assert held["_given"] == held["_stops"] == REMEMBERED == PLACEMENTS


def test_nothing_of_a_finished_task_is_left() -> None:
    """When its tasks have ended, the region holds none of them."""
    cluster = Cluster(lambda _: Reply("x"), proxies=2)
    cluster.run_for(1.0)

    def held() -> dict[str, int]:
        machine = cast("RegionMachine", cluster.machine(ME))
        return sizes(machine) | {k: n for k, n in sizes(machine._tasks).items() if k != "_stops"}

    empty = held()
    tasks = [cluster.submit(GRAPH) for _ in range(10)]
    cluster.run_until(lambda: cluster.ended(*tasks), 60)
    cluster.run_for(1.0)
    assert held() == empty
