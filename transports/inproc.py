"""`inproc://name`: envelopes between switches of one process, handed over as objects.

There is no thread: whoever sends runs the other end's receiver, unless another thread is already
at it, which then takes these envelopes too. So the envelopes of one connection arrive in order
and never in two threads at once, no lock is held while a receiver runs, and receivers that answer
each other do not recurse.

Messages are frozen, and are not copied: do not change what a `Say` carries after sending it.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from agentos.core.errors import AddressTaken, LocalProtocolError, Overloaded
from agentos.core.limits import Limits
from agentos.core.messages import Envelope
from agentos.core.ports import Codec, Connection, Listener, Receiver

log = structlog.get_logger(__name__)

_URL: Final = re.compile(r"inproc://[A-Za-z0-9._/-]{1,200}")


class InprocTransport:
    """Envelopes within one process; `agentos.core.ports.Transport`.

    One instance is one world of names: give the same one to every switch that is to be reached.

    Args:
        codec: not used; envelopes are never written.
        limits: bounds of queues and of connections to one name.
    """

    def __init__(self, codec: Codec, limits: Limits) -> None:
        del codec
        self._limits = limits
        self._lock = threading.Lock()
        self._listeners: dict[str, InprocListener] = {}
        self._uplinks: dict[str, set[InprocConnection]] = {}
        """The connecting ends, by name, whether or not somebody listens there."""
        self._count = 0
        self._closed = False

    def listen(self, url: str, receiver: Receiver) -> Listener:
        """Take a name; whoever connected to it before is heard now.

        Raises:
            AddressTaken: somebody listens there.
            LocalProtocolError: the URL is not `inproc://name`, or the transport is closed.
        """
        with self._lock:
            self._check(url)
            if url in self._listeners:
                raise AddressTaken(f"{url} is in use: somebody listens there")
            listener = self._listeners[url] = InprocListener(url, receiver, self._unlisten)
            children = [uplink.other for uplink in self._uplinks.get(url, ())]
            for child in children:
                child.receiver = receiver
        for child in children:
            child.run()
        return listener

    def connect(self, url: str, receiver: Receiver) -> Connection:
        """A connection to a name, whether or not somebody listens there yet.

        Raises:
            LocalProtocolError: the URL is not `inproc://name`, or the transport is closed.
            Overloaded: the name has `limits.max_children` connections.
        """
        with self._lock:
            self._check(url)
            uplinks = self._uplinks.setdefault(url, set())
            if len(uplinks) >= self._limits.max_children:
                raise Overloaded(f"{url} has {len(uplinks)} connections already")
            self._count += 1
            bound = self._limits.high_water_mark
            uplink = InprocConnection(url, receiver, bound, self._forget)
            child = InprocConnection(f"{url}#{self._count}", None, bound, self._forget)
            uplink.other, child.other = child, uplink
            uplinks.add(uplink)
            listener = self._listeners.get(url)
            if listener is not None:
                child.receiver = listener.receiver
        return uplink

    def close(self) -> None:
        """Close every listener and every connection; nobody is told. Idempotent."""
        with self._lock:
            self._closed = True
            uplinks = [uplink for uplinks in self._uplinks.values() for uplink in uplinks]
            self._uplinks.clear()
            self._listeners.clear()
        for uplink in uplinks:
            uplink.silence()
            uplink.other.silence()

    def _check(self, url: str) -> None:
        if self._closed:
            raise LocalProtocolError(f"{url}: the transport is closed")
        if _URL.fullmatch(url) is None:
            raise LocalProtocolError(f"{url!r} is not a URL like inproc://name")

    def _forget(self, end: InprocConnection) -> None:
        """A link has ended, by either of its ends."""
        with self._lock:
            for url in (end.peer, end.other.peer):
                uplinks = self._uplinks.get(url, set())
                uplinks -= {end, end.other}
                if not uplinks:
                    self._uplinks.pop(url, None)

    def _unlisten(self, listener: InprocListener) -> None:
        with self._lock:
            if self._listeners.get(listener.url) is not listener:
                return
            del self._listeners[listener.url]
            children = [uplink.other for uplink in self._uplinks.get(listener.url, ())]
        for child in children:
            child.close()


class InprocListener:
    """A name that is taken; `agentos.core.ports.Listener`."""

    def __init__(
        self, url: str, receiver: Receiver, unlisten: Callable[[InprocListener], None]
    ) -> None:
        self.url = url
        self.receiver = receiver
        self._unlisten = unlisten

    def close(self) -> None:
        """Free the name, and close every connection made to it; the other ends are told."""
        self._unlisten(self)


class InprocConnection:
    """One end of a link; `agentos.core.ports.Connection`.

    Attributes:
        other: the other end.
        receiver: who hears what comes to this end; `None` until somebody listens.
    """

    other: InprocConnection

    def __init__(
        self,
        peer: str,
        receiver: Receiver | None,
        high_water_mark: int,
        forget: Callable[[InprocConnection], None],
    ) -> None:
        self.peer = peer
        self.receiver = receiver
        self._high_water_mark = high_water_mark
        self._forget = forget
        self._inbox: deque[Envelope] = deque()
        self._lock = threading.Lock()
        self._running = False
        """Whether a thread is in the receiver, and will take what is added to the inbox."""
        self._ending = False
        """Whether the other end was closed, and the receiver is still to be told."""
        self._closed = False

    def send(self, envelopes: Sequence[Envelope]) -> None:
        """Hand these to the other end. On a closed connection they are dropped.

        Raises:
            Overloaded: more than `limits.high_water_mark` would wait; none was queued.
        """
        if self._closed:
            log.debug("send_on_closed_link", peer=self.peer, messages=len(envelopes))
            return
        self.other.put(envelopes)

    def close(self) -> None:
        """Give the link up; the other end is told after what was sent before."""
        if self.silence():
            self._forget(self)
            self.other.end()

    def put(self, envelopes: Sequence[Envelope]) -> None:
        """The other end sends these.

        Raises:
            Overloaded: more than `limits.high_water_mark` would wait; none was queued.
        """
        with self._lock:
            if self._closed:
                return
            waiting = len(self._inbox)
            if waiting + len(envelopes) > self._high_water_mark:
                raise Overloaded(f"{waiting} messages wait for {self.other.peer} already")
            self._inbox.extend(envelopes)
        self.run()

    def end(self) -> None:
        """The other end was closed."""
        with self._lock:
            self._ending = True
        self.run()

    def silence(self) -> bool:
        """Hear no more; whether this end was open."""
        with self._lock:
            was_open, self._closed = not self._closed, True
            self._inbox.clear()
        return was_open

    def run(self) -> None:
        """Call the receiver with what has come, unless a thread is doing that already."""
        while True:
            with self._lock:
                if self._running or self._closed or self.receiver is None:
                    return
                batch = list(self._inbox)
                if not batch and not self._ending:
                    return
                self._inbox.clear()
                self._running = True
                self._closed = not batch
            try:
                if batch:
                    self.receiver.received(self, batch)
                else:
                    self.receiver.closed(self)
            except Exception:  # not our code, and the sender has nothing to do with it
                log.exception("receiver_fault", peer=self.peer)
            finally:
                with self._lock:
                    self._running = False
