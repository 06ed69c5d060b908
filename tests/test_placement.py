"""Where new tasks go: a region that has room, and one of its proxies, as the last heartbeat says."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agentos.core import messages as m
from agentos.core.balancing import LeastLoaded
from agentos.core.epoch import Epoch
from agentos.core.limits import Limits
from agentos.core.placement import Placement

ME, R0, R1 = "gateway/a", "region/r0", "region/r1"
P0, P1, P2 = "proxy/r0/0", "proxy/r0/1", "proxy/r0/2"


def proxy(
    address: str,
    tasks: int = 0,
    *,
    capacity: int = 4,
    alive: bool = True,
    agents: tuple[str, ...] = ("echo",),
) -> m.ProxyInfo:
    """A proxy as its region tells of it."""
    return m.ProxyInfo(
        address=address, alive=alive, tasks=tasks, calls=0, capacity=capacity, agents=agents
    )


def beat(*proxies: m.ProxyInfo) -> m.RegionBeat:
    """The heartbeat of a region of these proxies."""
    living = [p for p in proxies if p.alive]
    return m.RegionBeat(
        incarnation="1",
        tasks=sum(p.tasks for p in living),
        capacity=sum(p.capacity for p in living),
        agents=tuple(sorted({agent for p in living for agent in p.agents})),
        proxies=proxies,
    )


def placement(*proxies: m.ProxyInfo) -> Placement:
    """A placement that has heard of region r0 and these proxies of it."""
    placed = Placement(ME, Limits(), LeastLoaded())
    placed.regions.heard(R0, beat(*proxies), 0.0)
    return placed


def test_a_new_task_goes_to_the_proxy_with_the_fewest() -> None:
    """What was given since the heartbeat counts, and what has ended since no longer does."""
    placed = placement(proxy(P0, 1), proxy(P1, 2))
    assert [placed.choose(("echo",))[1] for _ in range(4)] == [P0, P0, P1, P0]
    for _ in range(2):
        placed.ended(P1, 0.0)
    assert [placed.choose(("echo",))[1] for _ in range(2)] == [P1, P1]


def test_a_region_that_is_forgotten_leaves_nothing() -> None:
    """Its proxies go with it."""
    placed = placement(proxy(P0))
    for now in range(400):
        placed.regions.newly_suspected(now)
        placed.regions.forget_silent(now)
    assert placed.regions.get(R0) is None
    with pytest.raises(KeyError):
        placed.regions.rooms(R0)


def test_who_offers_its_agents_is_asked_first() -> None:
    """What an owner can run itself crosses no network."""
    placed = placement(proxy(P0, 3, agents=("echo", "draw")), proxy(P1, 0), proxy(P2, 0))
    assert placed.choose(("draw", "echo")) == (R0, P0)
    assert placed.choose(("draw", "echo")) != (R0, P0)  # it is full


def test_the_dead_are_given_nothing() -> None:
    """Nor is one that its region has not named in its last heartbeat."""
    placed = placement(proxy(P0, alive=False), proxy(P1, 2), proxy(P2, 0))
    placed.regions.heard(R0, beat(proxy(P0, alive=False), proxy(P1, 2)), 0.5)
    assert placed.choose(("echo",)) == (R0, P1)


def test_without_a_place_it_waits() -> None:
    """No region that could run it, or none with room: nobody's, until the sweep gives it away."""
    assert placement().choose(("echo",)) == ("", "")
    placed = placement(proxy(P0, 4))
    assert placed.choose(("echo",)) == ("", "")
    waiting = m.TaskCreated(
        task_id=1, created=True, state="accepted", epoch=Epoch(), region="", owner=""
    )
    assert placed.created(waiting, ("echo",)) == []
    placed.regions.heard(R0, beat(proxy(P0, 0)), 0.5)
    assert placed.choose(("echo",)) == ("", "")  # those that wait are first


def test_a_region_is_told_whose_its_task_is() -> None:
    """The region watches over it from then on."""
    placed = placement(proxy(P0))
    task = m.TaskCreated(
        task_id=1, created=True, state="running", epoch=Epoch(1, 1), region=R0, owner=P0
    )
    (send,) = placed.created(task, ("echo",))
    assert send == m.Send(
        R0, m.Assign(task_id=1, epoch=Epoch(1, 1), agents=("echo",), attempts=0, owner=P0)
    )


class Placements(RuleBasedStateMachine):
    """Heartbeats, new tasks and ends in any order, beside a plain count of both."""

    def __init__(self) -> None:
        super().__init__()
        self.placement = Placement(ME, Limits(), LeastLoaded())
        self.known: dict[str, dict[str, m.ProxyInfo]] = {}
        self.given: dict[str, int] = {}

    @rule(
        region=st.sampled_from(["r0", "r1"]),
        proxies=st.dictionaries(
            st.sampled_from("012"), st.tuples(st.integers(0, 3), st.booleans()), max_size=3
        ),
    )
    def beats(self, region: str, proxies: dict[str, tuple[int, bool]]) -> None:
        """A region says who is there now, and what each has."""
        named = {
            f"proxy/{region}/{n}": proxy(f"proxy/{region}/{n}", tasks, capacity=3, alive=alive)
            for n, (tasks, alive) in proxies.items()
        }
        self.known[f"region/{region}"] = named
        self.given |= {f"proxy/{region}/{n}": 0 for n in "012"}
        self.placement.regions.heard(f"region/{region}", beat(*named.values()), 0.0)

    @rule()
    def a_task_comes(self) -> None:
        """Its owner is alive and has room, as far as anybody has said; it has none if nobody has."""
        rooms = {
            address: info.capacity - info.tasks - self.given[address]
            for proxies in self.known.values()
            for address, info in proxies.items()
            if info.alive
        }
        region, owner = self.placement.choose(("echo",))
        if not region:
            assert not any(room > 0 for room in rooms.values())
            return
        assert owner in self.known[region]
        assert rooms[owner] > 0
        self.given[owner] += 1

    @rule(data=st.data())
    def a_task_ends(self, data: st.DataObject) -> None:
        """There is room for another."""
        given = [owner for owner, tasks in sorted(self.given.items()) if tasks]
        if given:
            owner = data.draw(st.sampled_from(given))
            self.given[owner] -= 1
            self.placement.ended(owner, 0.0)

    @invariant()
    def nobody_has_too_much(self) -> None:
        """What a proxy was given never exceeds the room that it had."""
        for proxies in self.known.values():
            for address, info in proxies.items():
                if info.alive:
                    assert info.tasks + self.given[address] <= info.capacity


TestPlacements = Placements.TestCase
