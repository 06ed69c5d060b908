"""The listening end of ZeroMQ links: a ROUTER, and a child for each of its peers.

Methods named in `agentos.core.ports` are for any thread; all others run in the I/O thread.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import structlog
import zmq

from agentos.core.errors import AgentOSError, HostilePeerError, Overloaded
from agentos.core.messages import Envelope
from agentos.core.ports import Receiver
from agentos.transports.zeromq_door import EVENTS, LOOK_S, Door, Visitor
from agentos.transports.zeromq_io import MAX_FRAMES, Socket, descriptor, monitor, receive, transmit
from agentos.transports.zeromq_links import BATCH, LINGER_MS, Link, Shared

log = structlog.get_logger(__name__)

UNBIND_S: Final = 0.5
"""How long an address may take to become free; it takes less than a millisecond."""
_FULL: Final = "limits.max_children connections are open"
RETRY_S: Final = 0.005
RETRY_MAX_S: Final = 0.32
"""How long a full peer is left alone, doubled each time: POLLOUT does not say who has room again."""


class Child(Link):
    """One peer of a listener, by the routing id that the ROUTER made up for it."""

    def __init__(
        self,
        shared: Shared,
        listener: RouterListener,
        routing_id: bytes,
        peer: str,
        visitor: Visitor,
    ) -> None:
        super().__init__(shared, peer, listener.receiver)
        self._listener = listener
        self._routing_id = routing_id
        self._retry_s = RETRY_S
        self.visitor = visitor
        self.heard_at = time.monotonic()

    def evict(self) -> None:
        """Make room for another peer: this one has been silent for too long."""
        self._leave()
        self._lose("silent, while others wait")

    def lose(self) -> None:
        """The connection has ended, and all that came over it was heard."""
        self._lose("disconnected")

    def turn_away(self, error: AgentOSError) -> None:
        """End this connection at once; `error` says why."""
        self._tell(self._receiver.failed, error)
        self._lose(str(error))
        self._listener.forget(self, self._routing_id, refuse=True)

    def retire(self) -> None:
        """The listener closes: no more is sent or reported."""
        with self._lock:
            self._closed = True

    def _write(self, frames: list[bytes]) -> None:
        transmit(self._listener.socket, [self._routing_id, *frames])
        self._retry_s = RETRY_S

    def _wait_for_room(self) -> None:
        self._io.later(self._retry_s, self._flush)
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def _leave(self) -> None:
        self.drain()
        self._listener.forget(self, self._routing_id, refuse=True)

    def _forget(self) -> None:
        self._listener.forget(self, self._routing_id, refuse=False)


class RouterListener:
    """A bound ROUTER. Its peers become children with their first message."""

    def __init__(self, shared: Shared, socket: Socket, url: str, receiver: Receiver) -> None:
        self._monitor = monitor(socket, EVENTS)
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
        self._door = Door(self._monitor, self.url, shared.limits)
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
        self._io.later(LOOK_S, self._look)

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
        self._rouse()
        # Not unbind(): it ends the sessions of all peers, with what they have still to send.
        self.socket.close(linger=LINGER_MS)
        until = time.monotonic() + UNBIND_S
        while not self._door.admit():  # libzmq gives it back in a thread of its own
            if time.monotonic() > until:
                log.warning("listener_close_timeout", url=self.url)
                break
            self._monitor.poll(10)
        self._monitor.close(linger=0)
        self._door.close()
        self._gone.set()

    def forget(self, child: Child, routing_id: bytes, *, refuse: bool) -> None:
        """Drop a child; with `refuse`, also its connection, and whatever came over that already.

        ROUTER never gives the same random id again: so a peer that is refused stays so until it
        connects anew. The oldest refusals give way to new ones.
        """
        self._children.pop(routing_id, None)
        if refuse:
            child.visitor.accused = routing_id
            self._rouse()
            self._refused[routing_id] = None
            if len(self._refused) > self._shared.limits.max_children:
                del self._refused[next(iter(self._refused))]

    def _receive(self, _events: int) -> None:
        batches: dict[Child, list[Envelope]] = {}
        count = 0
        while count < BATCH:
            came = receive(self.socket, self._children)
            if came is None:
                break
            frames, source = came
            count += 1
            child = self._children.get(frames[0]) or self._accept(frames[0], descriptor(source))
            if child is None:
                continue
            if len(frames) == MAX_FRAMES:
                self._turn_away(child, HostilePeerError(f"{MAX_FRAMES} frames in one message"))
                continue
            child.visitor.told = True  # whatever it is, it came to its end
            envelopes = child.decode(frames[1:])
            if envelopes:
                count += len(envelopes) - 1
                batches.setdefault(child, []).extend(envelopes)
        now = time.monotonic()
        for child, envelopes in batches.items():
            child.heard_at = now
            child.visitor.heard()
            child.deliver(envelopes)

    def _accept(self, routing_id: bytes, fd: int) -> Child | None:
        visitor = self._door.find(fd)
        self._rouse()  # that may have read what would have ended the rest
        if routing_id in self._refused:
            visitor.accused = routing_id
            return None
        if visitor.accused != routing_id:
            visitor.accused = b""
        self._accepted += 1
        child = Child(self._shared, self, routing_id, f"{self.url}#{self._accepted}", visitor)
        if routing_id[:1] != b"\0":
            # Ids that a peer chose could be another's; those that ROUTER makes start with a zero.
            self._turn_away(child, HostilePeerError("the peer set a routing id of its own"))
            return None
        if len(self._children) >= self._shared.limits.max_children and not self._evict():
            self._turn_away(child, Overloaded(_FULL))
            return None
        for other in [c for c in self._children.values() if c.visitor is visitor]:
            # A connection has one id: the other's has ended, and had this number. Next turn, when
            # what it had said is delivered.
            self._io.submit(other.lose)
        self._children[routing_id] = child
        return child

    def _turn_away(self, child: Child, error: AgentOSError) -> None:
        """Tell the receiver, and end the connection, whatever that makes of it."""
        log.warning("peer_refused", peer=child.peer, reason=str(error))
        child.turn_away(error)

    def _rouse(self, _events: int = 0) -> None:
        """Look again, every LOOK_S from now on."""
        if self._door.at_rest:
            for source in self._door.sources():
                self._io.unregister(source)
            self._door.rouse()
            self._io.later(LOOK_S, self._look)

    def _look(self) -> None:
        """See what the door has seen, and end what has to be."""
        if self._gone.is_set():
            return
        try:
            self._judge()
        finally:
            if self._door.at_rest:  # an idle process is not woken for nothing
                for source in self._door.sources():
                    self._io.register(source, self._rouse)
            else:
                self._io.later(LOOK_S, self._look)

    def _judge(self) -> None:
        for visitor in self._door.look():
            known = (child for child in self._children.values() if child.visitor is visitor)
            child = next(known, None) or self._stranger(visitor)
            self._turn_away(child, HostilePeerError("a message that does not end"))
        left = set(self._door.left())
        for child in [child for child in self._children.values() if child.visitor in left]:
            child.lose()
        for visitor in self._door.crowd_out():
            self._turn_away(self._stranger(visitor), Overloaded(_FULL))

    def _stranger(self, visitor: Visitor) -> Child:
        """Somebody who has never said anything, for the receiver to count."""
        return Child(self._shared, self, b"", f"{self.url}#silent", visitor)

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
