"""`Client`: the blocking face of `AsyncClient`, which it runs on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from agentos.client import AsyncClient
from agentos.core import messages as m
from agentos.core.errors import LocalProtocolError
from agentos.core.limits import Limits
from agentos.handles import AsyncTask
from agentos.registry import Transports

T = TypeVar("T")


class Client:
    """Talks to a cluster from ordinary code; may be used by several threads.

    Arguments, methods and errors are `AsyncClient`'s. It connects when it is made.

    Raises:
        ClusterUnreachable: no gateway answered within the timeout.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        timeout_s: float = 10.0,
        limits: Limits | None = None,
        transports: Transports | None = None,
    ) -> None:
        self._client = AsyncClient(url, timeout_s=timeout_s, limits=limits, transports=transports)
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="agentos-client", daemon=True
        )
        self._thread.start()
        try:
            self._run(self._client.connect)
        except BaseException:
            self.close()
            raise

    @property
    def urls(self) -> list[str]:
        """Where gateways are looked for."""
        return self._client.urls

    def close(self) -> None:
        """Drop the connection; tasks go on without us, and who waits here is told. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut_down(self) -> None:
        await _cancel_others()
        await self._client.close()
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def submit(
        self,
        task_description: Mapping[str, Any] | str,
        *,
        user_id: int = 0,
        task_type: str = "graph",
        key: str | None = None,
        require_agents: bool = False,
    ) -> Task:
        """Hand a task in; see `AsyncClient.submit`."""
        task = self._run(
            lambda: self._client.submit(
                task_description,
                user_id=user_id,
                task_type=task_type,
                key=key,
                require_agents=require_agents,
            )
        )
        return Task(self, task)

    def task(self, task_id: int) -> Task:
        """A handle on a task that was submitted before, by anybody."""
        return Task(self, self._client.task(task_id))

    def list(
        self,
        *,
        user_id: int | None = None,
        state: m.State | None = None,
        before: int = 0,
        limit: int = 100,
    ) -> list[m.TaskInfo]:
        """Tasks, newest first; see `AsyncClient.list`."""
        return self._run(
            lambda: self._client.list(user_id=user_id, state=state, before=before, limit=limit)
        )

    def cluster(self) -> m.ClusterInfo:
        """Who is alive, what waits, and what was refused, as the gateway sees it."""
        return self._run(self._client.cluster)

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        call = _Call(work)
        with self._lock:
            if self._closed:
                raise LocalProtocolError("the client is closed")
            self._loop.call_soon_threadsafe(call.begin, self._loop)
        try:
            done = call.done.get()
        except BaseException:  # Ctrl-C: nobody waits for this any more
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing left
                self._loop.call_soon_threadsafe(call.abandon)
            raise
        if done.cancelled():
            raise LocalProtocolError("the client was closed meanwhile")
        return done.result()


class _Call(Generic[T]):
    """One piece of work of the loop that another thread waits for.

    Ctrl-C may strike there anywhere: between two lines of `threading.Condition`, on which every
    future of the standard library waits, it leaves a lock taken or given back twice. A
    `SimpleQueue` waits in C. The coroutine is made on the loop, so none is left un-awaited.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self.done: queue.SimpleQueue[asyncio.Task[T]] = queue.SimpleQueue()
        self._work = work
        self._task: asyncio.Task[T] | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start it; on the loop."""
        self._task = loop.create_task(self._work())
        self._task.add_done_callback(self._settle)

    def abandon(self) -> None:
        """Nobody waits any more; on the loop, after `begin`."""
        if self._task is not None:
            self._task.cancel()

    def _settle(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # asyncio complains of those that nobody looked at
        self.done.put(task)


class Task:
    """A handle on one task; see `AsyncTask`."""

    def __init__(self, client: Client, task: AsyncTask) -> None:
        self.task_id = task.task_id
        self._client = client
        self._task = task

    def status(self) -> m.TaskInfo:
        """The task's row, with its response if it has ended. Raises `TaskNotFound`."""
        return self._client._run(self._task.status)

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the end, and return the task's output; see `AsyncTask.result`."""
        return self._client._run(lambda: self._task.result(timeout_s))

    def wait(self, timeout_s: float | None = None) -> m.Ended:
        """Wait for the end, whatever it is. Raises `ResultTimeout` and `TaskNotFound`."""
        return self._client._run(lambda: self._task.wait(timeout_s))

    def watch(self, timeout_s: float | None = None) -> Iterator[m.Event | m.Ended]:
        """Progress as it happens, the last being `Ended`. Events are hints: some may be missed."""
        messages = self._task.watch(timeout_s)
        try:
            while (message := self._client._run(lambda: _next(messages))) is not None:
                yield message
        finally:
            with contextlib.suppress(LocalProtocolError):  # closed, and the generator with it
                self._client._run(lambda: _close(messages))

    def progress(self) -> list[m.SavedRow]:
        """Every row that has been saved for the task."""
        return self._client._run(self._task.progress)

    def cancel(self) -> m.State:
        """End it now, and abort its calls; returns the terminal state that it has."""
        return self._client._run(self._task.cancel)

    def __repr__(self) -> str:
        return f"<Task {self.task_id}>"


async def _next(messages: AsyncIterator[T]) -> T | None:
    return await anext(messages, None)


async def _close(messages: Any) -> None:
    # Ctrl-C during `_next`: the generator is being cancelled at this moment, and ends by itself.
    with contextlib.suppress(RuntimeError):
        await messages.aclose()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
