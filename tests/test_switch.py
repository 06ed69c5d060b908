"""Delivery: here, down, or up; and who hears when it is impossible."""

from __future__ import annotations

import queue
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pykka
import pytest

from agentos.core import messages as m
from agentos.core.errors import AddressTaken, LocalProtocolError, Overloaded
from agentos.runtime.refs import Ref, RemoteActorError
from agentos.runtime.switch import Switch
from agentos.testing.transport_recorder import eventually
from tests.switches import FAST, TCP, Net, net


class Greeter(pykka.ThreadingActor):
    """Answers with what it was told, and some other things that actors do."""

    def __init__(self, stopping: threading.Event | None = None) -> None:
        super().__init__()
        self.stopping = stopping or threading.Event()

    def on_receive(self, message: object) -> object:
        if message == "raise":
            raise KeyError("no such greeting")
        if message == "sleep":
            time.sleep(0.5)
        if message == "exit":
            self.stop()
            self.stopping.set()
            time.sleep(0.2)
        return {"greeted": message}


@pytest.fixture
def world() -> Iterator[Net]:
    with net() as made:
        yield made
    pykka.ActorRegistry.stop_all(timeout=5)


def inbox(switch: Switch, address: str) -> queue.SimpleQueue[m.Envelope]:
    """Attach a queue, and return it."""
    taken: queue.SimpleQueue[m.Envelope] = queue.SimpleQueue()
    switch.attach(address, lambda batch: [taken.put(envelope) for envelope in batch] and None)
    return taken


def three_levels(world: Net, scheme: str) -> tuple[Switch, Switch, Switch]:
    """A gateway, a region below it, and a proxy below that; all up."""
    gateway, region, proxy = (world.switch(name, alone=scheme == "tcp") for name in "grp")
    gateway.attach("gateway/a", lambda batch: None)
    region.attach("region/eu", lambda batch: None)
    proxy.attach("proxy/eu/1", lambda batch: None)
    above = gateway.listen(TCP if scheme == "tcp" else "inproc://gateway")
    below = region.listen(TCP if scheme == "tcp" else "inproc://region")
    assert proxy.connect([below]).wait_up(10)
    assert region.connect([above]).wait_up(10)
    return gateway, region, proxy


@pytest.fixture(params=["inproc", "tcp"])
def levels(world: Net, request: pytest.FixtureRequest) -> tuple[Switch, Switch, Switch]:
    return three_levels(world, request.param)


def test_delivery_here(world: Net) -> None:
    """A local actor gets what is sent to it, in order, without any link."""
    switch = world.switch()
    taken = inbox(switch, "here")
    sent = [m.Envelope("here", "client/x", m.Say(value=i)) for i in range(100)]
    switch.send(sent)
    assert [taken.get(timeout=1) for _ in sent] == sent


def test_names_are_unique_and_well_formed(world: Net) -> None:
    """A name can be attached once, and must be an address."""
    switch = world.switch()
    switch.attach("here", lambda batch: None)
    with pytest.raises(AddressTaken, match="here"):
        switch.attach("here", lambda batch: None)
    with pytest.raises(LocalProtocolError, match="Not An Address"):
        switch.attach("Not An Address", lambda batch: None)
    switch.detach("here")
    switch.attach("here", lambda batch: None)


def test_names_are_known_all_the_way_up(levels: tuple[Switch, Switch, Switch]) -> None:
    """Whoever attaches at the bottom is reached from the top, through what is between."""
    gateway, _, proxy = levels
    taken = inbox(proxy, "worker/deep")
    ref = gateway.ref("worker/deep")

    def reached() -> bool:
        ref.tell("hi")
        return not taken.empty()

    eventually(reached)
    assert taken.get().message == m.Say(value="hi")


