"""What is ZeroMQ's own: bare sockets at the other end, bounds of sockets, addresses, dead peers."""

from __future__ import annotations

import itertools
import re
import socket as bsd
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import orjson
import pytest
import zmq
from structlog.testing import capture_logs

from agentos.core.errors import (
    AddressTaken,
    HostilePeerError,
    LocalProtocolError,
    RemoteProtocolError,
)
from agentos.core.limits import Limits
from agentos.core.ports import Connection
from agentos.runtime.wire import JsonCodec
from agentos.testing.transport_recorder import DEADLINE_S, Recorder, eventually, note
from agentos.transports.zeromq import ZeroMQTransport

ANY_PORT = "tcp://127.0.0.1:*"
LIMITS = Limits(max_frame_bytes=100_000, max_children=20, link_ping_s=30.0)
GOOD = [b"AOS1", b"inbox", b"bare", b"good", b"say", b'{"value":1}']


@pytest.fixture
def transport() -> Iterator[ZeroMQTransport]:
    """A transport with small bounds, closed after the test."""
    made = ZeroMQTransport(JsonCodec(LIMITS), LIMITS)
    yield made
    made.close()


@pytest.fixture
def bare() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A context for bare sockets, as a client without our code would have."""
    with zmq.Context() as context:
        yield context


def dealer(
    context: zmq.Context[zmq.Socket[bytes]], url: str, **options: object
) -> zmq.Socket[bytes]:
    """A bare DEALER that is connected to `url`."""
    socket = context.socket(zmq.DEALER)
    socket.linger = 2_000
    socket.rcvtimeo = int(DEADLINE_S * 1000)
    for name, value in options.items():
        setattr(socket, name, value)
    socket.connect(url)
    return socket


# -- bare peers ------------------------------------------------------------------------------------


def test_a_bare_dealer_is_a_client(transport: ZeroMQTransport, bare: zmq.Context) -> None:
    """A script with pyzmq alone can send envelopes and read the answers."""
    inbox = Recorder(lambda connection, envelopes: connection.send(envelopes))
    with dealer(bare, transport.listen(ANY_PORT, inbox).url) as socket:
        socket.send_multipart(GOOD)
        answer = socket.recv_multipart()
    assert answer == GOOD
    assert orjson.loads(answer[-1]) == {"value": 1}


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"", b""],
        [b"", *GOOD],
        GOOD[:3],
        [*GOOD, b"more"],
        [b"x"] * 14,
        [b"AOS9", *GOOD[1:]],
        [b"\xff\xfe" * 100],
        [*GOOD[:4], b"tick", b"{}"],
    ],
    ids=lambda frames: f"{len(frames)}-{frames[0][:4]!r}",
)
def test_garbage_is_reported_and_dropped(
    transport: ZeroMQTransport, bare: zmq.Context, frames: list[bytes]
) -> None:
    """What is no envelope is reported as the peer's error; what follows it is still heard."""
    inbox = Recorder()
    with dealer(bare, transport.listen(ANY_PORT, inbox).url) as socket:
        socket.send_multipart(frames)
        socket.send_multipart(GOOD)
        inbox.wait_for(1)
    ((culprit, error),) = inbox.errors
    assert isinstance(error, RemoteProtocolError)
    assert inbox.connections() == [culprit]
    assert inbox.refs() == ["good"]


class Bouncer(Recorder):
    """A receiver that closes a connection after ten errors."""

    def failed(self, connection: Connection, error: Exception) -> None:
        super().failed(connection, error)
        if len([1 for culprit, _ in self.errors if culprit is connection]) == 10:
            connection.close()


