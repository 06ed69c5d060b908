"""The mailbox's fairness: nobody's flood is another's wait."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from agentos.core import messages as m
from agentos.core.errors import Overloaded
from agentos.core.messages.base import MESSAGE_BYTES as SMALL
from agentos.runtime.mailbox import Mailbox
from agentos.testing.transport_recorder import DEADLINE_S, eventually
from agentos.transports.zeromq_io import IOThread


def said(sender: str, value: Any, size: int = 0) -> m.Envelope:
    return m.Envelope("worker/x", sender, m.Sealed("say", b"%d" % value + b" " * size), "")


def taken(mailbox: Mailbox) -> list[tuple[str, int]]:
    return [(e.sender, int(e.message.body)) for e in mailbox.get().message]


def test_a_flood_is_not_in_the_way() -> None:
    """Who says one thing after another has said a thousand is heard with the next batch."""
    mailbox = Mailbox(bound=10_000, batch=4)
    mailbox.deliver([said("client/flood", i) for i in range(1_000)])
    assert len(taken(mailbox)) == 4
    mailbox.deliver([said("client/good", 0)])
    assert ("client/good", 0) in taken(mailbox)


def test_costly_messages_have_fewer_turns() -> None:
    """It is the actor's time that is shared, not the number of messages; each keeps its order."""
    mailbox = Mailbox(bound=10_000, batch=1)
    mailbox.deliver([said("client/a/costly", i) for i in range(100)])
    mailbox.deliver([said("client/b/cheap", i) for i in range(500)])
    heard = []
    for _ in range(303):
        ((sender, value),) = taken(mailbox)
        mailbox.charge(sender, 0.1 if sender == "client/a/costly" else 0.001)
        heard.append((sender, value))
    costly = [value for sender, value in heard if sender == "client/a/costly"]
    cheap = [value for sender, value in heard if sender == "client/b/cheap"]
    assert len(costly) <= 6
    assert costly == list(range(len(costly)))
    assert cheap == list(range(len(cheap)))


def test_what_was_not_come_to_is_next() -> None:
    """What an actor puts back keeps its place before what the same sender said later."""
    mailbox = Mailbox(bound=100, batch=10)
    mailbox.deliver([said("client/a", i) for i in range(4)])
    batch = mailbox.get().message
    mailbox.deliver([said("client/a", 4), said("client/b", 0)])
    mailbox.put_back(batch[1:])
    again = taken(mailbox)
    assert [value for sender, value in again if sender == "client/a"] == [1, 2, 3, 4]
    assert ("client/b", 0) in again
    assert len(mailbox) == 0
    assert mailbox.empty()


def test_nobody_has_more_than_a_share() -> None:
    """One sender's bytes are bounded, in small messages and in large ones; the others' are theirs."""
    mailbox = Mailbox(bound=10_000, batch=100, share=10 * SMALL)
    for i in range(9):
        mailbox.deliver([said("client/a", i)])
    with pytest.raises(Overloaded, match="client/a"):
        mailbox.deliver([said("client/a", 9, size=2 * SMALL)])
    mailbox.deliver([said("client/b", 0, size=100 * SMALL)])  # one alone is always let in
    with pytest.raises(Overloaded, match="client/b"):
        mailbox.deliver([said("client/b", 1)])
    assert len(taken(mailbox)) == 10
    mailbox.deliver([said("client/a", 9, size=2 * SMALL), said("client/b", 1)])
    assert len(taken(mailbox)) == 2
    assert not mailbox._weights


def test_an_actor_that_waits_at_the_sockets_misses_nothing() -> None:
    """Its messages come in order, its deadlines in time, and so they do when the loop is gone."""
    io = IOThread("agentos-zeromq-test")
    mailbox = Mailbox(bound=10_000, batch=100)
    heard: list[int] = []
    done = threading.Event()

    def act() -> None:
        while len(heard) < 600:
            heard.extend(int(e.message.body) for e in mailbox.get().message)
        mailbox.close()
        done.set()

    threading.Thread(target=act, daemon=True).start()
    for number in range(200):
        mailbox.deliver([said("client/a", number)])
    mailbox.attend(io)
    for number in range(200, 400):
        mailbox.deliver([said("client/a", number)])
        eventually(lambda number=number: number in heard)
    assert io.stop(lambda: None, timeout_s=DEADLINE_S)
    for number in range(400, 600):
        mailbox.deliver([said("client/a", number)])
    assert done.wait(DEADLINE_S)
    assert heard == list(range(600))


def test_a_deadline_ends_the_wait_at_the_sockets() -> None:
    """The machine's next deadline is an empty batch, and a closed mailbox gives the loop back."""
    io = IOThread("agentos-zeromq-test")
    mailbox = Mailbox(bound=10, batch=10)
    due = time.monotonic() + 0.05
    mailbox.deadline = lambda: due
    mailbox.attend(io)
    while time.monotonic() < due:
        assert mailbox.get().message == []
    assert io.is_current()
    mailbox.close()
    assert not io.is_current()
    ran = threading.Event()
    io.submit(ran.set)
    assert ran.wait(DEADLINE_S)
    assert io.stop(lambda: None, timeout_s=DEADLINE_S)


def test_a_loop_that_fails_costs_no_actor() -> None:
    """The actor goes on with its own queue, and the sockets with their own thread."""
    io = IOThread("agentos-zeromq-test")
    mailbox = Mailbox(bound=10, batch=10)
    mailbox.deadline = lambda: time.monotonic() + 0.01
    mailbox.attend(io)
    assert mailbox.get().message == []
    poll = io._poller.poll

    def fail_once(*_: object) -> None:
        io._poller.poll = poll  # type: ignore[method-assign]
        raise OSError("no more")

    io._poller.poll = fail_once  # type: ignore[method-assign]
    with capture_logs() as logs:
        assert mailbox.get().message == []
    assert [entry["event"] for entry in logs] == ["loop_failed"]
    assert not io.is_current()
    mailbox.deliver([said("client/a", 1)])
    assert taken(mailbox) == [("client/a", 1)]
    assert io.stop(lambda: None, timeout_s=DEADLINE_S)


def test_a_machine_that_fails_over_its_deadline_lets_the_sockets_go() -> None:
    """Whatever goes wrong before the loop's turn: nobody else would turn a loop that is kept."""
    io = IOThread("agentos-zeromq-test")
    mailbox = Mailbox(bound=10, batch=10)
    due = iter([time.monotonic() + 0.01])

    def deadline() -> float:
        if (at := next(due, None)) is None:
            raise RuntimeError("broken")
        return at

    mailbox.deadline = deadline
    mailbox.attend(io)
    assert mailbox.get().message == []
    assert io.is_current()
    with capture_logs(), contextlib.suppress(RuntimeError):
        mailbox.get()
    assert not io.is_current()
    ran = threading.Event()
    io.submit(ran.set)
    assert ran.wait(DEADLINE_S)
    assert io.stop(lambda: None, timeout_s=DEADLINE_S)


def test_a_closed_mailbox_takes_no_loop() -> None:
    """An actor that has ended does not take the sockets' loop to its grave."""
    io = IOThread("agentos-zeromq-test")
    mailbox = Mailbox(bound=10, batch=10)
    mailbox.close()
    mailbox.attend(io)
    assert mailbox.empty()
    assert io.stop(lambda: None, timeout_s=DEADLINE_S)
