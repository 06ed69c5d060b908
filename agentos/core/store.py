"""The store's machine: database messages onto the storage port, answers back.

The store is a role too, so that a write from another machine is a message like any other. The
shell opens one transaction around everything that waits (group commit: Gray and Reuter,
"Transaction Processing", 1993) and lets the answers go only after it has committed: no message
announces what is not durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import (
    AgentOSError,
    NotTheOwner,
    StorageError,
    TaskNotFound,
    UnissuedEpoch,
)
from agentos.core.limits import Limits
from agentos.core.ports import Database, SaveOutcome

GATEWAY_SWEEPS = 10
"""Sweeps of a gateway that are missed before it is told no more: it asks something at each."""
RECORDS = 32
"""Records that are written together at most."""


class StoreMachine:
    """Answers each message from the database. What it knows of its own is who its gateways are.

    Args:
        database: used by one thread at a time.
        limits: for the size of a page of progress.
    """

    def __init__(self, database: Database, limits: Limits) -> None:
        self.address = m.STORE
        self._db = database
        self._limits = limits
        self._gateways: dict[str, float] = {}
        self._handlers: dict[type, Callable[[Any], m.Message]] = {
            m.CreateTask: self._create,
            m.Claim: self._claim,
            m.CancelTask: lambda q: database.cancel_task(q.task_id),
            m.FindTasks: self._find,
            m.CountTasks: lambda _: m.TaskCounts(counts=tuple(database.count_unfinished())),
            m.GetTask: self._get_task,
            m.GetProgress: self._progress,
            m.ListTasks: self._list,
        }

    def handle(self, envelope: m.Envelope, now: float) -> list[m.Send]:
        """Carry one request out; a request that the database refuses is answered by `Refused`."""
        if m.role_of(envelope.sender) == "gateway":
            self._gateways[envelope.sender] = now
            if isinstance(envelope.message, m.Heard):
                return self._pass_on(envelope.sender, envelope.message, now)
        if isinstance(envelope.message, m.Record):
            return self._record_all([envelope])
        handler = self._handlers.get(type(envelope.message))
        if handler is None:
            return []
        try:
            _check_claimant(envelope.message, envelope.sender)
            answer = handler(envelope.message)
        except StorageError:
            raise  # nobody's request is wrong: the shell rolls back, and says so to all of them
        except AgentOSError as error:
            answer = m.refusal(error)
        return self._answers(envelope, answer)

    def handle_all(self, envelopes: Iterable[m.Envelope], now: float) -> list[m.Send]:
        """Carry many requests out as `handle` would one by one, for less: records go together.

        A record waits for others only while nothing comes that could see whether it was written:
        the creation and the claim of another task cannot.
        """
        out: list[m.Send] = []
        waiting: dict[int, m.Envelope] = {}
        for envelope in envelopes:
            q = envelope.message
            task_id = q.task_id if isinstance(q, m.Record | m.Claim) else None
            blind = type(q) is m.CreateTask or (task_id is not None and task_id not in waiting)
            if waiting and (not blind or len(waiting) == RECORDS):
                out += self._record_all(list(waiting.values()))
                waiting = {}
            if isinstance(q, m.Record):
                waiting[q.task_id] = envelope
            else:
                out += self.handle(envelope, now)
        return out + self._record_all(list(waiting.values())) if waiting else out

    def next_deadline(self) -> float | None:
        """Never: the store acts only when asked."""
        return None

    @property
    def drained(self) -> bool:
        """Always: nothing is held between two requests."""
        return True

    def _pass_on(self, sender: str, heard: m.Heard, now: float) -> list[m.Send]:
        """Tell the other gateways that live what one of them heard of its region."""
        patience_s = GATEWAY_SWEEPS * max(self._limits.sweep_s, self._limits.heartbeat_s)
        self._gateways = {a: at for a, at in self._gateways.items() if now - at <= patience_s}
        return self._to_gateways(heard, but=sender) if heard.region else []

    def _to_gateways(self, news: m.Message, but: str = "") -> list[m.Send]:
        return [m.Send(a, news) for a in self._gateways if a != but]

    def _answers(self, envelope: m.Envelope, answer: m.Message) -> list[m.Send]:
        """The answer, and after it what others are told of the same commit."""
        q = envelope.message
        if isinstance(answer, m.Claimed) and answer.granted and answer.owner:
            assert isinstance(q, m.Claim), f"task {answer.task_id} was claimed by {q}"
            news = [_run(answer, answer.task_description, q.incarnation)]
            answer = msgspec.structs.replace(answer, task_description="")
        elif isinstance(answer, m.TaskCreated) and answer.created and answer.owner:
            assert isinstance(q, m.CreateTask), f"task {answer.task_id} was created by {q}"
            news = [_run(answer, q.task_description)]
        else:
            news = self._announce(envelope.sender, q, answer)
        return [m.Send(envelope.sender, answer, envelope.ref), *news]

    def _announce(self, sender: str, q: m.Message | m.Sealed, answer: m.Message) -> list[m.Send]:
        """An end goes to every gateway at once, with the commit: any may have who waits for it."""
        if isinstance(answer, m.Recorded) and answer.ended and isinstance(q, m.Record) and q.end:
            end = q.end
            if answer.outcome == "duplicate":  # what stands may be told in other words
                task = self._get_task(m.GetTask(task_id=q.task_id))
                end = m.End(end.state, task.response or "", task.error)
            ended = m.Ended(
                task_id=q.task_id,
                epoch=q.epoch,
                state=end.state,
                response=end.response,
                error=end.error,
                owner=sender,
            )
            return self._to_gateways(ended)
        if isinstance(answer, m.Cancelled) and answer.state == "cancelled":
            ended = m.Ended(task_id=answer.task_id, epoch=answer.epoch, state=answer.state)
            return self._to_gateways(ended, but=sender)
        return []

    def _create(self, q: m.CreateTask) -> m.TaskCreated:
        return self._db.create_task(
            q.user_id,
            q.task_type,
            q.task_description,
            key=q.key,
            agents=q.agents,
            priority=q.priority,
            claimant=q.claimant,
            region=q.region,
            owner=q.owner,
        )

    def _claim(self, q: m.Claim) -> m.Claimed:
        """A task that is gone was deleted after its end: whoever claims it must let go of it."""
        try:
            return self._db.claim(q)
        except TaskNotFound:
            return m.Claimed(
                task_id=q.task_id,
                granted=False,
                epoch=q.expected,
                region="",
                owner="",
                state="cancelled",
            )

    def _record_all(self, envelopes: Sequence[m.Envelope]) -> list[m.Send]:
        """Write records, of one task each."""
        records = [(e.sender, e.message) for e in envelopes if isinstance(e.message, m.Record)]
        out: list[m.Send] = []
        for envelope, (_, q), done in zip(
            envelopes, records, self._db.record_all(records), strict=True
        ):
            out += self._answers(envelope, self._became(q, done))
        return out

    def _became(self, q: m.Record, done: SaveOutcome | AgentOSError) -> m.Recorded | m.Refused:
        """A writer whose task is gone, or whose epoch nobody issued, is told to stop: stale."""
        if isinstance(done, SaveOutcome):
            return self._recorded(q, done.outcome, done.epoch, done.state)
        if isinstance(done, TaskNotFound):
            return self._recorded(q, "stale", q.epoch, "cancelled")
        if isinstance(done, UnissuedEpoch):
            task = self._db.get_task(q.task_id)
            assert task is not None, f"task {q.task_id} has just been read"
            return self._recorded(q, "stale", task.epoch, task.state)
        return m.refusal(done)

    @staticmethod
    def _recorded(q: m.Record, outcome: Any, current: Epoch, state: Any) -> m.Recorded:
        return m.Recorded(
            task_id=q.task_id,
            epoch=q.epoch,
            outcome=outcome,
            nodes=tuple(row.node_id for row in q.rows),
            ended=q.end is not None and outcome != "stale",
            current=current,
            state=state,
        )

    def _find(self, q: m.FindTasks) -> m.TasksFound:
        tasks = self._db.find_tasks(q.region, agents=q.agents, after=q.after, limit=q.limit)
        return m.TasksFound(region=q.region, agents=q.agents, tasks=tuple(tasks))

    def _get_task(self, q: m.GetTask) -> m.TaskInfo:
        task = self._db.get_task(q.task_id)
        if task is None:
            raise TaskNotFound(f"no task has the id {q.task_id}")
        return task

    def _progress(self, q: m.GetProgress) -> m.Progress:
        rows = self._db.get_progress_list(
            q.task_id, after=q.after, max_bytes=self._limits.page_bytes
        )
        more = bool(rows) and bool(
            self._db.get_progress_list(q.task_id, after=rows[-1].node_id, max_bytes=1)
        )
        if not rows and self._db.get_task(q.task_id) is None:
            raise TaskNotFound(f"no task has the id {q.task_id}")
        return m.Progress(task_id=q.task_id, rows=tuple(rows), more=more)

    def _list(self, q: m.ListTasks) -> m.TaskList:
        tasks = self._db.list_tasks(
            user_id=q.user_id, state=q.state, before=q.before, limit=q.limit
        )
        return m.TaskList(tasks=tuple(tasks))


def _run(given: m.Claimed | m.TaskCreated, task_description: str, incarnation: str = "") -> m.Send:
    """A task goes to its owner with the commit that made it so, past those who chose the owner.

    Of a new task the owner is told once. A claim may be repeated, and granted again: what it is
    told then is only for the process that the claim was for.
    """
    saved, attempts, lost = 0, 0, ""
    if isinstance(given, m.Claimed):
        saved, attempts, lost = given.saved, given.attempts, given.lost
    run = m.Run(
        task_id=given.task_id,
        epoch=given.epoch,
        task_description=task_description,
        saved=saved,
        incarnation=incarnation,
        attempts=attempts,
        lost=lost,
    )
    return m.Send(given.owner, run)


def _check_claimant(q: m.Message | m.Sealed, sender: str) -> None:
    """Nobody claims for another: a region gives its own tasks to its own proxies, no more.

    Raises:
        NotTheOwner: somebody tried.
    """
    if not isinstance(q, m.Claim | m.CreateTask):
        return
    proxy_there = m.role_of(q.owner) == "proxy" and m.region_of(q.owner) == q.region
    own = q.claimant == sender
    if isinstance(q, m.CreateTask):
        own = own and (not q.owner or proxy_there)
    elif m.role_of(sender) == "gateway":
        own = own and q.scope == "global"
    else:
        own = own and q.scope == "regional" and q.region == sender and proxy_there
    if not own:
        raise NotTheOwner(f"{sender!r} may not claim this as {q.claimant!r}")
