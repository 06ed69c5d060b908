"""The Pykka shells: mailboxes and failures."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pykka
import pytest
from pykka._envelope import Envelope as PykkaEnvelope

from agentos.core import messages as m
from agentos.core.errors import Overloaded
from agentos.core.limits import Limits
from agentos.runtime.actors import MAX_FAILURES, MachineActor
from agentos.runtime.mailbox import Mailbox
from agentos.runtime.switch import Switch
from agentos.testing.transport_recorder import eventually
from tests.switches import FAST, net


def said(value: Any, ref: str = "") -> m.Envelope:
    return m.Envelope("worker/x", "client/y", m.Say(value=value), ref)


def values(envelope: PykkaEnvelope[Any]) -> list[Any]:
    return [e.message.value for e in envelope.message]


# -- the mailbox ----------------------------------------------------------------------------------


def test_what_waits_is_taken_together() -> None:
    """Batches are merged, in order, up to the size of a batch."""
    mailbox = Mailbox(bound=100, batch=5)
    for start in range(0, 12, 2):
        mailbox.deliver([said(start), said(start + 1)])
    assert len(mailbox) == 12
    assert values(mailbox.get()) == [0, 1, 2, 3, 4]
    assert values(mailbox.get()) == [5, 6, 7, 8, 9]
    assert values(mailbox.get()) == [10, 11]
    assert mailbox.empty()
    assert len(mailbox) == 0


def test_a_full_mailbox_refuses_all_or_nothing() -> None:
    """Over the bound a batch is refused whole; taking makes room."""
    mailbox = Mailbox(bound=3, batch=10)
    mailbox.deliver([said(1), said(2)])
    with pytest.raises(Overloaded, match="2 messages wait"):
        mailbox.deliver([said(3), said(4)])
    mailbox.deliver([said(3)])
    assert values(mailbox.get()) == [1, 2, 3]
    mailbox.deliver([said(4), said(5), said(6)])


def test_the_mailbox_is_the_alarm_clock() -> None:
    """When the machine's deadline comes before any message, there is an empty batch."""
    mailbox = Mailbox(bound=3, batch=10)
    mailbox.deadline = lambda: time.monotonic() + 0.05
    assert mailbox.get().message == []
    mailbox.deadline = lambda: 0.0  # long ago
    assert mailbox.get().message == []
    mailbox.deliver([said(1)])
    assert values(mailbox.get()) == [1]


def test_pykkas_own_messages_keep_their_place() -> None:
    """A stop is handled after what came before it, and before what comes after."""
    mailbox = Mailbox(bound=10, batch=10)
    mailbox.deliver([said(1)])
    mailbox.deliver([said(2)])
    mailbox.put(PykkaEnvelope("stop"))
    mailbox.deliver([said(3)])
    assert values(mailbox.get()) == [1, 2]
    assert not mailbox.empty()
    assert mailbox.get().message == "stop"
    assert values(mailbox.get()) == [3]
    assert len(mailbox) == 0


def test_many_producers() -> None:
    """Nothing is lost, doubled or miscounted, whoever delivers at once."""
    mailbox = Mailbox(bound=50, batch=8)
    refused = Counter[int]()

    def produce(producer: int) -> None:
        for i in range(500):
            while True:
                try:
                    mailbox.deliver([said((producer, i)), said((producer, -i))])
                    break
                except Overloaded:
                    refused[producer] += 1
                    time.sleep(0)

    producers = [threading.Thread(target=produce, args=(i,)) for i in range(4)]
    for producer in producers:
        producer.start()
    taken: list[Any] = []
    while len(taken) < 4 * 500 * 2:
        assert len(mailbox) <= 50
        taken += values(mailbox.get())
    for producer in producers:
        producer.join(10)
    for number in range(4):
        mine = [i for producer, i in taken if producer == number]
        assert mine == [sign * i for i in range(500) for sign in (1, -1)]
    assert len(mailbox) == 0


def test_a_closed_mailbox_says_so() -> None:
    """What is delivered to an actor that has stopped is refused, not kept for nobody."""
    mailbox = Mailbox(bound=3, batch=3)
    mailbox.close()
    with pytest.raises(pykka.ActorDeadError):
        mailbox.deliver([said(1)])


# -- machines -------------------------------------------------------------------------------------


