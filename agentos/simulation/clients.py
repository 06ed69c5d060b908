"""Simulated clients: what `agentos.client` does, as a machine.

Every request is repeated until it is answered; whoever waits for an end looks for itself when
nothing is pushed; an end that comes without its response is read from the store.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agentos.core import messages as m
from agentos.core.timers import Timers
from agentos.simulation.workload import Job

ATTEMPT_S, POLL_S = 3.0, 2.0
"""As in `agentos.client`."""
TWIN_S = 0.3
"""How much later a job is handed in by its twin."""
USER = 7


class Errand(msgspec.Struct):
    """How far a client has come with one job.

    `doing`: submit, wait, read, done. `refs`: the requests that are open, with what they ask.
    """

    job: Job
    doing: str = "submit"
    task_id: int = 0
    cancelled: bool = False
    ended: m.Ended | None = None


class ClientMachine:
    """One client.

    Args:
        address: like `client/c0`.
        done: told when it has the end of a job.
    """

    def __init__(self, address: str, done: Callable[[str, Job, m.Ended], None]) -> None:
        self.address = address
        self._done = done
        self._errands: list[Errand] = []
        self._index: dict[int, int] = {}
        self._refs: dict[str, tuple[Errand, str]] = {}
        self._numbers = 0
        self._timers: Timers[tuple[int, str]] = Timers()

    def add(self, job: Job, at: float) -> None:
        """Hand this in at `at`, on our clock; a little later, if we are the job's twin."""
        errand = Errand(job)
        self._index[id(errand)] = len(self._errands)
        late_s = 0.0 if job.client == self.address else TWIN_S
        self._timers.set((len(self._errands), "submit"), at + late_s)
        self._errands.append(errand)

    def cancel(self, name: str, at: float) -> None:
        """Ask at `at` for a task to be cancelled."""
        for i, errand in enumerate(self._errands):
            if errand.job.name == name:
                self._timers.set((i, "cancel"), at)

    @property
    def drained(self) -> bool:
        """Never: a client is not told to stop."""
        return False

    def next_deadline(self) -> float | None:
        """The next thing to do, or to repeat."""
        return self._timers.next()

    def handle(self, envelope: m.Envelope, now: float) -> list[m.Send]:
        """Take what was pushed, or the answer to a request."""
        message = envelope.message
        if isinstance(message, m.Tick):
            out = []
            for i, what in self._timers.pop_due(now):
                out += self._do(self._errands[i], what, now)
            return out
        errand, _what = self._refs.pop(envelope.ref, (None, ""))
        if isinstance(message, m.Ended):
            waiting = [e for e in self._errands if e.task_id == message.task_id]
            return [send for e in waiting for send in self._ended(e, message, now)]
        if errand is None:
            return []
        if isinstance(message, m.Submitted):
            return self._submitted(errand, message, now)
        if isinstance(message, m.TaskInfo):
            return self._read(errand, message, now)
        if isinstance(message, m.Cancelled):
            self._timers.cancel((self._index[id(errand)], "cancel"))
        return []

    def _do(self, errand: Errand, what: str, now: float) -> list[m.Send]:
        """Do, or do again, one of the things that a client does."""
        job = errand.job
        key = (self._index[id(errand)], what)
        match what:
            case "submit" if errand.doing == "submit":
                self._timers.set(key, now + ATTEMPT_S)
                submit = m.Submit(
                    task_description=job.description, user_id=USER, key=job.name, notify=True
                )
                return [self._ask(errand, what, m.GATEWAY, submit)]
            case "poll" if errand.doing == "wait":
                self._timers.set(key, now + POLL_S)
                watch = m.Watch(task_id=errand.task_id, client=self.address, progress=job.watch)
                return [self._ask(errand, what, m.GATEWAY, watch)]
            case "read" if errand.doing == "read":
                self._timers.set(key, now + ATTEMPT_S)
                return [self._ask(errand, what, m.STORE, m.GetTask(task_id=errand.task_id))]
            case "cancel" if errand.doing == "wait":
                self._timers.set(key, now + ATTEMPT_S)
                return [
                    self._ask(errand, what, m.GATEWAY, m.Cancel(task_id=errand.task_id)),
                ]
        return []

    def _ask(self, errand: Errand, what: str, to: str, question: m.Message) -> m.Send:
        self._numbers += 1
        ref = f"q{self._numbers}"
        self._refs[ref] = (errand, what)
        return m.Send(to, question, ref)

    def _submitted(self, errand: Errand, q: m.Submitted, now: float) -> list[m.Send]:
        if errand.doing != "submit":
            return []
        errand.doing, errand.task_id = "wait", q.task_id
        i, job = self._index[id(errand)], errand.job
        self._timers.set((i, "poll"), now if job.watch else now + POLL_S)
        if job.cancel_after_s is not None and job.client == self.address:
            self._timers.set((i, "cancel"), now + job.cancel_after_s)
        return []

    def _ended(self, errand: Errand, ended: m.Ended, now: float) -> list[m.Send]:
        if errand.doing != "wait":
            return []
        if ended.response or ended.state == "cancelled":
            return self._over(errand, ended)
        errand.doing = "read"
        return self._do(errand, "read", now)

    def _read(self, errand: Errand, task: m.TaskInfo, now: float) -> list[m.Send]:  # noqa: ARG002
        if errand.doing != "read" or task.state not in m.TERMINAL:
            return []
        ended = m.Ended(
            task_id=task.task_id,
            epoch=task.epoch,
            state=task.state,
            response=task.response or "",
            error=task.error,
        )
        return self._over(errand, ended)

    def _over(self, errand: Errand, ended: m.Ended) -> list[m.Send]:
        errand.doing, errand.ended = "done", ended
        i = self._index[id(errand)]
        for what in ("submit", "poll", "read", "cancel"):
            self._timers.cancel((i, what))
        self._done(self.address, errand.job, ended)
        if not errand.job.watch:
            return []
        return [m.Send(m.GATEWAY, m.Unwatch(task_id=ended.task_id, client=self.address))]
