"""The Pykka shells: threads, clocks and mailboxes around the machines.

A shell takes everything that waits, lets the machine handle it message by message, and hands all
that came out to the switch at once. The mailbox is also the alarm clock: when nothing comes
before the machine's next deadline, it yields a `Tick`.
"""

from __future__ import annotations

import queue
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pykka
import structlog
from pykka._envelope import Envelope as PykkaEnvelope

from agentos.core import messages as m
from agentos.core.errors import Overloaded, StorageError
from agentos.core.gateway import GatewayMachine
from agentos.core.ports import Database, Machine
from agentos.core.proxy import ProxyMachine
from agentos.core.region import RegionMachine
from agentos.core.store import StoreMachine
from agentos.runtime.switch import Switch

log = structlog.get_logger()

Batch = list[m.Envelope]
MAX_FAILURES = 10
FAILURE_WINDOW_S = 60.0
LONGEST_WAIT_S = 3600.0


class Mailbox:
    """An actor's inbox: batches of envelopes, merged as they are taken, bounded by their number.

    Satisfies Pykka's inbox protocol. A `queue.SimpleQueue` hands over forty times faster than the
    `queue.Queue` that Pykka uses by default.

    Args:
        bound: envelopes that may wait.
        batch: envelopes that are taken at once.
    """

    def __init__(self, bound: int, batch: int) -> None:
        self.deadline: Callable[[], float | None] = lambda: None
        self._queue: queue.SimpleQueue[PykkaEnvelope[Any]] = queue.SimpleQueue()
        self._held: deque[PykkaEnvelope[Any]] = deque()
        self._bound = bound
        self._batch = batch
        self._lock = threading.Lock()
        self._count = 0
        self._closed = False

    def put(self, envelope: PykkaEnvelope[Any]) -> None:
        """Add Pykka's own messages, and whatever comes through an `ActorRef`."""
        self._queue.put(envelope)

    def deliver(self, batch: Batch) -> None:
        """Add a batch.

        Raises:
            Overloaded: it would be over the bound; nothing was added.
            pykka.ActorDeadError: the actor has stopped.
        """
        with self._lock:
            if self._closed:
                raise pykka.ActorDeadError("the actor has stopped")
            if self._count + len(batch) > self._bound:
                raise Overloaded(f"{self._count} messages wait in the mailbox")
            self._count += len(batch)
        self._queue.put(PykkaEnvelope(batch))

    def close(self) -> None:
        """Take no more batches: nobody will read them."""
        with self._lock:
            self._closed = True

    def get(self) -> PykkaEnvelope[Any]:
        """Take what waits, merged; an empty batch when the machine's deadline comes first."""
        if self._held:
            return self._held.popleft()
        try:
            first = self._queue.get(timeout=self._patience())
        except queue.Empty:
            return PykkaEnvelope([])
        if not isinstance(first.message, list):
            return first
        batch: Batch = list(first.message)
        while len(batch) < self._batch:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                break
            if not isinstance(more.message, list):
                self._held.append(more)
                break
            batch += more.message
        with self._lock:
            self._count -= len(batch)
        return PykkaEnvelope(batch)

    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._held and self._queue.empty()

    def __len__(self) -> int:
        return self._count

    def _patience(self) -> float:
        due = self.deadline()
        if due is None:
            return LONGEST_WAIT_S
        return min(LONGEST_WAIT_S, max(0.0, due - time.monotonic()))