def test_a_banned_peer_stays_banned(transport: ZeroMQTransport, bare: zmq.Context) -> None:
    """After a flood its connection is closed: nothing more is heard of it until it reconnects."""
    inbox = Bouncer()
    url = transport.listen(ANY_PORT, inbox).url
    with dealer(bare, url, sndhwm=0) as flooder, dealer(bare, url) as other:
        for _ in range(5_000):
            flooder.send(b"")
        flooder.send_multipart([*GOOD[:3], b"banned", *GOOD[4:]])
        inbox.wait_until(lambda: len(inbox.errors) == 10)
        other.send_multipart(GOOD)
        inbox.wait_for(1)
    with dealer(bare, url) as again:
        again.send_multipart([*GOOD[:3], b"again", *GOOD[4:]])
        inbox.wait_for(2)
    assert inbox.refs() == ["good", "again"]
    assert len(inbox.errors) == 10
    assert inbox.ended == []


def test_a_peer_may_not_name_itself(transport: ZeroMQTransport, bare: zmq.Context) -> None:
    """A routing id that the peer chose could be another's: such a peer is told of, not heard."""
    inbox = Recorder()
    url = transport.listen(ANY_PORT, inbox).url
    with dealer(bare, url, identity=b"gateway") as impostor, dealer(bare, url) as honest:
        impostor.send_multipart([*GOOD[:3], b"impostor", *GOOD[4:]])
        impostor.send(b"garbage")
        honest.send_multipart(GOOD)
        inbox.wait_for(1)
    assert inbox.refs() == ["good"]
    assert [type(error) for _, error in inbox.errors] == [HostilePeerError]


def test_children_are_bounded(transport: ZeroMQTransport, bare: zmq.Context) -> None:
    """Beyond `limits.max_children` newcomers are not heard; when one is closed there is room."""
    inbox = Recorder()
    url = transport.listen(ANY_PORT, inbox).url
    with ExitStack() as sockets, capture_logs() as logs:
        for _ in range(LIMITS.max_children):
            sockets.enter_context(dealer(bare, url)).send_multipart(GOOD)
        inbox.wait_for(LIMITS.max_children)
        late = sockets.enter_context(dealer(bare, url))
        late.send_multipart([*GOOD[:3], b"late", *GOOD[4:]])
        eventually(lambda: "peer_refused" in [entry["event"] for entry in logs])
        inbox.connections()[0].close()

        def is_heard() -> bool:
            newcomer = sockets.enter_context(dealer(bare, url))
            newcomer.send_multipart([*GOOD[:3], b"new", *GOOD[4:]])
            return "new" in inbox.refs()

        eventually(is_heard)
        late.send_multipart([*GOOD[:3], b"late", *GOOD[4:]])
    assert "late" not in inbox.refs()


def test_children_that_left_make_room(bare: zmq.Context) -> None:
    """Peers that went without a word do not fill a listener: the silent give way to newcomers."""
    limits = Limits(max_children=3, link_ping_s=0.05)
    transport = ZeroMQTransport(JsonCodec(limits), limits)
    inbox = Recorder()
    url = transport.listen(ANY_PORT, inbox).url
    for number in range(9):

        def is_heard(number: int = number) -> bool:
            with dealer(bare, url) as visitor:
                visitor.send_multipart([*GOOD[:3], b"%d" % number, *GOOD[4:]])
            return str(number) in inbox.refs()

        eventually(is_heard)
    assert len(inbox.ended) >= 6
    assert len(set(inbox.ended)) == len(inbox.ended)
    transport.close()


def test_too_large_a_frame_is_never_taken(transport: ZeroMQTransport, bare: zmq.Context) -> None:
    """The socket itself refuses a frame over `limits.max_frame_bytes`; other peers go on."""
    inbox = Recorder()
    url = transport.listen(ANY_PORT, inbox).url
    with dealer(bare, url) as large, dealer(bare, url) as small:
        large.send_multipart([*GOOD[:-1], b"x" * (LIMITS.max_frame_bytes + 1)])
        small.send_multipart(GOOD)
        inbox.wait_for(1)
    assert (inbox.refs(), inbox.errors) == (["good"], [])


