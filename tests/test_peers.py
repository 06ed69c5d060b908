"""Who may speak for whom, and who is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agentos.core import messages as m
from agentos.core.errors import AddressTaken, AgentOSError, Overloaded, RemoteProtocolError
from agentos.core.limits import Limits
from agentos.runtime import peers as module
from agentos.runtime.peers import FORGET_AFTER, Peers, may_greet, may_host

LIMITS = Limits(link_ping_s=1.0, suspect_after=3, max_children=4)
PATIENCE_S = 3.0
NAMES = (
    "gateway", "gateway/a", "gateway/b", "store", "agents", "region", "region/eu", "region/us",
    "proxy", "proxy/eu", "proxy/eu/1", "proxy/us/1", "client", "client/x", "client/y", "greeter",
    "greeter/one", "",
)  # fmt: skip


class Wire:
    """A connection, as far as peers are concerned: something with an identity."""

    peer = "wire"

    def send(self, envelopes: Sequence[m.Envelope]) -> None: ...

    def close(self) -> None: ...


def hello(address: str, session: str = "secret of process a") -> m.Hello:
    return m.Hello(address=address, session=session)


@pytest.fixture
def peers() -> Peers:
    return Peers(LIMITS)


def test_a_greeted_name_leads_to_its_connection(peers: Peers) -> None:
    """After a hello, the name is routed to that connection, and only it may speak as it."""
    one, two = Wire(), Wire()
    peers.register(one, hello("client/x"), 0.0)
    assert peers.route("client/x") is one
    assert peers.speaks_for(one, "client/x")
    assert not peers.speaks_for(two, "client/x")
    assert not peers.speaks_for(one, "client/y")
    assert peers.knows(one)
    assert not peers.knows(two)
    assert peers.sessions() == {"client/x": "secret of process a"}


def test_the_first_name_comes_first(peers: Peers) -> None:
    """A further name of a process is known only where its first one is: that says what it may be."""
    wire = Wire()
    further = m.Hello(address="region/eu", session="secret of process a", host="gateway/a")
    assert not peers.register(wire, further, 0.0)
    assert peers.route("region/eu") is None
    assert peers.register(wire, hello("gateway/a"), 0.0)
    assert peers.register(wire, further, 0.0)
    assert peers.route("region/eu") is wire


def test_a_living_process_keeps_its_name(peers: Peers) -> None:
    """Another process is refused the name for as long as its holder is heard."""
    one, two = Wire(), Wire()
    peers.register(one, hello("region/eu"), 0.0)
    for now in (1.0, 2.0, 3.0, 4.0):
        peers.heard(one, now)
        with pytest.raises(AddressTaken, match="region/eu"):
            peers.register(two, hello("region/eu", "secret of process b"), now + 1)
    assert peers.route("region/eu") is one


def test_a_silent_process_loses_its_name_to_the_next(peers: Peers) -> None:
    """Once the holder, asked whether it lives, has been silent for the patience, it is free."""
    one, two = Wire(), Wire()
    peers.register(one, hello("region/eu"), 0.0)
    for now in (100.0, 100.0 + 0.9 * PATIENCE_S):
        with pytest.raises(AddressTaken, match="alive"):
            peers.register(two, hello("region/eu", "secret of process b"), now)
    peers.register(two, hello("region/eu", "secret of process b"), 100.0 + PATIENCE_S)
    assert peers.route("region/eu") is two
    assert not peers.speaks_for(one, "region/eu")


def test_one_that_rests_keeps_its_name_if_it_answers(peers: Peers) -> None:
    """A child that is silent because it has nothing to say is asked, and loses nothing."""
    one, two = Wire(), Wire()
    peers.register(one, hello("proxy/eu/1"), 0.0)
    for asked in (100.0, 200.0):
        with pytest.raises(AddressTaken, match="alive"):
            peers.register(two, hello("proxy/eu/1", "secret of process b"), asked)
        peers.heard(one, asked + 0.1)
        with pytest.raises(AddressTaken, match="alive"):
            peers.register(two, hello("proxy/eu/1", "secret of process b"), asked + 50.0)
        peers.heard(one, asked + 50.1)
    assert peers.route("proxy/eu/1") is one


def test_the_same_process_takes_its_name_along(peers: Peers) -> None:
    """The same session on a new connection has the name at once."""
    one, two = Wire(), Wire()
    peers.register(one, hello("region/eu"), 0.0)
    peers.register(two, hello("region/eu"), 0.1)
    assert peers.route("region/eu") is two
    assert peers.gone(one) == []
    assert peers.gone(two) == ["region/eu"]
    assert peers.route("region/eu") is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("region/eu", "region/us"),
        ("region/eu", "proxy/us/1"),
        ("region/eu", "gateway/a"),
        ("proxy/eu/1", "proxy/eu/2"),
        ("proxy/eu/1", "region/eu"),
        ("proxy/eu/1", "gateway/a"),
        ("client/x", "proxy/eu/1"),
        ("client/x", "region/eu"),
        ("greeter", "gateway/a"),
        ("gateway/a", "gateway/b"),
    ],
)
def test_what_a_process_is_bounds_what_is_below_it(peers: Peers, first: str, second: str) -> None:
    """A region hosts its own proxies only; nobody hosts what is above it, or beside it."""
    wire = Wire()
    peers.register(wire, hello(first), 0.0)
    with pytest.raises(RemoteProtocolError, match="cannot host"):
        peers.register(wire, hello(second), 0.0)
    assert peers.route(second) is None
    assert peers.speaks_for(wire, first)


def test_a_process_stays_what_it_is(peers: Peers) -> None:
    """A region that lost its name for a moment gets it back, though its proxies' names stayed."""
    one, two = Wire(), Wire()
    for name in ("region/eu", "proxy/eu/1"):
        peers.register(one, hello(name), 0.0)
    peers.register(two, hello("region/eu"), 0.0)
    peers.register(one, hello("region/eu"), 0.0)
    assert peers.route("region/eu") is one
    with pytest.raises(RemoteProtocolError):
        peers.register(one, hello("region/us"), 0.0)


