"""What libzmq does not defend itself against: endless messages, crowds, crashes from outside."""

from __future__ import annotations

import contextlib
import socket as bsd
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import psutil
import pytest
import zmq

from agentos.core import messages as m
from agentos.core.errors import HostilePeerError, Overloaded
from agentos.runtime.wire import JsonCodec
from agentos.testing.transport_recorder import Recorder, eventually
from agentos.transports.zeromq import ZeroMQTransport
from agentos.transports.zeromq_door import THOROUGH
from agentos.transports.zeromq_listener import RouterListener
from tests.attack.peer import Peer, frame, handshake, tcp
from tests.switches import FAST

LIMITS = msgspec.structs.replace(FAST, max_children=20)
HELLO = (b"AOS1", b"", b"client/x", b"r", b"ping", b"{}")


@pytest.fixture
def transport() -> Iterator[ZeroMQTransport]:
    made = ZeroMQTransport(JsonCodec(LIMITS), LIMITS)
    yield made
    made.close()


def ended(connection: bsd.socket) -> bool:
    """Whether the other end closes the connection, within a while."""
    connection.settimeout(20)
    with contextlib.suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass
    return True


def message(parts: Sequence[bytes], *, whole: bool = True) -> bytes:
    """These frames as they go over a connection; the last one promises more unless `whole`."""
    last = len(parts) - 1
    return b"".join(frame(part, more=not whole or i < last) for i, part in enumerate(parts))


def at_rest(listener: RouterListener) -> bool:
    """Whether it is woken by nothing but its connections."""
    return listener._door.at_rest


@pytest.mark.parametrize("known", [False, True])
def test_an_endless_message_is_cut_off(transport: ZeroMQTransport, known: bool) -> None:
    """Frames that promise more for ever are not gathered: their sender is disconnected, and told of.

    Also one that was an honest peer, and has been quiet until the listener was at rest.
    """
    inbox = Recorder()
    listener = transport.listen("tcp://127.0.0.1:*", inbox)
    url = listener.url
    before = psutil.Process().memory_info().rss
    with tcp(url) as connection:
        handshake(connection)
        if known:
            connection.sendall(message(HELLO))
            eventually(lambda: len(inbox.batches) == 1)
            eventually(lambda: at_rest(listener))
        blob = frame(b"x" * 200, more=True) * 5_000
        with contextlib.suppress(OSError):
            connection.settimeout(20)
            for _ in range(1_000):  # a gigabyte
                connection.sendall(blob)
        assert ended(connection)
    eventually(lambda: len(inbox.errors) == 1)
    assert isinstance(inbox.errors[0][1], HostilePeerError)
    assert psutil.Process().memory_info().rss - before < 500e6


def test_too_many_frames_are_the_end(transport: ZeroMQTransport) -> None:
    """A message of more frames than any envelope ends the connection at once, for real."""
    inbox = Recorder()
    url = transport.listen("tcp://127.0.0.1:*", inbox).url
    with zmq.Context() as context, contextlib.closing(Peer(context, url)) as peer:
        peer.raw(*[b"x"] * 100)
        assert peer.monitor.poll(20_000)
    assert [type(error) for _, error in inbox.errors][:1] == [HostilePeerError]


def test_silent_connections_make_room(transport: ZeroMQTransport) -> None:
    """More connections than children may be are ended, the silent ones first; who speaks is heard."""
    inbox = Recorder()
    listener = transport.listen("tcp://127.0.0.1:*", inbox)
    url = listener.url
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        good = stack.enter_context(contextlib.closing(Peer(context, url)))
        good.raw(*HELLO)
        inbox.wait_for(1)
        eventually(lambda: at_rest(listener))
        crowd = [stack.enter_context(tcp(url)) for _ in range(LIMITS.max_children + 10)]
        eventually(lambda: len(inbox.errors) >= 10)
        assert all(isinstance(error, Overloaded) for _, error in inbox.errors)
        assert ended(crowd[0])
        good.raw(*HELLO)
        inbox.wait_for(2)
        assert not good.disconnections()


@pytest.mark.parametrize("rested", [False, True])
def test_a_connection_that_ends_is_noticed(transport: ZeroMQTransport, rested: bool) -> None:
    """A ROUTER does not say that a peer has gone; the listener does, after it has heard its last."""
    inbox = Recorder()
    listener = transport.listen("tcp://127.0.0.1:*", inbox)
    with zmq.Context() as context:
        peer = Peer(context, listener.url)
        peer.raw(*HELLO)
        inbox.wait_for(1)
        if rested:
            eventually(lambda: at_rest(listener))
        peer.close()
        eventually(lambda: len(inbox.ended) == 1)


@pytest.mark.parametrize(
    "url", ["tcp://127.0.0.1:*", "ipc://{folder}/door", "ipc://@{folder}/door"]
)
def test_all_who_leave_a_resting_listener_are_noticed(
    transport: ZeroMQTransport, tmp_path: Path, url: str
) -> None:
    """The kernel's word of an end is lost when libzmq closes the descriptor first: it says so too."""
    inbox = Recorder()
    listener = transport.listen(url.format(folder=tmp_path), inbox)
    with zmq.Context() as context:
        for number in range(1, 7):
            peer = Peer(context, listener.url)
            peer.raw(*HELLO)
            inbox.wait_for(number)
            eventually(lambda: at_rest(listener))
            assert len(inbox.ended) == number - 1
            peer.close()
            eventually(lambda n=number: len(inbox.ended) == n)


