"""The proxies of a region: what a choice needs is kept from beat to beat, and is never wrong."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agentos.core import messages as m
from agentos.core.fleet import Fleet

PROXIES = st.sampled_from([f"proxy/r0/{i}" for i in range(4)])
AGENTS = ("a", "b", "c")
OFFERS = st.dictionaries(st.sampled_from(AGENTS), st.integers(1, 3), max_size=3)


def beat(offers: dict[str, int], capacity: int = 2, calls: int = 0) -> m.ProxyBeat:
    """A proxy's heartbeat."""
    offered = tuple(m.Offer(agent, slots) for agent, slots in offers.items())
    return m.ProxyBeat(incarnation="1", calls=calls, capacity=capacity, offers=offered, claims=())


def test_a_task_goes_where_its_calls_can_be_run() -> None:
    """Who offers most of a task's agents is chosen from, as long as one of them has room."""
    fleet = Fleet(1.5)
    fleet.heard("p/all", beat({"a": 1, "b": 1}), 0.0)
    fleet.heard("p/some", beat({"b": 1}), 0.0)
    fleet.heard("p/none", beat({"c": 1}), 0.0)
    fleet.owns("p/all", 1)
    assert fleet.room(("a", "b")) == {"p/all": 1.0}
    assert fleet.room(("b",)) == {"p/all": 1.0, "p/some": 0.0}
    fleet.owns("p/all", 2)
    assert fleet.room(("a", "b")) == {"p/some": 0.0}
    fleet.owns("p/some", 2)
    assert fleet.room(("a", "b")) == {"p/none": 0.0}


class Fleets(RuleBasedStateMachine):
    """Beats, silences and tasks in any order, beside what the beats say when they are read anew."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet(1.5)
        self.owned: dict[str, int] = {}
        self.now = 0.0

    @rule(proxy=PROXIES, offers=OFFERS, capacity=st.integers(0, 2), calls=st.integers(0, 3))
    def beats(self, proxy: str, offers: dict[str, int], capacity: int, calls: int) -> None:
        """A proxy says what it offers, perhaps something else than before."""
        self.fleet.heard(proxy, beat(offers, capacity, calls), self.now)

    @rule(seconds=st.sampled_from([0.2, 1.0, 1.6]))
    def time_passes(self, seconds: float) -> None:
        """Some may be suspected."""
        self.now += seconds
        self.fleet.newly_suspected(self.now)

    @rule(proxy=PROXIES, tasks=st.integers(0, 3))
    def owns(self, proxy: str, tasks: int) -> None:
        """A proxy's tasks become more or fewer."""
        self.owned[proxy] = tasks
        self.fleet.owns(proxy, tasks)

    @rule(agent=st.sampled_from(AGENTS))
    def gives(self, agent: str) -> None:
        """A call goes to a proxy that offers its agent."""
        if loads := self.fleet.loads(agent):
            self.fleet.give(min(loads))

    @invariant()
    def what_is_kept_is_what_the_beats_say(self) -> None:
        """Agents, loads and room, as if they were collected from all proxies now."""
        living = dict(self.fleet.living())
        for agent in AGENTS:
            assert self.fleet.loads(agent) == {
                address: (peer.beat.calls + peer.given) / offer.slots
                for address, peer in living.items()
                for offer in peer.beat.offers
                if offer.agent == agent
            }
        assert set(self.fleet.agents()) == {a for a in AGENTS if self.fleet.loads(a)}
        assert self.fleet.room(()) == {
            address: self.owned.get(address, 0)
            for address, peer in living.items()
            if self.owned.get(address, 0) < peer.beat.capacity
        }


TestFleets = Fleets.TestCase