@pytest.mark.parametrize(
    ("above", "below"),
    [
        ("region/eu", "gateway/a"),
        ("region/eu", "region/us"),
        ("region/eu", "proxy/us/1"),
        ("gateway/a", "gateway/b"),
        ("proxy/eu/1", "proxy/eu/2"),
    ],
)
def test_what_the_greeted_process_is_bounds_its_children(
    peers: Peers, above: str, below: str
) -> None:
    """Nobody gets between a region and its gateway by greeting the region as a gateway."""
    with pytest.raises(RemoteProtocolError, match="cannot host"):
        peers.register(Wire(), hello(below), 0.0, above=["client/own", "greeter", above])


@pytest.mark.parametrize(
    "address", ["gateway", "store", "agents", "proxy", "proxy/eu", "region", "region/a/b", "client"]
)
def test_names_that_no_child_can_have(peers: Peers, address: str) -> None:
    """Roles' own addresses and names with parts missing are refused: others take names apart."""
    with pytest.raises(RemoteProtocolError, match="not a name"):
        peers.register(Wire(), hello(address), 0.0)


def test_children_are_bounded(peers: Peers) -> None:
    """Over `max_children` connections a further one is refused; the others are not disturbed."""
    wires = [Wire() for _ in range(LIMITS.max_children)]
    for i, wire in enumerate(wires):
        peers.register(wire, hello(f"client/{i}"), 0.0)
    with pytest.raises(Overloaded, match="4 children"):
        peers.register(late := Wire(), hello("client/late"), 0.0)
    peers.gone(late)
    peers.register(wires[0], hello("client/another"), 0.0)
    peers.gone(wires[1])
    peers.register(Wire(), hello("client/late"), 0.0)


