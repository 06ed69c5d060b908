"""The shortcut: what is for the store goes past the region while it can, and by it otherwise."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence

import pytest

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import LocalProtocolError
from agentos.core.ports import Connection
from agentos.runtime.peers import Peers
from agentos.runtime.switch import Switch
from agentos.testing.transport_recorder import eventually
from tests.switches import FAST, TCP, Net, free_port, net
from tests.test_peers import Wire

PROXY = "proxy/eu/1"


@pytest.fixture
def world() -> Iterator[Net]:
    with net() as made:
        yield made


def some_port() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


class Row:
    """A gateway with a store in it, a region, and a proxy with a shortcut: a process each."""

    def __init__(self, world: Net, gateways: Sequence[str], shortcuts: Sequence[str] = ()) -> None:
        self.world = world
        self.asked: queue.SimpleQueue[m.Envelope] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[m.Envelope] = queue.SimpleQueue()
        self.passed: list[str] = []
        """What came to the region, from above and below."""
        self.region = world.switch("region", alone=True)
        self.region.attach("region/eu", lambda batch: None)
        self._watch(self.region)
        self.region.connect(gateways)
        self.proxy = world.switch("proxy", alone=True)
        self.proxy.attach(PROXY, lambda batch: [self.answers.put(e) for e in batch] and None)
        self.proxy.connect([self.region.listen(TCP)], shortcuts or gateways)

    def _watch(self, region: Switch) -> None:
        received = region.received

        def watched(connection: Connection, envelopes: Sequence[m.Envelope]) -> None:
            self.passed += [e.message.kind for e in envelopes if isinstance(e.message, m.Sealed)]
            received(connection, envelopes)

        region.received = watched  # type: ignore[method-assign]

    def gateway(self, url: str, name: str = "a") -> Switch:
        """Start a gateway, with a store that answers what it is asked."""
        switch = self.world.switch(f"gateway/{name}", alone=True)
        switch.attach(f"gateway/{name}", lambda batch: None)

        def answer(batch: list[m.Envelope]) -> None:
            for e in batch:
                self.asked.put(m.Envelope(e.to, e.sender, e.message, f"{name} {e.ref}"))
                progress = m.Progress(task_id=1, rows=(), more=False)
                switch.send([m.Envelope(e.sender, e.to, progress, e.ref)])

        switch.attach(m.STORE, answer)
        switch.listen(url)
        return switch

    def goes_straight(self) -> bool:
        """Ask the store, and hear its answer: whether the region saw neither."""
        self.passed.clear()
        return self.ask() and not {"get_progress", "progress"} & set(self.passed)

    def ask(self) -> bool:
        """Ask the store; whether it answers within a second."""
        question = m.GetProgress(task_id=1)
        while not self.answers.empty():
            self.answers.get()
        self.proxy.send([m.Envelope(m.STORE, PROXY, question, "q")])
        try:
            return self.answers.get(timeout=1).ref == "q"
        except queue.Empty:
            return False


@pytest.mark.plain
def test_what_is_for_the_store_goes_past_the_region(world: Net) -> None:
    """Once the gateway knows the proxy, question and answer take the short way; else the long one."""
    url = some_port()
    row = Row(world, [url])
    row.gateway(url)
    eventually(row.ask)
    eventually(row.goes_straight)
    row.region.send([m.Envelope(PROXY, "region/eu", m.Yield(task_id=1, epoch=Epoch(1, 1)))])
    assert isinstance(row.answers.get(timeout=5).message, m.Yield)  # its region still reaches it


@pytest.mark.plain
def test_without_a_shortcut_all_goes_by_the_region(world: Net) -> None:
    """A gateway that cannot be reached directly (behind a firewall) costs nothing but the hops."""
    url = some_port()
    row = Row(world, [url], shortcuts=[some_port()])
    row.gateway(url)
    eventually(row.ask)
    row.passed.clear()
    assert row.ask()
    assert {"get_progress", "progress"} <= set(row.passed)


@pytest.mark.plain
def test_a_gateway_that_restarts_is_reached_again(world: Net) -> None:
    """While it is gone nothing arrives; then by the region, and soon straight again."""
    url = some_port()
    row = Row(world, [url])
    for _ in range(3):
        gateway = row.gateway(url)
        eventually(row.ask)
        eventually(row.goes_straight)
        gateway.close()


@pytest.mark.plain
def test_a_region_that_goes_elsewhere_takes_the_shortcut_along(world: Net) -> None:
    """The shortcut leads to the gateway above the region: another one would not know the way back."""
    urls = [some_port(), some_port()]
    row = Row(world, urls)
    first = row.gateway(urls[0], "a")
    eventually(row.ask)
    eventually(row.goes_straight)
    row.gateway(urls[1], "b")
    first.close()
    eventually(row.ask)
    eventually(row.goes_straight)
    while row.asked.qsize() > 1:
        row.asked.get()
    assert row.asked.get().ref == "b q"


@pytest.mark.plain
def test_a_region_that_dies_takes_the_name_along(world: Net) -> None:
    """A proxy without a region has no shortcut either; with the next region it has one again."""
    url = some_port()
    row = Row(world, [url])
    gateway = row.gateway(url)
    eventually(row.goes_straight)
    row.region.close()
    eventually(lambda: gateway._peers.route(PROXY) is None)
    assert not row.ask()


def test_a_wrong_shortcut_is_refused_at_once(world: Net) -> None:
    """A URL that no transport serves is an error where it is given."""
    with pytest.raises(LocalProtocolError, match="carrier-pigeon"):
        world.switch().connect([TCP], ["carrier-pigeon://roof"])


# -- who may have one ------------------------------------------------------------------------------


def beside(address: str, session: str) -> m.Hello:
    return m.Hello(address=address, session=session, beside=True)


def test_a_shortcut_needs_the_secret_of_the_name() -> None:
    """Nobody gets what is for another process by saying that he is beside it."""
    peers, region, mine, other = Peers(FAST), Wire(), Wire(), Wire()
    assert not peers.register(mine, beside(PROXY, "secret of the proxy"), 0.0)
    assert peers.route(PROXY) is None
    peers.register(region, m.Hello(address="region/eu", session="secret of region"), 0.0)
    peers.register(region, m.Hello(address=PROXY, session="secret of the proxy"), 0.0)
    assert not peers.register(other, beside(PROXY, "secret of another"), 0.0)
    assert not peers.speaks_for(other, PROXY)
    assert peers.register(mine, beside(PROXY, "secret of the proxy"), 0.0)
    assert peers.speaks_for(mine, PROXY)
    assert peers.speaks_for(region, PROXY)


def test_an_answer_takes_the_way_of_the_question() -> None:
    """A shortcut that the other end has given up is not written to any more."""
    peers, region, mine = Peers(FAST), Wire(), Wire()
    peers.register(region, m.Hello(address=PROXY, session="secret of the proxy"), 0.0)
    peers.register(mine, beside(PROXY, "secret of the proxy"), 0.0)
    for connection in (mine, region, mine):
        assert peers.speaks_for(connection, PROXY)
        assert peers.route(PROXY) is connection


def test_the_ways_to_a_name_end_apart() -> None:
    """A lost shortcut leaves the name; a lost name leaves no shortcut."""
    peers, region, mine = Peers(FAST), Wire(), Wire()
    peers.register(region, m.Hello(address=PROXY, session="secret of the proxy"), 0.0)
    peers.register(mine, beside(PROXY, "secret of the proxy"), 0.0)
    assert peers.gone(mine) == []
    assert peers.route(PROXY) is region
    peers.register(mine, beside(PROXY, "secret of the proxy"), 0.0)
    assert not peers.unregister(mine, PROXY)  # a goodbye of the shortcut
    assert peers.route(PROXY) is region
    peers.register(mine, beside(PROXY, "secret of the proxy"), 0.0)
    assert peers.gone(region) == [PROXY]
    assert peers.route(PROXY) is None
    assert not peers.speaks_for(mine, PROXY)
    assert not peers.knows(mine)
