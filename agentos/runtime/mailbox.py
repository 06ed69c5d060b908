"""An actor's inbox: bounded, and fair to everybody who writes to it."""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pykka
import structlog
from pykka._envelope import Envelope as PykkaEnvelope

from agentos.core import messages as m
from agentos.core.errors import Overloaded
from agentos.core.loop import Loop
from agentos.core.weight import weight

log = structlog.get_logger()

Batch = list[m.Envelope]
LONGEST_WAIT_S = 3600.0


KEPT = 64
"""Lines that are kept though they are empty: what their senders have used is not forgotten at once."""
NEW_COST_S = 50e-6
"""What a message of a sender is expected to take that nothing is known of."""


class Line:
    """What waits from one sender. `at`: its next turn, in seconds of the actor's work."""

    __slots__ = ("at", "cost_s", "waiting")

    def __init__(self, at: float) -> None:
        self.at = at
        self.cost_s = NEW_COST_S
        self.waiting: deque[m.Envelope] = deque()


class Mailbox:
    """What waits for one actor, which gives each sender the same time: a flood delays itself only.

    Whoever has had the least of the actor's time is next (fair queueing by virtual time: Demers,
    Keshav and Shenker, SIGCOMM 1989); the messages of one sender keep their order. Satisfies
    Pykka's inbox protocol. A `queue.SimpleQueue` hands over forty times faster than the
    `queue.Queue` that Pykka uses.

    Args:
        bound: envelopes that may wait.
        batch: envelopes that are taken at once.
        share: bytes that may wait from one sender, by `core.weight`; no bound if None.
    """

    def __init__(self, bound: int, batch: int, share: int | None = None) -> None:
        self.deadline: Callable[[], float | None] = lambda: None
        self._inlet: queue.SimpleQueue[Batch | PykkaEnvelope[Any]] = queue.SimpleQueue()
        self._lines: dict[str, Line] = {}
        """What waits, by sender. This and all down to `_held` are touched by the actor's thread only."""
        self._waiting = 0
        """How many messages are in the lines."""
        self._kept = KEPT
        self._clock_s = 0.0
        self._held: PykkaEnvelope[Any] | None = None
        """A message of Pykka's own: its turn is when all is taken that came before it."""
        self._bound = bound
        self._batch = batch
        self._share = share
        self._lock = threading.Lock()
        self._count = 0
        self._weights: dict[str, int] = {}
        self._closed = False
        self._loop: Loop | None = None

    def attend(self, loop: Loop) -> None:
        """From the next `get` on, wait by turning this loop, in the actor's thread."""
        with self._lock:
            if self._closed:
                return  # nobody would turn it
            self._loop = loop
        self._inlet.put([])  # it may be waiting already

    def put(self, envelope: PykkaEnvelope[Any]) -> None:
        """Add Pykka's own messages, and whatever comes through an `ActorRef`."""
        self._enter(envelope)

    def deliver(self, batch: Batch) -> None:
        """Add messages; those of one call are of one sender, or are refused for what others wrote.

        Raises:
            Overloaded: they would be over a bound; nothing was added.
            pykka.ActorDeadError: the actor has stopped.
        """
        with self._lock:
            if self._closed:
                raise pykka.ActorDeadError("the actor has stopped")
            if self._count + len(batch) > self._bound:
                raise Overloaded(f"{self._count} messages wait in the mailbox")
            weights = self._weigh(batch)
            self._count += len(batch)
            self._weights |= weights
        self._enter(batch)

    def _enter(self, came: Batch | PykkaEnvelope[Any]) -> None:
        self._inlet.put(came)
        if (loop := self._loop) is not None:
            loop.wake()

    def _weigh(self, batch: Batch) -> dict[str, int]:
        """What the senders will have waiting; one message is let in whatever it weighs."""
        weights: dict[str, int] = {}
        for envelope in batch:
            sender = envelope.sender
            before = weights.get(sender) or self._weights.get(sender, 0)
            weights[sender] = before + weight(envelope.message)
            if before and self._share is not None and weights[sender] > self._share:
                raise Overloaded(f"{sender!r} has {before} bytes waiting in the mailbox already")
        return weights

    def close(self) -> None:
        """Take no more batches: nobody will read them. From the actor's thread."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.leave()

    def get(self) -> PykkaEnvelope[Any]:
        """Take what is next; an empty batch when the machine's deadline, or a turn, comes first."""
        self._let_in()
        if (loop := self._loop) is not None:
            self._turn(loop)
        if not self._waiting:
            if self._held is not None:
                held, self._held = self._held, None
                return held
            if self._loop is not None:
                return PykkaEnvelope([])
            try:
                self._sort(self._inlet.get(timeout=self._patience()))
            except queue.Empty:
                return PykkaEnvelope([])
            return self.get()
        batch = self._take()
        self._waiting -= len(batch)
        with self._lock:
            self._count -= len(batch)
            for envelope in batch:
                left = self._weights[envelope.sender] - weight(envelope.message)
                if left:
                    self._weights[envelope.sender] = left
                else:
                    del self._weights[envelope.sender]
        return PykkaEnvelope(batch)

    def _turn(self, loop: Loop) -> None:
        busy = self._waiting or self._held is not None
        try:
            mine = loop.turn(0.0 if busy else self._patience(), self._has_come)
        except Exception:  # the links are their own thread's again, and the actor goes on
            log.exception("loop_failed")
            loop.leave()
            mine = False
        if not mine:
            self._loop = None
        self._let_in()

    def _has_come(self) -> bool:
        return not self._inlet.empty()

    def _take(self) -> Batch:
        """A batch in the order of the turns, as far as it can be known what they will cost."""
        turns = [(line.at, sender) for sender, line in self._lines.items() if line.waiting]
        heapq.heapify(turns)
        self._clock_s = max(self._clock_s, turns[0][0])
        if len(turns) == 1:
            return _first(self._lines[turns[0][1]].waiting, self._batch)
        batch: Batch = []
        while turns and len(batch) < self._batch:
            at, sender = heapq.heappop(turns)
            line = self._lines[sender]
            batch.append(line.waiting.popleft())
            if line.waiting:
                heapq.heappush(turns, (at + line.cost_s, sender))
        return batch

    def charge(self, sender: str, seconds: float) -> None:
        """A message of this sender took so long: its next ones are expected to do the same."""
        line = self._lines.get(sender)
        if line is not None:
            line.at += seconds
            line.cost_s = (line.cost_s + seconds) / 2

    def put_back(self, rest: Batch) -> None:
        """The actor has not come to these, the last ones that it took."""
        self._waiting += len(rest)
        for envelope in reversed(rest):
            line = self._lines.setdefault(envelope.sender, Line(self._clock_s))
            line.waiting.appendleft(envelope)
        with self._lock:
            self._count += len(rest)
            for envelope in rest:
                known = self._weights.get(envelope.sender, 0)
                self._weights[envelope.sender] = known + weight(envelope.message)

    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting and self._held is None and self._inlet.empty()

    def __len__(self) -> int:
        return self._count

    def _forget(self) -> None:
        """Drop the lines that are empty and owe nothing, when there are many."""
        if len(self._lines) <= self._kept:
            return
        self._lines = {
            sender: line
            for sender, line in self._lines.items()
            if line.waiting or line.at > self._clock_s
        }
        self._kept = 2 * len(self._lines) + KEPT

    def _let_in(self) -> None:
        self._forget()
        while self._held is None and not self._inlet.empty():  # nobody else takes from it
            self._sort(self._inlet.get_nowait())

    def _sort(self, came: Batch | PykkaEnvelope[Any]) -> None:
        if isinstance(came, PykkaEnvelope):
            self._held = came
            return
        self._waiting += len(came)
        line: Line | None = None
        sender = ""
        for envelope in came:
            if line is None or envelope.sender != sender:  # most batches are of one
                sender = envelope.sender
                line = self._line(sender)
            line.waiting.append(envelope)

    def _line(self, sender: str) -> Line:
        """This sender's line; one that was empty has its turn no earlier than now."""
        line = self._lines.get(sender)
        if line is None:
            line = self._lines[sender] = Line(self._clock_s)
        if not line.waiting:
            line.at = max(line.at, self._clock_s)
        return line

    def _patience(self) -> float:
        due = self.deadline()
        if due is None:
            return LONGEST_WAIT_S
        return min(LONGEST_WAIT_S, max(0.0, due - time.monotonic()))


def _first(waiting: deque[m.Envelope], most: int) -> Batch:
    """Take the first ones, at most so many."""
    if len(waiting) > most:
        return [waiting.popleft() for _ in range(most)]
    batch = list(waiting)
    waiting.clear()
    return batch
