"""A steady load: so many tasks on their way at any time, each followed to its result."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

from agentos import AsyncClient
from agentos.core.errors import AgentOSError, TaskCancelled, TaskFailed, TaskNotFound
from tests.chaos.graphs import expected, graph


class Load(threading.Thread):
    """Submits tasks and waits for them, in a thread of its own, until it is told to stop.

    Args:
        urls: the gateways.
        workers: tasks on their way at a time.
        first: the number of the first task.
    """

    def __init__(self, urls: Sequence[str], workers: int, first: int = 0) -> None:
        super().__init__(name="load", daemon=True)
        self.accepted: dict[int, int] = {}
        """By a task's number: the id under which it was acknowledged."""
        self.finished: dict[int, float] = {}
        """By a task's number: when its right result was here."""
        self.faults: list[str] = []
        self.retries = 0
        """Requests that failed, and were made again."""
        self.waits: list[float] = []
        """Seconds that each task took."""
        self._urls = list(urls)
        self._workers = workers
        self._next = first
        self._halt = threading.Event()

    def stop(self) -> None:
        """Submit nothing more. The thread ends when all that was accepted is finished."""
        self._halt.set()

    def unfinished(self) -> dict[int, int]:
        """Tasks that were accepted and whose results are not here: number and id."""
        accepted = dict(self.accepted)
        return {number: task for number, task in accepted.items() if number not in self.finished}

    def run(self) -> None:
        """Work until `stop`, and until all is finished."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        turned = [*self._urls[1:], self._urls[0]]
        clients = [AsyncClient(urls, timeout_s=15.0) for urls in (self._urls, turned)]
        await asyncio.gather(*(self._connect(client) for client in clients))
        workers = (self._work(clients[i % len(clients)]) for i in range(self._workers))
        await asyncio.gather(*workers)
        for client in clients:
            await client.close()

    async def _connect(self, client: AsyncClient) -> None:
        while True:
            try:
                await client.connect()
            except AgentOSError:
                self.retries += 1
            else:
                return

    async def _work(self, client: AsyncClient) -> None:
        while not self._halt.is_set():
            number, self._next = self._next, self._next + 1
            begun = time.monotonic()
            task_id = await self._submit(client, number)
            output = await self._result(client, task_id)
            if output != expected(number)[0]:
                self.faults.append(f"task {task_id} yields {output!r}: wrong")
            self.finished[number] = time.monotonic()
            self.waits.append(time.monotonic() - begun)

    async def _submit(self, client: AsyncClient, number: int) -> int:
        while True:
            try:
                task = await client.submit(graph(number), key=f"chaos-{number}")
            except AgentOSError:
                self.retries += 1
                await asyncio.sleep(0.2)
            else:
                self.accepted[number] = task.task_id
                return task.task_id

    async def _result(self, client: AsyncClient, task_id: int) -> Any:
        while True:
            try:
                return await client.task(task_id).result()
            except (TaskFailed, TaskCancelled, TaskNotFound) as error:
                self.faults.append(str(error))
                return None
            except AgentOSError:
                self.retries += 1
                await asyncio.sleep(0.2)
