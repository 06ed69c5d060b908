"""Both ends of a ZeroMQ link: an uplink (DEALER), and a listener (ROUTER) with its children.

Methods named in `agentos.core.ports` are for any thread; all others run in the I/O thread.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog
import zmq

from agentos.core.errors import Overloaded, RemoteProtocolError
from agentos.core.limits import Limits
from agentos.core.messages import Envelope
from agentos.core.ports import Codec, Receiver
from agentos.transports.zeromq_io import IOThread, Socket, monitor, receive, transmit

log = structlog.get_logger(__name__)

BATCH: Final = 256
"""Messages that one socket may receive, or one link send, before it is another's turn."""
LINGER_MS: Final = 300
"""How long libzmq goes on sending what it has taken, after a socket was closed."""
UNBIND_MS: Final = 500
"""How long an address may take to become free; it takes less than a millisecond."""


class Shared(msgspec.Struct, frozen=True):
    """What all links of one transport use."""

    codec: Codec
    limits: Limits
    io: IOThread
    endpoints: set[Uplink | RouterListener]
    """What is open; touched by the I/O thread only."""


class Link(ABC):
    """The bounded queue towards one peer: what an uplink and a listener's child have in common."""

    def __init__(self, shared: Shared, peer: str, receiver: Receiver) -> None:
        self.peer = peer
        self._codec = shared.codec
        self._io = shared.io
        self._receiver = receiver
        self._high_water_mark = shared.limits.high_water_mark
        self._queue: deque[list[bytes]] = deque()
        self._lock = threading.Lock()
        self._flushing = False
        """Whether a flush is submitted or waits for room: there is never more than one."""
        self._closed = False

    def send(self, envelopes: Sequence[Envelope]) -> None:
        """Encode and queue these, in order. On a closed link they are dropped.

        Raises:
            LocalProtocolError: one of them cannot be written; none was queued.
            Overloaded: more than `limits.high_water_mark` would wait; none was queued.
        """
        messages = [self._codec.encode(envelope) for envelope in envelopes]
        with self._lock:
            if self._closed:
                log.debug("send_on_closed_link", peer=self.peer, messages=len(messages))
                return
            waiting = len(self._queue)
            if waiting + len(messages) > self._high_water_mark:
                raise Overloaded(f"{waiting} messages wait for {self.peer} already")
            self._queue.extend(messages)
            if self._flushing or not messages:
                return
            self._flushing = True
        self._io.submit(self._flush)

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

    def decode(self, frames: Sequence[bytes]) -> Envelope | None:
        """One envelope, or `None` after the receiver was told that it is none."""
        try:
            return self._codec.decode(frames)
        except RemoteProtocolError as error:
            if not self._closed:
                self._tell(self._receiver.failed, error)
            return None

    def drain(self) -> bool:
        """Write what is queued while there is room; whether nothing is left to be written."""
        try:
            while self._queue:
                self._write(self._queue[0])
                self._queue.popleft()
        except zmq.ZMQError as error:
            return error.errno != zmq.EAGAIN
        return True

    def _flush(self) -> None:
        if self._closed:
            return
        try:
            for _ in range(min(BATCH, len(self._queue))):
                self._write(self._queue[0])
                self._queue.popleft()
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

    def _lose(self, reason: str) -> None:
        """The peer is gone: forget the link and say so, unless it was closed meanwhile."""
        with self._lock:
            was_closed, self._closed = self._closed, True
        self._queue.clear()
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
        """Close the socket; libzmq goes on sending what it has for a moment."""
        if self._socket.closed:
            return
        self._endpoints.discard(self)
        self._io.unregister(self._socket)
        self._io.unregister(self._monitor)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=LINGER_MS)

    def _ready(self, events: int) -> None:
        if events & zmq.POLLOUT:
            self._io.want_write(self._socket, wanted=False)
            self._flush()
        if events & zmq.POLLIN:
            self._receive()

    def _receive(self) -> bool:
        envelopes = []
        frames = None
        for _ in range(BATCH):
            frames = receive(self._socket)
            if frames is None:
                break
            envelope = self.decode(frames)
            if envelope is not None:
                envelopes.append(envelope)
        if envelopes:
            self.deliver(envelopes)
        return frames is not None

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


