"""The reading half of the in-memory storage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agentos.core import messages as m
from agentos.core.ports import Document
from agentos.storage.memory_tables import Tables, TaskRow


class MemoryReader:
    """What can be asked of the in-memory tables."""

    def __init__(self) -> None:
        self._tables = Tables()

    @property
    def _open(self) -> Tables:
        """The tables, unless the database was closed."""
        self._tables.check_open()
        return self._tables

    def get_document(self, doc_id: int) -> Document | None:
        """The document, or None."""
        return self._open.documents.get(doc_id)

    def get_task(self, task_id: int) -> m.TaskInfo | None:
        """The task, with its response if it has ended; or None."""
        task = self._open.tasks.get(task_id)
        if task is None:
            return None
        if task.response_doc_id is None:
            return _info(task, None)
        return _info(task, self._open.documents[task.response_doc_id].doc_content)

    def get_task_description(self, task_id: int) -> str | None:
        """The text of the description as it stands, or None."""
        task = self._open.tasks.get(task_id)
        return None if task is None else task.task_description

    def get_progress(self, task_id: int, node_id: str) -> m.SavedRow | None:
        """One saved row, or None."""
        return self._open.progress.get(task_id, {}).get(node_id)

    def get_progress_list(
        self, task_id: int, *, after: str = "", max_bytes: int | None = None
    ) -> list[m.SavedRow]:
        """Rows in order of node_id by code point; at least one, then up to `max_bytes` of results."""
        page: list[m.SavedRow] = []
        size = 0
        for node_id, row in sorted(self._open.progress.get(task_id, {}).items()):
            if node_id <= after:
                continue
            size += len(row.result.encode())
            if page and max_bytes is not None and size > max_bytes:
                break
            page.append(row)
        return page

    def _unfinished(self) -> list[TaskRow]:
        return [task for task in self._open.tasks.values() if not task.ended]

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
        found = [
            task
            for task in self._unfinished()
            if task.region == region
            and (agents is None or task.agents == tuple(agents))
            and (after is None or task.task_id > after)
        ]
        if after is None:
            found.sort(key=lambda task: (-task.priority, task.task_id))
        else:
            found.sort(key=lambda task: task.task_id)
        return [
            m.TaskBrief(
                task.task_id,
                task.epoch,
                task.region,
                task.owner,
                task.agents,
                task.priority,
                task.attempts,
            )
            for task in found[:limit]
        ]

    def count_unfinished(self) -> list[m.TaskCount]:
        """Unfinished tasks by region ("": nobody's) and by the agents that they need, in order."""
        counted = Counter((task.region, task.agents) for task in self._unfinished())
        return [
            m.TaskCount(region, agents, count)
            for (region, agents), count in sorted(counted.items())
        ]

    def list_tasks(
        self,
        *,
        user_id: int | None = None,
        state: str | None = None,
        before: int = 0,
        limit: int = 100,
    ) -> list[m.TaskInfo]:
        """Tasks with ids below `before` (0: all), newest first, without their responses."""
        found = [
            _info(task, None)
            for task_id, task in sorted(self._open.tasks.items(), reverse=True)
            if (not before or task_id < before)
            and (user_id is None or task.user_id == user_id)
            and (state is None or task.state == state)
        ]
        return found[:limit]


def _info(task: TaskRow, response: str | None) -> m.TaskInfo:
    return m.TaskInfo(
        task_id=task.task_id,
        user_id=task.user_id,
        task_type=task.task_type,
        state=task.state,
        epoch=task.epoch,
        key=task.key,
        region=task.region,
        owner=task.owner,
        attempts=task.attempts,
        agents=task.agents,
        error=task.error,
        created_at=task.created_at,
        updated_at=task.updated_at,
        response=response,
    )
