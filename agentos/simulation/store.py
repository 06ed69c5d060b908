"""The store's process: commits in groups, and the ways in which a database fails.

As `agentos.runtime.actors.StoreActor` does it: everything that waits is one transaction; the
answers leave after its commit; when it fails as a whole, its messages are tried one by one.
"""

from __future__ import annotations

from typing import Any

from agentos.core import messages as m
from agentos.core.errors import StorageError
from agentos.core.limits import Limits
from agentos.core.ports import Database
from agentos.core.store import StoreMachine
from agentos.simulation.faults import Armed
from agentos.simulation.ledger import Change
from agentos.simulation.links import Process
from agentos.simulation.port import World

COMMIT_S = 0.002
"""How long a commit takes while the disk is well."""
SLOW = 400
"""How many times longer it takes while the disk is slow."""


class StoreHost:
    """The store's machine with its database, its waiting line and its faults.

    Args:
        world: the simulation.
        process: the one that it is in.
        database: what survives the process.
        limits: bounds.
    """

    def __init__(self, world: World, process: Process, database: Database, limits: Limits) -> None:
        self.database = database
        self.slow_until = 0.0
        self._world = world
        self._process = process
        self._limits = limits
        self._waiting: list[m.Envelope] = []
        self._busy = False

    def make(self) -> StoreMachine:
        """What a new process begins with: nothing waits."""
        self._waiting, self._busy = [], False
        return StoreMachine(self.database, self._limits)

    def deliver(self, envelope: m.Envelope) -> None:
        """A request: it is carried out with the next commit."""
        self._waiting.append(envelope)
        if not self._busy:
            self._busy = True
            slow = SLOW if self._world.now < self.slow_until else 1
            due = self._world.now + COMMIT_S * slow
            self._world.at(due, self._commit, self._process.incarnation)

    def _commit(self, incarnation: int, _: Any = None) -> None:
        process = self._process
        if process.incarnation != incarnation or not process.alive:
            return
        if process.paused:
            process.held.append((self._commit, incarnation, None))
            return
        self._busy = False
        batch, self._waiting = self._waiting[: self._limits.batch], []
        crash = self._fault("crash_in_step", batch) or self._fault("crash_after_commit", batch)
        lost = self._fault("answer_lost", batch)
        answers = self._handle_all(batch)
        if crash is not None:
            self._world.hit(crash.kind, "the store dies after a commit, before its answers leave")
            answers = answers[: int(len(answers) * crash.share)]
        if lost is not None:
            self._world.hit("answer_lost", f"{len(answers)} answers of the store")
            answers = []
        for envelope, sends in answers:
            self._world.handled(process, envelope, sends)
        if crash is not None:
            self._world.kill(process, crash.for_s)

    def _fault(self, kind: str, batch: list[m.Envelope]) -> Armed | None:
        """An armed fault that this batch is the occasion for."""
        for armed in self._process.armed:
            if armed.kind == kind and any(armed.meets(envelope) for envelope in batch):
                armed.strike()
                if armed.spent:
                    self._process.armed.remove(armed)
                return armed
        return None

    def _handle_all(self, batch: list[m.Envelope]) -> list[tuple[m.Envelope, list[m.Send]]]:
        try:
            return self._transaction(batch)
        except StorageError as error:
            if len(batch) == 1:
                refused = m.Refused(code=error.code, reason=str(error), retry_after_s=1.0)
                return [(batch[0], [m.Send(batch[0].sender, refused, batch[0].ref)])]
        return [answer for envelope in batch for answer in self._handle_all([envelope])]

    def _transaction(self, batch: list[m.Envelope]) -> list[tuple[m.Envelope, list[m.Send]]]:
        machine, database = self._process.machine, self.database
        assert machine is not None, "a store that commits has been started"
        done: list[tuple[m.Envelope, list[m.Send]]] = []
        changes = []
        with database.transaction():
            for envelope in batch:
                sends = machine.handle(envelope, self._world.now)
                done.append((envelope, sends))
                if type(envelope.message) in CHANGING and sends:
                    changes.append(self._change(envelope, sends[0].message))
            if self._fault("storage_fail", batch):
                self._world.hit("storage_fail", f"a transaction of {len(batch)} is rolled back")
                raise StorageError("simulated://: disk I/O error")
        if changes:
            self._world.committed(changes)
        return done

    def _change(self, envelope: m.Envelope, answer: m.Message) -> Change:
        question = envelope.message
        assert isinstance(question, m.Message), "the store reads what it is sent"
        task_id: int = getattr(answer, "task_id", 0) or getattr(question, "task_id", 0)
        rows: tuple[m.SavedRow | None, ...] = ()
        if isinstance(question, m.Record):
            rows = tuple(self.database.get_progress(task_id, row.node_id) for row in question.rows)
        task = self.database.get_task(task_id) if task_id else None
        return Change(question, envelope.sender, answer, task, rows)


CHANGING = frozenset({m.CreateTask, m.Claim, m.Record, m.CancelTask})