def test_a_claim_of_a_gigabyte_costs_nothing(transport: ZeroMQTransport, bare: zmq.Context) -> None:
    """A frame header that announces 1 GB ends the TCP connection; nothing is allocated for it."""
    inbox = Recorder()
    url = transport.listen(ANY_PORT, inbox).url
    port = int(url.rpartition(":")[2])
    greeting = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    with bsd.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as raw:
        raw.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready)
        raw.sendall(b"\x02" + struct.pack(">Q", 2**30))
        while raw.recv(4096):
            pass  # ends when the listener hangs up
    with bsd.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    with dealer(bare, url) as small:
        small.send_multipart(GOOD)
        inbox.wait_for(1)


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [ANY_PORT, "tcp://127.0.0.1:0", "ipc://*"])
def test_the_real_address_is_told(transport: ZeroMQTransport, url: str) -> None:
    """Where the system chooses the address, the listener says which one it is."""
    inbox = Recorder()
    listener = transport.listen(url, inbox)
    assert listener.url not in {url, ""}
    transport.connect(listener.url, Recorder()).send([note(1)])
    inbox.wait_for(1)


def test_what_nobody_was_there_for_is_not_said_later(transport: ZeroMQTransport) -> None:
    """A link that was given up does not greet whoever listens there next, beside the new link."""
    with bsd.create_server(("127.0.0.1", 0)) as free:
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    given_up = transport.connect(url, Recorder())
    given_up.send([note("early")])
    eventually(lambda: not given_up._queue)  # type: ignore[attr-defined]
    given_up.close()
    inbox = Recorder()
    transport.listen(url, inbox)
    link = transport.connect(url, Recorder())
    until = time.monotonic() + 0.5  # libzmq dials again ten times a second
    for number in itertools.count(1):
        link.send([note("late")])
        inbox.wait_for(number)
        if time.monotonic() > until:
            break
    assert set(inbox.refs()) == {"late"}


def test_a_port_taken_by_a_stranger_is_named(transport: ZeroMQTransport) -> None:
    """A port that any other program listens on is refused, with the URL and a way out."""
    with bsd.create_server(("127.0.0.1", 0)) as stranger:
        url = f"tcp://127.0.0.1:{stranger.getsockname()[1]}"
        with pytest.raises(AddressTaken, match=re.escape(url) + r".*choose another"):
            transport.listen(url, Recorder())


@pytest.mark.parametrize(
    "url",
    [
        "tcp://",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1:x",
        "tcp://127.0.0.1:1\n",
        "ipc://" + "x" * 200,
        "udp://127.0.0.1:1",
        "inproc://a",
    ],
)
def test_bad_urls_are_refused(transport: ZeroMQTransport, url: str) -> None:
    """A URL that ZeroMQ cannot use raises at once, and names it."""
    for use in (transport.listen, transport.connect):
        with pytest.raises(LocalProtocolError) as refusal:
            use(url, Recorder())
        assert repr(url)[1:-1] in str(refusal.value)


def test_an_address_of_another_host_is_refused(transport: ZeroMQTransport) -> None:
    """Only addresses of this machine can be listened on (192.0.2.0/24 is nobody's: RFC 5737)."""
    with pytest.raises(LocalProtocolError, match=r"192\.0\.2\.1"):
        transport.listen("tcp://192.0.2.1:7000", Recorder())


def test_ipc_files(transport: ZeroMQTransport, tmp_path: Path) -> None:
    """A socket file that a dead process left is used again; any other file is left alone."""
    stale, precious, nowhere = tmp_path / "stale", tmp_path / "precious", tmp_path / "no" / "dir"
    with bsd.socket(bsd.AF_UNIX) as dead:
        dead.bind(str(stale))
    inbox = Recorder()
    transport.listen(f"ipc://{stale}", inbox)
    transport.connect(f"ipc://{stale}", Recorder()).send([note(1)])
    inbox.wait_for(1)
    precious.write_text("data")
    for path in (precious, nowhere):
        with pytest.raises(LocalProtocolError, match=re.escape(str(path))):
            transport.listen(f"ipc://{path}", Recorder())
    assert precious.read_text() == "data"


