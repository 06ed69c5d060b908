"""The Pykka shells: threads, clocks and mailboxes around the machines.

A shell takes everything that waits, lets the machine handle it message by message, and hands all
that came out to the switch at once. The mailbox is also the alarm clock: when nothing comes
before the machine's next deadline, it yields a `Tick`.
"""

from __future__ import annotations

import itertools
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec
import pykka
import structlog

from agentos.core import messages as m
from agentos.core.errors import StorageError
from agentos.core.gateway import GatewayMachine
from agentos.core.ports import Database, Machine
from agentos.core.proxy import ProxyMachine
from agentos.core.region import RegionMachine
from agentos.core.rows import joined
from agentos.core.store import StoreMachine
from agentos.runtime import turns
from agentos.runtime.journal import Journal
from agentos.runtime.mailbox import Batch, Mailbox
from agentos.runtime.switch import Switch

log = structlog.get_logger()

MAX_FAILURES = 10
FAILURE_WINDOW_S = 60.0
TURN_S = 0.02
"""How long an actor handles messages before it looks at the time, and lets others have their turn."""


class MachineActor(pykka.ThreadingActor):
    """Runs one machine.

    A message that makes the machine raise is dropped and logged, and the machine is made anew:
    its state may be half changed, and everything that matters is in the database. After
    `MAX_FAILURES` within a minute the next one stops the actor, which tells its owner.

    Args:
        make: builds the machine, at the start and after a failure.
        switch: where its messages go.
        on_give_up: called when it stops because of failures.
        drained: set once everything that was held has been handed back, after a `Drain`.
    """

    use_daemon_thread = True

    def __init__(
        self,
        make: Callable[[], Machine],
        switch: Switch,
        *,
        on_give_up: Callable[[str], None] | None = None,
        drained: threading.Event | None = None,
    ) -> None:
        self._limits = switch.limits
        super().__init__()
        self._make = make
        self._machine = make()
        self.address = self._machine.address
        self._switch = switch
        self._on_give_up = on_give_up
        self._drained = drained or threading.Event()
        self._failures: deque[float] = deque(maxlen=MAX_FAILURES)
        self._gave_up = False
        self._log = log.bind(role=self.address)
        self._journal = Journal(self._log)
        inbox = self._mailbox()
        # Not the bound method: the machine is another one after a failure.
        inbox.deadline = lambda: self._machine.next_deadline()  # noqa: PLW0108

    def _create_actor_inbox(self) -> Mailbox:  # type: ignore[override]
        return Mailbox(self._limits.mailbox, self._limits.batch, self._limits.peer_bytes)

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
        """Handle messages, then whatever has become due, and send everything that came out.

        What does not fit into `TURN_S` goes back to the mailbox: a flood of costly requests keeps
        neither a heartbeat nor another sender waiting for longer than that.
        """
        if self._gave_up:
            return
        now = time.monotonic()
        waiting, mailbox = deque(message), self._mailbox()
        turn = turns.opened(mailbox, self._switch, waiting, now + TURN_S)
        out = self._handle_all(turn, now) if waiting else []
        if waiting:
            mailbox.put_back(list(waiting))
        due = self._machine.next_deadline()
        if due is not None and due <= now and not self._gave_up:
            tick = m.Envelope(self.address, self.address, m.Tick())
            out += turns.handled(self._machine, self.address, [tick], now, self._failed)
        if out:
            self._send(out)
        if self._machine.drained:
            self._drained.set()

    def _send(self, out: Batch) -> None:
        self._journal.note(out)
        self._switch.send(out)

    def _handle_all(self, turn: Iterable[m.Envelope], now: float) -> Batch:
        return turns.handled(self._machine, self.address, turn, now, self._failed)

    def _failed(self, envelope: m.Envelope, now: float) -> Machine | None:
        """The machine that goes on after this one has raised; none if that was once too often."""
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
            return None
        self._failures.append(now)
        self._machine = self._make()
        return self._machine

    def _give_up(self) -> None:
        self._gave_up = True
        if self._on_give_up is not None:
            self._on_give_up(self.address)


class CountingActor(MachineActor):
    """Adds what its switch has counted to what its machine reports to people."""

    def _send(self, out: Batch) -> None:
        super()._send([self._with_counters(answer) for answer in out])

    def _with_counters(self, envelope: m.Envelope) -> m.Envelope:
        said = envelope.message
        if not isinstance(said, m.ClusterInfo | m.RegionBeat):
            return envelope
        counters = {**said.counters, **self._switch.counters}
        counted = msgspec.structs.replace(said, counters=counters)
        return msgspec.structs.replace(envelope, message=counted)


class GatewayActor(CountingActor):
    """A gateway on a thread of its own."""

    def __init__(self, address: str, switch: Switch, **options: Any) -> None:
        def make() -> Machine:
            return GatewayMachine(switch.limits, address=address, incarnation=secrets.token_hex(8))

        super().__init__(make, switch, **options)


class RegionActor(CountingActor):
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

    def _send(self, out: Batch) -> None:
        super()._send(joined(out, self._limits.page_bytes))


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

    def _handle_all(self, turn: Iterable[m.Envelope], now: float) -> Batch:
        more = iter(turn)
        taken = list(itertools.islice(more, 1))
        if not taken:
            return []
        try:
            return self._commit(taken, more, now)
        except Exception as error:  # noqa: BLE001 - the shell's boundary
            known = isinstance(error, StorageError)
            if len(taken) > 1:
                self._log.warning(
                    "batch_failed", messages=len(taken), error=str(error), exc_info=not known
                )
                self._switch.counters["batch_failures"] += 1
                return [one for envelope in taken for one in self._handle_all([envelope], now)]
            if isinstance(error, StorageError):
                return self._refuse(taken[0], error)
            self._failed(taken[0], now)
            return self._refuse(taken[0], StorageError("the request broke the store"))

    def _commit(self, taken: Batch, more: Iterable[m.Envelope], now: float) -> Batch:
        """Handle what was taken and what more the turn has; adds that to `taken`."""

        def all_of_them() -> Iterator[m.Envelope]:
            yield taken[0]
            for envelope in more:
                taken.append(envelope)
                yield envelope

        machine = self._machine
        assert isinstance(machine, StoreMachine), "made by __init__"
        with self._database.transaction():
            sends = machine.handle_all(all_of_them(), now)
        for send in sends:
            self._count(send.message)
        return turns.envelopes(self.address, sends)

    def _count(self, answer: m.Message) -> None:
        """What was refused; in a gateway's process `agentos status --cluster` shows it."""
        if isinstance(answer, m.Refused):
            self._switch.counters[f"store_refused.{answer.code}"] += 1
        elif isinstance(answer, m.Recorded) and answer.outcome == "stale":
            self._switch.counters["writes_stale"] += 1
        elif isinstance(answer, m.Claimed) and not answer.granted:
            self._switch.counters["claims_not_granted"] += 1

    def _refuse(self, envelope: m.Envelope, error: StorageError) -> Batch:
        self._log.error("storage_failed", error=str(error))
        self._switch.counters["storage_failures"] += 1
        refused = m.Refused(code=error.code, reason=str(error)[:500], retry_after_s=1.0)
        return [m.Envelope(envelope.sender, self.address, refused, envelope.ref)]
