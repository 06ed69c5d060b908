"""The database port on any relational database that Peewee reaches: all that is portable of it.

A subclass opens the connection and says how its dialect writes a parameter and locks a row. A
claim is compared and set in one UPDATE, and what the row says after it is the answer; no decision
rests on what Peewee reports of an upsert (Peewee #2100). The fence of a record is in `recording`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.ports import SaveOutcome
from agentos.storage import values
from agentos.storage.recording import Recorder, digits
from agentos.storage.transactions import writes


class PeeweeDatabase(Recorder):
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
        owner: str = "",
    ) -> m.TaskCreated:
        """Insert a task and its request document, once for each key of a user; see the port."""
        epoch = values.check_new_task(
            user_id, task_type, task_description, key, agents, priority, claimant, region, owner
        )
        request = values.encode_request(user_id, task_type, key, task_description)
        if key is not None:
            existing = self._task_by_key(user_id, key, request)
            if existing is not None:
                return existing
        now = self._clock()
        state: m.State = "running" if owner else "accepted"
        doc_id = self._insert(self._sql.insert_document, ("request", request))
        task_id = self._insert(
            self._sql.insert_task,
            (user_id, task_type, *digits(epoch), region, owner, claimant, state,
             key, values.encode_labels(agents), priority, doc_id,
             now, now, task_description),
        )  # fmt: skip
        return m.TaskCreated(
            task_id=task_id, created=True, state=state, epoch=epoch, region=region, owner=owner
        )

    def _task_by_key(self, user_id: int, key: str, request: str) -> m.TaskCreated | None:
        row = self._row(self._sql.task_by_key, (user_id, key))
        if row is None:
            return None
        task_id, state, global_epoch, regional_epoch, region, owner, stored = row
        if stored is None or msgspec.json.decode(stored) != msgspec.json.decode(request):
            raise values.key_conflict(user_id, key, task_id)
        return m.TaskCreated(
            task_id=task_id,
            created=False,
            state=state,
            epoch=Epoch(global_epoch, regional_epoch),
            region=region,
            owner=owner,
        )

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
            *digits(epoch), owner if regional else region, claim.claimant, self._clock(), lost, lost,
            claim.task_id, *digits(expected),
        )  # fmt: skip
        if regional:
            self._change(self._sql.claim_regional, (*parameters, region))
        else:
            self._change(self._sql.claim_global, parameters)
        return self._claimed(claim, (epoch, region, owner, claim.claimant))

    def _claimed(self, claim: m.Claim, asked: tuple[Epoch, str, str, str]) -> m.Claimed:
        """What the row says now: what was asked, by this claim or an earlier one like it, or not."""
        regional = claim.scope == "regional"
        sql = self._sql.ownership_and_description if regional else self._sql.ownership
        row = self._row(sql, (claim.task_id,))
        if row is None:
            raise values.not_found(claim.task_id)
        (global_epoch, regional_epoch, region, owner, claimant, state,
         attempts, lost, saved, *description) = row  # fmt: skip
        current = Epoch(global_epoch, regional_epoch)
        granted = asked == (current, region, owner, claimant) and state not in m.TERMINAL
        return m.Claimed(
            task_id=claim.task_id,
            granted=granted,
            epoch=current,
            region=region,
            owner=owner,
            state=state,
            attempts=attempts,
            lost=lost,
            saved=saved,
            task_description=description[0] if granted and regional else "",
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
            self._must_change(self._sql.cancel, (*digits(epoch), self._clock(), task_id))
        return m.Cancelled(task_id=task_id, state=state, epoch=epoch, region=region, owner=owner)
