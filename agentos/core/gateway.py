"""The gateway's machine: accepts tasks durably, gives them to regions, tells clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

from agentos.core import errors
from agentos.core import messages as m
from agentos.core.balancing import Balancer, LeastLoaded
from agentos.core.errors import AgentOSError, Overloaded, TaskNotFound
from agentos.core.limits import Limits
from agentos.core.placement import Placement
from agentos.core.prepared import PreparedGraphs
from agentos.core.timers import Timers
from agentos.core.weight import weight

SWEEP, LOOK = "sweep", "look"
PATIENCE = 30
"""A client's request waits for the store for this many `limits.resend_s`: longer than any client does
before it asks again."""


RECHECKED = 64
"""Watched tasks that one sweep asks the store about: an `Ended` may have been lost."""
ONLY_FROM = {m.Ended: {"region", "store"}, m.Cancelled: {"store"}, m.Refused: {"store"}}
"""Where the table of routes lets more roles speak to a gateway than this machine needs."""


class Waiting:
    """A client's request that waits for the store's answer."""

    def __init__(
        self,
        client: str,
        ref: str,
        notify: bool = False,
        agents: tuple[str, ...] = (),
        watch: m.Watch | None = None,
        weight: int = 0,
    ) -> None:
        self.client = client
        self.ref = ref
        self.notify = notify
        self.agents = agents
        self.watch = watch
        self.weight = weight


class GatewayMachine:
    """Accepts, places and announces tasks. What it forgets, it finds again in the database.

    Args:
        address: its own, like `gateway/a`: tells gateways on one database apart.
        incarnation: differs at every start, so that no answer to an earlier one is taken for ours.
        limits: bounds and intervals.
        balancer: chooses the region for a task, and for a new one the proxy too.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        address: str,
        incarnation: str,
        balancer: Balancer | None = None,
    ) -> None:
        self.address = address
        self._limits = limits
        self._placement = Placement(self.address, limits, balancer or LeastLoaded())
        self._graphs = PreparedGraphs(limits)
        self._waiting: dict[str, Waiting] = {}
        self._pending: Counter[str] = Counter()
        self._watchers: dict[int, dict[str, bool]] = {}
        self._watching = 0
        self._incarnation = incarnation
        self._refs = 0
        self._settled = False
        self._draining = False
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
            m.Heard: lambda q, _e, now: self._placement.heard(q, now),
            m.Claimed: self._claimed,
            m.Declined: self._declined,
            m.Ended: self._ended,
            m.TasksFound: lambda q, _e, now: self._placement.found(q, now),
            m.TaskCounts: lambda q, _e, now: self._placement.counted(q, now),
            m.Drain: lambda _q, _e, _now: self._drain(),
            m.Tick: lambda _q, _e, now: self._tick(now),
        }

    def handle(self, envelope: m.Envelope, now: float) -> list[m.Send]:
        """Take one message."""
        kind = type(envelope.message)
        if kind in ONLY_FROM and m.role_of(envelope.sender) not in ONLY_FROM[kind]:
            return []
        handler = self._handlers.get(kind)
        return handler(envelope.message, envelope, now) if handler else []

    def next_deadline(self) -> float | None:
        """The next sweep or repetition."""
        return self._timers.next()

    # -- clients ---------------------------------------------------------------------------------

    def _submit(self, q: m.Submit, e: m.Envelope, now: float) -> list[m.Send]:
        try:
            graph = self._graphs.read(q.task_description)
            if q.require_agents:
                self._require(graph.agents)
            self._admit()
        except (errors.GraphError, errors.AgentNotOffered, Overloaded) as error:
            return self._refuse(e.sender, e.ref, error)
        region, owner = self._placement.choose(graph.agents)
        create = m.CreateTask(
            user_id=q.user_id,
            task_type=q.task_type,
            task_description=q.task_description,
            key=q.key,
            agents=graph.agents,
            priority=graph.priority,
            claimant=self.address,
            region=region,
            owner=owner,
        )
        return self._ask(create, Waiting(e.sender, e.ref, q.notify, graph.agents), now)

    def _require(self, agents: tuple[str, ...]) -> None:
        if not self._placement.capable(agents, full=True):
            why = self._placement.why_waiting(agents)
            raise errors.AgentNotOffered(f"{why}; submit without require_agents to wait for one")

    def _drain(self) -> list[m.Send]:
        """Accept nothing more; what waits for its commit is still answered."""
        self._draining = True
        return []

    @property
    def drained(self) -> bool:
        """Whether nobody waits for an answer, after a `Drain`."""
        return self._draining and not any(waiting.client for waiting in self._waiting.values())

    def _admit(self) -> None:
        if self._draining:
            raise Overloaded(f"{self.address} is stopping", self._limits.reconnect_max_s)
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
        ended = m.Ended(task_id=q.task_id, epoch=q.epoch, state=q.state)
        return out + self._announce(ended)

    def _watch(self, q: m.Watch, e: m.Envelope, now: float) -> list[m.Send]:
        if q.client != e.sender:
            return []
        if not self._add_watcher(q.task_id, q.client, progress=q.progress):
            return self._refuse(e.sender, e.ref, Overloaded("too many watchers: poll"))
        return self._look_up(q, e.ref, now)

    def _unwatch(self, q: m.Unwatch, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        if q.client != e.sender or not self._drop_watcher(q.task_id, q.client):
            return []
        # The one that has the task knows it.
        return [m.Send(region, q) for region, _ in self._placement.regions.items()]

    def _look_up(self, watch: m.Watch, ref: str, now: float) -> list[m.Send]:
        """Registered first, looked up second: an end in between reaches the client either way."""
        waiting = Waiting(watch.client, ref, watch=watch)
        return self._ask(m.GetTask(task_id=watch.task_id), waiting, now)

    def _task_info(self, q: m.TaskInfo, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        waiting = self._answered(e.ref)
        if waiting is None or waiting.watch is None:
            return []
        if not waiting.client:
            return self._rechecked(q)
        if (ended := m.end_of(q)) is not None:
            self._drop_watcher(q.task_id, waiting.client)
            return [m.Send(waiting.client, ended, waiting.ref)]
        where = q.owner or q.region
        why = "" if where else self._placement.why_waiting(q.agents)
        event = m.Event(task_id=q.task_id, epoch=q.epoch, event="placed", proxy=where, text=why)
        out = [m.Send(waiting.client, event, waiting.ref)] if waiting.ref else []
        if waiting.watch.progress and q.region:
            out.append(m.Send(q.region, waiting.watch))
        return out

    def _refused(self, q: m.Refused, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        """The store's refusal goes to whoever waits for its answer."""
        waiting = self._answered(e.ref)
        if waiting is None:
            return []
        if waiting.watch is not None and not waiting.client:
            if q.code == TaskNotFound.code:  # anything else passes, and the next recheck tells
                self._forget_watchers(waiting.watch.task_id)
            return []
        self.counters[f"refused.{q.code}"] += 1
        if waiting.watch is not None:
            self._drop_watcher(waiting.watch.task_id, waiting.client)
        return [m.Send(waiting.client, q, waiting.ref)]

    def _refuse(self, client: str, ref: str, error: AgentOSError) -> list[m.Send]:
        self.counters[f"refused.{error.code}"] += 1
        return [m.Send(client, m.refusal(error), ref)]

    def _get_cluster(self, q: m.GetCluster, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        regions = tuple(
            m.RegionInfo(
                address=address,
                alive=not peer.suspected,
                silent_s=max(0.0, now - peer.seen_at),
                tasks=peer.beat.tasks,
                capacity=peer.beat.capacity,
                proxies=peer.beat.proxies,
                counters=peer.beat.counters,
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
        if len(self._waiting) >= self._limits.max_pending_submits:
            error = Overloaded(f"{len(self._waiting)} requests wait for the database")
            return self._refuse(waiting.client, waiting.ref, error) if waiting.client else []
        client, waiting.weight = waiting.client, weight(question)
        held = self._pending.get(client, 0)
        if client and held and held + waiting.weight > self._limits.peer_bytes:
            error = Overloaded(f"{held} bytes of {client!r} wait for the database")
            return self._refuse(client, waiting.ref, error)
        self._pending[client] += waiting.weight
        self._refs += 1
        ref = f"{self._incarnation}.{self._refs}"
        self._waiting[ref] = waiting
        self._timers.set(ref, now + PATIENCE * self._limits.resend_s)
        return [m.Send(m.STORE, question, ref)]

    def _answered(self, ref: str) -> Waiting | None:
        waiting = self._waiting.pop(ref, None)
        if waiting is not None:
            self._timers.cancel(ref)
            self._pending[waiting.client] -= waiting.weight
            if not self._pending[waiting.client]:
                del self._pending[waiting.client]
        return waiting

    # -- watchers --------------------------------------------------------------------------------

    def _add_watcher(self, task_id: int, client: str, *, progress: bool) -> bool:
        if client not in self._watchers.get(task_id, {}):
            if self._watching >= self._limits.max_watchers:
                return False
            self._watching += 1
        clients = self._watchers.setdefault(task_id, {})
        clients[client] = progress or clients.get(client, False)  # one of its handles may want it
        return True

    def _drop_watcher(self, task_id: int, client: str) -> bool:
        """Forget a watcher; returns whether it was to hear of progress."""
        clients = self._watchers.get(task_id, {})
        progress = clients.pop(client, None)
        if progress is not None:
            self._watching -= 1
        if not clients:
            self._watchers.pop(task_id, None)
        return bool(progress)

    def _forget_watchers(self, task_id: int) -> list[str]:
        clients = list(self._watchers.pop(task_id, ()))
        self._watching -= len(clients)
        return clients

    def _announce(self, ended: m.Ended) -> list[m.Send]:
        return [m.Send(client, ended) for client in self._forget_watchers(ended.task_id)]

    def _recheck(self, task_id: int, now: float) -> list[m.Send]:
        """Ask the store how a watched task stands, for all who watch it."""
        nobody = Waiting("", "", watch=m.Watch(task_id=task_id, client="", progress=False))
        return self._ask(m.GetTask(task_id=task_id), nobody, now)

    def _rechecked(self, q: m.TaskInfo) -> list[m.Send]:
        if (ended := m.end_of(q)) is not None:
            return self._announce(ended)
        return self._tell_region(q.task_id, q.region) if q.region else []

    def _tell_region(self, task_id: int, region: str) -> list[m.Send]:
        """Who wants to hear of the task's progress: the region tells every owner that it has."""
        return [
            m.Send(region, m.Watch(task_id=task_id, client=client))
            for client, progress in self._watchers.get(task_id, {}).items()
            if progress
        ]

    # -- regions ---------------------------------------------------------------------------------

    def _beat(self, q: m.RegionBeat, e: m.Envelope, now: float) -> list[m.Send]:
        heard = m.Heard(region=e.sender, beat=q)
        return [m.Send(m.STORE, heard), *self._placement.heard(heard, now)]

    def _declined(self, q: m.Declined, e: m.Envelope, now: float) -> list[m.Send]:
        self.counters["declined"] += 1
        return self._placement.declined(q, e.sender, now)

    def _claimed(self, q: m.Claimed, e: m.Envelope, now: float) -> list[m.Send]:  # noqa: ARG002
        out = self._placement.claimed(q)
        return out + self._tell_region(q.task_id, q.region) if out else out

    def _ended(self, q: m.Ended, e: m.Envelope, now: float) -> list[m.Send]:
        """The store says so, or a region that has learned of it: who watches is told by the store."""
        self.counters[q.state] += 1
        if e.sender == m.STORE:
            return [*self._announce(q), *self._placement.ended(q.owner, now)]
        out = self._recheck(q.task_id, now) if q.task_id in self._watchers else []
        return out + self._placement.ended(e.sender, now)

    # -- time ------------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[m.Send]:
        out: list[m.Send] = []
        for key in self._timers.pop_due(now):
            if key == LOOK:
                self._timers.set(LOOK, now + self._limits.heartbeat_s)
                out += self._look(now)
            elif key == SWEEP:
                # The first sweep waits: regions that are alive have a right to say so.
                limits, settled = self._limits, self._settled
                wait_s = limits.sweep_s if settled else limits.suspicion_s + limits.reconnect_max_s
                self._timers.set(SWEEP, now + wait_s)
                out += self._sweep(now) if settled else [m.Send(m.STORE, m.Heard())]
                self._settled = True
            else:
                self._answered(key)
        return out

    def _sweep(self, now: float) -> list[m.Send]:
        out = [m.Send(m.STORE, m.CountTasks())]
        for task_id in list(islice(self._watchers, RECHECKED)):
            self._watchers[task_id] = self._watchers.pop(task_id)  # to the end: each has its turn
            out += self._recheck(task_id, now)
        return out

    def _look(self, now: float) -> list[m.Send]:
        regions = self._placement.regions
        suspects = regions.newly_suspected(now)
        regions.forget_silent(now)
        self.counters["regions_suspected"] += len(suspects)
        count = [m.Send(m.STORE, m.CountTasks())] if suspects else []
        return count + self._placement.repeat(now)
