"""The connections of one listener as the kernel sees them, for what ZeroMQ does not show.

libzmq bounds a frame (ZMQ_MAXMSGSIZE) and counts whole messages (ZMQ_RCVHWM), but the frames of a
message that never ends gather in its memory; and a ROUTER can neither disconnect a peer nor say
who connected and is silent. All three can be done at the file descriptor: the kernel counts the
bytes that came (TCP_INFO), and shutdown(2) ends a connection, which libzmq then cleans up.
"""

from __future__ import annotations

import contextlib
import select
import socket as bsd
import struct
import time
from collections.abc import Iterator
from typing import Final

import structlog
import zmq

from agentos.core.limits import Limits
from agentos.transports.zeromq_io import Socket, Source

log = structlog.get_logger(__name__)

LOOK_S: Final = 0.2
"""How often the door looks: what an endless message may bring in between is not bounded."""
LATE: Final = 3
"""For how many looks what came over a connection may be read after that has ended."""
EVENTS: Final = int(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
"""What the monitor of a listener is to tell."""
THOROUGH: Final = 5
"""Every so many looks all connections are looked at, not only those that something came over."""
SLACK_BYTES: Final = 64 * 1024
"""Headers, and the beginning of the next message, beside the largest frame."""
_TCP_INFO: Final = getattr(bsd, "TCP_INFO", None)
FIRST_BYTES: Final = 64 * 1024
"""For the first message of a connection: honest peers begin with a greeting."""
_WINDOW_CLAMP: Final = getattr(bsd, "TCP_WINDOW_CLAMP", None)
_RECEIVED_AT: Final = 128
"""Where Linux has `tcpi_bytes_received` in `struct tcp_info` (since 4.1)."""


class Visitor:
    """One connection. `mark`: the bytes that had come over it when it was last heard."""

    __slots__ = ("accused", "calm", "fd", "mark", "spoke", "sure_at", "told", "watched")

    def __init__(self, fd: int = -1, sure_at: int = 0) -> None:
        self.fd = fd
        self.sure_at = sure_at
        """The look from which on what is read under its descriptor's number is its own: before, it
        may be of the connection that had that number, and left without being heard."""
        self.accused = b""
        """Who is to be ended, by routing id: at the next look, so that an answer on its way may
        arrive, or when it is sure that this is its connection. Unless another one speaks over it
        until then: whoever is meant had its number before."""
        self.watched = False
        """Whether the kernel says that something has come over it."""
        self.mark = 0
        self.calm = False
        """Whether no message had begun and not ended at the last look."""
        self.spoke = False
        """Whether it has ever said anything."""
        self.told = False
        """Whether it has since the last look."""

    def heard(self) -> None:
        """A message has come over it."""
        self.spoke = self.told = True


class Door:
    """Watches the connections of a listener. In the I/O thread only.

    Args:
        events: the listener's monitor, which tells of `EVENTS`.
        url: where it listens.
        limits: `max_frame_bytes`, `max_children`.
    """

    def __init__(self, events: Socket, url: str, limits: Limits) -> None:
        self._events = events
        scheme, _, place = url.partition("://")
        self._name: int | str = int(place.rpartition(":")[2]) if scheme == "tcp" else place
        self._family = _family(url)
        self._bound = limits.max_frame_bytes + SLACK_BYTES
        self._sum = limits.peer_bytes
        """Of what all have sent that is not a whole message yet."""
        self._max = limits.max_children
        self._left: list[Visitor] = []
        self._leaving: list[Visitor] = []
        self._visitors: dict[int, Visitor] = {}
        """By file descriptor, in the order in which they came."""
        self._looked_at = time.monotonic()
        self._looks = 0
        self._unheard: dict[int, int] = {}
        """Descriptors of those who have left without being heard, and until which look they may be."""
        self._stirs: select.epoll | None = None
        """Tells, once, of connections that something has come over (edge-triggered)."""
        if hasattr(select, "epoll"):
            with contextlib.suppress(OSError):  # no more descriptors: without it there is no rest
                self._stirs = select.epoll()
        self.at_rest = False
        """Whether nothing is to be seen before a connection comes, or something over one."""

    def close(self) -> None:
        """Watch no more."""
        if self._stirs is not None:
            self._stirs.close()

    def sources(self) -> list[Source]:
        """What becomes readable, at rest, when it is time to look again.

        The kernel takes its word back if libzmq reads what came before we have looked: one packet
        may be missed, which cannot be much. Neither a stream of them is, nor who comes or leaves:
        that is libzmq's own word.
        """
        return [self._events] if self._stirs is None else [self._events, self._stirs.fileno()]

    def rouse(self) -> None:
        """The rest is over: looks follow, the first one in LOOK_S."""
        self.at_rest = False
        self._looked_at = time.monotonic()

    def __len__(self) -> int:
        return len(self._visitors)

    def find(self, fd: int) -> Visitor:
        """The connection with this descriptor. It stays the same one when the number is reused."""
        self.admit()
        if (visitor := self._visitors.get(fd)) is not None:
            return visitor
        unheard = (v for v in (*self._left, *self._leaving) if v.fd == fd and not v.spoke)
        return next(unheard, None) or Visitor()

    def admit(self) -> bool:
        """Note who came and who went; returns whether the listener itself was closed."""
        closed = False
        while self._events.poll(0):
            event, value = struct.unpack("=hi", self._events.recv_multipart()[0])
            if event == zmq.EVENT_ACCEPTED:
                self._leave(value)  # the number is another connection's now
                visitor = self._visitors[value] = Visitor(value, self._unheard.get(value, 0))
                visitor.watched = self._watch(value)
            elif event == zmq.EVENT_DISCONNECTED:
                self._leave(value)  # said before the descriptor is closed, and its number free
            closed |= event == zmq.EVENT_CLOSED
        return closed

    def _watch(self, fd: int) -> bool:
        """Have the kernel tell when something comes over a connection; whether it will."""
        if self._stirs is None:
            return False
        try:
            self._stirs.register(fd, select.EPOLLIN | select.EPOLLET)
        except FileExistsError:  # its number was another's, of whose coming is heard only now
            return True
        except OSError:  # it is closed again already, or the kernel watches no more
            return False
        return True

    def _leave(self, fd: int) -> None:
        """Note that a connection has ended; what came over it may still be read."""
        if (visitor := self._visitors.pop(fd, None)) is not None:
            self._left.append(visitor)
            if not visitor.spoke:
                self._unheard[fd] = self._looks + LATE

    def look(self) -> list[Visitor]:
        """End what has to be; returns those whose message did not end.

        Like every judge here it gives all a fresh start when it stood still itself.
        """
        self.admit()
        now = time.monotonic()
        late = now - self._looked_at > 3 * LOOK_S
        self._looked_at = now
        self._looks += 1
        self._unheard = {fd: at for fd, at in self._unheard.items() if at >= self._looks}
        thorough = late or self._looks % THOROUGH == 0 or len(self._visitors) > self._max
        stirred = self._stirred()
        endless, unread = [], {}
        for fd, visitor in self._chosen(stirred, thorough):
            received = self._received(fd)
            visitor.calm = visitor.told or late or received == visitor.mark
            if received is None:
                self._leave(fd)
            elif visitor.accused and self._looks >= visitor.sure_at:
                self._end(fd)
            elif visitor.told or late:
                visitor.told, visitor.mark = False, received
            elif received > visitor.mark:
                unread[fd] = received - visitor.mark
        for fd in sorted(unread, key=unread.__getitem__, reverse=True):
            bound = self._bound if self._visitors[fd].spoke else FIRST_BYTES
            if unread[fd] > bound or sum(unread.values()) > self._sum:
                endless.append(self._visitors[fd])
                self._end(fd)
                del unread[fd]
        calm = stirred is not None and not stirred and not endless
        self.at_rest = calm and thorough and self._is_quiet()
        return endless

    def _stirred(self) -> set[int] | None:
        """Whom something has come over since this was asked; None where that cannot be told."""
        if self._stirs is None:
            return None
        return {fd for fd, _ in self._stirs.poll(0, max(1, len(self._visitors)))}

    def _chosen(self, stirred: set[int] | None, thorough: bool) -> list[tuple[int, Visitor]]:
        """Those to look at: asking the kernel of each, every time, is dear for a thousand.

        That something has come over a connection it says of all of them at once.
        """
        if stirred is None or thorough:
            return list(self._visitors.items())
        return [
            (fd, visitor)
            for fd, visitor in self._visitors.items()
            if fd in stirred or visitor.told or visitor.accused or not visitor.calm
        ]

    def _is_quiet(self) -> bool:
        """Whether all have said something, and it was whole, and nobody is on the way out."""
        return not (self._left or self._leaving) and all(
            visitor.watched and visitor.spoke and visitor.calm and not visitor.accused
            for visitor in self._visitors.values()
        )

    def left(self) -> list[Visitor]:
        """Those who were gone at the look before the last, and were not heard since."""
        gone = [visitor for visitor in self._leaving if not visitor.told]
        still = [visitor for visitor in self._leaving if visitor.told]
        for visitor in still:
            visitor.told = False
        self._leaving, self._left = [*self._left, *still], []
        return gone

    def crowd_out(self) -> list[Visitor]:
        """End the oldest connections that have never said anything, if there are too many."""
        surplus = max(0, len(self._visitors) - self._max)
        silent = [(fd, v) for fd, v in self._visitors.items() if surplus and not v.spoke]
        for fd, _ in silent[:surplus]:
            self._end(fd)
        return [visitor for _, visitor in silent[:surplus]]

    def _end(self, fd: int) -> None:
        """Let libzmq find the end of the stream, as if the peer had closed its side.

        Not SHUT_RDWR, after which libzmq takes another path, with assertions, when it has stopped
        reading. What a peer goes on sending would be read before the end: its window is closed.
        """
        with contextlib.suppress(OSError), _borrowed(fd, self._family) as connection:
            if self._is_ours(connection):
                if _WINDOW_CLAMP is not None and self._family != bsd.AF_UNIX:
                    connection.setsockopt(bsd.IPPROTO_TCP, _WINDOW_CLAMP, 1)
                connection.shutdown(bsd.SHUT_RD)
        self._leave(fd)

    def _received(self, fd: int) -> int | None:
        """Bytes that have come over a connection; None when it is not there any more."""
        try:
            with _borrowed(fd, self._family) as connection:
                if not self._is_ours(connection):
                    return None
                if self._family == bsd.AF_UNIX or _TCP_INFO is None:
                    return 0
                info = connection.getsockopt(bsd.IPPROTO_TCP, _TCP_INFO, _RECEIVED_AT + 8)
        except OSError:
            return None
        if len(info) < _RECEIVED_AT + 8:
            return 0
        received: int = struct.unpack_from("=Q", info, _RECEIVED_AT)[0]
        return received

    def _is_ours(self, connection: bsd.socket) -> bool:
        """Whether libzmq has not closed it: its number may be another file's by now."""
        here = connection.getsockname()
        if isinstance(here, bytes):  # an abstract name, which URLs begin with an @
            here = "@" + here[1:].decode()
        return self._name == (here if isinstance(here, str) else here[1])


def _family(url: str) -> bsd.AddressFamily:
    if not url.startswith("tcp://"):
        return bsd.AF_UNIX
    return bsd.AF_INET6 if "[" in url else bsd.AF_INET


@contextlib.contextmanager
def _borrowed(fd: int, family: bsd.AddressFamily) -> Iterator[bsd.socket]:
    """A socket object on libzmq's descriptor, which stays libzmq's. Told all, it asks nothing."""
    connection = bsd.socket(family, bsd.SOCK_STREAM, 0, fileno=fd)
    try:
        yield connection
    finally:
        connection.detach()
