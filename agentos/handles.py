"""Handles: one task, as a client sees it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from agentos.core import errors, jsontext
from agentos.core import messages as m

if TYPE_CHECKING:
    from agentos.client import AsyncClient


class AsyncTask:
    """A handle on one task."""

    def __init__(self, client: AsyncClient, task_id: int) -> None:
        self.task_id = task_id
        self._client = client

    async def status(self) -> m.TaskInfo:
        """The task's row, with its response if it has ended.

        Raises:
            TaskNotFound: there is no such task.
        """
        question = self._client._message(m.GetTask, task_id=self.task_id)
        return await self._client._request(m.STORE, question, m.TaskInfo)

    async def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the end, and return the task's output.

        Args:
            timeout_s: seconds to wait; for ever if None.

        Raises:
            ResultTimeout: it did not end in time; it goes on.
            TaskFailed: a node failed; the message names it.
            TaskCancelled: somebody cancelled it.
            TaskNotFound: there is no such task.
            ClusterUnreachable: no gateway has answered for the client's timeout; the task goes on.
        """
        return response_of(await self.wait(timeout_s))["output"]

    async def wait(self, timeout_s: float | None = None) -> m.Ended:
        """Wait for the end, whatever it is.

        Args:
            timeout_s: seconds to wait; for ever if None.

        Raises:
            ResultTimeout, TaskNotFound, ClusterUnreachable: as `result` does.
        """
        return await self._client._end(self.task_id, timeout_s)

    def watch(self, timeout_s: float | None = None) -> AsyncGenerator[m.Event | m.Ended, None]:
        """Progress as it happens, the last being `Ended`. Events are hints: some may be missed.

        Args:
            timeout_s: seconds after which `ResultTimeout` is raised; never if None.

        Raises:
            ResultTimeout, TaskNotFound, ClusterUnreachable: as `result` does, when it is iterated.
        """
        return self._client._follow(self.task_id, timeout_s)

    async def progress(self) -> list[m.SavedRow]:
        """Every row that has been saved for the task, in order of their names.

        Raises:
            TaskNotFound: there is no such task.
        """
        rows: list[m.SavedRow] = []
        while True:
            after = rows[-1].node_id if rows else ""
            question = self._client._message(m.GetProgress, task_id=self.task_id, after=after)
            page = await self._client._request(m.STORE, question, m.Progress)
            rows += page.rows
            if not page.more:
                return rows

    async def cancel(self) -> m.State:
        """End it now, and abort its calls; returns the terminal state that it has.

        Raises:
            TaskNotFound: there is no such task.
        """
        question = self._client._message(m.Cancel, task_id=self.task_id)
        return (await self._client._request(m.GATEWAY, question, m.Cancelled)).state

    def __repr__(self) -> str:
        return f"<AsyncTask {self.task_id}>"


_JSON_ONLY = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def text_of(graph: Mapping[str, Any]) -> str:
    """The JSON text of a graph.

    Raises:
        GraphError: it is not one that JSON has words for.
    """
    try:
        text = orjson.dumps(graph, option=_JSON_ONLY)
        if b"null" not in text:  # which may have been NaN
            return text.decode()
    except TypeError:
        pass  # JSON has no word for it, or orjson is too strict: the slower way knows which
    try:
        return jsontext.dump(graph)
    except (TypeError, ValueError) as error:
        raise errors.GraphError("", f"not JSON: {error}") from error


def response_of(ended: m.Ended) -> dict[str, Any]:
    """The response document of a task that succeeded.

    Raises:
        TaskFailed: it did not; the message names the node.
        TaskCancelled: it was cancelled.
    """
    if ended.state == "cancelled":
        raise errors.TaskCancelled(f"task {ended.task_id} was cancelled")
    if ended.state == "failed":
        raise errors.TaskFailed(f"task {ended.task_id} failed: {ended.error}")
    response: dict[str, Any] = msgspec.json.decode(ended.response)
    return response


def is_complete(ended: m.Ended) -> bool:
    """Whether an end carries its response: whoever learned of it from the store sends none."""
    return bool(ended.response) or ended.state == "cancelled"