def test_up_across_and_down(levels: tuple[Switch, Switch, Switch], world: Net) -> None:
    """An actor in one process is asked from another one, through the levels between them."""
    gateway, _, proxy = levels
    proxy.attach_actor("greeter", Greeter.start())
    other = world.switch("other", alone=True)
    top = gateway.listen(TCP)
    own = other.ref("greeter")
    assert other.connect([top]).wait_up(10)

    def reached() -> bool:
        try:
            return bool(own.ask(1, timeout=5) == {"greeted": 1})
        except pykka.ActorDeadError:
            return False  # the name is still on its way up

    eventually(reached)
    assert own.ask({"deep": ["value", None, 1.5]}, timeout=5) == {
        "greeted": {"deep": ["value", None, 1.5]}
    }
    future = own.ask("later", block=False)
    assert isinstance(future, pykka.Future)
    assert future.get(timeout=5) == {"greeted": "later"}
    with pytest.raises(RemoteActorError, match=r"KeyError: 'no such greeting'"):
        own.ask("raise", timeout=5)
    assert own.ask("still here", timeout=5) == {"greeted": "still here"}
    with pytest.raises(pykka.Timeout):
        own.ask("sleep", timeout=0.05)


def test_nobody_has_the_address(levels: tuple[Switch, Switch, Switch]) -> None:
    """Asking for an unknown name fails at once, wherever the asker is, and harms no link."""
    gateway, region, _ = levels
    for switch in levels:
        ref = switch.ref("nobody/here")
        begun = time.monotonic()
        with pytest.raises(pykka.ActorDeadError, match="nobody/here"):
            ref.ask("hello?", timeout=30)
        assert time.monotonic() - begun < 15
    assert gateway.counters["protocol_errors"] == region.counters["protocol_errors"] == 0


def test_a_name_that_has_gone_below_does_not_bounce(
    levels: tuple[Switch, Switch, Switch],
) -> None:
    """What the parent still sends to a name that is gone is refused, and never goes back up."""
    gateway, region, proxy = levels
    taken = inbox(proxy, "worker/deep")
    ref = gateway.ref("worker/deep")

    def reached() -> bool:
        ref.tell("hi")
        return not taken.empty()

    eventually(reached)
    # The proxy's process forgets it without a word, as a process that was restarted does.
    proxy._local.pop("worker/deep")
    for _ in range(3):
        with pytest.raises(pykka.ActorDeadError):
            ref.ask("hello?", timeout=10)
    assert gateway.counters["protocol_errors"] == 0
    assert region.counters["protocol_errors"] == 0
    assert proxy.counters["undelivered.no_such_actor"] >= 3


def test_a_detached_name_can_be_taken_elsewhere(levels: tuple[Switch, Switch, Switch]) -> None:
    """An actor may move: what one process gives up, another living one may have at once."""
    gateway, region, proxy = levels
    inbox(proxy, "worker/moving")
    eventually(lambda: gateway._peers.route("worker/moving") is not None)
    proxy.detach("worker/moving")
    eventually(lambda: gateway._peers.route("worker/moving") is None)
    taken = inbox(region, "worker/moving")
    eventually(lambda: gateway._peers.route("worker/moving") is not None)
    gateway.ref("worker/moving").tell("hi")
    assert taken.get(timeout=5).message == m.Say(value="hi")


def test_an_actor_that_has_stopped(levels: tuple[Switch, Switch, Switch]) -> None:
    """Asking an actor that stopped, or stops while it is asked, raises ActorDeadError soon."""
    gateway, _, proxy = levels
    stopping = threading.Event()
    proxy.attach_actor("greeter", Greeter.start(stopping))
    eventually(lambda: gateway._peers.route("greeter") is not None)
    ref = gateway.ref("greeter")
    leaving = ref.ask("exit", block=False)
    assert stopping.wait(10)
    with pytest.raises(pykka.ActorDeadError, match="stopped before"):
        ref.ask("too late", timeout=10)
    assert leaving.get(timeout=10) == {"greeted": "exit"}
    with pytest.raises(pykka.ActorDeadError, match="greeter"):
        ref.ask("hello?", timeout=10)


def test_two_processes_ask_each_other_at_once(world: Net) -> None:
    """Crossing answers and refusals cannot lock two switches of one process against each other."""
    top, one, two = (world.switch(name) for name in ("t", "1", "2"))
    url = top.listen("inproc://top")
    for switch, name in ((one, "one"), (two, "two")):
        dead = Greeter.start()
        switch.attach_actor(name, dead)
        dead.stop()
        assert switch.connect([url]).wait_up(10)

    def ask(ref: Ref) -> None:
        for _ in range(200):
            with pytest.raises(pykka.ActorDeadError):
                ref.ask("?", timeout=10)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(ask, ref) for ref in (one.ref("two"), two.ref("one")) * 2]:
            done.result(timeout=60)


