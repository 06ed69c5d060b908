"""The link of a proxy that rests: probed seldom, found dead in time, and never forgotten."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
import pytest

from agentos.core import messages as m
from agentos.core.ports import Connection
from agentos.runtime.switch import Switch
from agentos.testing.transport_recorder import eventually
from tests.switches import FAST, TCP, Net, fresh_url, net, taking

BEAT = m.ProxyBeat(incarnation="1", calls=0, capacity=1, offers=(), claims=())
BUSY = msgspec.structs.replace(BEAT, calls=1)


@pytest.fixture
def world() -> Iterator[Net]:
    with net() as made:
        yield made


@pytest.fixture(params=["inproc", "tcp", "ipc"])
def url(request: pytest.FixtureRequest, tmp_path: object) -> str:
    return fresh_url(request.param, tmp_path)


def pings(switch: Switch) -> list[float]:
    """When a switch was probed by its children, from now on."""
    came: list[float] = []
    received = switch.received

    def noting(connection: Connection, envelopes: Sequence[m.Envelope]) -> None:
        probes = [e for e in envelopes if e.to == m.NEIGHBOUR and kind_of_it(e) == "ping"]
        came.extend(time.monotonic() for _ in probes)
        received(connection, envelopes)

    switch.received = noting  # type: ignore[method-assign]
    return came


def kind_of_it(envelope: m.Envelope) -> str:
    message = envelope.message
    return message.kind if isinstance(message, m.Sealed) else type(message).__name__.lower()


def resting(world: Net, url: str) -> tuple[Switch, queue.SimpleQueue[m.Envelope]]:
    """A child that is a proxy, and what it is told; its link is up."""
    child = world.switch("child", alone=True)
    taken = taking(child, "proxy/r0/0")
    assert child.connect([url]).wait_up(10)
    return child, taken


def beat(child: Switch, message: m.ProxyBeat) -> None:
    child.send([m.Envelope("region/r0", "proxy/r0/0", message)])


@pytest.mark.plain
def test_a_proxy_that_rests_is_not_probing_all_the_time(world: Net) -> None:
    """Its heartbeats go up alone; with something to do its link is probed as often as any."""
    parent = world.switch("parent", alone=True)
    parent.attach("region/r0", lambda batch: None)
    came = pings(parent)
    child, _ = resting(world, parent.listen(TCP))
    ping_s, rest_s = FAST.link_ping_s, FAST.idle_beat_s * FAST.suspect_after
    began = time.monotonic()
    while time.monotonic() < began + 15 * ping_s:
        beat(child, BEAT)
        time.sleep(ping_s)
    assert len(came) <= 2 + 15 * ping_s / rest_s
    came.clear()
    began = time.monotonic()
    while time.monotonic() < began + 15 * ping_s:
        beat(child, BUSY)
        time.sleep(ping_s / 2)
    assert len(came) >= 5


@pytest.mark.plain
def test_what_is_said_between_two_looks_is_seen(
    world: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resting link's thread looks again in a minute and a half; an end must not wait for that."""

    class Wake(threading.Event):
        """Lets something happen right before it is cleared, which is where the thread may stand."""

        strike: Callable[[], None] = staticmethod(lambda: None)

        def clear(self) -> None:
            strike, self.strike = self.strike, lambda: None
            strike()
            super().clear()

    parent, child = world.switch("parent"), world.switch("child")
    child.attach("proxy/r0/0", lambda batch: None)
    uplink = child.connect([parent.listen(TCP)])
    assert uplink.wait_up(10)
    monkeypatch.setattr(uplink, "_probe_due", lambda: time.monotonic() + 1000.0)
    lost = uplink._connection
    wake, before = Wake(), uplink._wake
    monkeypatch.setattr(uplink, "_wake", wake)
    before.set()  # from now on the thread waits for ours
    wake.strike = uplink.lost
    wake.set()
    eventually(lambda: uplink._connection is not lost)


def test_a_proxy_that_rests_finds_another_parent(world: Net) -> None:
    """A parent that hangs is given up by who rests too: after some heartbeats, or with work at once."""
    limits = msgspec.structs.replace(FAST, idle_heartbeats=5)
    hanging, other = world.switch("hanging", alone=True), world.switch("other", alone=True)
    for parent in (hanging, other):
        parent.attach("region/r0", lambda batch: None)
    child = world.switch("child", alone=True, limits=limits)
    child.attach("proxy/r0/0", lambda batch: None)
    uplink = child.connect([hanging.listen(TCP), other.listen(TCP)])
    assert uplink.wait_up(10)
    hanging.received = lambda connection, envelopes: None  # type: ignore[method-assign]
    eventually(lambda: other._peers.route("proxy/r0/0") is not None)
    eventually(lambda: uplink.up)


def test_a_proxy_is_roused_when_its_link_comes_up(world: Net, url: str) -> None:
    """A parent that was started anew hears of proxies that rest at once."""
    child = world.switch("child")
    taken = taking(child, "proxy/r0/0")
    child.connect([url])
    for _ in range(2):
        parent = world.switch("parent")
        parent.listen(url)
        roused = taken.get(timeout=20)
        assert (roused.sender, roused.message) == (m.NEIGHBOUR, m.Rouse())
        parent.close()


def test_the_name_of_one_that_rests_is_not_free(world: Net) -> None:
    """Silent for longer than any patience, it is asked whether it lives when its name is wanted."""
    limits = msgspec.structs.replace(FAST, idle_heartbeats=1_000)
    parent = world.switch("parent", alone=True, limits=limits)
    url = parent.listen(TCP)
    first, second = (world.switch(name, alone=True, limits=limits) for name in ("one", "two"))
    for child in (first, second):
        child.attach("proxy/r0/0", lambda batch: None)
    assert first.connect([url]).wait_up(10)
    time.sleep(2 * FAST.link_ping_s * FAST.suspect_after)
    holder = parent._peers.route("proxy/r0/0")
    uplink = second.connect([url])
    assert not uplink.wait_up(5 * FAST.link_ping_s * FAST.suspect_after)
    assert "another process" in uplink.refusal
    assert parent._peers.route("proxy/r0/0") is holder
    first.close()
    assert uplink.wait_up(10)
