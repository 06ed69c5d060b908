"""The reading half of the database port.

What clients poll and sweepers ask comes by plain SQL; what people ask, with conditions that vary,
goes through Peewee's query builder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import peewee

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.ports import Document
from agentos.storage import values
from agentos.storage.models import bind
from agentos.storage.statements import INFO, Statements
from agentos.storage.transactions import Transactional, reads


class Reader(Transactional):
    """What can be asked of the tables.

    Args:
        connection: a Peewee database, not shared with anybody.
        name: the file or server, for messages.
        statements: the hot paths' SQL in the connection's dialect.
        clock: Unix seconds for `created_at` and `updated_at`, which only people look at.
    """

    def __init__(
        self,
        connection: peewee.Database,
        name: str,
        statements: Statements,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(connection, name)
        self._models = bind(connection)
        self._sql = statements
        self._clock = clock

    @reads
    def get_document(self, doc_id: int) -> Document | None:
        """The document, or None."""
        row = self._row(self._sql.document, (doc_id,))
        return None if row is None else Document(*row)

    @reads
    def get_task(self, task_id: int) -> m.TaskInfo | None:
        """The task, with its response if it has ended; or None."""
        row = self._row(self._sql.task, (task_id,))
        return None if row is None else _info(row[:-1], response=row[-1])

    @reads
    def get_task_description(self, task_id: int) -> str | None:
        """The text of the description as it stands, or None."""
        row = self._row(self._sql.description, (task_id,))
        return None if row is None else row[0]

    @reads
    def get_progress(self, task_id: int, node_id: str) -> m.SavedRow | None:
        """One saved row, or None."""
        row = self._row(self._sql.progress, (task_id, node_id))
        return None if row is None else _saved(row)

    @reads
    def get_progress_list(
        self, task_id: int, *, after: str = "", max_bytes: int | None = None
    ) -> list[m.SavedRow]:
        """Rows in order of node_id by code point; at least one, then up to `max_bytes` of results."""
        cursor = self._execute(self._sql.progress_page, (task_id, after))
        rows: list[m.SavedRow] = []
        size = 0
        for row in cursor:
            saved = _saved(row)
            size += len(saved.result.encode())
            if max_bytes is not None and rows and size > max_bytes:
                break
            rows.append(saved)
        cursor.close()
        return rows

    @reads
    def find_tasks(
        self,
        region: str,
        *,
        agents: Sequence[str] | None = None,
        after: int | None = None,
        limit: int = 256,
    ) -> list[m.TaskBrief]:
        """Unfinished tasks of a region: by priority (high first) and id, or from `after` by id.

        With `agents`, only those that need exactly these.
        """
        sql = self._sql
        if after is not None:
            if agents is None:
                rows = self._rows(sql.find_by_id, (region, after, limit))
            else:
                labels = values.encode_labels(agents)
                rows = self._rows(sql.find_by_agents_and_id, (region, after, labels, limit))
        elif agents is not None:
            labels = values.encode_labels(agents)
            rows = self._rows(sql.find_by_priority, (region, labels, limit))
        else:  # a page of each group, merged: every task would pay for an index that has them all
            rows = [
                row
                for group in self._rows(sql.groups, (region,))
                for row in self._rows(sql.find_by_priority, (region, *group, limit))
            ]
            rows.sort(key=lambda row: (-row[6], row[0]))
        return [_brief(row) for row in rows[:limit]]

    @reads
    def count_unfinished(self) -> list[m.TaskCount]:
        """Unfinished tasks by region ("": nobody's) and by the agents that they need, in order."""
        counted = [
            m.TaskCount(region, values.decode_labels(agents), count)
            for region, agents, count in self._rows(self._sql.count_unfinished, ())
        ]
        return sorted(counted, key=lambda group: (group.region, group.agents))

    @reads
    def list_tasks(
        self,
        *,
        user_id: int | None = None,
        state: str | None = None,
        before: int = 0,
        limit: int = 100,
    ) -> list[m.TaskInfo]:
        """Tasks with ids below `before` (0: all), newest first, without their responses."""
        tasks = self._models.tasks
        query = tasks.select(peewee.SQL(INFO)).limit(limit)
        if user_id is not None:
            query = query.where(tasks.user_id == user_id)
        if state is not None:
            query = query.where(tasks.state == state)
        if before:
            query = query.where(tasks.task_id < before)
        return [_info(row) for row in self._select(query.order_by(tasks.task_id.desc()))]


def _info(row: Sequence[Any], response: str | None = None) -> m.TaskInfo:
    (task_id, user_id, task_type, state, global_epoch, regional_epoch, key, region, owner,
     attempts, agents, error, created_at, updated_at) = row  # fmt: skip
    return m.TaskInfo(
        task_id=task_id,
        user_id=user_id,
        task_type=task_type,
        state=state,
        epoch=Epoch(global_epoch, regional_epoch),
        key=key,
        region=region,
        owner=owner,
        attempts=attempts,
        agents=values.decode_labels(agents),
        error=error,
        created_at=created_at,
        updated_at=updated_at,
        response=response,
    )


def _brief(row: Sequence[Any]) -> m.TaskBrief:
    task_id, global_epoch, regional_epoch, region, owner, agents, priority, attempts = row
    return m.TaskBrief(
        task_id,
        Epoch(global_epoch, regional_epoch),
        region,
        owner,
        values.decode_labels(agents),
        priority,
        attempts,
    )


def _saved(row: Sequence[Any]) -> m.SavedRow:
    node_id, global_epoch, regional_epoch, result = row
    return m.SavedRow(node_id, Epoch(global_epoch, regional_epoch), result)
