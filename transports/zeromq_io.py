"""The one thread that owns a transport's ZeroMQ sockets, and how others hand it work.

A ZeroMQ socket must be used by one thread at a time. Other threads append a task to a deque and
wake this one only if it has said that it sleeps: flag, look at the deque again, then poll; the
other side appends, then looks at the flag. So no wake-up is lost, and under load none is paid for.

The thread of an actor that waits for messages anyway may take its place, so that what comes over a
socket need not be handed from one thread to another (leader/followers: Schmidt et al., 2000). The
sockets move with a full fence, and there and back once, which zmq_socket(3) allows.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Any, Final

import structlog
import zmq

log = structlog.get_logger(__name__)

Socket = zmq.Socket[bytes]
Source = Socket | int
"""What is polled: a socket of ZeroMQ, or a file descriptor."""
Task = Callable[[], None]
Handler = Callable[[int], None]
"""Called with the poll events (`zmq.POLLIN`, `zmq.POLLOUT`) of one source."""

MAX_FRAMES: Final = 16
"""Frames of one message that are kept: more cannot be an envelope, and are read and dropped."""
GUEST_LOOK_S: Final = 120.0
"""How often the thread that lent its loop looks whether the guest is still alive: an actor gives it
back when it ends, and a hundred idle processes must not wake a hundred times a second."""
_MORE: Final = int(zmq.SNDMORE | zmq.DONTWAIT)
_LAST: Final = int(zmq.DONTWAIT)
_send = zmq.backend.Socket.send
_recv = zmq.backend.Socket.recv
_get = zmq.backend.Socket.get
"""Without the options of `zmq.Socket`'s own, which cost more than the sending."""


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
    """Runs tasks that other threads submit, and the handlers of the sockets that it polls.

    Also an `agentos.core.loop.Loop`: a guest may run it instead.
    """

    def __init__(self, name: str) -> None:
        self._tasks: deque[Task] = deque()
        self._delayed: list[tuple[float, int, Task]] = []
        self._numbers = itertools.count()
        self._handlers: dict[Any, Handler] = {}
        self._poller = zmq.Poller()
        self._waker = Waker()
        self.register(self._waker.fileno(), lambda _events: self._waker.clear())
        self._asleep = False
        self._lock = threading.Lock()
        self._at_end: Task | None = None
        self._guest: threading.Thread | None = None
        """Who runs the loop, or is to, instead of the thread that was made for it."""
        self._given, self._back = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._runner: threading.Thread = self._thread
        self._thread.start()

    # -- from any thread ---------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """Have `task` run by the thread, after those that were submitted before it."""
        self._tasks.append(task)
        self.wake()

    def wake(self) -> None:
        """End the turn that waits, if one does: what it is to look at has changed."""
        if self._asleep:
            self._wake()

    def is_current(self) -> bool:
        """Whether the caller is the thread that runs the loop."""
        return threading.current_thread() is self._runner

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

    # -- from a guest ------------------------------------------------------------------------------

    def turn(self, wait_s: float, ready: Callable[[], bool]) -> bool:
        """Run the loop once in the caller's thread, which takes it over with its first turn."""
        if not self.is_current() and not self._taken_over():
            return False
        try:
            self._once(wait_s, ready)
        except BaseException:
            self.leave()
            raise
        if self._at_end is not None:
            self.leave()
        return self.is_current()

    def leave(self) -> None:
        """Give the loop back to its own thread, if the caller has it."""
        if self.is_current():
            self._runner = self._thread
            self._back.set()

    def _taken_over(self) -> bool:
        with self._lock:
            if self._guest is not None:
                return False
            self._guest = threading.current_thread()
        self.wake()
        self._given.wait()
        return self.is_current()

    # -- from the thread itself --------------------------------------------------------------------

    def register(self, source: Source, handler: Handler) -> None:
        """Poll `source` for reading; call `handler` when there is something to read."""
        self._handlers[source] = handler
        self._poller.register(source, zmq.POLLIN)

    def want_write(self, source: Socket, wanted: bool) -> None:
        """Poll a registered `source` for writing too, or no more."""
        self._poller.register(source, zmq.POLLIN | zmq.POLLOUT if wanted else zmq.POLLIN)

    def unregister(self, source: Source) -> None:
        """Poll `source` no more."""
        if self._handlers.pop(source, None) is not None:
            self._poller.unregister(source)

    def later(self, delay_s: float, task: Task) -> None:
        """Submit `task` after `delay_s` seconds."""
        due = time.monotonic() + delay_s
        heapq.heappush(self._delayed, (due, next(self._numbers), task))

    # -- the loop ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._at_end is None:
            if self._guest is not None:
                self._lend(self._guest)
            else:
                self._once(math.inf, self._is_wanted)
        self._given.set()  # whoever waits for the loop waits in vain
        self._guard(self._at_end)
        with self._lock:
            self._asleep = False
            self._waker.close()

    def _is_wanted(self) -> bool:
        return self._guest is not None

    def _lend(self, guest: threading.Thread) -> None:
        """Rest while another thread runs the loop, until it gives it back, or is no more."""
        self._runner = guest
        self._given.set()
        while not self._back.wait(GUEST_LOOK_S) and guest.is_alive():
            pass
        self._runner = self._thread
        self._given.clear()
        self._back.clear()
        self._guest = None

    def _once(self, wait_s: float, ready: Callable[[], bool]) -> None:
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            self._tasks.append(heapq.heappop(self._delayed)[2])
        for _ in range(len(self._tasks)):
            self._guard(self._tasks.popleft())
        for source, events in self._poll(wait_s, ready):
            handler = self._handlers.get(source)
            if handler is not None:  # an earlier handler of this turn may have closed it
                self._guard(handler, events)

    def _poll(self, wait_s: float, ready: Callable[[], bool]) -> list[tuple[Any, int]]:
        if self._delayed:
            wait_s = min(wait_s, max(0.0, self._delayed[0][0] - time.monotonic()))
        self._asleep = True
        if self._tasks or self._at_end or ready():
            wait_s = 0.0
            self._asleep = False
        try:
            return self._poller.poll(None if wait_s == math.inf else math.ceil(1000 * wait_s))
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


def receive(
    socket: Socket, known: Container[bytes] | None = None
) -> tuple[list[bytes], zmq.Frame | None] | None:
    """One message, or `None` when there is none; at most `MAX_FRAMES` of its frames are kept.

    Of a ROUTER's message whose first frame is not `known` the second comes as a `zmq.Frame` as
    well, which knows the connection: making one takes ten times as long as receiving bytes.
    """
    try:
        frames = [_recv(socket, _LAST)]
    except zmq.Again:
        return None
    source = None
    if known is not None and frames[0] not in known and _get(socket, zmq.RCVMORE):
        source = socket.recv(_LAST, copy=False)
        frames.append(source.bytes)
    while _get(socket, zmq.RCVMORE):
        frame = _recv(socket, _LAST)
        if len(frames) < MAX_FRAMES:
            frames.append(frame)
    return frames, source


def descriptor(frame: zmq.Frame | None) -> int:
    """The file descriptor of the connection that a frame came over; -1 if libzmq does not say."""
    if frame is None:
        return -1
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1


def monitor(socket: Socket, events: int) -> Socket:
    """A socket that receives the `events` (`zmq.EVENT_*`) of another one.

    Under a name of its own: pyzmq would name it after a file descriptor, which the system gives to
    the next socket while libzmq still closes this one ("Address already in use").

    Raises:
        zmq.ZMQError: the process has no more file descriptors.
    """
    return socket.get_monitor_socket(events, f"inproc://monitor-{uuid.uuid4()}")