class Child(Link):
    """One peer of a listener, by the routing id that the ROUTER made up for it."""

    def __init__(
        self, shared: Shared, listener: RouterListener, routing_id: bytes, peer: str
    ) -> None:
        super().__init__(shared, peer, listener.receiver)
        self._listener = listener
        self._routing_id = routing_id
        self.heard_at = time.monotonic()

    def evict(self) -> None:
        """Make room for another peer: this one has been silent for too long."""
        self._leave()
        self._lose("silent, while others wait")

    def retire(self) -> None:
        """The listener closes: no more is sent or reported."""
        with self._lock:
            self._closed = True

    def _write(self, frames: list[bytes]) -> None:
        transmit(self._listener.socket, [self._routing_id, *frames])

    def _wait_for_room(self) -> None:
        # A ROUTER's POLLOUT does not say which of its peers has room.
        self._io.retry(self._flush)

    def _leave(self) -> None:
        self.drain()
        self._listener.forget(self._routing_id, refuse=True)

    def _forget(self) -> None:
        self._listener.forget(self._routing_id, refuse=False)


class RouterListener:
    """A bound ROUTER. Its peers become children with their first message."""

    def __init__(self, shared: Shared, socket: Socket, url: str, receiver: Receiver) -> None:
        self._monitor = monitor(socket, zmq.EVENT_CLOSED)
        try:
            socket.bind(url)
        except zmq.ZMQError:
            self._monitor.close(linger=0)
            raise
        self.url = bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
        self.receiver = receiver
        self.socket = socket
        self._shared = shared
        self._io = shared.io
        self._children: dict[bytes, Child] = {}
        self._refused: dict[bytes, None] = {}
        """Routing ids that are not listened to, oldest first."""
        self._accepted = 0
        self._gone = threading.Event()

    def close(self) -> None:
        """Stop listening and give up every child. The address is free when this returns."""
        if self._gone.is_set():
            return
        self._io.submit(self.dispose)
        if not self._io.is_current() and not self._gone.wait(timeout=2.0):
            log.warning("listener_close_timeout", url=self.url)

    def open(self) -> None:
        """Take the socket over."""
        self._shared.endpoints.add(self)
        self._io.register(self.socket, self._receive)

    def drain(self) -> bool:
        """Write what waits for the children; whether nothing is left."""
        return not [child for child in self._children.values() if not child.drain()]

    def dispose(self) -> None:
        """Send what there is room for, give the address back, close the socket."""
        if self._gone.is_set():
            return
        self.drain()
        for child in self._children.values():
            child.retire()
        self._children.clear()
        self._shared.endpoints.discard(self)
        self._io.unregister(self.socket)
        # Not unbind(): it ends the sessions of all peers, with what they have still to send.
        self.socket.close(linger=LINGER_MS)
        if not self._monitor.poll(UNBIND_MS):  # libzmq gives it back in a thread of its own
            log.warning("listener_close_timeout", url=self.url)
        self._monitor.close(linger=0)
        self._gone.set()

    def forget(self, routing_id: bytes, *, refuse: bool) -> None:
        """Drop a child; with `refuse`, also whatever its routing id still sends.

        ROUTER cannot disconnect one peer, and never gives the same random id again: so a peer
        that is refused stays so until it connects anew. The oldest refusals give way to new ones.
        """
        self._children.pop(routing_id, None)
        if refuse:
            self._refused[routing_id] = None
            if len(self._refused) > self._shared.limits.max_children:
                del self._refused[next(iter(self._refused))]

    def _receive(self, _events: int) -> None:
        batches: dict[Child, list[Envelope]] = {}
        for _ in range(BATCH):
            frames = receive(self.socket)
            if frames is None:
                break
            child = self._children.get(frames[0]) or self._accept(frames[0])
            if child is None:
                continue
            envelope = child.decode(frames[1:])
            if envelope is not None:
                batches.setdefault(child, []).append(envelope)
        now = time.monotonic()
        for child, envelopes in batches.items():
            child.heard_at = now
            child.deliver(envelopes)

    def _accept(self, routing_id: bytes) -> Child | None:
        if routing_id in self._refused:
            return None
        full = len(self._children) >= self._shared.limits.max_children and not self._evict()
        if full or routing_id[:1] != b"\0":
            # Ids that a peer chose could be another's; those that ROUTER makes start with a zero.
            reason = "limits.max_children" if full else "the peer set a routing id of its own"
            log.warning("peer_refused", url=self.url, reason=reason)
            self.forget(routing_id, refuse=True)
            return None
        self._accepted += 1
        child = Child(self._shared, self, routing_id, f"{self.url}#{self._accepted}")
        self._children[routing_id] = child
        return child

    def _evict(self) -> bool:
        """Give up the child that was silent for the longest time, if it was for long enough.

        A ROUTER does not hear of peers that leave, and nothing may ever be sent to those: without
        this, clients that come and go would fill the listener.
        """
        limits = self._shared.limits
        silent = min(self._children.values(), key=lambda child: child.heard_at)
        if time.monotonic() - silent.heard_at < limits.link_ping_s * limits.suspect_after:
            return False
        silent.evict()
        return True
