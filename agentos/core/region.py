"""The region's machine: gives tasks to its proxies, places calls, and replaces the dead."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from agentos.core import messages as m
from agentos.core.balancing import Balancer, LeastLoaded
from agentos.core.epoch import Epoch
from agentos.core.fleet import Fleet
from agentos.core.holdings import Holding, Holdings, Sweep
from agentos.core.limits import Limits
from agentos.core.places import Places
from agentos.core.timers import Timers, patience

BEAT, SWEEP, LOOK = (0, "beat"), (0, "sweep"), (0, "look")
CLAIM = "claim"
PAGE = 1_000
SOON = 0.1
"""The least time between two reports, in `limits.heartbeat_s`, even if there is news."""


class RegionMachine:
    """Has each task that the gateway assigns owned by one of its proxies, and keeps it owned.

    Args:
        address: like `region/eu`.
        limits: bounds and intervals.
        incarnation: differs at every start.
        balancer: chooses the proxy for a task and for a call.
    """

    def __init__(
        self,
        address: str,
        limits: Limits,
        *,
        incarnation: str,
        balancer: Balancer | None = None,
    ) -> None:
        self.address = address
        self._limits = limits
        self._incarnation = incarnation
        self._balancer = balancer or LeastLoaded()
        self._proxies = Fleet(limits.suspicion_s, limits.suspicion_s * limits.idle_heartbeats)
        self._places = Places(address, self._proxies, self._balancer, limits.heartbeat_s)
        self._tasks = Holdings(self._proxies.owns)
        self._timers: Timers[tuple[int, str]] = Timers()
        for key in (BEAT, SWEEP, LOOK):
            self._timers.set(key, 0.0)
        self._missing: dict[str, float] = {}
        """Agents that calls have asked for and that nobody here offers any more, and since when."""
        self._reported_at = -math.inf
        self._settled = False
        self._draining = False
        self._sweep = Sweep()
        self._handlers: dict[type, Callable[[Any, str, float], list[m.Send]]] = {
            m.Assign: self._assign,
            m.Claimed: self._claimed,
            m.Stop: self._stop,
            m.ProxyBeat: self._beat,
            m.Watch: self._watch,
            m.Unwatch: self._watch,
            m.Ended: self._ended,
            m.Dropped: self._dropped,
            m.Place: self._place,
            m.Drain: lambda q, _s, _now: self._drain(q),
            m.Tick: lambda _q, _s, now: self._tick(now),
        }

    def handle(self, envelope: m.Envelope, now: float) -> list[m.Send]:
        """Take one message. Other regions and their proxies are not listened to."""
        sender = envelope.sender
        role = m.role_of(sender)
        stranger = role == "proxy" and m.region_of(sender) != self.address
        if stranger or (role == "region" and sender != self.address):
            return []
        if isinstance(envelope.message, m.TasksFound):
            # What the region asked for that was here before us is not ours to act upon.
            return self._found(envelope.message, now) if envelope.ref == self._sweep.ref else []
        handler = self._handlers.get(type(envelope.message))
        return handler(envelope.message, sender, now) if handler else []

    def next_deadline(self) -> float | None:
        """The next heartbeat, sweep or repetition."""
        return self._timers.next()

    # -- tasks -----------------------------------------------------------------------------------

    def _assign(self, q: m.Assign, sender: str, now: float) -> list[m.Send]:  # noqa: ARG002
        held = self._tasks.get(q.task_id)
        if held is not None and (held.epoch.global_epoch >= q.epoch.global_epoch):
            return []
        if self._tasks.is_over(q.task_id, q.epoch, q.owner):
            return []  # its end, or what replaced it, has overtaken this
        self._forget(q.task_id)
        if q.owner and self._proxies.get(q.owner) is None:
            return []  # it may run already, at a proxy that is alive: the sweep looks once more
        self._tasks.put(q.task_id, Holding(q.epoch, q.agents, q.attempts, since=now))
        return self._owned(q.task_id, q.owner, now)

    def _owned(self, task_id: int, owner: str, now: float) -> list[m.Send]:
        """A task is a proxy's, as the database has it. Whether it knows, its heartbeats tell."""
        task = self._tasks[task_id]
        if task.widowed or not self._proxies.alive(owner):
            return self._claim_for(task_id, now, (owner,), lost=bool(owner))
        if self._proxies.gives_back(owner, m.Held(task_id, task.epoch)) and not self._draining:
            return self._claim_for(task_id, now, (owner,))
        self._tasks.own(task_id, owner)
        if self._draining:
            return [task.ask_back(task_id)]
        return task.introduce(task_id)

    def _claim_for(
        self, task_id: int, now: float, avoid: Collection[str] = (), *, lost: bool = False
    ) -> list[m.Send]:
        """Claim a task for the least loaded proxy that has room, or hand it back.

        One that must not lose another owner waits for its turn to run without others like it.
        """
        task = self._tasks[task_id]
        task.lost = task.lost or lost
        if self._draining:
            return self._decline(task_id, f"{self.address} is stopping")
        missing = set(task.agents) - self._proxies.agents()
        owner = None if missing else self._choose_owner(task.agents, avoid)
        if owner is None:
            reason = f"no live proxy offers {sorted(missing)}" if missing else "no room"
            return self._decline(task_id, reason)
        limits = self._limits
        last_chance = task.attempts + task.lost == limits.max_attempts - 1 > 0
        if last_chance and not self._tasks.try_alone(task_id, now, 2 * limits.suspicion_s):
            self._tasks.own(task_id, "")
            self._timers.set((task_id, CLAIM), now + limits.heartbeat_s)
            return []
        self._tasks.own(task_id, owner)
        task.claim_for(task_id, self.address, owner, self._proxies.incarnation(owner))
        return self._send_claim(task_id, now)

    def _choose_owner(self, agents: Collection[str], avoid: Collection[str]) -> str | None:
        owner = self._balancer.choose(self._proxies.room(agents), avoid)
        return self._balancer.choose(self._proxies.room(()), avoid) if owner in avoid else owner

    def _decline(self, task_id: int, reason: str) -> list[m.Send]:
        """Hand a task back to the gateway."""
        task = self._tasks[task_id]
        self._forget(task_id)
        declined = m.Declined(
            task_id=task_id, epoch=task.epoch, agents=task.agents, reason=reason, lost=task.lost
        )
        return [m.Send(m.GATEWAY, declined)]

    def _send_claim(self, task_id: int, now: float) -> list[m.Send]:
        task = self._tasks[task_id]
        assert task.claim is not None, f"task {task_id} has no claim to send"
        task.claiming, task.since = True, now
        self._timers.set((task_id, CLAIM), now + patience(self._limits.resend_s, task.repeats))
        return [m.Send(m.STORE, task.claim)]

    def _claimed(self, q: m.Claimed, sender: str, now: float) -> list[m.Send]:  # noqa: ARG002
        task = self._tasks.get(q.task_id)
        if task is None or not task.awaits(q):
            return []
        task.claiming, task.repeats = False, 0
        self._timers.cancel((q.task_id, CLAIM))
        if not q.granted:
            return self._lost(q, task)
        task.epoch, task.since, task.attempts, task.lost = q.epoch, now, q.attempts, False
        return self._owned(q.task_id, q.owner, now)

    def _lost(self, q: m.Claimed, task: Holding) -> list[m.Send]:
        """Not ours any more. If it has ended, neither owner nor gateway may have heard."""
        out = self._spread(q.task_id, q.epoch) if task.epoch < q.epoch else []
        self._forget(q.task_id)
        if q.state in m.TERMINAL:
            out.append(m.Send(m.GATEWAY, m.Ended(task_id=q.task_id, epoch=q.epoch, state=q.state)))
        return out

    def _watch(self, q: m.Watch | m.Unwatch, sender: str, now: float) -> list[m.Send]:  # noqa: ARG002
        """Somebody wants to hear of a task's progress, or no more; from all owners it will have."""
        task = self._tasks.get(q.task_id)
        if task is None or m.role_of(sender) != "gateway":
            return []
        return task.watch(q, self._limits.max_watchers)

    def _ended(self, q: m.Ended, sender: str, now: float) -> list[m.Send]:  # noqa: ARG002
        """Its owner has ended it: there is room. The gateway hears of it from the store."""
        task = self._tasks.get(q.task_id)
        if task is None:
            self._tasks.ended(q.task_id, q.epoch, sender)
        elif task.owner == sender and (task.epoch == q.epoch or task.claiming):
            self._forget(q.task_id)
        return []

    def _dropped(self, q: m.Dropped, sender: str, now: float) -> list[m.Send]:
        """The owner holds it no more: another one, unless the store says that it is not ours.

        Not at once, unless the owner is stopping: full proxies would hand it round very fast.
        """
        task = self._tasks.get(q.task_id)
        if task is None or task.epoch != q.epoch or task.owner != sender or task.claiming:
            return []
        peer = self._proxies.get(sender)
        if self._draining or (peer is not None and not peer.beat.capacity):
            return self._claim_for(q.task_id, now, (sender,))
        self._timers.set((q.task_id, CLAIM), now + self._limits.resend_s)
        return []

    def _claim_again(self, task_id: int, now: float) -> list[m.Send]:
        task = self._tasks[task_id]
        if task.claiming:
            task.repeats += 1
            return self._send_claim(task_id, now)
        return self._claim_for(task_id, now, (task.owner,))

    def _stop(self, q: m.Stop, sender: str, now: float) -> list[m.Send]:  # noqa: ARG002
        task = self._tasks.get(q.task_id)
        if task is not None and task.epoch < q.epoch:
            self._forget(q.task_id)
        return self._spread(q.task_id, q.epoch)

    def _spread(self, task_id: int, epoch: Epoch) -> list[m.Send]:
        """Whatever runs here for this task under an older epoch stops, and so does what comes."""
        self._tasks.stopped(task_id, epoch)
        stop = m.Stop(task_id=task_id, epoch=epoch)
        return [m.Send(proxy, stop) for proxy, _ in self._proxies.living()]

    def _forget(self, task_id: int) -> None:
        self._tasks.forget(task_id)
        self._timers.cancel((task_id, CLAIM))

    # -- proxies ---------------------------------------------------------------------------------

    def _beat(self, q: m.ProxyBeat, sender: str, now: float) -> list[m.Send]:
        known = self._proxies.get(sender)
        restarted = known is not None and known.beat.incarnation != q.incarnation
        news = self._proxies.heard(sender, q, now) or (
            known is None or restarted or known.beat.offers != q.offers
        )
        out = self._bury([sender], now) if restarted else []
        held = {claim.task_id: claim.epoch for claim in q.claims}
        for task_id, epoch in held.items():
            newest = self._tasks.newest(task_id)
            if newest > epoch:
                out.append(m.Send(sender, m.Stop(task_id=task_id, epoch=newest)))
        for task_id, task in self._tasks.of(sender):
            if held.get(task_id) == task.epoch:
                if self._draining:  # the first time it may have overtaken the task itself
                    out.append(task.ask_back(task_id))
            elif not task.claiming and now - task.since > self._limits.resend_s:
                # It never heard of the task, or has ended it: the claim's answer says which.
                again = task.claim is not None
                out += self._send_claim(task_id, now) if again else self._claim_for(task_id, now)
        if news:  # a thousand that come together are one report, not a thousand long ones
            soon = self._reported_at + SOON * self._limits.heartbeat_s
            self._timers.set(BEAT, max(now, soon))
        return out

    def _bury(self, gone: Collection[str], now: float) -> list[m.Send]:
        """Proxies are gone: their tasks get other owners, their calls other places."""
        if not gone:
            return []
        down = m.PeerDown(proxies=tuple(gone))
        out = [m.Send(other, down) for other, _ in self._proxies.living() if other not in gone]
        for task_id, task in [held for proxy in gone for held in self._tasks.of(proxy)]:
            if task.claiming:
                task.widowed = True  # another claim follows when this one is answered
            else:
                out += self._claim_for(task_id, now, gone, lost=True)
        return out

    def _place(self, q: m.Place, sender: str, now: float) -> list[m.Send]:
        call = q.call
        if call.owner != sender:
            return []
        newest = self._tasks.newest(call.task_id)
        if newest > call.epoch:
            return [m.Send(sender, m.Stop(task_id=call.task_id, epoch=newest))]
        return [*self._places.place(q), *self._give_up_on(call, now)]

    def _give_up_on(self, call: m.Call, now: float) -> list[m.Send]:
        """A task whose agent is not offered here any more goes where it may be."""
        if call.agent in self._proxies.agents():
            self._missing.pop(call.agent, None)
            return []
        # A proxy that is only started anew has the time to say so.
        wait_s = self._limits.suspicion_s + self._limits.reconnect_max_s
        if now - self._missing.setdefault(call.agent, now) <= wait_s:
            return []
        return [m.Send(call.owner, m.Yield(task_id=call.task_id, epoch=call.epoch))]

    # -- time ------------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[m.Send]:
        out: list[m.Send] = []
        for key in self._timers.pop_due(now):
            if key == BEAT:
                self._reported_at = now
                self._timers.set(BEAT, now + self._limits.heartbeat_s)
                out.append(m.Send(m.GATEWAY, self._report()))
            elif key == LOOK:
                out += self._bury(self._proxies.newly_suspected(now), now)
                out += [m.Send(proxy, m.Rouse()) for proxy in self._proxies.to_rouse()]
                self._proxies.forget_silent(now)
                for agent in self._missing.keys() & self._proxies.agents():
                    del self._missing[agent]
                beat_s = self._limits.heartbeat_s
                beat = self._reported_at + beat_s  # while all rest, no wake-up is for looks alone
                rest = beat if beat > now else now + beat_s
                self._timers.set(LOOK, now + beat_s / 2 if self._proxies.any_expected() else rest)
            elif key == SWEEP:
                if not self._settled:
                    # Just started: let the proxies say what they hold before we judge.
                    self._settled = True
                    wait_s = self._limits.suspicion_s + self._limits.reconnect_max_s
                    self._timers.set(SWEEP, now + wait_s)
                    continue
                self._timers.set(SWEEP, now + self._limits.sweep_s)
                if not self._sweep.under_way(now, self._limits.resend_s):
                    self._sweep = self._sweep.next(self._incarnation, now)
                    out += self._find(0)
            elif key[0] in self._tasks:
                out += self._claim_again(key[0], now)
        return out

    # -- the database's view -----------------------------------------------------------------------

    def _find(self, after: int) -> list[m.Send]:
        find = m.FindTasks(region=self.address, after=after, limit=PAGE)
        return [m.Send(m.STORE, find, self._sweep.ref)]

    def _found(self, q: m.TasksFound, now: float) -> list[m.Send]:
        """Adopt what we do not know, repair what we lost, and stop what is not ours any more."""
        out: list[m.Send] = []
        if q.region != self.address:
            return out
        self._sweep.heard = now
        for row in q.tasks:
            self._sweep.listed.add(row.task_id)
            if not self._draining:
                out += self._adopt(row, now)
        if len(q.tasks) == PAGE:
            return out + self._find(q.tasks[-1].task_id)
        self._sweep.done = True
        return out + self._disown()

    def _adopt(self, row: m.TaskBrief, now: float) -> list[m.Send]:
        task = self._tasks.get(row.task_id)
        if task is not None and (task.epoch >= row.epoch or task.claiming):
            return []  # known; or our own claim, committed but not yet answered
        self._forget(row.task_id)
        self._tasks.put(row.task_id, Holding(row.epoch, row.agents, row.attempts, since=now))
        return self._owned(row.task_id, row.owner, now)

    def _disown(self) -> list[m.Send]:
        """Claims that the database does not list as ours, twice in a row: they ended, or moved.

        This is how a region that was cut off, and comes back as a zombie, finds out; its proxies
        then stop what they still run and spend. Twice, because an end may be on its way here.
        """
        begun = self._sweep.begun
        held = {i: task.epoch for i, task in self._tasks.items() if task.since < begun}
        for _, peer in self._proxies.living():
            held |= {c.task_id: c.epoch for c in peer.beat.claims if c.task_id not in self._tasks}
        out: list[m.Send] = []
        for task_id, epoch in self._sweep.judge(held.items()):
            task = self._tasks.get(task_id)
            if task is None or not task.claiming:
                self._forget(task_id)
                out += self._spread(task_id, epoch.next_regional())
        return out

    @property
    def drained(self) -> bool:
        """Whether nothing is left to hand back, after a `Drain`."""
        return self._draining and not self._tasks

    def _drain(self, q: m.Drain) -> list[m.Send]:
        """Take nothing more, and hand back what is held: at once, or as the owners let go of it."""
        self._draining = True
        out = [m.Send(m.GATEWAY, self._report())]
        for task_id, task in self._tasks.items():
            if q.abort or not (task.claiming or self._proxies.alive(task.owner)):
                out += self._decline(task_id, f"{self.address} is stopping")
            elif not task.claiming:
                out.append(task.ask_back(task_id))
        return out

    def _report(self) -> m.RegionBeat:
        return m.RegionBeat(
            incarnation=self._incarnation,
            tasks=len(self._tasks),
            capacity=0 if self._draining else self._proxies.capacity(),
            agents=tuple(sorted(self._proxies.agents())),
            proxies=self._proxies.report(),
        )