class MachineActor(pykka.ThreadingActor):
    """Runs one machine.

    A message that makes the machine raise is dropped and logged, and the machine is made anew:
    its state may be half changed, and everything that matters is in the database. After
    `MAX_FAILURES` within a minute the actor stops and tells its owner.

    Args:
        make: builds the machine, at the start and after a failure.
        switch: where its messages go.
        on_give_up: called when it stops because of failures.
    """

    use_daemon_thread = True

    def __init__(
        self,
        make: Callable[[], Machine],
        switch: Switch,
        *,
        on_give_up: Callable[[str], None] | None = None,
    ) -> None:
        self._limits = switch.limits
        super().__init__()
        self._make = make
        self._machine = make()
        self.address = self._machine.address
        self._switch = switch
        self._on_give_up = on_give_up
        self._failures: deque[float] = deque(maxlen=MAX_FAILURES)
        self._gave_up = False
        self._log = log.bind(role=self.address)
        inbox = self._mailbox()
        # Not the bound method: the machine is another one after a failure.
        inbox.deadline = lambda: self._machine.next_deadline()  # noqa: PLW0108

    def _create_actor_inbox(self) -> Mailbox:  # type: ignore[override]
        return Mailbox(self._limits.mailbox, self._limits.batch)

    def _mailbox(self) -> Mailbox:
        inbox: Any = self.actor_inbox
        assert isinstance(inbox, Mailbox)
        return inbox

    @property
    def deliver(self) -> Callable[[Batch], None]:
        """Where the switch puts batches for this actor."""
        return self._mailbox().deliver

    def on_stop(self) -> None:
        """Refuse what still comes."""
        self._mailbox().close()

    def on_failure(self, *_fault: Any) -> None:
        """The shell itself failed: Pykka has logged it, and the thread ends."""
        self._mailbox().close()
        self._give_up()

    def on_receive(self, message: Batch) -> None:
        """Handle a batch, then whatever has become due, and send everything that came out."""
        now = time.monotonic()
        out = self._handle_all(message, now)
        due = self._machine.next_deadline()
        if due is not None and due <= now:
            out += self._handle(m.Envelope(self.address, self.address, m.Tick()), now)
        if out:
            self._switch.send(out)

    def _handle_all(self, batch: Batch, now: float) -> Batch:
        out: Batch = []
        for envelope in batch:
            out += self._handle(envelope, now)
        return out

    def _handle(self, envelope: m.Envelope, now: float) -> Batch:
        if self._gave_up:
            return []
        try:
            sends = self._machine.handle(envelope, now)
        except Exception:  # noqa: BLE001 - the shell's boundary: nothing off the wire stops an actor
            self._failed(envelope, now)
            return []
        return _envelopes(self.address, sends)

    def _failed(self, envelope: m.Envelope, now: float) -> None:
        self._log.exception(
            "machine_failed",
            message=type(envelope.message).__name__,
            sender=envelope.sender,
            task_id=getattr(envelope.message, "task_id", None),
        )
        self._switch.counters["machine_failures"] += 1
        if len(self._failures) == MAX_FAILURES and now - self._failures[0] < FAILURE_WINDOW_S:
            self._log.error("actor_gives_up", failures=MAX_FAILURES, within_s=FAILURE_WINDOW_S)
            self.stop()
            self._give_up()
            return
        self._failures.append(now)
        self._machine = self._make()

    def _give_up(self) -> None:
        self._gave_up = True
        if self._on_give_up is not None:
            self._on_give_up(self.address)


class GatewayActor(MachineActor):
    """A gateway on a thread of its own."""

    def __init__(self, address: str, switch: Switch, **options: Any) -> None:
        def make() -> Machine:
            return GatewayMachine(switch.limits, address=address, incarnation=secrets.token_hex(8))

        super().__init__(make, switch, **options)


class RegionActor(MachineActor):
    """A region on a thread of its own."""

    def __init__(self, address: str, switch: Switch, **options: Any) -> None:
        def make() -> Machine:
            return RegionMachine(address, switch.limits, incarnation=secrets.token_hex(8))

        super().__init__(make, switch, **options)


class ProxyActor(MachineActor):
    """A proxy on a thread of its own. `offers`: the agents that it runs, with calls at a time."""

    def __init__(
        self, address: str, switch: Switch, offers: Mapping[str, int], **options: Any
    ) -> None:
        def make() -> Machine:
            return ProxyMachine(
                address,
                offers,
                switch.limits,
                chance=random.random,
                incarnation=secrets.token_hex(8),
            )

        super().__init__(make, switch, **options)


class StoreActor(MachineActor):
    """The store on a thread of its own: everything that waits is one transaction (group commit).

    The answers leave only after the commit. When a transaction fails as a whole, its messages are
    tried again one by one, so that one of them cannot spoil it for the others.
    """

    def __init__(self, database: Database, switch: Switch, **options: Any) -> None:
        self._database = database
        super().__init__(lambda: StoreMachine(database, switch.limits), switch, **options)

    def on_stop(self) -> None:
        """Release the database."""
        super().on_stop()
        self._database.close()

    def _handle_all(self, batch: Batch, now: float) -> Batch:
        try:
            return self._commit(batch, now)
        except StorageError as error:
            if len(batch) == 1:
                return self._refuse(batch[0], error)
        except Exception:  # noqa: BLE001 - the shell's boundary
            if len(batch) == 1:
                self._failed(batch[0], now)
                return self._refuse(batch[0], StorageError("the request broke the store"))
        return [answer for envelope in batch for answer in self._handle_all([envelope], now)]

    def _commit(self, batch: Batch, now: float) -> Batch:
        if not batch:
            return []
        out: Batch = []
        with self._database.transaction():
            for envelope in batch:
                out += _envelopes(self.address, self._machine.handle(envelope, now))
        return out

    def _refuse(self, envelope: m.Envelope, error: StorageError) -> Batch:
        self._log.error("storage_failed", error=str(error))
        self._switch.counters["storage_failures"] += 1
        refused = m.Refused(code=error.code, reason=str(error)[:500], retry_after_s=1.0)
        return [m.Envelope(envelope.sender, self.address, refused, envelope.ref)]


def _envelopes(sender: str, sends: Sequence[m.Send]) -> Batch:
    return [m.Envelope(send.to, sender, send.message, send.ref) for send in sends]
