"""The storage port in plain dictionaries: the model that the real one is tested against.

Written to be obviously right rather than fast, and yet to carry the simulator: a transaction costs
what it touches. Nothing but the given clock comes from outside, so the same calls give the same
answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import AgentOSError, LocalProtocolError
from agentos.core.ports import Document, SaveOutcome
from agentos.storage import values
from agentos.storage.memory_reading import MemoryReader
from agentos.storage.memory_tables import TaskRow


class MemoryDatabase(MemoryReader):
    """The database port (`agentos.core.ports.Database`) in memory.

    Args:
        url: `memory://`, with any name after it; each instance is a database of its own.
        clock: Unix seconds for `created_at` and `updated_at`, which only people look at.

    Raises:
        LocalProtocolError: the URL's scheme is another one.
    """

    def __init__(self, url: str = "memory://", *, clock: Callable[[], float] = time.time) -> None:
        if not url.startswith("memory://"):
            raise LocalProtocolError(f"{url!r} is no URL of the in-memory storage; use memory://")
        super().__init__()
        self._clock = clock

    def transaction(self) -> AbstractContextManager[None]:
        """Keep everything inside together; undo all of it on an exception. May be nested."""
        return self._tables.transaction()

    def close(self) -> None:
        """Refuse everything from now on. Idempotent.

        Raises:
            LocalProtocolError: a transaction is open; nothing was closed.
        """
        self._tables.close()

    def _task(self, task_id: int, epoch: Epoch | None = None) -> TaskRow:
        """The task, if there is one and a claim may have issued `epoch` for it."""
        task = self._open.tasks.get(task_id)
        if task is None:
            raise values.not_found(task_id)
        if epoch is not None and epoch > task.epoch:
            raise values.unissued(task_id, epoch, task.epoch)
        return task

    def _change(self, task: TaskRow, **changes: Any) -> TaskRow:
        """Replace a task's row."""
        changed = msgspec.structs.replace(task, updated_at=self._clock(), **changes)
        self._open.put(self._open.tasks, task.task_id, changed)
        return changed

    # -- documents ---------------------------------------------------------------------------------

    def store_document(self, doc_type: str, doc_content: str) -> int:
        """Store a text; return its id, which is never used again."""
        values.check_texts("document", doc_type=doc_type, doc_content=doc_content)
        with self.transaction():
            doc_id = self._open.next_id("document")
            self._open.put(self._open.documents, doc_id, Document(doc_id, doc_type, doc_content))
            return doc_id

    def delete_document(self, doc_id: int) -> bool:
        """Delete a document; false if there is none.

        Raises:
            LocalProtocolError: it is a task's request or response, and goes when the task goes.
        """
        with self.transaction():
            for task in self._open.tasks.values():
                if doc_id in {task.request_doc_id, task.response_doc_id}:
                    raise values.document_in_use(doc_id, task.task_id)
            if doc_id not in self._open.documents:
                return False
            self._open.put(self._open.documents, doc_id, None)
            return True

    # -- tasks -------------------------------------------------------------------------------------

    def create_task(
        self,
        user_id: int,
        task_type: str,
        task_description: str,
        *,
        key: str | None = None,
        agents: Sequence[str] = (),
        priority: int = 0,
        claimant: str = "",
        region: str = "",
        owner: str = "",
    ) -> m.TaskCreated:
        """Insert a task and its request document, once for each key of a user; see the port."""
        epoch = values.check_new_task(
            user_id, task_type, task_description, key, agents, priority, claimant, region, owner
        )
        request = values.encode_request(user_id, task_type, key, task_description)
        with self.transaction():
            existing = None if key is None else self._open.keys.get((user_id, key))
            if key is not None and existing is not None:
                task = self._open.tasks[existing]
                if self._open.documents[task.request_doc_id].doc_content != request:
                    raise values.key_conflict(user_id, key, existing)
            else:
                now = self._clock()
                task = TaskRow(
                    task_id=self._open.next_id("task"),
                    user_id=user_id,
                    task_type=task_type,
                    task_description=task_description,
                    epoch=epoch,
                    region=region,
                    owner=owner,
                    state="running" if owner else "accepted",
                    claimant=claimant,
                    key=key,
                    agents=tuple(agents),
                    priority=priority,
                    request_doc_id=self.store_document("request", request),
                    created_at=now,
                    updated_at=now,
                )
                self._open.put(self._open.tasks, task.task_id, task)
                self._open.put(self._open.progress, task.task_id, {})
                if key is not None:
                    self._open.put(self._open.keys, (user_id, key), task.task_id)
        return m.TaskCreated(
            task_id=task.task_id,
            created=existing is None,
            state=task.state,
            epoch=task.epoch,
            region=task.region,
            owner=task.owner,
        )

    def update_task_type(self, task_id: int, task_type: str) -> bool:
        """Set the type of an unfinished task; false if it has ended, which changes nothing.

        Raises:
            TaskNotFound: there is no such task.
        """
        values.check_texts(f"task {task_id}", task_type=task_type)
        with self.transaction():
            task = self._task(task_id)
            if task.ended:
                return False
            self._change(task, task_type=task_type)
            return True

    def update_task_description(
        self, task_id: int, global_epoch: int, regional_epoch: int, task_description: str
    ) -> SaveOutcome:
        """Replace the description, fenced: the epoch must be the row's, the task not finished.

        Raises:
            TaskNotFound: there is no such task.
            UnissuedEpoch: no claim has issued this epoch.
        """
        values.check_texts(f"task {task_id}", task_description=task_description)
        epoch = Epoch(global_epoch, regional_epoch)
        with self.transaction():
            task = self._task(task_id, epoch)
            if epoch != task.epoch or task.ended:
                return SaveOutcome("stale", task.epoch, task.state)
            self._change(task, task_description=task_description)
            return SaveOutcome("applied", task.epoch, task.state)

    def delete_task(self, task_id: int) -> bool:
        """Delete a task that has ended, with its progress and documents; false if there is none.

        Raises:
            LocalProtocolError: the task has not ended; cancel it first.
        """
        with self.transaction():
            task = self._open.tasks.get(task_id)
            if task is None:
                return False
            if not task.ended:
                raise values.still_unfinished(task_id, task.state)
            self._open.put(self._open.progress, task_id, None)
            self._open.put(self._open.tasks, task_id, None)
            self._open.put(self._open.documents, task.request_doc_id, None)
            if task.response_doc_id is not None:
                self._open.put(self._open.documents, task.response_doc_id, None)
            if task.key is not None:
                self._open.put(self._open.keys, (task.user_id, task.key), None)
            return True

    # -- progress ----------------------------------------------------------------------------------

    def save_progress(
        self, task_id: int, node_id: str, global_epoch: int, regional_epoch: int, result: str
    ) -> SaveOutcome:
        """Record one row under the fence; see `record`."""
        return self.record(task_id, Epoch(global_epoch, regional_epoch), [m.Row(node_id, result)])

    def delete_progress(self, task_id: int, node_id: str) -> bool:
        """Delete one saved row, so that its node is run again; false if there is none."""
        with self.transaction():
            if self.get_progress(task_id, node_id) is None:
                return False
            self._open.put(self._open.progress[task_id], node_id, None)
            return True

    def record(
        self,
        task_id: int,
        epoch: Epoch,
        rows: Sequence[m.Row],
        end: m.End | None = None,
        *,
        writer: str = "",
    ) -> SaveOutcome:
        """Record rows and perhaps the end, all or nothing, under the fence; see the port.

        Of two rows of one node under one epoch the first stands.

        Raises:
            NotTheOwner: the claim of this epoch is another's.
            TaskNotFound: there is no such task.
            UnissuedEpoch: no claim has issued this epoch.
        """
        values.check_record(task_id, rows, end)
        with self.transaction():
            task = self._task(task_id, epoch)
            if writer and epoch == task.epoch and writer != task.owner:
                raise values.foreign(task_id, writer, task.owner)
            outcome = self._judge(task, epoch, rows, end)
            if outcome == "applied":
                saved = self._open.progress[task_id]
                for row in rows:
                    if row.node_id not in saved or saved[row.node_id].epoch < epoch:
                        self._open.put(
                            saved, row.node_id, m.SavedRow(row.node_id, epoch, row.result)
                        )
                if end is not None:
                    doc_id = self.store_document("response", end.response)
                    task = self._change(
                        task, state=end.state, error=end.error, response_doc_id=doc_id
                    )
            return SaveOutcome(outcome, task.epoch, task.state)

    def record_all(
        self, records: Sequence[tuple[str, m.Record]]
    ) -> list[SaveOutcome | AgentOSError]:
        """What `record` would do for each writer's record, one after another; see the port."""
        with self.transaction():
            return values.one_by_one(self.record, records)

    def _judge(self, task: TaskRow, epoch: Epoch, rows: Sequence[m.Row], end: m.End | None) -> str:
        """The fence, in the order of the port's docstring."""
        saved = self._open.progress[task.task_id]
        if epoch < task.epoch or task.state == "cancelled":
            return "stale"
        rows_are_there = all(
            row.node_id in saved and saved[row.node_id].epoch == epoch for row in rows
        )
        end_is_there = end is None or end.state == task.state
        if rows_are_there and end_is_there:
            return "duplicate"
        if task.ended or any(
            row.node_id in saved and saved[row.node_id].epoch > epoch for row in rows
        ):
            return "stale"
        return "applied"

    # -- claims ------------------------------------------------------------------------------------

    def claim(self, claim: m.Claim) -> m.Claimed:
        """Compare-and-set the task's epoch; granted again to the same claimant of the same claim.

        Raises:
            TaskNotFound: there is no such task.
        """
        epoch = values.check_claim(claim)
        with self.transaction():
            task = self._task(claim.task_id)
            if claim.scope == "global":
                granted, task = self._claim_global(claim, task, epoch)
            else:
                granted, task = self._claim_regional(claim, task, epoch)
        handed_over = granted and claim.scope == "regional"
        return m.Claimed(
            task_id=task.task_id,
            granted=granted,
            epoch=task.epoch,
            region=task.region,
            owner=task.owner,
            state=task.state,
            attempts=task.attempts,
            lost=task.lost,
            saved=len(self._open.progress[task.task_id]),
            task_description=task.task_description if handed_over else "",
        )

    def _claim_global(self, claim: m.Claim, task: TaskRow, epoch: Epoch) -> tuple[bool, TaskRow]:
        """Whether `epoch` is granted, and the task after it."""
        if task.ended:
            return False, task
        if task.epoch == claim.expected:
            return True, self._change(
                task,
                epoch=epoch,
                region=claim.region,
                owner="",
                claimant=claim.claimant,
                **self._history(task, lost=claim.lost),
            )
        holds = task.epoch == epoch and task.claimant == claim.claimant
        return holds and task.region == claim.region, task

    def _claim_regional(self, claim: m.Claim, task: TaskRow, epoch: Epoch) -> tuple[bool, TaskRow]:
        """Whether `epoch` is granted, and the task after it."""
        if task.ended or not claim.claimant or task.region != claim.claimant:
            return False, task
        if task.epoch == claim.expected:
            return True, self._change(
                task,
                epoch=epoch,
                owner=claim.owner,
                claimant=claim.claimant,
                state="running",
                **self._history(task, lost=claim.lost),
            )
        holds = task.epoch == epoch and task.claimant == claim.claimant
        return holds and task.owner == claim.owner, task

    def _history(self, task: TaskRow, *, lost: bool) -> dict[str, Any]:
        """The owners lost in a row without a saved row between: how many, and which."""
        rows = self._open.progress[task.task_id].values()
        advanced = any(row.epoch == task.epoch for row in rows)
        attempts, history = (0, "") if advanced else (task.attempts, task.lost)
        if lost and task.owner:
            epoch = task.epoch
            attempts += 1
            history += f"{task.owner} at {epoch.global_epoch}.{epoch.regional_epoch}; "
        return {"attempts": attempts, "lost": history}

    def cancel_task(self, task_id: int) -> m.Cancelled:
        """End it as cancelled at the next global epoch, unless it has ended.

        Returns:
            The terminal state that it has, and who had it last, to be told to stop.

        Raises:
            TaskNotFound: there is no such task.
        """
        with self.transaction():
            task = self._task(task_id)
            if not task.ended:
                epoch = values.issuable(task_id, task.epoch.next_global())
                task = self._change(task, epoch=epoch, state="cancelled", claimant="")
        return m.Cancelled(
            task_id=task_id,
            state=task.state,
            epoch=task.epoch,
            region=task.region,
            owner=task.owner,
        )
