"""The fence: rows of progress and the ends of tasks, written only by the owner of that moment.

Nearly every record is all new. Many such records are one INSERT, that finds the row of each task,
judges it and adds, and whose row count says whether all of it was added. If it was not, nothing
stays of it, and each record is judged step by step: what is there decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import peewee

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import AgentOSError
from agentos.core.ports import SaveOutcome
from agentos.storage import values
from agentos.storage.reading import Reader
from agentos.storage.transactions import writes

_CHUNK = 500
"""Rows that are looked up by one statement: half of SQLite's old bound of 999 parameters."""
_TOGETHER = 32
"""Rows that are added by one statement: more make a row no cheaper."""


class Recorder(Reader):
    """What writes progress and ends."""

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
        record = m.Record(task_id=task_id, epoch=epoch, rows=tuple(rows), end=end)
        if rows and self._add([(writer, record)]):
            return _applied(record)
        return self._judge(task_id, epoch, rows, end, writer)

    @writes
    def record_all(
        self, records: Sequence[tuple[str, m.Record]]
    ) -> list[SaveOutcome | AgentOSError]:
        """What `record` would do for each writer's record, one after another; see the port."""
        if _may_be_new(records) and self._add(records):
            return [_applied(record) for _, record in records]
        return values.one_by_one(self.record, records)

    def _add(self, records: Sequence[tuple[str, m.Record]]) -> bool:
        """Add the rows of running tasks if their owners may, all of them new; or nothing, and false.

        Args:
            records: of different tasks, each with rows.
        """
        rows = [
            (q.task_id, row.node_id, *digits(q.epoch), row.result, writer)
            for writer, q in records
            for row in q.rows
        ]
        if len(rows) > 1:
            self._execute("SAVEPOINT added", ())
        for start in range(0, len(rows), _TOGETHER):
            some = rows[start : start + _TOGETHER]
            added = self._change(self._sql.add_rows(len(some)), tuple(chain.from_iterable(some)))
            if added != len(some):
                if len(rows) > 1:
                    self._execute("ROLLBACK TO added", ())
                    self._execute("RELEASE added", ())
                return False
        if len(rows) > 1:
            self._execute("RELEASE added", ())
        for _, q in records:
            if q.end is not None:
                self._end(q.task_id, q.epoch, q.end)
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
                    (task_id, row.node_id, *digits(epoch), row.result),
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
            (end.state, end.error, doc_id, self._clock(), task_id, *digits(epoch)),
        )

    def _must_change(self, sql: str, parameters: tuple[Any, ...]) -> None:
        """Run a write that the fence has allowed; the row count has the last word."""
        if self._change(sql, parameters) != 1:
            raise peewee.IntegrityError("a row was changed by another hand while it was locked")

    def _insert(self, sql: str, parameters: tuple[Any, ...]) -> int:
        """Run an INSERT of one row; the id that it was given."""
        [(row_id,)] = self._rows(sql, parameters)
        return int(row_id)


def digits(epoch: Epoch) -> tuple[int, int]:
    """An epoch as two columns hold it."""
    return epoch.global_epoch, epoch.regional_epoch


def _applied(q: m.Record) -> SaveOutcome:
    return SaveOutcome("applied", q.epoch, "running" if q.end is None else q.end.state)


def _may_be_new(records: Sequence[tuple[str, m.Record]]) -> bool:
    """Whether these can be added together: each of another task, with rows, all of them in order."""
    try:
        for _, q in records:
            values.check_record(q.task_id, q.rows, q.end)
    except AgentOSError:
        return False
    tasks = {q.task_id for _, q in records if q.rows}
    return 1 < len(records) == len(tasks)