class Echo:
    """A machine that answers what it is told, and breaks when it is told to."""

    address = "worker/x"

    def __init__(self) -> None:
        self.due: float | None = None
        self.ticks = 0

    def handle(self, envelope: m.Envelope, now: float) -> list[m.Send]:
        message = envelope.message
        if isinstance(message, m.Tick):
            self.due = None
            return [m.Send("client/y", m.Say(value="tick"))]
        assert isinstance(message, m.Say)
        if message.value == "break":
            self.due = 0.0  # long ago: half changed, it wants to be woken
            raise RuntimeError("broken")
        if message.value == "wake me":
            self.due = now + 0.05
        return [m.Send(envelope.sender, message, envelope.ref)]

    def next_deadline(self) -> float | None:
        return self.due

    @property
    def drained(self) -> bool:
        return False


@pytest.fixture
def switch() -> Iterator[Switch]:
    with net() as made:
        yield made.switch("actors")
        pykka.ActorRegistry.stop_all(timeout=5)


@pytest.fixture
def heard(switch: Switch) -> list[m.Envelope]:
    """What `client/y` on the switch hears."""
    envelopes: list[m.Envelope] = []
    switch.attach("client/y", envelopes.extend)
    return envelopes


def start(switch: Switch, **options: Any) -> pykka.ActorRef[MachineActor]:
    actor = MachineActor.start(Echo, switch, **options)
    switch.attach("worker/x", actor.actor_inbox.deliver)  # type: ignore[attr-defined]
    return actor


def test_a_machine_answers(switch: Switch, heard: list[m.Envelope]) -> None:
    """What a machine sends goes out with its address and the question's number."""
    start(switch)
    switch.send([said("hi", "q1")])
    eventually(lambda: len(heard) == 1)
    assert heard[0] == m.Envelope("client/y", "worker/x", m.Say(value="hi"), "q1")


def test_a_machine_is_woken(switch: Switch, heard: list[m.Envelope]) -> None:
    """A machine that asks to be woken is, though nobody says anything."""
    start(switch)
    switch.send([said("wake me")])
    eventually(lambda: [e.message.value for e in heard] == ["wake me", "tick"])  # type: ignore[union-attr]


def test_a_machine_that_breaks_is_made_anew(switch: Switch, heard: list[m.Envelope]) -> None:
    """One message that breaks it costs that message; the ones around it are answered."""
    start(switch)
    switch.send([said(1), said("break"), said(2)])
    eventually(lambda: [e.message.value for e in heard] == [1, 2])  # type: ignore[union-attr]
    assert switch.counters["machine_failures"] == 1


def test_too_many_failures_stop_the_actor(switch: Switch, heard: list[m.Envelope]) -> None:
    """After its budget the actor stops, tells its owner once, and whoever asks hears that it did."""
    gave_up: list[str] = []
    actor = start(switch, on_give_up=gave_up.append)
    switch.send([said("break")] * (MAX_FAILURES * 3))
    eventually(lambda: not actor.is_alive())
    assert gave_up == ["worker/x"]
    assert not heard  # the last machine, which broke, was woken no more
    assert switch.counters["machine_failures"] == MAX_FAILURES + 1
    with pytest.raises(pykka.ActorDeadError):
        switch.ref("worker/x").ask("hello?", timeout=10)


def test_a_shell_that_breaks_tells_its_owner(switch: Switch) -> None:
    """Even a fault outside the machine does not leave a role dead without a word."""
    gave_up: list[str] = []
    actor = start(switch, on_give_up=gave_up.append)
    actor.tell("not a batch")
    actor.tell(["not an envelope"])
    eventually(lambda: gave_up == ["worker/x"])


def test_orders_are_handled_before_the_stop(switch: Switch, heard: list[m.Envelope]) -> None:
    """An orderly stop handles what came before it."""
    actor = start(switch)
    for i in range(100):
        switch.send([said(i)])
    actor.stop(timeout=10)
    assert [e.message.value for e in heard] == list(range(100))  # type: ignore[union-attr]


def test_a_mailbox_bound_is_the_limit() -> None:
    """The bound of an actor's mailbox is `limits.mailbox`."""
    limits = msgspec.structs.replace(FAST, mailbox=2)
    with net(limits) as made:
        switch = made.switch("bounded")
        actor = MachineActor.start(Echo, switch)
        inbox: Any = actor.actor_inbox
        assert inbox._bound == 2
        assert inbox._batch == Limits().batch
        actor.stop(timeout=5)
