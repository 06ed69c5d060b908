"""The region's machine: gives tasks to its proxies, places calls, and replaces the dead."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from agentos.core import messages as m
from agentos.core.balancing import Balancer, LeastLoaded
from agentos.core.epoch import Epoch
from agentos.core.fleet import Fleet
from agentos.core.limits import Limits
from agentos.core.timers import Timers

BEAT, SWEEP, LOOK = (0, "beat"), (0, "sweep"), (0, "look")
CLAIM = "claim"
REMEMBERED = 8_192
"""Placements that are remembered, so that one that is asked for again goes to the same proxy; and
stops, so that a call that was on its way meets them."""


class Holding(msgspec.Struct):
    """A task of this region. `claim` is the one that is under way, or the last that was granted."""

    epoch: Epoch
    agents: tuple[str, ...]
    owner: str = ""
    claim: m.Claim | None = None
    claiming: bool = False
    since: float = 0.0


class RegionMachine:
    """Claims each task that the gateway assigns for one of its proxies, and keeps it owned.

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
        self._proxies = Fleet(limits.suspicion_s)
        self._tasks: dict[int, Holding] = {}
        self._owned: dict[str, int] = {}
        self._placements: OrderedDict[tuple[int, Epoch, str, int], str] = OrderedDict()
        self._stops: OrderedDict[int, Epoch] = OrderedDict()
        self._timers: Timers[tuple[int, str]] = Timers()
        for key in (BEAT, SWEEP, LOOK):
            self._timers.set(key, 0.0)
        self._settled = False
        self._handlers: dict[type, Callable[[Any, str, float], list[m.Send]]] = {
            m.Assign: self._assign,
            m.Claimed: self._claimed,
            m.TasksFound: self._found,
            m.Stop: self._stop,
            m.ProxyBeat: self._beat,
            m.Started: self._started,
            m.Ended: self._ended,
            m.Dropped: self._dropped,
            m.Place: self._place,
            m.Tick: lambda _q, _s, now: self._tick(now),
        }

    def handle(self, envelope: m.Envelope, now: float) -> list[m.Send]:
        """Take one message. Other regions and their proxies are not listened to."""
        sender = envelope.sender
        role = m.role_of(sender)
        stranger = role == "proxy" and m.region_of(sender) != self.address
        if stranger or (role == "region" and sender != self.address):
            return []
        if isinstance(envelope.message, m.TasksFound) and envelope.ref != self._incarnation:
            return []  # asked for by the region that was here before; we listen first
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
        self._forget(q.task_id)
        self._tasks[q.task_id] = Holding(q.epoch, q.agents)
        return self._claim_for(q.task_id, now)

    def _claim_for(self, task_id: int, now: float, avoid: Collection[str] = ()) -> list[m.Send]:
        """Claim a task for the least loaded proxy that has room, or hand it back."""
        task = self._tasks[task_id]
        missing = set(task.agents) - self._proxies.agents()
        owner = None if missing else self._balancer.choose(self._proxies.room(self._owned), avoid)
        if owner is None:
            self._forget(task_id)
            reason = f"no live proxy offers {sorted(missing)}" if missing else "no room"
            declined = m.Declined(
                task_id=task_id, epoch=task.epoch, agents=task.agents, reason=reason
            )
            return [m.Send(m.GATEWAY, declined)]
        self._own(task, owner)
        task.claim = m.Claim(
            task_id=task_id,
            expected=task.epoch,
            scope="regional",
            claimant=self.address,
            region=self.address,
            owner=owner,
        )
        return self._send_claim(task_id, now)

    def _send_claim(self, task_id: int, now: float) -> list[m.Send]:
        task = self._tasks[task_id]
        assert task.claim is not None, f"task {task_id} has no claim to send"
        task.claiming, task.since = True, now
        self._timers.set((task_id, CLAIM), now + self._limits.resend_s)
        return [m.Send(m.STORE, task.claim)]

    def _claimed(self, q: m.Claimed, sender: str, now: float) -> list[m.Send]:  # noqa: ARG002
        task = self._tasks.get(q.task_id)
        if task is None or not task.claiming or task.claim is None:
            return []
        if not _answers(q, task.claim):
            return []
        task.claiming = False
        self._timers.cancel((q.task_id, CLAIM))
        if not q.granted:
            return self._lost(q, task)
        task.epoch, task.since = q.epoch, now
        if not self._proxies.alive(q.owner):
            return self._claim_for(q.task_id, now, (q.owner,))
        run = m.Run(
            task_id=q.task_id,
            epoch=q.epoch,
            task_description=q.task_description,
            saved=q.saved,
            attempts=q.attempts,
        )
        return [m.Send(q.owner, run)]

    def _lost(self, q: m.Claimed, task: Holding) -> list[m.Send]:
        """Not ours any more. If it has ended, neither owner nor gateway may have heard."""
        out = self._spread(q.task_id, q.epoch) if task.epoch < q.epoch else []
        self._forget(q.task_id)
        if q.state in m.TERMINAL:
            ended = m.Ended(task_id=q.task_id, epoch=q.epoch, state=q.state, response="")
            out.append(m.Send(m.GATEWAY, ended))
        return out

    def _started(self, q: m.Started, sender: str, now: float) -> list[m.Send]:
        task = self._tasks.get(q.task_id)
        if task is None or task.epoch != q.epoch or task.owner != sender:
            return []
        task.since = now
        return [m.Send(m.GATEWAY, q)]

    def _ended(self, q: m.Ended, sender: str, now: float) -> list[m.Send]:  # noqa: ARG002
        task = self._tasks.get(q.task_id)
        if task is not None and task.epoch == q.epoch and task.owner == sender:
            self._forget(q.task_id)
            return [m.Send(m.GATEWAY, q)]
        return []

    def _dropped(self, q: m.Dropped, sender: str, now: float) -> list[m.Send]:
        """The owner holds it no more: another one, unless the store says that it is not ours.

        Not at once: proxies that are full, and a region that does not know it yet, would hand the
        task round as fast as messages go.
        """
        task = self._tasks.get(q.task_id)
        if task is None or task.epoch != q.epoch or task.owner != sender or task.claiming:
            return []
        self._timers.set((q.task_id, CLAIM), now + self._limits.resend_s)
        return []

    def _claim_again(self, task_id: int, now: float) -> list[m.Send]:
        task = self._tasks[task_id]
        if task.claiming:
            return self._send_claim(task_id, now)
        return self._claim_for(task_id, now, (task.owner,))

    def _stop(self, q: m.Stop, sender: str, now: float) -> list[m.Send]:  # noqa: ARG002
        task = self._tasks.get(q.task_id)
        if task is not None and task.epoch < q.epoch:
            self._forget(q.task_id)
        return self._spread(q.task_id, q.epoch)

    def _spread(self, task_id: int, epoch: Epoch) -> list[m.Send]:
        """Whatever runs here for this task under an older epoch stops, and so does what comes."""
        self._stops[task_id] = max(epoch, self._stops.pop(task_id, epoch))
        if len(self._stops) > REMEMBERED:
            self._stops.popitem(last=False)
        stop = m.Stop(task_id=task_id, epoch=epoch)
        return [m.Send(proxy, stop) for proxy, _ in self._proxies.living()]

    def _newest(self, task_id: int) -> Epoch:
        """The newest epoch that we know of this task."""
        task, stopped = self._tasks.get(task_id), self._stops.get(task_id, Epoch())
        return stopped if task is None else max(stopped, task.epoch)

    def _own(self, task: Holding, owner: str) -> None:
        if task.owner:
            self._owned[task.owner] -= 1
            if not self._owned[task.owner]:
                del self._owned[task.owner]
        task.owner = owner
        if owner:
            self._owned[owner] = self._owned.get(owner, 0) + 1

    def _forget(self, task_id: int) -> None:
        task = self._tasks.pop(task_id, None)
        if task is not None:
            self._own(task, "")
            self._timers.cancel((task_id, CLAIM))

    # -- proxies ---------------------------------------------------------------------------------

    def _beat(self, q: m.ProxyBeat, sender: str, now: float) -> list[m.Send]:
        known = self._proxies.get(sender)
        restarted = known is not None and known.beat.incarnation != q.incarnation
        news = self._proxies.heard(sender, q, now) or (
            known is None or restarted or known.beat.offers != q.offers
        )
        out = self._bury(sender, now) if restarted else []
        held = {claim.task_id: claim.epoch for claim in q.claims}
        for task_id, epoch in held.items():
            newest = self._newest(task_id)
            if newest > epoch:
                out.append(m.Send(sender, m.Stop(task_id=task_id, epoch=newest)))
        for task_id, task in list(self._tasks.items()) if self._owned.get(sender) else []:
            quiet = not task.claiming and now - task.since > self._limits.resend_s
            if task.owner != sender or not quiet or held.get(task_id) == task.epoch:
                continue
            # It never heard of the task, or has ended it: the claim's answer says which.
            out += self._send_claim(task_id, now) if task.claim else self._claim_for(task_id, now)
        return [m.Send(m.GATEWAY, self._report()), *out] if news else out

    def _bury(self, proxy: str, now: float) -> list[m.Send]:
        """A proxy is gone: its tasks get another owner, its calls another place."""
        out = [
            m.Send(other, m.PeerDown(proxy=proxy))
            for other, _ in self._proxies.living()
            if other != proxy
        ]
        for task_id, task in list(self._tasks.items()):
            if task.owner != proxy or task.claiming:
                continue  # a claim under way looks at its owner again when it is answered
            out += self._claim_for(task_id, now, (proxy,))
        return out

    def _place(self, q: m.Place, sender: str, now: float) -> list[m.Send]:  # noqa: ARG002
        """Give each call of one round to a proxy of its own, as far as there are enough."""
        call, out = q.call, []
        if call.owner != sender:
            return []
        newest = self._newest(call.task_id)
        if newest > call.epoch:
            return [m.Send(sender, m.Stop(task_id=call.task_id, epoch=newest))]
        loads = self._proxies.loads(call.agent)
        used: set[str] = set()
        for row in q.rows:
            key = (call.task_id, call.epoch, row, call.attempt)
            proxy = self._placements.get(key)
            if proxy is None or proxy not in loads:
                proxy = self._balancer.choose(loads, used if len(used) < len(loads) else ())
            if proxy is None:
                out.append(self._no_place(call, row))
                continue
            used.add(proxy)
            self._proxies.give(proxy)
            loads = self._proxies.loads(call.agent)
            self._placements[key] = proxy
            one = call if row == call.row else msgspec.structs.replace(call, row=row)
            out.append(m.Send(proxy, one))
            placed = m.Placed(
                task_id=call.task_id, epoch=call.epoch, row=row, attempt=call.attempt, proxy=proxy
            )
            out.append(m.Send(sender, placed))
        while len(self._placements) > REMEMBERED:
            self._placements.popitem(last=False)
        return out

    def _no_place(self, call: m.Call, row: str) -> m.Send:
        refused = m.CallRefused(
            task_id=call.task_id,
            epoch=call.epoch,
            row=row,
            attempt=call.attempt,
            reason=f"no live proxy of {self.address} offers {call.agent!r}",
            retry_after_s=self._limits.heartbeat_s,
        )
        return m.Send(call.owner, refused)

    # -- time ------------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[m.Send]:
        out: list[m.Send] = []
        for key in self._timers.pop_due(now):
            if key == BEAT:
                self._timers.set(BEAT, now + self._limits.heartbeat_s)
                out.append(m.Send(m.GATEWAY, self._report()))
            elif key == LOOK:
                self._timers.set(LOOK, now + self._limits.heartbeat_s / 2)
                for proxy in self._proxies.newly_suspected(now):
                    out += self._bury(proxy, now)
                self._proxies.forget_silent(now)
            elif key == SWEEP:
                if not self._settled:
                    # Just started: let the proxies say what they hold before we judge.
                    self._settled = True
                    wait_s = self._limits.suspicion_s + self._limits.reconnect_max_s
                    self._timers.set(SWEEP, now + wait_s)
                    continue
                self._timers.set(SWEEP, now + self._limits.sweep_s)
                find = m.FindTasks(region=self.address, after=0, limit=1000)
                out.append(m.Send(m.STORE, find, self._incarnation))
            elif key[0] in self._tasks:
                out += self._claim_again(key[0], now)
        return out

    def _found(self, q: m.TasksFound, sender: str, now: float) -> list[m.Send]:  # noqa: ARG002
        """The database's view of this region: adopt what we do not know, repair what we lost."""
        out: list[m.Send] = []
        if q.region != self.address:
            return out
        for row in q.tasks:
            task = self._tasks.get(row.task_id)
            if task is not None and task.epoch >= row.epoch:
                continue
            if task is not None and task.claiming:
                continue  # our own claim, committed but not yet answered
            self._forget(row.task_id)
            self._tasks[row.task_id] = task = Holding(row.epoch, row.agents)
            peer = self._proxies.get(row.owner) if row.owner else None
            if peer is not None and not peer.suspected:
                held = m.Held(row.task_id, row.epoch)
                if held in peer.beat.claims:
                    self._own(task, row.owner)
                    continue
            out += self._claim_for(row.task_id, now)
        if len(q.tasks) == 1000:
            find = m.FindTasks(region=self.address, after=q.tasks[-1].task_id, limit=1000)
            out.append(m.Send(m.STORE, find, self._incarnation))
        return out

    def _report(self) -> m.RegionBeat:
        return m.RegionBeat(
            incarnation=self._incarnation,
            tasks=len(self._tasks),
            capacity=self._proxies.capacity(),
            agents=tuple(sorted(self._proxies.agents())),
            proxies=self._proxies.report(self._owned),
        )


def _answers(q: m.Claimed, claim: m.Claim) -> bool:
    """Whether this can be the answer to this claim, and not to one before it."""
    if q.granted:
        return q.epoch == claim.expected.next_regional() and q.owner == claim.owner
    passed = q.epoch > claim.expected or q.region != claim.region
    return passed or (q.state in m.TERMINAL and q.epoch == claim.expected)
