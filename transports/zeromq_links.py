"""Links over ZeroMQ: the bounded queue towards one peer, and the uplink (a DEALER).

Methods named in `agentos.core.ports` are for any thread; all others run in the I/O thread.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec
import structlog
import zmq

from agentos.core.errors import Overloaded, RemoteProtocolError
from agentos.core.limits import Limits
from agentos.core.messages import Envelope
from agentos.core.ports import Bundle, Codec, Receiver
from agentos.transports.zeromq_io import IOThread, Socket, monitor, receive, transmit

log = structlog.get_logger(__name__)

BATCH: Final = 256
"""Messages that one socket may receive, or one link send, before it is another's turn."""
LINGER_MS: Final = 300
"""How long libzmq goes on sending what it has taken, after a socket was closed."""


class Endpoint(Protocol):
    """A socket that the transport closes at its end."""

    def drain(self) -> bool:
        """Write what waits while there is room; whether nothing is left."""

    def dispose(self) -> None:
        """Close the socket."""


class Shared(msgspec.Struct, frozen=True):
    """What all links of one transport use."""

    codec: Codec
    limits: Limits
    io: IOThread
    endpoints: set[Endpoint]
    """What is open; touched by the I/O thread only."""


class Link(ABC):
    """The bounded queue towards one peer: what an uplink and a listener's child have in common."""

    def __init__(self, shared: Shared, peer: str, receiver: Receiver) -> None:
        self.peer = peer
        self._codec = shared.codec
        self._io = shared.io
        self._receiver = receiver
        self._high_water_mark = shared.limits.high_water_mark
        self._max_bytes = shared.limits.peer_bytes
        self._queue: deque[Bundle] = deque()
        self._waiting = 0
        """Envelopes in the queue."""
        self._bytes = 0
        """Of the bodies in the queue."""
        self._bundles = False
        """Whether the peer reads bundles: it has sent one, or is the parent of one of ours."""
        self._lock = threading.Lock()
        self._flushing = False
        """Whether a flush is submitted or waits for room: there is never more than one."""
        self._closed = False

    def send(self, envelopes: Sequence[Envelope]) -> None:
        """Encode and queue these, in order. On a closed link they are dropped.

        Raises:
            LocalProtocolError: one of them cannot be written; none was queued.
            Overloaded: more than `limits.high_water_mark` messages, or `limits.peer_bytes`, would
                wait; none was queued.
        """
        bundles = self._written(envelopes)
        size = sum(bundle.size for bundle in bundles)
        with self._lock:
            if self._closed:
                log.debug("send_on_closed_link", peer=self.peer, messages=len(envelopes))
                return
            waiting = self._waiting
            if waiting + len(envelopes) > self._high_water_mark:
                raise Overloaded(f"{waiting} messages wait for {self.peer} already")
            if waiting and self._bytes + size > self._max_bytes:
                raise Overloaded(f"{self._bytes} bytes wait for {self.peer} already")
            self._queue.extend(bundles)
            self._waiting += len(envelopes)
            self._bytes += size
            if self._flushing or not bundles:
                return
            self._flushing = True
        self._io.submit(self._flush)

    def _written(self, envelopes: Sequence[Envelope]) -> list[Bundle]:
        if self._bundles:
            return self._codec.encode_all(envelopes)
        messages = [self._codec.encode(envelope) for envelope in envelopes]
        return [Bundle(frames, 1, len(frames[-1])) for frames in messages]

    def close(self) -> None:
        """Give the link up. What is queued is still sent, as far as there is room for it now."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._io.submit(self._leave)

    def deliver(self, envelopes: Sequence[Envelope]) -> None:
        """Hand received envelopes to the receiver."""
        if not self._closed:
            self._tell(self._receiver.received, envelopes)

    def decode(self, frames: Sequence[bytes]) -> list[Envelope]:
        """What came in one message; nothing after the receiver was told that it is none."""
        try:
            envelopes = self._codec.decode(frames)
        except RemoteProtocolError as error:
            if not self._closed:
                self._tell(self._receiver.failed, error)
            return []
        self._bundles = self._bundles or self._codec.is_bundle(frames)
        return envelopes

    def drain(self) -> bool:
        """Write what is queued while there is room; whether nothing is left to be written."""
        try:
            while self._queue:
                self._write_next()
        except zmq.ZMQError as error:
            return error.errno != zmq.EAGAIN
        return True

    def _flush(self) -> None:
        if self._closed:
            return
        try:
            for _ in range(min(BATCH, len(self._queue))):
                self._write_next()
        except zmq.Again:
            self._wait_for_room()
            return
        except zmq.ZMQError as error:
            self._lose(error.strerror)
            return
        with self._lock:
            self._flushing = bool(self._queue)
        if self._flushing:
            self._io.submit(self._flush)

    def _write_next(self) -> None:
        self._write(self._queue[0].frames)
        with self._lock:
            written = self._queue.popleft()
            self._waiting -= written.envelopes
            self._bytes -= written.size

    def _lose(self, reason: str) -> None:
        """The peer is gone: forget the link and say so, unless it was closed meanwhile."""
        with self._lock:
            was_closed, self._closed = self._closed, True
            self._queue.clear()
            self._waiting = self._bytes = 0
        self._forget()
        if not was_closed:
            log.debug("link_lost", peer=self.peer, reason=reason)
            self._tell(self._receiver.closed)

    def _tell(self, method: Callable[..., None], *arguments: object) -> None:
        try:
            method(self, *arguments)
        except Exception:  # not our code, and the other links must go on
            log.exception("receiver_fault", peer=self.peer)

    @abstractmethod
    def _write(self, frames: list[bytes]) -> None:
        """Send one message, or raise `zmq.Again` (no room), or `zmq.ZMQError` (peer gone)."""

    @abstractmethod
    def _wait_for_room(self) -> None:
        """See that `_flush` is called again."""

    @abstractmethod
    def _leave(self) -> None:
        """Write what there is room for, then forget the link."""

    @abstractmethod
    def _forget(self) -> None:
        """Release what the link holds."""


class Uplink(Link):
    """A DEALER's connection. It is one session: when the peer is gone, so is the connection."""

    def __init__(self, shared: Shared, socket: Socket, url: str, receiver: Receiver) -> None:
        super().__init__(shared, url, receiver)
        self._bundles = True
        self._heard = False
        """Whether anything ever came. If not, nobody is to be told what is still to be sent: it would
        greet in our name whoever comes to listen there next, when we are with another already."""
        self._socket = socket
        self._endpoints = shared.endpoints
        self._monitor = monitor(socket, zmq.EVENT_DISCONNECTED)
        try:
            socket.connect(url)
        except zmq.ZMQError:
            self._monitor.close(linger=0)
            raise

    def open(self) -> None:
        """Take the socket over."""
        self._endpoints.add(self)
        self._io.register(self._socket, self._ready)
        self._io.register(self._monitor, self._disconnected)

    def dispose(self) -> None:
        """Close the socket; libzmq goes on sending what it has for a moment, to one that is there."""
        if self._socket.closed:
            return
        self._endpoints.discard(self)
        self._io.unregister(self._socket)
        self._io.unregister(self._monitor)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=LINGER_MS if self._heard else 0)

    def _ready(self, events: int) -> None:
        if events & zmq.POLLOUT:
            self._io.want_write(self._socket, wanted=False)
            self._flush()
        if events & zmq.POLLIN:
            self._receive()

    def _receive(self) -> bool:
        envelopes: list[Envelope] = []
        came = None
        while len(envelopes) < BATCH:
            came = receive(self._socket)
            if came is None:
                break
            self._heard = True
            envelopes += self.decode(came[0])
        if envelopes:
            self.deliver(envelopes)
        return came is not None

    def _disconnected(self, _events: int) -> None:
        while self._receive():  # what came before the end is still to be read
            pass
        self._lose("disconnected")

    def _write(self, frames: list[bytes]) -> None:
        transmit(self._socket, frames)

    def _wait_for_room(self) -> None:
        self._io.want_write(self._socket, wanted=True)

    def _leave(self) -> None:
        self.drain()
        self.dispose()

    def _forget(self) -> None:
        self.dispose()
