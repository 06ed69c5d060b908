"""The link up: found late, lost and found again, and silent parents."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import msgspec
import pytest
import zmq
from structlog.testing import capture_logs

from agentos.core import messages as m
from agentos.core.errors import AddressTaken, LocalProtocolError, Overloaded
from agentos.core.ports import Connection
from agentos.testing.transport_recorder import eventually
from tests.switches import FAST, TCP, Net, fresh_url, net, taking

PARENT = "gateway/a"


@pytest.fixture
def world() -> Iterator[Net]:
    with net() as made:
        yield made


@pytest.fixture(params=["inproc", "tcp", "ipc"])
def url(request: pytest.FixtureRequest, tmp_path: object) -> str:
    return fresh_url(request.param, tmp_path)


def say(value: object, to: str = PARENT, sender: str = "worker/x") -> m.Envelope:
    return m.Envelope(to, sender, m.Say(value=value))


def test_a_parent_that_starts_later_is_found(world: Net, url: str) -> None:
    """A child may start first: what it sends waits, and arrives in order before anything newer."""
    child = world.switch("child")
    child.attach("worker/x", lambda batch: None)
    uplink = child.connect([url])
    for i in range(50):
        child.send([say(i, "greeter")])
    assert not uplink.wait_up(0.3)
    parent = world.switch("parent")
    taken = taking(parent, "greeter")
    parent.listen(url)
    assert uplink.wait_up(20)
    for i in range(50, 60):
        child.send([say(i, "greeter")])
    got = [taken.get(timeout=10).message for _ in range(60)]
    assert got == [m.Say(value=i) for i in range(60)]


def test_a_parent_that_restarts_is_greeted_again(world: Net, url: str) -> None:
    """After a restart at the same address all the names come back by themselves."""
    child = world.switch("child")
    for name in ("worker/x", "worker/y"):
        child.attach(name, lambda batch: None)
    uplink = child.connect([url])
    for _ in range(3):
        parent = world.switch("parent")
        parent.listen(url)
        eventually(lambda: all(parent._peers.route(n) for n in ("worker/x", "worker/y")))  # noqa: B023
        eventually(lambda: uplink.up)
        parent.close()
    eventually(lambda: not uplink.up)


def test_a_parent_that_forgot_us_is_greeted_again(world: Net, url: str) -> None:
    """A parent that took us for dead says `hello_first`, and knows us again a moment later."""
    parent, child = world.switch("parent"), world.switch("child")
    taken = taking(parent, "greeter")
    parent.listen(url)
    child.attach("worker/x", lambda batch: None)
    assert child.connect([url]).wait_up(10)
    connection = parent._peers.route("worker/x")
    assert connection is not None
    assert parent._peers.gone(connection) == ["worker/x"]

    def arrives() -> bool:
        child.send([say("hi", "greeter")])
        return not taken.empty()

    eventually(arrives)
    assert parent._peers.route("worker/x") is connection


@pytest.mark.plain
def test_a_link_that_breaks_between_greetings(world: Net, url: str) -> None:
    """What reaches the parent first on a new connection is not taken for what the process is."""
    parent, child = world.switch("parent"), world.switch("child")
    names = ["gateway/a", "region/us", "region/eu"]
    received, forgotten = parent.received, []

    def forgetting(connection: Connection, envelopes: Sequence[m.Envelope]) -> None:
        received(connection, envelopes)
        if not forgotten and parent._peers.route("gateway/a") is not None:
            # The socket has connected anew by itself: the parent sees somebody whom it has never
            # seen, and the greetings of the other names are on their way.
            forgotten.extend(parent._peers.gone(connection))

    parent.received = forgetting  # type: ignore[method-assign]
    parent.listen(url)
    for name in names:
        child.attach(name, lambda batch: None)
    assert child.connect([url]).wait_up(10)
    eventually(lambda: all(parent._peers.route(name) is not None for name in names))
    assert forgotten == ["gateway/a"]
    assert parent.counters["protocol_errors"] == 0


def test_a_name_lost_to_a_late_greeting_comes_back(world: Net, url: str) -> None:
    """A hello of our own that was delayed on a dead connection does not cost us the name."""
    parent, child = world.switch("parent"), world.switch("child")
    taken = taking(parent, "greeter")
    parent.listen(url)
    for name in ("region/eu", "worker/y"):
        child.attach(name, lambda batch: None)
    assert child.connect([url]).wait_up(10)
    eventually(lambda: parent._peers.route("worker/y") is not None)
    stray = world.transports().of("inproc://x").connect("inproc://x", parent)
    late = m.Hello(address="region/eu", session=child.session)
    parent._peers.register(stray, late, time.monotonic())

    def arrives() -> bool:
        child.send([say("hi", "greeter", "region/eu")])
        return not taken.empty()

    eventually(arrives)
    assert parent._peers.route("region/eu") is parent._peers.route("worker/y")
    assert parent.counters["peers_disconnected"] == 0


def test_the_next_parent_is_tried(world: Net) -> None:
    """When a parent dies, the next of the list is tried, and after the last the first again."""
    parents = [world.switch(name, alone=True) for name in ("one", "two")]
    urls = [parent.listen(TCP) for parent in parents]
    child = world.switch("child", alone=True)
    child.attach("worker/x", lambda batch: None)
    uplink = child.connect(urls)
    eventually(lambda: parents[0]._peers.route("worker/x") is not None)
    parents[0].close()
    eventually(lambda: parents[1]._peers.route("worker/x") is not None)
    again = world.switch("one again", alone=True)
    again.listen(urls[0])
    parents[1].close()
    eventually(lambda: again._peers.route("worker/x") is not None)
    eventually(lambda: uplink.up)


def test_a_silent_parent_is_given_up(world: Net) -> None:
    """A socket that takes everything and never answers is not a parent."""
    context = zmq.Context()
    mute = context.socket(zmq.ROUTER)
    port = mute.bind_to_random_port("tcp://127.0.0.1")
    parent, child = world.switch("parent", alone=True), world.switch("child", alone=True)
    child.attach("worker/x", lambda batch: None)
    uplink = child.connect([f"tcp://127.0.0.1:{port}", parent.listen(TCP)])
    try:
        eventually(lambda: parent._peers.route("worker/x") is not None)
        eventually(lambda: uplink.up)
    finally:
        context.destroy(linger=0)


@pytest.mark.plain
def test_a_parent_that_falls_silent_is_given_up(world: Net) -> None:
    """Heartbeats of the sockets do not count: a parent whose switch hangs is left for another."""
    hanging, other = world.switch("hanging", alone=True), world.switch("other", alone=True)
    child = world.switch("child", alone=True)
    child.attach("worker/x", lambda batch: None)
    uplink = child.connect([hanging.listen(TCP), other.listen(TCP)])
    eventually(lambda: hanging._peers.route("worker/x") is not None)
    hanging.received = lambda connection, envelopes: None  # type: ignore[method-assign]
    eventually(lambda: other._peers.route("worker/x") is not None)
    eventually(lambda: uplink.up)


def test_a_child_that_only_listens_is_alive(world: Net) -> None:
    """Pings go on while the parent talks: otherwise a child that only listens would seem dead."""
    parent, child = world.switch("parent", alone=True), world.switch("child", alone=True)
    taken = taking(child, "worker/x")
    assert child.connect([parent.listen(TCP)]).wait_up(10)
    intruder = world.transports().of("inproc://x").connect("inproc://x", parent)
    hello = m.Hello(address="worker/x", session="session of another")
    until = time.monotonic() + 3 * FAST.link_ping_s * FAST.suspect_after
    while time.monotonic() < until:
        parent.send([say("tick", "worker/x", PARENT)])
        taken.get(timeout=5)
        with pytest.raises(AddressTaken, match="alive"):
            parent._peers.register(intruder, hello, time.monotonic())


def test_what_waits_is_bounded(world: Net) -> None:
    """Without a parent a bounded number of messages wait; more are refused, and say when to retry."""
    limits = msgspec.structs.replace(FAST, high_water_mark=20)
    child = world.switch("child", limits=limits)
    child.attach("worker/x", lambda batch: None)
    uplink = child.connect(["inproc://nobody"])
    for i in range(20):
        uplink.send([say(i)])
    with pytest.raises(Overloaded, match="inproc://nobody") as caught:
        uplink.send([say(20)])
    assert caught.value.retry_after_s == limits.reconnect_max_s


def test_what_cannot_be_written_does_not_keep_the_rest(world: Net) -> None:
    """One bad message among those that wait is dropped alone."""
    child = world.switch("child", alone=True)
    child.attach("worker/x", lambda batch: None)
    parent = world.switch("parent", alone=True)
    url = parent.listen(TCP)
    parent.close()
    uplink = child.connect([url])
    for value in (1, object(), 2):
        uplink.send([say(value, "greeter")])
    again = world.switch("again", alone=True)
    taken = taking(again, "greeter")
    again.listen(url)
    assert [taken.get(timeout=20).message.value for _ in range(2)] == [1, 2]  # type: ignore[union-attr]


def test_a_taken_name_is_refused_until_its_holder_has_left() -> None:
    """The second process of a name is told so; an orderly stop of the first frees it at once."""
    patient = msgspec.structs.replace(FAST, link_ping_s=0.3, suspect_after=100)
    with net(patient) as world:
        _second_waits_for_first(world)


def _second_waits_for_first(world: Net) -> None:
    parent = world.switch("parent", alone=True)
    url = parent.listen(TCP)
    first, second = world.switch("first", alone=True), world.switch("second", alone=True)
    for child in (first, second):
        child.attach("region/eu", lambda batch: None)
    assert first.connect([url]).wait_up(10)
    uplink = second.connect([url])
    eventually(lambda: "region/eu" in uplink.refusal)
    assert "another process" in uplink.refusal
    assert not uplink.wait_up(0.5)
    first.close()
    assert uplink.wait_up(10)
    assert uplink.refusal == ""


def test_other_names_do_not_take_the_place_of_the_first(world: Net) -> None:
    """A restarted region whose name is still taken gets it later, and its proxies with it."""
    parent = world.switch("parent", alone=True)
    url = parent.listen(TCP)
    old, new = world.switch("old", alone=True), world.switch("new", alone=True)
    old.attach("region/eu", lambda batch: None)
    new.attach("region/eu", lambda batch: None)
    proxy = world.switch("proxy", alone=True)
    proxy.attach("proxy/eu/1", lambda batch: None)
    assert old.connect([url]).wait_up(10)
    assert proxy.connect([new.listen(TCP)]).wait_up(10)
    new.ref("anything")  # takes a client's name
    uplink = new.connect([url])
    eventually(lambda: uplink.refusal)
    assert parent._peers.route("proxy/eu/1") is None
    old.close()
    eventually(lambda: parent._peers.route("proxy/eu/1") is not None)
    assert parent._peers.route("proxy/eu/1") is parent._peers.route("region/eu")
    assert parent.counters["protocol_errors"] == 0


def test_a_name_of_a_hung_process_can_be_taken(world: Net) -> None:
    """A process that is silent loses its name to one that asks for it."""
    parent = world.switch("parent", alone=True)
    url = parent.listen(TCP)
    hung, second = world.switch("hung", alone=True), world.switch("second", alone=True)
    hung.attach("region/eu", lambda batch: None)
    second.attach("region/eu", lambda batch: None)
    assert hung.connect([url]).wait_up(10)
    release = threading.Event()
    hung._transports.of(url)._shared.io.submit(lambda: release.wait(30) and None)  # type: ignore[attr-defined]
    try:
        assert second.connect([url]).wait_up(20)
    finally:
        release.set()


def test_wrong_urls_are_refused_at_once(world: Net) -> None:
    """A URL that no adapter serves is an error where it is given, not a parent that never comes."""
    switch = world.switch()
    with pytest.raises(LocalProtocolError, match=r"http://.*installed: .*tcp://"):
        switch.connect(["http://127.0.0.1:80"])
    with pytest.raises(LocalProtocolError, match="not a URL"):
        switch.connect("tcp://127.0.0.1:80")
    with pytest.raises(LocalProtocolError, match="at least one URL"):
        switch.connect([])
    switch.connect(["inproc://a"])
    with pytest.raises(LocalProtocolError, match="one uplink"):
        switch.connect(["inproc://b"])


def test_a_switch_without_names_gets_its_first_late(world: Net) -> None:
    """A link may be made first and the actor put on later: it is announced at once."""
    parent, child = world.switch("parent"), world.switch("child")
    uplink = child.connect([parent.listen("inproc://parent")])
    assert not uplink.wait_up(0.2)
    child.attach("worker/x", lambda batch: None)
    assert uplink.wait_up(5)
    assert parent._peers.route("worker/x") is not None


def test_orders_are_kept_across_the_moment_of_going_up(world: Net) -> None:
    """One thread's messages arrive in the order of sending, whatever the link does meanwhile."""
    child = world.switch("child")
    child.attach("worker/x", lambda batch: None)
    sent = 3_000
    parent = world.switch("parent")
    taken = taking(parent, "greeter")

    def send() -> None:
        for i in range(sent):
            child.send([say(i, "greeter")])

    uplink = child.connect(["inproc://parent"])
    sender = threading.Thread(target=send)
    sender.start()
    parent.listen("inproc://parent")
    sender.join(30)
    assert uplink.wait_up(10)
    got = [taken.get(timeout=10).message.value for _ in range(sent)]  # type: ignore[union-attr]
    assert got == list(range(sent))


def test_other_limits_are_noticed(world: Net) -> None:
    """Roles that wait for each other for different times take the living for dead: a warning."""
    other = msgspec.structs.replace(FAST, heartbeat_s=7.0)
    alike = msgspec.structs.replace(FAST, stop_grace_s=77.0)  # which is each role's own
    parent = world.switch("parent", alone=True)
    parent.attach("region/eu", lambda batch: None)
    url = parent.listen(TCP)
    with capture_logs() as lines:
        for name, limits in (("proxy/eu/1", FAST), ("proxy/eu/2", other), ("proxy/eu/3", alike)):
            child = world.switch(name, limits=limits, alone=True)
            child.attach(name, lambda batch: None)
            assert child.connect([url]).wait_up(10)
        client = world.switch("client", limits=other, alone=True)
        client.attach("client/c", lambda batch: None)
        assert client.connect([url]).wait_up(10)
    warned = [line["address"] for line in lines if line["event"] == "limits_differ"]
    assert set(warned) == {"proxy/eu/2"}


def test_closing_is_prompt(world: Net) -> None:
    """A link that never found a parent closes within its pause, not after it."""
    child = world.switch("child")
    uplink = child.connect(["inproc://nobody"])
    child.close()
    assert not uplink._worker.is_alive()
