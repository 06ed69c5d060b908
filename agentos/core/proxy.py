"""The proxy's machine: owner of some tasks, executor of calls for its region."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import GraphError
from agentos.core.executor import Executor
from agentos.core.graph import parse_graph
from agentos.core.jsontext import dump
from agentos.core.limits import Limits
from agentos.core.taskrun import Context, TaskRun, TimerKey
from agentos.core.timers import Timers

BEAT: TimerKey = (0, "beat")
LOAD = "load"


class Loading(msgspec.Struct):
    """A task whose saved rows are being read, page by page, before its walk begins."""

    run: m.Run
    rows: list[m.SavedRow]
    watchers: dict[str, bool]


class ProxyMachine:
    """Walks the graphs of the tasks that it owns, and runs calls for its region.

    Args:
        address: like `proxy/eu/3`.
        offers: the agents that it runs, with the calls at a time.
        limits: bounds and intervals.
        chance: a float in [0, 1), for jitter.
        incarnation: differs at every start, so that a restart is seen.
        policy: which waiting call goes first: `fifo` or `priority`.
        agents: the address of its agent runner.
    """

    def __init__(
        self,
        address: str,
        offers: Mapping[str, int],
        limits: Limits,
        *,
        chance: Callable[[], float],
        incarnation: str,
        policy: str = "priority",
        agents: str = m.AGENTS,
    ) -> None:
        self.address = address
        self._region = m.region_of(address)
        self._offers = tuple(m.Offer(name, slots) for name, slots in offers.items())
        self._limits = limits
        self._incarnation = incarnation
        self._runs: dict[int, TaskRun] = {}
        self._loading: dict[int, Loading] = {}
        self._timers: Timers[TimerKey] = Timers()
        self._timers.set(BEAT, 0.0)
        self._executor = Executor(address, agents, offers, limits.waiting_calls, policy)
        self._context = Context(
            address=address,
            region=self._region,
            limits=limits,
            timers=self._timers,
            has_room=self._executor.has_room,
            chance=chance,
        )
        self._handlers: dict[type, Callable[[Any, float], list[m.Send]]] = {
            m.Run: self._run,
            m.Progress: self._progress,
            m.Recorded: self._recorded,
            m.Stop: self._stop,
            m.Watch: self._watch,
            m.Unwatch: self._unwatch,
            m.Call: lambda call, _: self._executor.submit(call),
            m.CallResult: self._result,
            m.Placed: lambda q, now: self._of(q, TaskRun.placed, now),
            m.CallRefused: lambda q, now: self._of(q, TaskRun.refused, now),
            m.AbortCalls: lambda q, _: self._executor.abort(
                q.task_id, q.epoch.next_regional(), q.row
            ),
            m.PeerDown: self._peer_down,
            m.Tick: lambda _, now: self._tick(now),
        }

    def handle(self, envelope: m.Envelope, now: float) -> list[m.Send]:
        """Take one message; calls between owner and executor of this same proxy stay inside."""
        if not self._may(envelope):
            return []
        out: list[m.Send] = []
        inbox = deque([envelope.message])
        while inbox:
            message = inbox.popleft()
            handler = self._handlers.get(type(message))
            for send in handler(message, now) if handler else []:
                if send.to == self.address:
                    inbox.append(send.message)
                else:
                    out.append(send)
        return out

    def next_deadline(self) -> float | None:
        """The next heartbeat, or whatever is due before."""
        return self._timers.next()

    def _may(self, envelope: m.Envelope) -> bool:
        """Only our own region commands us, and an answer comes from the proxy that it names."""
        message, role = envelope.message, m.role_of(envelope.sender)
        if isinstance(message, m.CallResult):
            return message.proxy == (self.address if role == "agents" else envelope.sender)
        return role != "region" or envelope.sender == self._region

    # -- tasks -----------------------------------------------------------------------------------

    def _run(self, run: m.Run, now: float) -> list[m.Send]:
        held = self._held(run.task_id)
        if held is not None and held >= run.epoch:
            return [self._started(run)] if held == run.epoch else []
        watchers = self._watchers(run.task_id)
        out = self._give_up(run.task_id)
        if len(self._runs) + len(self._loading) >= self._limits.tasks_per_proxy:
            return [*out, self._dropped(run.task_id, run.epoch, "no room")]
        self._loading[run.task_id] = Loading(run, [], watchers)
        out.append(self._started(run))
        return out + (self._load(run.task_id, now) if run.saved else self._begin(run.task_id, now))

    def _load(self, task_id: int, now: float) -> list[m.Send]:
        loading = self._loading[task_id]
        after = loading.rows[-1].node_id if loading.rows else ""
        self._timers.set((task_id, LOAD), now + self._limits.resend_s)
        return [
            m.Send(m.STORE, m.GetProgress(task_id=task_id, after=after), str(loading.run.epoch))
        ]

    def _progress(self, page: m.Progress, now: float) -> list[m.Send]:
        loading = self._loading.get(page.task_id)
        if loading is None:
            return []
        last = loading.rows[-1].node_id if loading.rows else ""
        loading.rows += [row for row in page.rows if row.node_id > last]
        return self._load(page.task_id, now) if page.more else self._begin(page.task_id, now)

    def _begin(self, task_id: int, now: float) -> list[m.Send]:
        loading = self._loading.pop(task_id)
        self._timers.cancel((task_id, LOAD))
        run = loading.run
        try:
            graph = parse_graph(run.task_description, self._limits)
            task = TaskRun(run, graph, loading.rows, self._context)
        except (GraphError, msgspec.MsgspecError, KeyError, ValueError) as error:
            return [self._unreadable(run, error)]
        task.watchers = loading.watchers
        self._runs[task_id] = task
        return task.begin(now)

    def _unreadable(self, run: m.Run, error: Exception) -> m.Send:
        """The gateway accepted it, so somebody has changed it in the database since: it fails."""
        reason = f"the stored task cannot be read: {error}"
        response = dump({"task_id": run.task_id, "state": "failed", "error": {"reason": reason}})
        end = m.End("failed", response, reason)
        return m.Send(m.STORE, m.Record(task_id=run.task_id, epoch=run.epoch, end=end))

    def _recorded(self, answer: m.Recorded, now: float) -> list[m.Send]:
        task = self._runs.get(answer.task_id)
        if task is None or task.epoch != answer.epoch:
            return []
        if answer.outcome == "stale":
            # Stale means stop: a newer owner exists, or the task has ended without us.
            reason = f"refused: the task is at {answer.current}, {answer.state}"
            out = self._give_up(answer.task_id)
            return [*out, self._dropped(answer.task_id, answer.epoch, reason)]
        out = task.recorded(answer, now)
        if task.over:
            del self._runs[answer.task_id]
        return out

    def _stop(self, stop: m.Stop, now: float) -> list[m.Send]:  # noqa: ARG002 - a handler's shape
        out = self._executor.abort(stop.task_id, stop.epoch)
        held = self._held(stop.task_id)
        if held is not None and held < stop.epoch:
            out += self._give_up(stop.task_id)
        return out

    def _give_up(self, task_id: int) -> list[m.Send]:
        if self._loading.pop(task_id, None) is not None:
            self._timers.cancel((task_id, LOAD))
        task = self._runs.pop(task_id, None)
        return task.stop() if task is not None else []

    def _held(self, task_id: int) -> Epoch | None:
        if task_id in self._loading:
            return self._loading[task_id].run.epoch
        return self._runs[task_id].epoch if task_id in self._runs else None

    def _watchers(self, task_id: int) -> dict[str, bool]:
        holder = self._loading.get(task_id) or self._runs.get(task_id)
        return holder.watchers if holder is not None else {}

    def _watch(self, watch: m.Watch, now: float) -> list[m.Send]:  # noqa: ARG002
        if self._held(watch.task_id) is not None:
            self._watchers(watch.task_id)[watch.client] = watch.progress
        return []

    def _unwatch(self, watch: m.Unwatch, now: float) -> list[m.Send]:  # noqa: ARG002
        self._watchers(watch.task_id).pop(watch.client, None)
        return []

    def _started(self, run: m.Run) -> m.Send:
        started = m.Started(task_id=run.task_id, epoch=run.epoch, owner=self.address)
        return m.Send(self._region, started)

    def _dropped(self, task_id: int, epoch: Epoch, reason: str) -> m.Send:
        return m.Send(self._region, m.Dropped(task_id=task_id, epoch=epoch, reason=reason))

    # -- calls -----------------------------------------------------------------------------------

    def _result(self, result: m.CallResult, now: float) -> list[m.Send]:
        """From the runner: free the slot and tell the owner. From an executor: go on with it."""
        call, out = self._executor.finished(result) if result.proxy == self.address else (None, [])
        if call is not None and call.owner != self.address:
            return [*out, m.Send(call.owner, result)]
        return out + self._of(result, TaskRun.answered, now)

    def _of(
        self, message: Any, method: Callable[[TaskRun, Any, float], list[m.Send]], now: float
    ) -> list[m.Send]:
        """Hand a message to the run that it belongs to, if that still has this epoch."""
        task = self._runs.get(message.task_id)
        if task is None or task.epoch != message.epoch:
            return []
        return method(task, message, now)

    def _peer_down(self, down: m.PeerDown, now: float) -> list[m.Send]:
        out = self._executor.abort_owner(down.proxy)
        for task in self._runs.values():
            out += task.peer_down(down.proxy, now)
        return out

    # -- time ------------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[m.Send]:
        out: list[m.Send] = []
        for key in self._timers.pop_due(now):
            task_id, what = key
            if key == BEAT:
                self._timers.set(BEAT, now + self._limits.heartbeat_s)
                out.append(m.Send(self._region, self._beat()))
            elif what == LOAD and task_id in self._loading:
                out += self._load(task_id, now)
            elif task_id in self._runs:
                out += self._runs[task_id].due(what, now)
        return out

    def _beat(self) -> m.ProxyBeat:
        loading = [m.Held(q.run.task_id, q.run.epoch) for q in self._loading.values()]
        running = [m.Held(task_id, run.epoch) for task_id, run in self._runs.items()]
        return m.ProxyBeat(
            incarnation=self._incarnation,
            calls=len(self._executor),
            capacity=self._limits.tasks_per_proxy,
            offers=self._offers,
            claims=tuple(loading + running),
        )
