"""The one thread that owns a transport's ZeroMQ sockets, and how others hand it work.

A ZeroMQ socket must be used by one thread at a time. Other threads append a task to a deque and
wake this one only if it has said that it sleeps: flag, look at the deque again, then poll; the
other side appends, then looks at the flag. So no wake-up is lost, and under load none is paid for.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
import zmq

log = structlog.get_logger(__name__)

Socket = zmq.Socket[bytes]
Task = Callable[[], None]
Handler = Callable[[int], None]
"""Called with the poll events (`zmq.POLLIN`, `zmq.POLLOUT`) of one socket."""

RETRY_MS: Final = 5
"""How long a ROUTER's full peer is left alone: POLLOUT does not say which peer has room again."""
MAX_FRAMES: Final = 16
"""Frames of one message that are kept: more cannot be an envelope, and are read and dropped."""
_MORE: Final = int(zmq.SNDMORE | zmq.DONTWAIT)
_LAST: Final = int(zmq.DONTWAIT)
_send = zmq.backend.Socket.send
"""Without the options of `zmq.Socket.send`, which cost more than the sending."""


class Waker:
    """A file descriptor that another thread makes readable: eventfd(2), or a pair of sockets."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._read = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.setblocking(False)
            self._read, self._write = ours.detach(), theirs.detach()

    def fileno(self) -> int:
        """What to poll."""
        return self._read

    def wake(self) -> None:
        """Make it readable. Adding to a counter (or to a pipe that is not full) never blocks."""
        os.write(self._write, (1).to_bytes(8, "little"))

    def clear(self) -> None:
        """Make it unreadable again."""
        os.read(self._read, 4096)

    def close(self) -> None:
        """Release the descriptors."""
        for descriptor in {self._read, self._write}:
            os.close(descriptor)


class IOThread:
    """Runs tasks that other threads submit, and the handlers of the sockets that it polls."""

    def __init__(self, name: str) -> None:
        self._tasks: deque[Task] = deque()
        self._retries: list[Task] = []
        self._retry_at = 0.0
        self._handlers: dict[Any, Handler] = {}
        self._poller = zmq.Poller()
        self._waker = Waker()
        self._poller.register(self._waker.fileno(), zmq.POLLIN)
        self._asleep = False
        self._lock = threading.Lock()
        self._at_end: Task | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # -- from any thread ---------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """Have `task` run by the thread, after those that were submitted before it."""
        self._tasks.append(task)
        if self._asleep:
            self._wake()

    def is_current(self) -> bool:
        """Whether the caller is this thread."""
        return threading.current_thread() is self._thread

    def stop(self, at_end: Task, timeout_s: float) -> bool:
        """Run what was submitted, then `at_end`, and end.

        Returns:
            Whether the thread has ended; not waited for when the caller is the thread itself.
        """

        def end() -> None:
            self._at_end = at_end

        self.submit(end)
        if not self.is_current():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- from the thread itself --------------------------------------------------------------------

    def register(self, source: Socket, handler: Handler) -> None:
        """Poll `source` for reading; call `handler` when there is something to read."""
        self._handlers[source] = handler
        self._poller.register(source, zmq.POLLIN)

    def want_write(self, source: Socket, wanted: bool) -> None:
        """Poll a registered `source` for writing too, or no more."""
        self._poller.register(source, zmq.POLLIN | zmq.POLLOUT if wanted else zmq.POLLIN)

    def unregister(self, source: Socket) -> None:
        """Poll `source` no more."""
        if self._handlers.pop(source, None) is not None:
            self._poller.unregister(source)

    def retry(self, task: Task) -> None:
        """Submit `task` after `RETRY_MS` milliseconds."""
        if not self._retries:
            self._retry_at = time.monotonic() + RETRY_MS / 1000
        self._retries.append(task)

    # -- the loop ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._at_end is None:
            for _ in range(len(self._tasks)):
                self._guard(self._tasks.popleft())
            if self._retries and time.monotonic() >= self._retry_at:
                self._tasks.extend(self._retries)
                self._retries = []
            for source, events in self._poll():
                handler = self._handlers.get(source)
                if handler is not None:  # an earlier handler of this turn may have closed it
                    self._guard(handler, events)
                elif source == self._waker.fileno():
                    self._waker.clear()
        self._guard(self._at_end)
        with self._lock:
            self._asleep = False
            self._waker.close()

    def _poll(self) -> list[tuple[Any, int]]:
        timeout_ms = RETRY_MS if self._retries else None
        self._asleep = True
        if self._tasks or self._at_end:
            timeout_ms = 0
            self._asleep = False
        try:
            return self._poller.poll(timeout_ms)
        finally:
            self._asleep = False

    def _wake(self) -> None:
        with self._lock:
            if self._asleep:
                self._asleep = False
                self._waker.wake()

    @staticmethod
    def _guard(function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception:  # one fault must not take every link of the process down
            log.exception("zeromq_io_fault")


def transmit(socket: Socket, frames: Sequence[bytes]) -> None:
    """Send one message without waiting; as `send_multipart` does, in a quarter of its time.

    Raises:
        zmq.Again: there is no room for it.
        zmq.ZMQError: EHOSTUNREACH: a ROUTER has no such peer any more.
    """
    for frame in frames[:-1]:
        _send(socket, frame, _MORE)
    _send(socket, frames[-1], _LAST)


def receive(socket: Socket) -> list[bytes] | None:
    """One message, or `None` when there is none; at most `MAX_FRAMES` of its frames."""
    try:
        frame = socket.recv(_LAST, copy=False)
    except zmq.Again:
        return None
    frames = [frame.bytes]
    while frame.more:
        frame = socket.recv(_LAST, copy=False)
        if len(frames) < MAX_FRAMES:
            frames.append(frame.bytes)
    return frames


def monitor(socket: Socket, events: int) -> Socket:
    """A socket that receives the `events` (`zmq.EVENT_*`) of another one.

    Under a name of its own: pyzmq would name it after a file descriptor, which the system gives to
    the next socket while libzmq still closes this one ("Address already in use").

    Raises:
        zmq.ZMQError: the process has no more file descriptors.
    """
    return socket.get_monitor_socket(events, f"inproc://monitor-{uuid.uuid4()}")
