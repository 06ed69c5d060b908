"""Clients: submit task graphs, follow them, read their results.

`AsyncClient` is the implementation; `Client` (in `agentos.blocking`) runs one on a thread of its
own, so that both behave the same.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import pykka

from agentos.core import errors
from agentos.core import messages as m
from agentos.core.limits import Limits
from agentos.handles import AsyncTask, is_complete, text_of
from agentos.logs import quiet_unless_configured
from agentos.reach import CONNECT_S, unreachable, urls_of
from agentos.registry import Transports
from agentos.runtime.asking import AsyncAsker, Waiter
from agentos.runtime.switch import Switch
from agentos.runtime.uplink import Uplink
from agentos.runtime.wire import JsonCodec

POLL_S = 2.0
"""How often a waiting client looks for itself, in case a pushed event was lost."""
LOOK_S = 0.5
"""How long one look may take at least."""
ON_THEIR_WAY = 1_024
"""Questions that are on their way at a time; the next ones wait here, where they load nobody."""
ATTEMPT_S = 3.0
"""How long one request waits before it is sent again: requests are idempotent."""
RETRY_S = 0.05
"""How long a request waits before it is sent again when nobody was there to take it."""
KEPT_ENDS, KEPT_CHARACTERS = 10_000, 50_000_000
"""Ends, and characters of responses, that a client keeps for handles that have not asked yet."""

AnswerT = TypeVar("AnswerT", bound=m.Message)


class AsyncClient:
    """Talks to a cluster from asyncio.

    Args:
        url: a gateway's URL or several, tried in order; `AGENTOS_URL` or the local default if None.
        timeout_s: seconds that a request may take, repetitions and `Overloaded` waits included.
        limits: the cluster's, if they are not the defaults.
        transports: a process's own, for `inproc://` URLs; the client makes one if it is not given.

    Use it as an async context manager, or call `connect` and `close`.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        timeout_s: float = 10.0,
        limits: Limits | None = None,
        transports: Transports | None = None,
    ) -> None:
        quiet_unless_configured()
        self.urls = urls_of(url)
        self._timeout_s = timeout_s
        self._limits = (limits or Limits()).check()
        self._shared = transports
        self._transports: Transports | None = None
        self._switch: Switch | None = None
        self._asker: AsyncAsker | None = None
        self._uplink: Uplink | None = None
        # Repeating a request whose answer was lost must not make a second task.
        self._own_keys = map(f"auto-{secrets.token_hex(12)}-{{}}".format, itertools.count(1))
        self._ends: OrderedDict[int, m.Ended] = OrderedDict()
        self._kept = 0
        self._waiters: dict[int, list[Waiter]] = {}
        self._told: set[int] = set()
        """Tasks that a gateway tells us the end of: it was asked to when they were submitted."""
        self._turns = asyncio.Semaphore(ON_THEIR_WAY)

    async def connect(self) -> Self:
        """Find a gateway.

        Raises:
            ClusterUnreachable: none answered within the timeout, of which this takes 5 s at most.
            LocalProtocolError: a URL cannot be used.
        """
        if self._switch is not None:
            return self
        self._transports = self._shared or Transports(JsonCodec(self._limits), self._limits)
        self._switch = Switch(self._transports, self._limits, "client")
        self._asker = AsyncAsker(self._switch, self._take)
        try:
            self._uplink = uplink = self._switch.connect(self.urls)
            wait_s = min(self._timeout_s, CONNECT_S)
            found = uplink.up or await asyncio.to_thread(uplink.wait_up, wait_s)
        except BaseException:
            await self.close()
            raise
        if not found:
            await self.close()
            raise unreachable(self.urls, wait_s)
        return self

    async def close(self) -> None:
        """Drop the connection; tasks go on without us. Idempotent."""
        switch, self._switch = self._switch, None
        if switch is None:
            return
        if self._asker is not None:
            self._asker.close()
        for waiter in itertools.chain.from_iterable(self._waiters.values()):
            waiter.close()
        await asyncio.to_thread(switch.close)
        if self._shared is None and self._transports is not None:
            await asyncio.to_thread(self._transports.close)

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # -- tasks ---------------------------------------------------------------------------------

    async def submit(
        self,
        task_description: Mapping[str, Any] | str,
        *,
        user_id: int = 0,
        task_type: str = "graph",
        key: str | None = None,
        require_agents: bool = False,
    ) -> AsyncTask:
        """Hand a task in; when this returns, the task is committed and survives any crash.

        Args:
            task_description: the graph, as a mapping or as JSON text (docs/graph-format.md).
            user_id: whose task it is.
            task_type: a label of yours.
            key: makes it idempotent: the same user and key name the same task.
            require_agents: refuse the task, instead of letting it wait, if nobody offers its agents.

        Raises:
            GraphError: the description cannot be run; the message names the place.
            KeyConflict: the key was used for another `task_type`, or another text of the description.
            AgentNotOffered: with `require_agents`, nobody offers an agent that it needs.
            Overloaded: the cluster is full, and was still full when the timeout was over.
            StorageError: the database failed; nothing was accepted.
            ClusterUnreachable: no answer came in time. Whether it was accepted is not known: the
                message has the key to submit it again with.
            LocalProtocolError: an argument cannot be sent.
        """
        text = task_description if isinstance(task_description, str) else text_of(task_description)
        submit = self._message(
            m.Submit,
            task_description=text,
            user_id=user_id,
            task_type=task_type,
            key=key if key is not None else next(self._own_keys),
            require_agents=require_agents,
            notify=True,
        )
        try:
            answer = await self._request(m.GATEWAY, submit, m.Submitted)
        except errors.ClusterUnreachable as error:
            again = f"it may have been accepted: submit it again with the key {submit.key!r}"
            raise errors.ClusterUnreachable(f"{error}; {again} to make sure") from error
        if answer.task_id not in self._ends:  # which may have overtaken the answer
            self._told.add(answer.task_id)
        return AsyncTask(self, answer.task_id)

    def task(self, task_id: int) -> AsyncTask:
        """A handle on a task that was submitted before, by anybody."""
        return AsyncTask(self, task_id)

    async def list(
        self,
        *,
        user_id: int | None = None,
        state: m.State | None = None,
        before: int = 0,
        limit: int = 100,
    ) -> list[m.TaskInfo]:
        """Tasks, newest first, without their responses.

        Args:
            user_id: of this user alone.
            state: in this state alone.
            before: with ids below it; 0 begins with the newest.
            limit: how many at most, 1 to 1,000.

        Raises:
            LocalProtocolError: an argument is none of these.
            ClusterUnreachable: no answer came in time.
        """
        question = self._message(
            m.ListTasks, user_id=user_id, state=state, before=before, limit=limit
        )
        return list((await self._request(m.STORE, question, m.TaskList)).tasks)

    async def cluster(self) -> m.ClusterInfo:
        """Who is alive, what waits, and what was refused, as the gateway sees it."""
        return await self._request(m.GATEWAY, m.GetCluster(), m.ClusterInfo)

    # -- requests ------------------------------------------------------------------------------

    @staticmethod
    def _message(kind: type[AnswerT], **fields: Any) -> AnswerT:
        """A message with its fields checked, so that the caller hears of a wrong one at once."""
        try:
            return msgspec.convert(fields, kind)
        except msgspec.ValidationError as error:
            raise errors.LocalProtocolError(str(error)) from error

    async def _request(self, to: str, question: m.Message, kind: type[AnswerT]) -> AnswerT:
        asked = time.monotonic()
        async with self._turns:
            # Whoever waited for a turn while the cluster was at work has all of the time left.
            deadline = max(asked, self._connected().heard_at) + self._timeout_s
            return await self._answer(to, question, kind, deadline)

    async def _answer(
        self, to: str, question: m.Message, kind: type[AnswerT], deadline: float
    ) -> AnswerT:
        longest_s, ref = ATTEMPT_S, self._connected().number()
        while True:
            left = deadline - time.monotonic()
            try:
                answer = await self._connected().ask(
                    to, question, min(longest_s, max(RETRY_S, left)), ref
                )
            except errors.Overloaded as error:
                wait_s = error.retry_after_s * (1 + random.random() / 2)  # noqa: S311 - jitter
                if left <= wait_s:
                    raise
                await asyncio.sleep(wait_s)
            except (TimeoutError, pykka.ActorDeadError) as error:
                if time.monotonic() + RETRY_S >= deadline:
                    raise self._unanswered() from error
                if isinstance(error, TimeoutError):
                    longest_s *= 2  # it may be behind: asking as often would keep it there
                await asyncio.sleep(RETRY_S)
            else:
                if not isinstance(answer, kind):
                    raise errors.RemoteProtocolError(f"unexpected {type(answer).__name__}")
                return answer

    def _unanswered(self) -> errors.ClusterUnreachable:
        """What became of a question to which no answer came: somebody is there, or nobody is."""
        if self._uplink is None or not self._uplink.up:
            return unreachable(self.urls, self._timeout_s)
        return errors.ClusterUnreachable(
            f"the gateway is there ({', '.join(self.urls)}), but had no answer within "
            f"{self._timeout_s:g} s: its store is down, or behind"
        )

    def _connected(self) -> AsyncAsker:
        if self._asker is None or self._switch is None:
            raise errors.LocalProtocolError("the client is not connected: use `async with`")
        return self._asker

    # -- what is pushed ------------------------------------------------------------------------

    def _take(self, message: m.Message) -> None:
        if isinstance(message, m.Ended):
            self._remember(message)
        if isinstance(message, m.Ended | m.Event):
            for waiter in self._waiters.get(message.task_id, ()):
                waiter.push(message)

    def _remember(self, ended: m.Ended) -> None:
        """Keep an end for whoever asks for the result later; the oldest give way."""
        self._told.discard(ended.task_id)
        if not is_complete(ended) or ended.task_id in self._ends:
            return
        self._ends[ended.task_id] = ended
        self._kept += len(ended.response)
        while len(self._ends) > KEPT_ENDS or self._kept > KEPT_CHARACTERS:
            _, oldest = self._ends.popitem(last=False)
            self._kept -= len(oldest.response)

    def _listen(self, task_id: int) -> Waiter:
        self._connected()
        waiter = Waiter()
        self._waiters.setdefault(task_id, []).append(waiter)
        return waiter

    def _leave(self, task_id: int, waiter: Waiter) -> bool:
        """Hear no more of a task; returns whether nobody else here does."""
        waiters = self._waiters[task_id]
        waiters.remove(waiter)
        if not waiters:
            del self._waiters[task_id]
        return not waiters

    async def _end(self, task_id: int, timeout_s: float | None) -> m.Ended:
        """A task's end, as soon as it is pushed; looks for itself when nothing is.

        Args:
            task_id: which task.
            timeout_s: seconds until `ResultTimeout`.
        """
        if task_id in self._ends:
            return self._ends[task_id]
        deadline = _deadline(timeout_s)
        waiter = self._listen(task_id)
        try:
            told = task_id in self._told
            message = None if told else await self._look(task_id, deadline)
            while not isinstance(message, m.Ended):
                message = await self._heard(waiter, task_id, deadline)
            return await self._completed(message)
        finally:
            self._leave(task_id, waiter)

    async def _follow(
        self, task_id: int, timeout_s: float | None
    ) -> AsyncGenerator[m.Event | m.Ended, None]:
        """Messages of one task until it ends; raises `ResultTimeout` after `timeout_s` seconds."""
        deadline = _deadline(timeout_s)
        waiter = self._listen(task_id)
        try:
            message = await self._look(task_id, deadline, progress=True)
            while not isinstance(message, m.Ended):
                if message is not None:
                    yield message
                message = await self._heard(waiter, task_id, deadline, progress=True)
            yield await self._completed(message)
        finally:
            if self._leave(task_id, waiter) and self._asker is not None:
                address = self._asker.address
                self._asker.tell(m.GATEWAY, m.Unwatch(task_id=task_id, client=address))
                self._told.discard(task_id)

    async def _heard(
        self, waiter: Waiter, task_id: int, deadline: float, *, progress: bool = False
    ) -> m.Event | m.Ended:
        """What is pushed next; when nothing is, whether the task has ended all the same."""
        while True:
            message = await waiter.next(min(POLL_S, max(0.0, deadline - time.monotonic())))
            if message is not None:
                return message
            message = await self._look(task_id, deadline, progress=progress)
            if isinstance(message, m.Ended):
                return message

    async def _look(
        self, task_id: int, deadline: float, *, progress: bool = False
    ) -> m.Event | m.Ended | None:
        """Ask to be told, and where the task stands."""
        asker = self._connected()
        watch = self._message(m.Watch, task_id=task_id, client=asker.address, progress=progress)
        now = time.monotonic()
        # When the time is over it is asked once all the same: the task may have ended.
        give_up = max(now + LOOK_S, min(deadline, now + self._timeout_s))
        while (left := give_up - time.monotonic()) > 0:
            answer: m.Message | None
            try:
                answer = await self._connected().ask(m.GATEWAY, watch, min(ATTEMPT_S, left))
            except errors.Overloaded:  # it has too many to tell: look in the database
                task = await self._request(m.STORE, m.GetTask(task_id=task_id), m.TaskInfo)
                answer = m.end_of(task)
            except (TimeoutError, pykka.ActorDeadError):
                await asyncio.sleep(min(0.2, left))
                continue
            if isinstance(answer, m.Ended):
                return answer
            if time.monotonic() < deadline:
                return answer if isinstance(answer, m.Event) else None
            break
        if give_up >= deadline:
            raise errors.ResultTimeout(f"task {task_id} did not end in time; it goes on")
        raise self._unanswered()

    async def _completed(self, ended: m.Ended) -> m.Ended:
        """The end with its response: whoever learned of it from the store does not send that."""
        if not is_complete(ended):
            task = await self._request(m.STORE, m.GetTask(task_id=ended.task_id), m.TaskInfo)
            ended = m.end_of(task) or ended
        self._remember(ended)
        return ended


def _deadline(timeout_s: float | None) -> float:
    return math.inf if timeout_s is None else time.monotonic() + timeout_s
