"""The thread that owns the sockets: it wakes in time, never deadlocks, and leaves nothing behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agentos.core import messages as m
from agentos.core.errors import AddressTaken, LocalProtocolError, Overloaded
from agentos.core.limits import Limits
from agentos.core.ports import Connection
from agentos.runtime.wire import JsonCodec
from agentos.testing.transport_recorder import DEADLINE_S, Recorder, eventually, note
from agentos.transports import zeromq_io
from agentos.transports.zeromq import ZeroMQTransport
from agentos.transports.zeromq_io import IOThread

ANY_PORT = "tcp://127.0.0.1:*"
LIMITS = Limits()


@pytest.fixture
def transport() -> Iterator[ZeroMQTransport]:
    """A transport, closed after the test."""
    made = ZeroMQTransport(JsonCodec(LIMITS), LIMITS)
    yield made
    made.close()


@pytest.mark.parametrize("mechanism", ["eventfd", "socketpair"])
def test_no_wake_up_is_lost(mechanism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 sends of four threads arrive, and so does each of 300 sends to a sleeping thread."""
    if mechanism == "socketpair":
        monkeypatch.delattr(os, "eventfd", raising=False)
    transport = ZeroMQTransport(JsonCodec(LIMITS), LIMITS)
    inbox, echoes = Recorder(lambda child, batch: child.send(batch)), Recorder()
    connection = transport.connect(transport.listen(ANY_PORT, inbox).url, echoes)
    for number in range(300):
        connection.send([note(number)])
        echoes.wait_for(number + 1)

    def send_many() -> None:
        for number in range(5_000):
            eventually(lambda number=number: _is_sent(connection, note(number)))

    threads = [threading.Thread(target=send_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    inbox.wait_for(20_300)
    transport.close()


def _is_sent(connection: Connection, envelope: m.Envelope) -> bool:
    try:
        connection.send([envelope])
    except Overloaded:
        return False
    return True


def test_no_answer_is_left_unread(transport: ZeroMQTransport) -> None:
    """Three threads that each ask, and wait for the answer, two thousand times: none waits in vain."""
    rounds, answered = 2_000, [threading.Event() for _ in range(3)]
    inbox = Recorder(lambda child, batch: child.send(batch))
    echoes = Recorder(lambda _, batch: [answered[int(e.ref)].set() for e in batch])
    other = ZeroMQTransport(JsonCodec(LIMITS), LIMITS)
    connection = other.connect(transport.listen(ANY_PORT, inbox).url, echoes)
    unread: list[int] = []

    def ask_again_and_again(number: int) -> None:
        for turn in range(rounds):
            answered[number].clear()
            connection.send([note(number)])
            if not answered[number].wait(DEADLINE_S):
                unread.append(turn)
                return

    threads = [threading.Thread(target=ask_again_and_again, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert not unread


def test_a_receiver_may_use_the_transport(transport: ZeroMQTransport) -> None:
    """A receiver may connect, listen and close from within a call; it does not deadlock."""
    other = Recorder()

    def open_more(connection: Connection, _: object) -> None:
        where = transport.listen(ANY_PORT, other)
        transport.connect(where.url, Recorder()).send([note("inner")])
        connection.close()

    inbox = Recorder(open_more)
    connection = transport.connect(transport.listen(ANY_PORT, inbox).url, Recorder())
    connection.send([note("outer")])
    other.wait_for(1)
    assert other.refs() == ["inner"]


def test_a_receiver_may_close_the_transport() -> None:
    """Closing from within a call ends the thread after it."""
    transport = ZeroMQTransport(JsonCodec(LIMITS), LIMITS)
    inbox = Recorder(lambda *_: transport.close())
    transport.connect(transport.listen(ANY_PORT, inbox).url, Recorder()).send([note(1)])
    inbox.wait_for(1)
    eventually(lambda: not _io_threads())


def test_nothing_is_left_after_close() -> None:
    """After `close` no thread and no file descriptor of the transport is left, used or not."""
    threads, descriptors = _io_threads(), _descriptors()
    for used in (False, True):
        transport = ZeroMQTransport(JsonCodec(LIMITS), LIMITS)
        if used:
            inbox = Recorder()
            url = transport.listen(ANY_PORT, inbox).url
            for number in range(5):
                transport.connect(url, Recorder()).send([note(number)])
            inbox.wait_for(5)
            transport.connect("tcp://127.0.0.1:9", Recorder()).send([note("never")])
            with pytest.raises(AddressTaken):
                transport.listen(url, Recorder())
            with pytest.raises(LocalProtocolError):
                transport.connect("tcp://127.0.0.1:x", Recorder())
        transport.close()
        assert _io_threads() == threads
        assert _descriptors() == descriptors


def test_lost_links_leave_nothing(transport: ZeroMQTransport) -> None:
    """Connections and listeners that come and go give back their descriptors."""
    for turn in range(12):
        if turn == 2:
            before = _descriptors()
        inbox, outbox = Recorder(), Recorder()
        listener = transport.listen(ANY_PORT, inbox)
        connection = transport.connect(listener.url, outbox)
        connection.send([note(turn)])
        inbox.wait_for(1)
        listener.close()
        outbox.wait_until(lambda outbox=outbox: len(outbox.ended) == 1)
    eventually(lambda: _descriptors() <= before)


def test_what_a_task_submits_is_run() -> None:
    """A task that is submitted while the thread is about to sleep is run, at once."""
    io = IOThread("agentos-zeromq-test")
    done = threading.Event()
    io.submit(lambda: io.submit(lambda: io.submit(done.set)))
    assert done.wait(DEADLINE_S)
    assert io.stop(lambda: None, timeout_s=DEADLINE_S)


def test_a_task_that_raises_is_survived() -> None:
    """A fault in one task is logged, and the thread goes on."""
    io = IOThread("agentos-zeromq-test")
    done = threading.Event()
    with capture_logs() as logs:
        io.submit([].pop)
        io.submit(done.set)
        assert done.wait(DEADLINE_S)
    assert [entry["event"] for entry in logs] == ["zeromq_io_fault"]
    assert io.stop(lambda: None, timeout_s=DEADLINE_S)


class Guest:
    """A thread that turns a transport's loop, until it is told to leave or to die."""

    def __init__(self, io: IOThread) -> None:
        self.io = io
        self.turning = threading.Event()
        self.leave, self.die = threading.Event(), threading.Event()
        self.lost = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.lost and not self.die.is_set():
            self.lost = not self.io.turn(5.0, lambda: self.leave.is_set() or self.die.is_set())
            self.turning.set()
            if self.leave.is_set():
                self.io.leave()
                return

    def end(self, how: threading.Event) -> None:
        """Set one of the events, and wait for the thread's end."""
        how.set()
        self.io.wake()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()


def test_a_guest_does_what_the_thread_did(transport: ZeroMQTransport) -> None:
    """A guest's thread reads, writes and keeps the timers, and the loop's own has it back after."""
    seen: list[threading.Thread] = []
    inbox = Recorder(
        lambda child, batch: (seen.append(threading.current_thread()), child.send(batch))
    )
    echoes = Recorder()
    connection = transport.connect(transport.listen(ANY_PORT, inbox).url, echoes)
    guest = Guest(transport.loop)
    transport.loop.submit(lambda: None)  # its first turn, which waits, ends
    assert guest.turning.wait(DEADLINE_S)
    later = threading.Event()
    transport.loop.submit(lambda: transport.loop.later(0.01, later.set))
    for number in range(200):
        connection.send([note(number)])
        echoes.wait_for(number + 1)
    assert later.wait(DEADLINE_S)
    assert {*seen} == {guest.thread}
    guest.end(guest.leave)
    connection.send([note(200)])
    echoes.wait_for(201)
    assert seen[-1].name == "agentos-zeromq"


def test_a_guest_that_dies_is_replaced(
    transport: ZeroMQTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that ends without a word does not take the links of its process along."""
    monkeypatch.setattr(zeromq_io, "GUEST_LOOK_S", 0.02)
    guest = Guest(transport.loop)
    transport.loop.submit(lambda: None)
    assert guest.turning.wait(DEADLINE_S)
    guest.end(guest.die)
    inbox = Recorder()
    transport.connect(transport.listen(ANY_PORT, inbox).url, Recorder()).send([note(1)])
    inbox.wait_for(1)
    again = Guest(transport.loop)
    transport.loop.submit(lambda: None)
    assert again.turning.wait(DEADLINE_S)
    assert not again.lost
    again.end(again.leave)


def test_only_one_guest_at_a_time(transport: ZeroMQTransport) -> None:
    """Who comes second is told so, and does not touch a socket."""
    guest = Guest(transport.loop)
    transport.loop.submit(lambda: None)
    assert guest.turning.wait(DEADLINE_S)
    assert not transport.loop.turn(5.0, lambda: False)
    transport.loop.leave()  # not the second's to give back
    assert not guest.lost
    guest.end(guest.leave)


def test_a_transport_closes_under_a_guest() -> None:
    """The guest is told that the loop is not its any more; what was sent has left, nothing stays."""
    transport = ZeroMQTransport(JsonCodec(LIMITS), LIMITS)
    other = ZeroMQTransport(JsonCodec(LIMITS), LIMITS)
    inbox = Recorder()
    connection = transport.connect(other.listen(ANY_PORT, inbox).url, Recorder())
    guest = Guest(transport.loop)
    transport.loop.submit(lambda: None)
    assert guest.turning.wait(DEADLINE_S)
    connection.send([note(1)])
    transport.close()
    guest.thread.join(DEADLINE_S)
    assert guest.lost
    assert not transport.loop.turn(5.0, lambda: False)
    inbox.wait_for(1)
    other.close()
    eventually(lambda: not _io_threads())


def _io_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "zeromq" in thread.name]


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