@pytest.mark.plain
def test_names_of_a_child_are_bounded(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child cannot fill the memory of its parent with names; one that it has is no new one."""
    monkeypatch.setattr(module, "NAMES_PER_CHILD", 3)
    wire = Wire()
    for i in range(3):
        peers.register(wire, hello(f"client/{i}"), 0.0)
    with pytest.raises(Overloaded, match="3 names"):
        peers.register(wire, hello("client/3"), 0.0)
    peers.register(wire, hello("client/1"), 0.0)


def test_a_goodbye_frees_the_name_of_its_owner_only(peers: Peers) -> None:
    """A name that is given up is free at once, and nobody else can give it up."""
    one, two = Wire(), Wire()
    peers.register(one, hello("client/x"), 0.0)
    peers.register(one, hello("greeter"), 0.0)
    assert not peers.unregister(two, "greeter")
    assert peers.unregister(one, "greeter")
    assert not peers.unregister(one, "greeter")
    peers.register(two, hello("greeter", "secret of process b"), 0.0)
    assert peers.route("greeter") is two


def test_the_silent_are_forgotten_and_still_probed(peers: Peers) -> None:
    """Names of connections that were silent for long are freed; errors of theirs stay counted."""
    one, two, nameless = Wire(), Wire(), Wire()
    peers.register(one, hello("client/x"), 0.0)
    peers.register(one, hello("greeter"), 0.0)
    peers.register(two, hello("client/y"), 0.0)
    assert peers.erred(nameless, 0.0) == 1
    rests_s = LIMITS.idle_beat_s * LIMITS.suspect_after
    assert peers.silent(rests_s + PATIENCE_S) == ([], []), "a link that rests is probed as seldom"
    now = FORGET_AFTER * PATIENCE_S + rests_s + 1
    peers.heard(two, now)
    silent, names = peers.silent(now)
    assert set(silent) == {one, nameless}
    assert sorted(names) == ["client/x", "greeter"]
    assert peers.route("client/x") is None
    assert not peers.knows(one)
    assert peers.silent(now) == (silent, [])
    assert peers.erred(nameless, now) == 2
    peers.register(one, hello("client/x"), now)
    assert peers.speaks_for(one, "client/x")


def test_who_is_to_blame_for_a_body(peers: Peers) -> None:
    """Only a direct child answers for what it wrote; a forwarder does not open bodies."""
    region = Wire()
    peers.register(region, hello("region/eu"), 0.0)
    peers.register(region, hello("proxy/eu/1"), 0.0)
    assert peers.author("region/eu") is region
    assert peers.author("proxy/eu/1") is None
    assert peers.author("nobody") is None
    assert peers.forwards(region)
    assert not peers.forwards(Wire())


@given(st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_hosting_has_an_order(one: str, other: str) -> None:
    """Of two different infrastructure names, at most one may host the other."""
    infrastructure = {"gateway", "region", "proxy"}
    if one != other and {m.role_of(one), m.role_of(other)} <= infrastructure:
        legal = may_greet(one) and may_greet(other)
        assert not (legal and may_host(one, other) and may_host(other, one))


class Speaking(RuleBasedStateMachine):
    """Against any sequence of greetings, goodbyes, losses and time: a model that keeps it simple."""

    @initialize(above=st.sampled_from([(), ("gateway/a", "gateway", "store"), ("region/eu",)]))
    def begin(self, above: tuple[str, ...]) -> None:
        self.above = above
        self.peers = Peers(LIMITS)
        self.wires = [Wire() for _ in range(4)]
        self.now = 0.0
        self.greeted: dict[Wire, set[str]] = {wire: set() for wire in self.wires}

    @rule(
        i=st.integers(0, 3),
        address=st.sampled_from(NAMES),
        session=st.sampled_from(["secret of process a", "secret of process b"]),
        host=st.none() | st.sampled_from(NAMES),
        beside=st.booleans(),
    )
    def greet(self, i: int, address: str, session: str, host: str | None, beside: bool) -> None:
        before = self.peers.route(address) if address else None
        known = self.peers.sessions().get(address) == session
        placed = host is None or self.peers.speaks_for(self.wires[i], host)
        greeting = m.Hello(address=address, session=session, host=host, beside=beside)
        try:
            heard = self.peers.register(self.wires[i], greeting, self.now, self.above)
        except AgentOSError:
            assert self.peers.route(address) is before
        else:
            assert heard == (placed and (known or not beside))
            if heard:
                self.greeted[self.wires[i]].add(address)
                assert self.peers.speaks_for(self.wires[i], address)
            else:
                assert self.peers.route(address) is before

    @rule(i=st.integers(0, 3), address=st.sampled_from(NAMES))
    def leave(self, i: int, address: str) -> None:
        spoke = self.peers.speaks_for(self.wires[i], address)
        if self.peers.unregister(self.wires[i], address):
            assert self.peers.route(address) is None
        assert not spoke or not self.peers.speaks_for(self.wires[i], address)
        if spoke:
            self.greeted[self.wires[i]].remove(address)

    @rule(i=st.integers(0, 3))
    def lose(self, i: int) -> None:
        self.peers.gone(self.wires[i])
        self.greeted[self.wires[i]].clear()

    @rule(seconds=st.sampled_from([0.5, 4.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.peers.silent(self.now)

    @invariant()
    def nobody_speaks_as_what_it_never_greeted_as(self) -> None:
        for name in NAMES:
            speakers = [w for w in self.wires if self.peers.speaks_for(w, name)]
            assert len(speakers) <= 2  # the second one beside the first
            assert bool(speakers) == (self.peers.route(name) is not None)
            assert all(name in self.greeted[wire] for wire in speakers)
            assert not speakers or may_greet(name)

    @invariant()
    def nobody_gets_between(self) -> None:
        above = [name for name in self.above if m.role_of(name) in {"gateway", "region"}]
        for name in NAMES:
            if name and self.peers.route(name) is not None:
                assert all(may_host(host, name) for host in above)


TestSpeaking: Any = Speaking.TestCase
