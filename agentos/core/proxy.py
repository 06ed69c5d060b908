"""The proxy's machine: owner of some tasks, executor of calls for its region."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from agentos.core import messages as m
from agentos.core.beating import Beating
from agentos.core.calls import Context, TimerKey
from agentos.core.epoch import Epoch
from agentos.core.errors import GraphError, TaskNotFound
from agentos.core.executor import Executor
from agentos.core.floors import Floors
from agentos.core.limits import Limits
from agentos.core.loading import Loading, fail_poisonous, fail_unrun
from agentos.core.prepared import PreparedGraphs
from agentos.core.routes import may_command
from agentos.core.taskrun import TaskRun
from agentos.core.timers import Timers, patience

BEAT: TimerKey = (0, "beat")
LOAD = "load"
REMEMBERED = 8_192
"""Tasks of which a proxy remembers which claims are over, should a `Run` of one come late."""


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
        self._graphs = PreparedGraphs(limits)
        self._runs: dict[int, TaskRun] = {}
        self._loading: dict[int, Loading] = {}
        self._timers: Timers[TimerKey] = Timers()
        self._timers.set(BEAT, 0.0)
        self._executor = Executor(
            address,
            agents,
            offers,
            max_waiting=limits.waiting_calls,
            max_kept=limits.kept_answer_bytes,
            policy=policy,
        )
        self._seen_at: float | None = None
        self._beating = Beating(limits)
        self._yielding: set[int] = set()
        self._floors = Floors(REMEMBERED)
        self._draining = False
        self._context = Context(
            address=address,
            region=self._region,
            limits=limits,
            timers=self._timers,
            run_here=self._executor.start,
            chance=chance,
        )
        self._handlers: dict[type, Callable[[Any, m.Envelope, float], list[m.Send]]] = {
            m.Run: self._run,
            m.Progress: self._progress,
            m.Refused: self._refused,
            m.Recorded: self._recorded,
            m.Stop: self._stop,
            m.Yield: self._yield,
            m.Drain: lambda q, _e, now: self._drain(q, now),
            m.Watch: self._watch,
            m.Unwatch: self._unwatch,
            m.Call: self._call,
            m.CallResult: self._result,
            m.Placed: self._placed,
            m.CallRefused: self._call_refused,
            m.AbortCalls: lambda q, e, _now: self._executor.abort(
                q.task_id, q.epoch.next_regional(), q.row, e.sender
            ),
            m.PeerDown: self._peer_down,
            m.Rouse: self._rouse,
            m.Tick: lambda _q, _e, now: self._tick(now),
        }

    def handle(self, envelope: m.Envelope, now: float) -> list[m.Send]:
        """Take one message; calls between owner and executor of this same proxy stay inside."""
        if not may_command(self.address, self._region, envelope):
            return []
        inbox: list[m.Envelope] = []
        out: list[m.Send] = []
        self._part(self._check_claims(now), inbox, out)
        inbox.append(envelope)
        for one in inbox:  # it grows on the way
            if (handler := self._handlers.get(type(one.message))) is not None:
                self._part(handler(one.message, one, now), inbox, out)
        if self._beating.at_rest and self._busy:
            self._timers.set(BEAT, self._beating.stir(now))
        return out + self._hand_back() if self._yielding else out

    def _part(self, sends: list[m.Send], inbox: list[m.Envelope], out: list[m.Send]) -> None:
        """Put what is for this machine itself into its inbox, and what is for others out."""
        me = self.address
        for send in sends:
            if send.to == me:
                inbox.append(m.Envelope(me, me, send.message, send.ref))
            else:
                out.append(send)

    def next_deadline(self) -> float | None:
        """The next heartbeat, or whatever is due before."""
        return self._timers.next()

    # -- tasks -----------------------------------------------------------------------------------

    def _run(self, run: m.Run, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        held = self._held(run.task_id)
        another = run.incarnation not in {"", self._incarnation}  # had our name before us
        if another or (held is not None and held >= run.epoch):
            return []
        if run.epoch < self._floors.of(run.task_id):
            return [self._dropped(run.task_id, run.epoch, "this claim is over")]
        if self._draining:
            return [self._dropped(run.task_id, run.epoch, f"{self.address} is stopping")]
        watchers, out = self._watchers(run.task_id), self._give_up(run.task_id)
        if len(self._runs) + len(self._loading) >= self._limits.tasks_per_proxy:
            return [*out, self._dropped(run.task_id, run.epoch, "no room")]
        if run.attempts >= self._limits.max_attempts:
            return [*out, fail_poisonous(run)]
        self._loading[run.task_id] = Loading(run, watchers)
        return out + (self._load(run.task_id, now) if run.saved else self._begin(run.task_id, now))

    def _load(self, task_id: int, now: float) -> list[m.Send]:
        loading = self._loading[task_id]
        after = loading.rows[-1].node_id if loading.rows else ""
        wait_s = patience(self._limits.resend_s, loading.repeats)
        self._timers.set((task_id, LOAD), now + wait_s)
        return [m.Send(m.STORE, m.GetProgress(task_id=task_id, after=after), loading.ref)]

    def _progress(self, page: m.Progress, e: m.Envelope, now: float) -> list[m.Send]:
        loading = self._loading.get(page.task_id)
        if loading is None or e.ref != loading.ref:
            return []  # what an earlier claim asked for may lack what was saved since
        last = loading.rows[-1].node_id if loading.rows else ""
        loading.rows += [row for row in page.rows if row.node_id > last]
        loading.repeats = 0
        return self._load(page.task_id, now) if page.more else self._begin(page.task_id, now)

    def _refused(self, q: m.Refused, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        """The store has no such task: somebody deleted it after it had ended."""
        for task_id, loading in self._loading.items():
            if e.sender == m.STORE and e.ref == loading.ref and q.code == TaskNotFound.code:
                out = self._give_up(task_id)
                return [*out, self._dropped(task_id, loading.epoch, q.reason)]
        return []

    def _begin(self, task_id: int, now: float) -> list[m.Send]:
        loading = self._loading.pop(task_id)
        self._timers.cancel((task_id, LOAD))
        run = loading.run
        try:
            graph = self._graphs.read(run.task_description)
            task = TaskRun(run, graph, loading.rows, self._context, loading.watchers)
        except (GraphError, msgspec.ValidationError, ValueError) as error:
            # The gateway accepted it, so somebody has changed it in the database since.
            return [fail_unrun(run, f"the stored task cannot be read: {error}")]
        self._runs[task_id] = task
        check = task.doubt(now) if loading.doubtful else []
        return [*check, *task.begin(now)]

    def _recorded(self, answer: m.Recorded, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        if (task := self._run_of(answer)) is None:
            return self._ended_unrun(answer)
        if answer.outcome == "stale":
            # Stale means stop: a newer owner exists, or the task has ended without us.
            reason = f"refused: the task is at {answer.current}, {answer.state}"
            out = self._give_up(answer.task_id)
            return [*out, self._dropped(answer.task_id, answer.epoch, reason)]
        out = task.recorded(answer, now)
        if task.over:
            del self._runs[answer.task_id]
            self._floors.lift(answer.task_id, answer.epoch.next_regional())
        return out

    def _ended_unrun(self, answer: m.Recorded) -> list[m.Send]:
        """The end of a task that was not begun, or one that we have told of already."""
        if not answer.ended or self._held(answer.task_id) is not None:
            return []
        ended = m.Ended(task_id=answer.task_id, epoch=answer.epoch, state=answer.state)
        return [m.Send(self._region, ended)]

    def _stop(self, stop: m.Stop, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        out = self._executor.abort(stop.task_id, stop.epoch)
        if (held := self._held(stop.task_id)) is None or held < stop.epoch:
            self._floors.lift(stop.task_id, stop.epoch)
            out += self._give_up(stop.task_id)
        return out

    def _yield(self, q: m.Yield, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        return self._let_go(q.task_id) if self._held(q.task_id) == q.epoch else []

    def _let_go(self, task_id: int) -> list[m.Send]:
        """Hand a task back: at once if it was not begun, or when its calls in flight are saved."""
        if task_id in self._loading:
            dropped = self._dropped(task_id, self._loading[task_id].epoch, "handed back")
            return [*self._give_up(task_id), dropped]
        self._runs[task_id].give_back()
        self._yielding.add(task_id)
        return []

    def _hand_back(self) -> list[m.Send]:
        out: list[m.Send] = []
        for task_id in sorted(self._yielding):
            if (task := self._runs.get(task_id)) is None:
                self._yielding.discard(task_id)
            elif task.given_back:
                self._yielding.discard(task_id)
                out += [*self._give_up(task_id), self._dropped(task_id, task.epoch, "handed back")]
        return out

    def _give_up(self, task_id: int) -> list[m.Send]:
        if self._loading.pop(task_id, None) is not None:
            self._timers.cancel((task_id, LOAD))
        if (task := self._runs.pop(task_id, None)) is None:
            return []
        over = task.epoch.next_regional()
        self._floors.lift(task_id, over)
        # Also what runs here and the run does not know of: the word of its place may be late.
        return [*task.stop(), *self._executor.abort(task_id, over, owner=self.address)]

    def _held(self, task_id: int) -> Epoch | None:
        holder = self._loading.get(task_id) or self._runs.get(task_id)
        return holder.epoch if holder is not None else None

    def _watchers(self, task_id: int) -> dict[str, bool]:
        holder = self._loading.get(task_id) or self._runs.get(task_id)
        return holder.watchers if holder is not None else {}

    def _watch(self, watch: m.Watch, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        watchers = self._watchers(watch.task_id)
        if watch.client not in watchers and len(watchers) >= self._limits.max_watchers:
            return []
        if (task := self._runs.get(watch.task_id)) is not None:
            return task.watch(watch.client, progress=watch.progress)
        if watch.task_id in self._loading:
            watchers[watch.client] = watch.progress
        return []

    def _unwatch(self, watch: m.Unwatch, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        self._watchers(watch.task_id).pop(watch.client, None)
        return []

    def _dropped(self, task_id: int, epoch: Epoch, reason: str) -> m.Send:
        return m.Send(self._region, m.Dropped(task_id=task_id, epoch=epoch, reason=reason))

    # -- calls -----------------------------------------------------------------------------------

    def _call(self, q: m.Call, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        """Run a call, unless it is one of our own that a slow region placed too late."""
        if q.owner == self.address:
            task = self._run_of(q)
            if task is None or task.doubtful or not task.calls.wants(q.row, q.attempt):
                return []  # if it is wanted, it is asked for again
        return self._executor.submit(q)

    def _result(self, result: m.CallResult, e: m.Envelope, now: float) -> list[m.Send]:
        """From the runner: free the slot and tell the owner. From an executor: go on with it."""
        out: list[m.Send] = []
        if m.role_of(e.sender) == "agents":
            call, out = self._executor.finished(result)
            if call is None:
                return []  # it was revoked; its slot is free already
            if call.owner != self.address:
                return [*out, m.Send(call.owner, result)]
        task = self._run_of(result)
        return out + task.answered(result, now) if task is not None else out

    def _placed(self, q: m.Placed, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        task = self._run_of(q)
        if task is not None and task.calls.wants(q.row, q.attempt):
            return task.calls.placed(q, now)
        # Placed too late: nobody waits for the answer any more.
        return [m.Send(q.proxy, m.AbortCalls(task_id=q.task_id, epoch=q.epoch, row=q.row))]

    def _call_refused(self, q: m.CallRefused, e: m.Envelope, now: float) -> list[m.Send]:
        task = self._run_of(q)
        return task.calls.refused(q, e.sender, now) if task is not None else []

    def _run_of(
        self, q: m.Call | m.CallResult | m.Placed | m.CallRefused | m.Recorded
    ) -> TaskRun | None:
        """The run that a message belongs to, if that still has its epoch."""
        task = self._runs.get(q.task_id)
        return task if task is not None and task.epoch == q.epoch else None

    def _peer_down(self, down: m.PeerDown, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        out: list[m.Send] = []
        for proxy in sorted({*down.proxies} - {self.address}):  # of ourselves we know better
            out += self._executor.abort_owner(proxy)
            out += [s for task in self._runs.values() for s in task.peer_down(proxy, now)]
        return out

    # -- the end -----------------------------------------------------------------------------------

    @property
    def drained(self) -> bool:
        """Whether nothing is held and nothing runs, after a `Drain`."""
        return self._draining and not self._busy

    @property
    def _busy(self) -> bool:
        return bool(self._runs or self._loading or len(self._executor))

    def _drain(self, q: m.Drain, now: float) -> list[m.Send]:
        """Take nothing more, and hand back what is held; with `abort` whatever is in flight."""
        self._draining = True
        out = [self._beat(now), *self._executor.drain(abort=q.abort)]
        for task_id in [*self._loading, *self._runs]:
            out += self._let_go(task_id)
        if q.abort:
            for task_id, task in list(self._runs.items()):
                out += [*self._give_up(task_id), self._dropped(task_id, task.epoch, "aborted")]
        return out

    # -- time ------------------------------------------------------------------------------------

    def _check_claims(self, now: float) -> list[m.Send]:
        """If our loop stood still for longer than a lease, others may have our tasks by now."""
        before, self._seen_at = self._seen_at, now
        if before is None or now - before <= self._limits.suspicion_s:
            return []
        for loading in self._loading.values():
            loading.doubtful = True
        checks = [send for task in self._runs.values() for send in task.doubt(now)]
        return checks + self._executor.put_off(self.address)

    def _tick(self, now: float) -> list[m.Send]:
        out: list[m.Send] = []
        for key in self._timers.pop_due(now):
            task_id, what = key
            if key == BEAT and (later := self._beating.put_off(busy=self._busy)) is not None:
                self._timers.set(BEAT, later)
            elif key == BEAT:
                out.append(self._beat(now))
            elif what == LOAD and task_id in self._loading:
                self._loading[task_id].repeats += 1
                out += self._load(task_id, now)
            elif task_id in self._runs:
                out += self._runs[task_id].due(what, now)
        return out

    def _rouse(self, q: m.Rouse, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        self._beating.rouse()
        self._timers.set(BEAT, now)  # the next tick's: several that come together want one answer
        return []

    def _beat(self, now: float) -> m.Send:
        self._timers.set(BEAT, self._beating.beat(now, busy=self._busy))
        held: list[tuple[int, Loading | TaskRun]] = [*self._loading.items(), *self._runs.items()]
        beat = m.ProxyBeat(
            incarnation=self._incarnation,
            calls=len(self._executor),
            capacity=0 if self._draining else self._limits.tasks_per_proxy,
            offers=() if self._draining else self._offers,
            claims=tuple(m.Held(task_id, holder.epoch) for task_id, holder in held),
        )
        return m.Send(self._region, beat)