def test_a_full_mailbox_is_overload(world: Net) -> None:
    """An actor that takes no more is an `Overloaded` for who asks, with the time to wait."""
    top, below = world.switch("t"), world.switch("b")

    def full(batch: list[m.Envelope]) -> None:
        raise Overloaded("the mailbox is full", 7.5)

    top.attach("busy", full)
    url = top.listen("inproc://top")
    ref = below.ref("busy")
    assert below.connect([url]).wait_up(10)
    with pytest.raises(Overloaded, match="full") as caught:
        ref.ask("hello?", timeout=10)
    assert caught.value.retry_after_s == 7.5


def test_an_unwritable_message_harms_only_itself(world: Net) -> None:
    """What JSON cannot carry is refused to its sender; what was sent with it arrives."""
    top, below = world.switch("t", alone=True), world.switch("b", alone=True)
    taken = inbox(top, "here")
    url = top.listen(TCP)
    ref = below.ref("here")
    assert below.connect([url]).wait_up(10)
    with pytest.raises(LocalProtocolError, match="cannot be written"):
        ref.ask(object(), timeout=10)
    sender = below.ref("x")._asker.address
    below.send([m.Envelope("here", sender, m.Say(value=v)) for v in (1, object(), 2)])
    assert [taken.get(timeout=5).message.value for _ in range(2)] == [1, 2]  # type: ignore[union-attr]


def test_closing_fails_what_is_open(world: Net) -> None:
    """A switch that closes leaves nobody waiting for an answer."""
    switch = world.switch()
    inbox(switch, "silent")
    future = switch.ref("silent").ask("hello?", block=False)
    switch.close()
    with pytest.raises(pykka.ActorDeadError, match="closed"):
        future.get(timeout=5)
    switch.close()


@pytest.mark.plain
def test_silent_children_are_forgotten() -> None:
    """A child that died without a word frees its names, and what the listener kept for it."""
    with net(msgspec.structs.replace(FAST, link_ping_s=0.05, suspect_after=2)) as world:
        _forgets_the_silent(world)


def _forgets_the_silent(world: Net) -> None:
    top = world.switch("t", alone=True)
    url = top.listen(TCP)
    transports = world.transports()
    child = Switch(transports, world.limits, "c")
    child.attach("client/x", lambda batch: None)
    assert child.connect([url]).wait_up(10)
    living = world.switch("l", alone=True)
    living.attach("client/y", lambda batch: None)
    assert living.connect([url]).wait_up(10)
    child._up.uplink._say = lambda *_: None  # type: ignore[union-attr, method-assign]
    transports.close()
    eventually(lambda: top._peers.route("client/x") is None)
    eventually(lambda: len(top._peers._peers) == 1)
    listener = top._listeners[0]
    eventually(lambda: len(listener._children) == 1)  # type: ignore[attr-defined]
    assert top._peers.route("client/y") is not None
    child.close()


def test_from_another_process(world: Net) -> None:
    """A user's Pykka actor is told and asked from a process of its own."""
    gateway, _, proxy = three_levels(world, "tcp")
    proxy.attach_actor("greeter/deep", Greeter.start())
    eventually(lambda: gateway._peers.route("greeter/deep") is not None)
    script = textwrap.dedent("""
        import sys, pykka
        from agentos import connect
        from agentos.runtime.refs import RemoteActorError
        with connect(sys.argv[1]) as switch:
            greeter = switch.ref("greeter/deep")
            greeter.tell("first")
            assert greeter.ask("second", timeout=20) == {"greeted": "second"}
            try:
                greeter.ask("raise", timeout=20)
            except RemoteActorError as error:
                assert "KeyError" in str(error) and "no such greeting" in str(error), error
            try:
                switch.ref("greeter/gone").ask("x", timeout=20)
            except pykka.ActorDeadError:
                print("all well")
    """)
    url = gateway.listen(TCP)
    done = subprocess.run(
        [sys.executable, "-c", script, url], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "all well"