@pytest.mark.parametrize("hostile", [False, True])
def test_a_number_that_is_used_again_is_the_next_ones(
    transport: ZeroMQTransport, hostile: bool
) -> None:
    """Who gets the descriptor of one that has left is not taken for it, whatever that had said.

    What it had said is read only when both have come: the thread is busy meanwhile.
    """
    inbox = Recorder()
    listener = transport.listen("tcp://127.0.0.1:*", inbox)
    busy = threading.Event()
    transport.loop.submit(lambda: busy.wait(20) and None)
    try:
        first = tcp(listener.url)
        handshake(first)
        first.sendall(message([b"x"] * 20 if hostile else HELLO))
        time.sleep(0.2)  # libzmq's own thread takes it
        first.close()
        time.sleep(0.2)  # and closes its end
        second = tcp(listener.url)
        handshake(second)
        second.sendall(message(HELLO))
        time.sleep(0.2)
    finally:
        busy.set()
    with second:
        inbox.wait_for(1 if hostile else 2)
        eventually(lambda: at_rest(listener))
        assert len(listener._children) == 1
        assert len(inbox.errors) == hostile
        assert len(inbox.ended) == 1
        second.sendall(message(HELLO))
        inbox.wait_for(2 if hostile else 3)


def test_who_has_left_before_it_is_heard_is_heard_and_lost(transport: ZeroMQTransport) -> None:
    """What a peer said last is delivered, and that it has gone is told, in this order."""
    inbox = Recorder()
    listener = transport.listen("tcp://127.0.0.1:*", inbox)
    busy = threading.Event()
    transport.loop.submit(lambda: busy.wait(20) and None)
    try:
        with tcp(listener.url) as peer:
            handshake(peer)
            peer.sendall(message(HELLO))
            time.sleep(0.2)  # libzmq's own thread takes it
        time.sleep(0.2)  # and closes its end
    finally:
        busy.set()
    inbox.wait_for(1)
    eventually(lambda: len(inbox.ended) == 1)
    assert not listener._children


def test_whom_a_resting_listener_gives_up_is_disconnected(transport: ZeroMQTransport) -> None:
    """What ends a connection is a look, and a look follows though nothing comes over it."""
    inbox = Recorder()
    listener = transport.listen("tcp://127.0.0.1:*", inbox)
    with zmq.Context() as context, contextlib.closing(Peer(context, listener.url)) as peer:
        peer.raw(*HELLO)
        inbox.wait_for(1)
        eventually(lambda: at_rest(listener))
        (child,) = inbox.connections()
        child.close()
        assert peer.monitor.poll(20_000)


@pytest.mark.parametrize("said", ["nothing", "half a message"])
def test_a_listener_rests_only_when_all_is_well(transport: ZeroMQTransport, said: str) -> None:
    """Who has said nothing, or has begun and not ended, is looked at until that has changed."""
    inbox = Recorder()
    listener = transport.listen("tcp://127.0.0.1:*", inbox)
    eventually(lambda: at_rest(listener))
    with tcp(listener.url) as connection:
        parts: Sequence[bytes] = HELLO
        if said != "nothing":
            handshake(connection)
            connection.sendall(message(HELLO))
            inbox.wait_for(1)
            eventually(lambda: at_rest(listener))
            for byte in message(HELLO[:3], whole=False):  # of a single packet it may not hear
                connection.sendall(bytes([byte]))
                time.sleep(0.005)
            parts = HELLO[3:]
        eventually(lambda: not at_rest(listener))
        looks = listener._door._looks
        eventually(lambda: listener._door._looks > looks + 2 * THOROUGH)
        assert not at_rest(listener)
        if said == "nothing":
            handshake(connection)
        connection.sendall(message(parts))
        eventually(lambda: at_rest(listener))


def test_what_nobody_reads_is_bounded_in_bytes(transport: ZeroMQTransport) -> None:
    """Large answers to a peer that does not read are refused long before their number is too large."""
    inbox = Recorder()
    url = transport.listen("tcp://127.0.0.1:*", inbox).url
    with tcp(url) as connection:
        handshake(connection)
        connection.sendall(message(HELLO))
        inbox.wait_for(1)
        (child,) = inbox.connections()
        answer = m.Envelope("client/x", "store", m.Sealed("task_list", b" " * 1_000_000))
        refused = ""
        for _ in range(1_000):
            try:
                child.send([answer])
            except Overloaded as error:
                refused = str(error)
                break
        assert "bytes wait" in refused


def test_a_reset_amid_a_flood_does_not_end_the_process() -> None:
    """A peer that floods a busy listener and resets the connection cannot abort it."""
    script = textwrap.dedent("""
        import contextlib, socket, struct, sys, time
        import msgspec
        from agentos.runtime.wire import JsonCodec
        from agentos.testing.transport_recorder import Recorder
        from agentos.transports.zeromq import ZeroMQTransport
        from tests.attack.peer import frame, handshake, tcp
        from tests.switches import FAST

        class Busy(Recorder):
            def failed(self, connection, error):
                time.sleep(3.0)

        limits = msgspec.structs.replace(FAST, link_ping_s=1.5)
        transport = ZeroMQTransport(JsonCodec(limits), limits)
        url = transport.listen("tcp://127.0.0.1:*", Busy()).url
        connection = tcp(url)
        handshake(connection)
        connection.settimeout(0.3)
        with contextlib.suppress(OSError):
            for _ in range(10_000):
                connection.sendall(frame(b"x" * 100, more=False) * 1_000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        time.sleep(2.5)
        print("alive", flush=True)
        import os
        os._exit(0)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert "alive" in done.stdout