def test_an_ipc_path_in_use_is_not_taken_over(transport: ZeroMQTransport, tmp_path: Path) -> None:
    """A second process cannot take a path away from one that listens (libzmq would let it)."""
    inbox = Recorder()
    url = transport.listen(f"ipc://{tmp_path}/socket", inbox).url
    second = ZeroMQTransport(JsonCodec(LIMITS), LIMITS)
    with pytest.raises(AddressTaken, match=re.escape(url)):
        second.listen(url, Recorder())
    second.connect(url, Recorder()).send([note(1)])
    inbox.wait_for(1)
    second.close()


def test_an_address_is_free_when_close_returns(transport: ZeroMQTransport, tmp_path: Path) -> None:
    """Listening again at once, at the address of a listener that was closed, works every time."""
    for first in (ANY_PORT, f"ipc://{tmp_path}/socket"):
        url = first
        for _ in range(50):
            listener = transport.listen(url, Recorder())
            url = listener.url
            listener.close()


# -- peers that go ---------------------------------------------------------------------------------


def test_what_came_before_the_end_is_heard(transport: ZeroMQTransport) -> None:
    """A slow receiver still gets all that had arrived when the peer went, and then `closed`."""
    parent = ZeroMQTransport(JsonCodec(LIMITS), LIMITS)
    is_gone = threading.Event()
    outbox = Recorder(lambda *_: is_gone.wait(DEADLINE_S))
    burst = [note(number) for number in range(900)]
    inbox = Recorder(lambda child, _: child.send(burst))
    connection = transport.connect(parent.listen(ANY_PORT, inbox).url, outbox)
    connection.send([note("go")])
    inbox.wait_for(1)
    parent.close()
    is_gone.set()
    outbox.wait_until(lambda: outbox.ended == [connection])
    assert outbox.refs() == [envelope.ref for envelope in burst]


PEER = """
import sys, threading
from agentos.core.limits import Limits
from agentos.runtime.wire import JsonCodec
from agentos.testing.transport_contract import Recorder, note
from agentos.transports.zeromq import ZeroMQTransport

transport = ZeroMQTransport(JsonCodec(Limits()), Limits())
if sys.argv[1] == "listen":
    echo = Recorder(lambda connection, envelopes: connection.send(envelopes))
    print(transport.listen("tcp://127.0.0.1:*", echo).url, flush=True)
else:
    transport.connect(sys.argv[2], Recorder()).send([note("hello")])
threading.Event().wait(60)
"""


@pytest.mark.processes
def test_a_parent_that_is_killed_is_missed(transport: ZeroMQTransport) -> None:
    """A DEALER's connection is reported closed when the process at its other end is killed."""
    outbox = Recorder()
    with subprocess.Popen(
        [sys.executable, "-c", PEER, "listen"], stdout=subprocess.PIPE, text=True
    ) as peer:
        assert peer.stdout is not None
        connection = transport.connect(peer.stdout.readline().strip(), outbox)
        connection.send([note(1)])
        outbox.wait_for(1)
        peer.kill()
    outbox.wait_until(lambda: outbox.ended == [connection])


@pytest.mark.processes
def test_a_child_that_is_killed_is_missed(transport: ZeroMQTransport) -> None:
    """A listener's connection is reported closed when something is sent to a killed process."""
    inbox = Recorder()
    url = transport.listen(ANY_PORT, inbox).url
    with subprocess.Popen([sys.executable, "-c", PEER, "connect", url]) as peer:
        inbox.wait_for(1)
        peer.kill()
    (child,) = inbox.connections()

    def is_missed() -> bool:
        child.send([note("there")])
        return inbox.ended == [child]

    eventually(is_missed)
