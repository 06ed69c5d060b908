"""The database port on any relational database that Peewee reaches: all that is portable of it.

A subclass opens the connection and says how its dialect writes a parameter and locks a row. The
fence is here: a write looks at the task row and changes it in one transaction that holds the row,
and what an UPDATE really changed decides, never what Peewee reports of an upsert (Peewee #2100).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import peewee

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.ports import SaveOutcome
from agentos.storage import values
from agentos.storage.reading import Reader
from agentos.storage.transactions import writes

_CHUNK = 500
"""Rows that are looked up by one statement: half of SQLite's old bound of 999 parameters."""


class PeeweeDatabase(Reader):
    """The database port (`agentos.core.ports.Database`) over a Peewee connection."""

    # -- documents ---------------------------------------------------------------------------------

    @writes
    def store_document(self, doc_type: str, doc_content: str) -> int:
        """Store a text; return its id, which is never used again."""
        values.check_texts("document", doc_type=doc_type, doc_content=doc_content)
        return self._insert(self._sql.insert_document, (doc_type, doc_content))

    @writes
    def delete_document(self, doc_id: int) -> bool:
        """Delete a document; false if there is none.

        Raises:
            LocalProtocolError: it is a task's request or response, and goes when the task goes.
        """
        tasks, documents = self._models.tasks, self._models.documents
        used = (tasks.request_doc_id == doc_id) | (tasks.response_doc_id == doc_id)
        for (task_id,) in self._select(tasks.select(tasks.task_id).where(used).limit(1)):
            raise values.document_in_use(doc_id, task_id)
        return bool(documents.delete().where(documents.doc_id == doc_id).execute())

    # -- tasks -------------------------------------------------------------------------------------

    @writes
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
    ) -> m.TaskCreated:
        """Insert a task and its request document, once for each key of a user; see the port."""
        values.check_new_task(
            user_id, task_type, task_description, key, agents, priority, claimant, region
        )
        request = values.encode_request(user_id, task_type, key, task_description)
        if key is not None:
            existing = self._task_by_key(user_id, key, request)
            if existing is not None:
                return existing
        epoch = Epoch(1, 0) if region else Epoch(0, 0)
        now = self._clock()
        doc_id = self._insert(self._sql.insert_document, ("request", request))
        task_id = self._insert(
            self._sql.insert_task,
            (user_id, task_type, *_digits(epoch), region, claimant,
             key, values.encode_labels(agents), priority, doc_id,
             now, now, task_description),
        )  # fmt: skip
        return m.TaskCreated(
            task_id=task_id, created=True, state="accepted", epoch=epoch, region=region
        )

    def _task_by_key(self, user_id: int, key: str, request: str) -> m.TaskCreated | None:
        row = self._row(self._sql.task_by_key, (user_id, key))
        if row is None:
            return None
        task_id, state, global_epoch, regional_epoch, region, stored = row
        if stored is None or msgspec.json.decode(stored) != msgspec.json.decode(request):
            raise values.key_conflict(user_id, key, task_id)
        return m.TaskCreated(
            task_id=task_id,
            created=False,
            state=state,
            epoch=Epoch(global_epoch, regional_epoch),
            region=region,
        )

    def _insert(self, sql: str, parameters: tuple[Any, ...]) -> int:
        """Run an INSERT of one row; the id that it was given."""
        [(row_id,)] = self._rows(sql, parameters)
        return int(row_id)

    @writes
    def update_task_type(self, task_id: int, task_type: str) -> bool:
        """Set the type of an unfinished task; false if it has ended, which changes nothing.

        Raises:
            TaskNotFound: there is no such task.
        """
        values.check_texts(f"task {task_id}", task_type=task_type)
        if self._change(self._sql.update_type, (task_type, self._clock(), task_id)):
            return True
        self._fence(task_id)
        return False

    @writes
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
        current, state = self._fence(task_id, epoch)
        if epoch < current or state in m.TERMINAL:
            return SaveOutcome("stale", current, state)
        self._must_change(
            self._sql.update_description,
            (task_description, self._clock(), task_id, global_epoch, regional_epoch),
        )
        return SaveOutcome("applied", current, state)

    @writes
    def delete_task(self, task_id: int) -> bool:
        """Delete a task that has ended, with its progress and documents; false if there is none.

        Raises:
            LocalProtocolError: the task has not ended; cancel it first.
        """
        tasks, documents, progress = (
            self._models.tasks, self._models.documents, self._models.progress,
        )  # fmt: skip
        this = tasks.task_id == task_id
        columns = (tasks.state, tasks.request_doc_id, tasks.response_doc_id)
        rows = self._select(tasks.select(*columns).where(this))
        if not rows:
            return False
        state, *doc_ids = rows[0]
        if state not in m.TERMINAL:
            raise values.still_unfinished(task_id, state)
        progress.delete().where(progress.task_id == task_id).execute()
        tasks.delete().where(this).execute()
        documents.delete().where(documents.doc_id.in_([i for i in doc_ids if i])).execute()
        return True

    # -- progress ----------------------------------------------------------------------------------

    def save_progress(
        self, task_id: int, node_id: str, global_epoch: int, regional_epoch: int, result: str
    ) -> SaveOutcome:
        """Record one row under the fence; see `record`."""
        return self.record(task_id, Epoch(global_epoch, regional_epoch), [m.Row(node_id, result)])

    @writes
    def delete_progress(self, task_id: int, node_id: str) -> bool:
        """Delete one saved row, so that its node is run again; false if there is none."""
        progress = self._models.progress
        this = (progress.task_id == task_id) & (progress.node_id == node_id)
        return bool(progress.delete().where(this).execute())

    @writes
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
        if not (rows and self._add(task_id, epoch, rows, writer)):
            return self._judge(task_id, epoch, rows, end, writer)
        if end is not None:
            self._end(task_id, epoch, end)
        return SaveOutcome("applied", epoch, "running" if end is None else end.state)

    def _add(self, task_id: int, epoch: Epoch, rows: Sequence[m.Row], writer: str) -> bool:
        """Add rows of a running task if this owner may, all of them new; or none, and false.

        What nearly every record is, in one statement for each row: it finds the task's row, judges
        it and adds, and its row count says whether it did.
        """
        digits = _digits(epoch)
        for done, row in enumerate(rows):
            parameters = (row.node_id, row.result, task_id, *digits, writer, writer)
            if self._change(self._sql.add_row, parameters) != 1:
                for added in rows[:done]:
                    self._must_change(self._sql.delete_row, (task_id, added.node_id))
                return False
        return True

    def _judge(
        self,
        task_id: int,
        epoch: Epoch,
        rows: Sequence[m.Row],
        end: m.End | None,
        writer: str,
    ) -> SaveOutcome:
        """Record what is not all new, step by step: what is there decides."""
        current, state = self._fence(task_id, epoch, writer)
        if epoch < current or state == "cancelled":
            return SaveOutcome("stale", current, state)
        saved = self._saved_epochs(task_id, rows)
        ended = end is None or state == end.state
        if ended and all(saved.get(row.node_id) == epoch for row in rows):
            return SaveOutcome("duplicate", current, state)
        if state in m.TERMINAL or any(other > epoch for other in saved.values()):
            return SaveOutcome("stale", current, state)
        for row in rows:
            if saved.get(row.node_id) != epoch:
                saved[row.node_id] = epoch
                self._must_change(
                    self._sql.save_row,
                    (task_id, row.node_id, *_digits(epoch), row.result),
                )
        if end is not None:
            self._end(task_id, epoch, end)
        return SaveOutcome("applied", current, state if end is None else end.state)

    def _fence(
        self, task_id: int, epoch: Epoch | None = None, writer: str = ""
    ) -> tuple[Epoch, m.State]:
        """The task row's epoch and state, the row locked until the transaction ends."""
        row = self._row(self._sql.fence, (task_id,))
        if row is None:
            raise values.not_found(task_id)
        current = Epoch(row[0], row[1])
        if epoch is not None and epoch > current:
            raise values.unissued(task_id, epoch, current)
        if writer and epoch == current and writer != row[3]:
            raise values.foreign(task_id, writer, row[3])
        return current, row[2]

    def _saved_epochs(self, task_id: int, rows: Sequence[m.Row]) -> dict[str, Epoch]:
        """The epochs of those of these rows that are there."""
        nodes = [row.node_id for row in rows]
        found: dict[str, Epoch] = {}
        for start in range(0, len(nodes), _CHUNK):
            chunk = nodes[start : start + _CHUNK]
            for node_id, global_epoch, regional_epoch in self._rows(
                self._sql.saved_epochs(len(chunk)), (task_id, *chunk)
            ):
                found[node_id] = Epoch(global_epoch, regional_epoch)
        return found

    def _end(self, task_id: int, epoch: Epoch, end: m.End) -> None:
        doc_id = self._insert(self._sql.insert_document, ("response", end.response))
        self._must_change(
            self._sql.end,
            (end.state, end.error, doc_id, self._clock(), task_id, *_digits(epoch)),
        )

    def _must_change(self, sql: str, parameters: tuple[Any, ...]) -> None:
        """Run a write that the fence has allowed; the row count has the last word."""
        if self._change(sql, parameters) != 1:
            raise peewee.IntegrityError("a row was changed by another hand while it was locked")

    # -- claims ------------------------------------------------------------------------------------

    @writes
    def claim(self, claim: m.Claim) -> m.Claimed:
        """Compare-and-set the task's epoch; granted again to the same claimant of the same claim.

        Raises:
            TaskNotFound: there is no such task.
        """
        epoch = values.check_claim(claim)
        regional = claim.scope == "regional"
        region, owner = (claim.claimant, claim.owner) if regional else (claim.region, "")
        lost, expected = int(claim.lost), claim.expected
        parameters: tuple[Any, ...] = (
            epoch.global_epoch, epoch.regional_epoch, owner if regional else region,
            claim.claimant, self._clock(), lost, lost,
            claim.task_id, expected.global_epoch, expected.regional_epoch,
        )  # fmt: skip
        if regional:
            row = self._row(self._sql.claim_regional, (*parameters, region))
        else:
            row = self._row(self._sql.claim_global, parameters)
        if row is None:
            return self._not_claimed(claim, epoch, region, owner)
        state, attempts, lost, saved, description = row
        return m.Claimed(
            task_id=claim.task_id,
            granted=True,
            epoch=epoch,
            region=region,
            owner=owner,
            state=state,
            attempts=attempts,
            lost=lost,
            saved=saved,
            task_description=description,
        )

    def _not_claimed(self, claim: m.Claim, epoch: Epoch, region: str, owner: str) -> m.Claimed:
        """Nothing changed: the claim was granted before, or somebody else's row stands."""
        row = self._row(self._sql.ownership, (claim.task_id,))
        if row is None:
            raise values.not_found(claim.task_id)
        (global_epoch, regional_epoch, row_region, row_owner, claimant, state,
         attempts, lost, saved) = row  # fmt: skip
        current = Epoch(global_epoch, regional_epoch)
        mine = (epoch, region, owner, claim.claimant)
        again = mine == (current, row_region, row_owner, claimant) and state not in m.TERMINAL
        description = ""
        if again and claim.scope == "regional":
            description = self.get_task_description(claim.task_id) or ""
        return m.Claimed(
            task_id=claim.task_id,
            granted=again,
            epoch=current,
            region=row_region,
            owner=row_owner,
            state=state,
            attempts=attempts,
            lost=lost,
            saved=saved,
            task_description=description,
        )

    @writes
    def cancel_task(self, task_id: int) -> m.Cancelled:
        """End it as cancelled at the next global epoch, unless it has ended.

        Returns:
            The terminal state that it has, and who had it last, to be told to stop.

        Raises:
            TaskNotFound: there is no such task.
        """
        row = self._row(self._sql.ownership, (task_id,))
        if row is None:
            raise values.not_found(task_id)
        epoch, region, owner, state = Epoch(row[0], row[1]), row[2], row[3], row[5]
        if state not in m.TERMINAL:
            epoch, state = values.issuable(task_id, epoch.next_global()), "cancelled"
            self._must_change(self._sql.cancel, (*_digits(epoch), self._clock(), task_id))
        return m.Cancelled(task_id=task_id, state=state, epoch=epoch, region=region, owner=owner)


def _digits(epoch: Epoch) -> tuple[int, int]:
    return epoch.global_epoch, epoch.regional_epoch
