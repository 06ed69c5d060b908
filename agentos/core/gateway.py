"""The gateway's machine: accepts tasks durably, gives them to regions, tells clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from agentos.core import messages as m
from agentos.core.balancing import Balancer, LeastLoaded
from agentos.core.errors import AgentNotOffered, GraphError, Overloaded
from agentos.core.graph import parse_graph
from agentos.core.limits import Limits
from agentos.core.placement import Placement
from agentos.core.timers import Timers

SWEEP, LOOK = "sweep", "look"
PATIENCE = 30
"""Resend times for which a client's request waits for the store; its client has asked again by then."""


class Waiting(msgspec.Struct):
    """A client's request that waits for the store's answer."""

    client: str
    ref: str
    notify: bool = False
    agents: tuple[str, ...] = ()
    watch: m.Watch | None = None


class GatewayMachine:
    """Accepts, places and announces tasks. What it forgets, it finds again in the database.

    Args:
        address: its own, like `gateway/a`: tells gateways on one database apart.
        limits: bounds and intervals.
        balancer: chooses the region for a task.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        address: str,
        balancer: Balancer | None = None,
    ) -> None:
        self.address = address
        self._limits = limits
        self._placement = Placement(self.address, limits, balancer or LeastLoaded())
        self._waiting: dict[str, Waiting] = {}
        self._watchers: dict[int, dict[str, bool]] = {}
        self._refs = 0
        self._settled = False
        self.counters: Counter[str] = Counter()
        self._timers: Timers[str] = Timers()
        for key in (SWEEP, LOOK):
            self._timers.set(key, 0.0)
        self._handlers: dict[type, Callable[[Any, m.Envelope, float], list[m.Send]]] = {
            m.Submit: self._submit,
            m.TaskCreated: self._created,
            m.Cancel: self._cancel,
            m.Cancelled: self._cancelled,
            m.Watch: self._watch,
            m.Unwatch: self._unwatch,
            m.TaskInfo: self._task_info,
            m.Refused: self._refused,
            m.GetCluster: self._get_cluster,
            m.RegionBeat: self._beat,
            m.Claimed: lambda q, _e, _now: self._placement.claimed(q),
            m.Declined: self._declined,
            m.Started: self._started,
            m.Ended: self._ended,
            m.TasksFound: lambda q, _e, now: self._placement.found(q, now),
            m.TaskCounts: lambda q, _e, now: self._placement.counted(q, now),
            m.Tick: lambda _q, _e, now: self._tick(now),
        }

    def handle(self, envelope: m.Envelope, now: float) -> list[m.Send]:
        """Take one message."""
        handler = self._handlers.get(type(envelope.message))
        return handler(envelope.message, envelope, now) if handler else []

    def next_deadline(self) -> float | None:
        """The next sweep or repetition."""
        return self._timers.next()

    # -- clients ---------------------------------------------------------------------------------

    def _submit(self, q: m.Submit, e: m.Envelope, now: float) -> list[m.Send]:
        try:
            graph = parse_graph(q.task_description, self._limits)
            if q.require_agents:
                self._require(graph.agents)
            self._admit()
        except (GraphError, AgentNotOffered, Overloaded) as error:
            self.counters[f"refused.{error.code}"] += 1
            refused = m.Refused(
                code=error.code,
                reason=str(error),
                retry_after_s=getattr(error, "retry_after_s", None),
            )
            return [m.Send(e.sender, refused, e.ref)]
        create = m.CreateTask(
            user_id=q.user_id,
            task_type=q.task_type,
            task_description=q.task_description,
            key=q.key,
            agents=graph.agents,
            priority=graph.priority,
            claimant=self.address,
            region=self._placement.choose(graph.agents),
        )
        return self._ask(create, Waiting(e.sender, e.ref, q.notify, graph.agents), now)

    def _require(self, agents: Collection[str]) -> None:
        if self._placement.capable(agents, full=True):
            return
        raise AgentNotOffered(
            f"no living region offers all of {sorted(agents)}; "
            f"offered now: {self._placement.offered()}; "
            "submit without require_agents to wait for one"
        )

    def _admit(self) -> None:
        if len(self._waiting) >= self._limits.max_pending_submits:
            raise Overloaded(f"{len(self._waiting)} requests wait for the database")
        unfinished = self._placement.unfinished
        if unfinished >= self._limits.max_unfinished:
            raise Overloaded(f"{unfinished} tasks are unfinished", self._limits.sweep_s)

    def _created(self, q: m.TaskCreated, e: m.Envelope, now: float) -> list[m.Send]:
        waiting = self._answered(e.ref)
        if waiting is None:
            return []  # too late: the client has asked again; the sweep places the task
        self.counters["submitted" if q.created else "submitted_again"] += 1
        answer = m.Submitted(task_id=q.task_id, state=q.state, created=q.created)
        out = [m.Send(waiting.client, answer, waiting.ref)]
        if q.created:
            out += self._placement.created(q, waiting.agents)
        if waiting.notify:
            self._add_watcher(q.task_id, waiting.client, progress=False)
            if not q.created:
                watch = m.Watch(task_id=q.task_id, client=waiting.client, progress=False)
                out += self._look_up(watch, "", now)
        return out

    def _cancel(self, q: m.Cancel, e: m.Envelope, now: float) -> list[m.Send]:
        return self._ask(m.CancelTask(task_id=q.task_id), Waiting(e.sender, e.ref), now)

    def _cancelled(self, q: m.Cancelled, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        waiting = self._answered(e.ref)
        out = [m.Send(waiting.client, q, waiting.ref)] if waiting else []
        self._placement.cancelled(q.task_id)
        if q.state != "cancelled":
            return out
        self.counters["cancelled"] += 1
        if q.region:
            out.append(m.Send(q.region, m.Stop(task_id=q.task_id, epoch=q.epoch)))
        ended = m.Ended(task_id=q.task_id, epoch=q.epoch, state=q.state, response="")
        return out + self._announce(ended)

    def _watch(self, q: m.Watch, e: m.Envelope, now: float) -> list[m.Send]:
        if q.client != e.sender:
            return []
        if not self._add_watcher(q.task_id, q.client, progress=q.progress):
            refused = m.Refused(
                code=Overloaded.code, reason="too many watchers: poll", retry_after_s=1.0
            )
            return [m.Send(e.sender, refused, e.ref)]
        return self._look_up(q, e.ref, now)

    def _unwatch(self, q: m.Unwatch, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        if q.client == e.sender:
            self._drop_watcher(q.task_id, q.client)
        return []

    def _look_up(self, watch: m.Watch, ref: str, now: float) -> list[m.Send]:
        """Registered first, looked up second: an end in between reaches the client either way."""
        waiting = Waiting(watch.client, ref, watch=watch)
        return self._ask(m.GetTask(task_id=watch.task_id), waiting, now)

    def _task_info(self, q: m.TaskInfo, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        waiting = self._answered(e.ref)
        if waiting is None or waiting.watch is None:
            return []
        if q.state in m.TERMINAL:
            ended = m.Ended(
                task_id=q.task_id,
                epoch=q.epoch,
                state=q.state,
                response=q.response or "",
                error=q.error,
            )
            self._drop_watcher(q.task_id, waiting.client)
            return [m.Send(waiting.client, ended, waiting.ref)]
        where = q.owner or q.region
        event = m.Event(task_id=q.task_id, epoch=q.epoch, event="placed", proxy=where)
        out = [m.Send(waiting.client, event, waiting.ref)] if waiting.ref else []
        if waiting.watch.progress and q.owner:
            out.append(m.Send(q.owner, waiting.watch))
        return out

    def _refused(self, q: m.Refused, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        """The store's refusal goes to whoever waits for its answer."""
        if e.sender != m.STORE:
            return []
        waiting = self._answered(e.ref)
        if waiting is None:
            return []
        self.counters[f"refused.{q.code}"] += 1
        if waiting.watch is not None:
            self._drop_watcher(waiting.watch.task_id, waiting.client)
        return [m.Send(waiting.client, q, waiting.ref)]

    def _get_cluster(self, q: m.GetCluster, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        regions = tuple(
            m.RegionInfo(
                address=address,
                alive=not peer.suspected,
                silent_s=max(0.0, now - peer.seen_at),
                tasks=peer.beat.tasks,
                capacity=peer.beat.capacity,
                proxies=peer.beat.proxies,
            )
            for address, peer in self._placement.regions.items()
        )
        info = m.ClusterInfo(
            gateway=self.address,
            regions=regions,
            unfinished=self._placement.unfinished,
            backlog=self._placement.backlog,
            counters={**self.counters, "placed_again": self._placement.placed},
        )
        return [m.Send(e.sender, info, e.ref)]

    # -- requests to the store -------------------------------------------------------------------

    def _ask(self, question: m.Message, waiting: Waiting, now: float) -> list[m.Send]:
        self._refs += 1
        ref = f"g{self._refs}"
        self._waiting[ref] = waiting
        self._timers.set(ref, now + PATIENCE * self._limits.resend_s)
        return [m.Send(m.STORE, question, ref)]

    def _answered(self, ref: str) -> Waiting | None:
        self._timers.cancel(ref)
        return self._waiting.pop(ref, None)

    # -- watchers --------------------------------------------------------------------------------

    def _add_watcher(self, task_id: int, client: str, *, progress: bool) -> bool:
        known = self._watchers.get(task_id)
        if known is None and len(self._watchers) >= self._limits.max_watchers:
            return False
        self._watchers.setdefault(task_id, {})[client] = progress
        return True

    def _drop_watcher(self, task_id: int, client: str) -> None:
        clients = self._watchers.get(task_id, {})
        clients.pop(client, None)
        if not clients:
            self._watchers.pop(task_id, None)

    def _announce(self, ended: m.Ended) -> list[m.Send]:
        return [m.Send(client, ended) for client in self._watchers.pop(ended.task_id, ())]

    # -- regions ---------------------------------------------------------------------------------

    def _beat(self, q: m.RegionBeat, e: m.Envelope, now: float) -> list[m.Send]:
        self._placement.regions.heard(e.sender, q, now)
        return self._placement.pull(now)

    def _declined(self, q: m.Declined, e: m.Envelope, now: float) -> list[m.Send]:
        self.counters["declined"] += 1
        return self._placement.declined(q, e.sender, now)

    def _started(self, q: m.Started, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        watchers = self._watchers.get(q.task_id, {})
        return [
            m.Send(q.owner, m.Watch(task_id=q.task_id, client=client))
            for client, progress in watchers.items()
            if progress
        ]

    def _ended(self, q: m.Ended, e: m.Envelope, now: float) -> list[m.Send]:
        self.counters[q.state] += 1
        if q.response or q.task_id not in self._watchers:
            out = self._announce(q)
        else:  # the region learned of the end from the store; the response is there
            out = []
            for client, progress in list(self._watchers[q.task_id].items()):
                watch = m.Watch(task_id=q.task_id, client=client, progress=progress)
                out += self._look_up(watch, "", now)
        return out + self._placement.ended(e.sender, now)

    # -- time ------------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[m.Send]:
        out: list[m.Send] = []
        for key in self._timers.pop_due(now):
            if key == LOOK:
                self._timers.set(LOOK, now + self._limits.heartbeat_s / 2)
                out += self._look(now)
            elif key == SWEEP:
                # The first sweep waits: regions that are alive have a right to say so.
                wait = self._limits.sweep_s if self._settled else self._limits.suspicion_s
                self._timers.set(SWEEP, now + wait)
                if self._settled:
                    out.append(m.Send(m.STORE, m.CountTasks()))
                self._settled = True
            else:
                self._waiting.pop(key, None)
        return out

    def _look(self, now: float) -> list[m.Send]:
        regions = self._placement.regions
        suspects = regions.newly_suspected(now)
        regions.forget_silent(now)
        self.counters["regions_suspected"] += len(suspects)
        count = [m.Send(m.STORE, m.CountTasks())] if suspects else []
        return count + self._placement.repeat(now)
