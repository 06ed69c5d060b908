"""The region's machine: gives tasks to its proxies, places calls, and replaces the dead."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from agentos.core import messages as m
from agentos.core.balancing import Balancer, LeastLoaded
from agentos.core.epoch import Epoch
from agentos.core.limits import Limits
from agentos.core.liveness import Liveness, Peer
from agentos.core.timers import Timers

BEAT, SWEEP, LOOK = (0, "beat"), (0, "sweep"), (0, "look")
CLAIM = "claim"
PLACEMENTS = 8_192
"""Placements that are remembered, so that one that is asked for again goes to the same proxy."""


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
        self._proxies: Liveness[m.ProxyBeat] = Liveness(limits.suspicion_s)
        self._tasks: dict[int, Holding] = {}
        self._owned: dict[str, int] = {}
        self._placements: OrderedDict[tuple[int, Epoch, str, int], str] = OrderedDict()
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
        """Take one message. A proxy of another region is not listened to."""
        sender = envelope.sender
        if m.role_of(sender) == "proxy" and m.region_of(sender) != self.address:
            return []
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
        missing = set(task.agents) - self._agents()
        owner = None if missing else self._balancer.choose(self._room(), avoid)
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
        if q.granted and q.epoch != task.claim.expected.next_regional():
            return []  # the answer to an earlier claim of ours
        task.claiming = False
        self._timers.cancel((q.task_id, CLAIM))
        if not q.granted:
            return self._lost(q)
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

    def _lost(self, q: m.Claimed) -> list[m.Send]:
        """Not ours any more. If it has ended, the gateway may not have heard."""
        self._forget(q.task_id)
        if q.state not in m.TERMINAL:
            return []
        ended = m.Ended(task_id=q.task_id, epoch=q.epoch, state=q.state, response="")
        return [m.Send(m.GATEWAY, ended)]

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
        """The owner holds it no more: another one, unless the store says that it is not ours."""
        task = self._tasks.get(q.task_id)
        if task is None or task.epoch != q.epoch or task.owner != sender or task.claiming:
            return []
        return self._claim_for(q.task_id, now, (sender,))

    def _stop(self, q: m.Stop, sender: str, now: float) -> list[m.Send]:  # noqa: ARG002
        task = self._tasks.get(q.task_id)
        if task is not None and task.epoch < q.epoch:
            self._forget(q.task_id)
        return [m.Send(proxy, q) for proxy, _ in self._proxies.living()]

    def _own(self, task: Holding, owner: str) -> None:
        if task.owner:
            self._owned[task.owner] -= 1
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
            task = self._tasks.get(task_id)
            if task is not None and (task.epoch > epoch or task.owner != sender):
                out.append(m.Send(sender, m.Stop(task_id=task_id, epoch=task.epoch)))
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
            stop = m.Stop(task_id=task_id, epoch=task.epoch.next_regional())
            out += [m.Send(other, stop) for other, _ in self._proxies.living()]
            out += self._claim_for(task_id, now, (proxy,))
        return out

    def _place(self, q: m.Place, sender: str, now: float) -> list[m.Send]:  # noqa: ARG002
        """Give each call of one round to a proxy of its own, as far as there are enough."""
        call, out = q.call, []
        if call.owner != sender:
            return []
        loads = self._loads(call.agent)
        used: list[str] = []
        for row in q.rows:
            key = (call.task_id, call.epoch, row, call.attempt)
            proxy = self._placements.get(key)
            if proxy is None or proxy not in loads:
                proxy = self._balancer.choose(loads, used if len(used) < len(loads) else ())
            if proxy is None:
                out.append(self._no_place(call, row))
                continue
            used.append(proxy)
            loads[proxy] += 1
            self._given(proxy)
            self._placements[key] = proxy
            one = call if row == call.row else msgspec.structs.replace(call, row=row)
            out.append(m.Send(proxy, one))
            placed = m.Placed(
                task_id=call.task_id, epoch=call.epoch, row=row, attempt=call.attempt, proxy=proxy
            )
            out.append(m.Send(sender, placed))
        while len(self._placements) > PLACEMENTS:
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

    def _given(self, proxy: str) -> None:
        peer = self._proxies.get(proxy)
        if peer is not None:
            peer.given += 1

    def _agents(self) -> set[str]:
        return {o.agent for _, peer in self._proxies.living() for o in peer.beat.offers}

    def _room(self) -> dict[str, float]:
        """Proxies with room for another task, with the tasks that each owns."""
        return {
            address: float(self._owned.get(address, 0))
            for address, peer in self._proxies.living()
            if self._owned.get(address, 0) < peer.beat.capacity
        }

    def _loads(self, agent: str) -> dict[str, float]:
        """Proxies that offer an agent, with the calls that each has, as a share of its slots."""
        return {
            address: (peer.beat.calls + peer.given) / _slots(peer, agent)
            for address, peer in self._proxies.living()
            if _slots(peer, agent)
        }

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
                    self._timers.set(SWEEP, now + self._limits.suspicion_s)
                    continue
                self._timers.set(SWEEP, now + self._limits.sweep_s)
                find = m.FindTasks(region=self.address, after=0, limit=1000)
                out.append(m.Send(m.STORE, find, "sweep"))
            elif key[0] in self._tasks:
                out += self._send_claim(key[0], now)
        return out

    def _found(self, q: m.TasksFound, sender: str, now: float) -> list[m.Send]:  # noqa: ARG002
        """The database's view of this region: adopt what we do not know, repair what we lost."""
        out: list[m.Send] = []
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
            out.append(m.Send(m.STORE, find, "sweep"))
        return out

    def _report(self) -> m.RegionBeat:
        proxies = tuple(
            m.ProxyInfo(
                address=address,
                alive=not peer.suspected,
                tasks=self._owned.get(address, 0),
                calls=peer.beat.calls,
                agents=tuple(offer.agent for offer in peer.beat.offers),
            )
            for address, peer in self._proxies.items()
        )
        return m.RegionBeat(
            incarnation=self._incarnation,
            tasks=len(self._tasks),
            capacity=sum(peer.beat.capacity for _, peer in self._proxies.living()),
            agents=tuple(sorted(self._agents())),
            proxies=proxies,
        )


def _slots(peer: Peer[m.ProxyBeat], agent: str) -> int:
    return next((offer.slots for offer in peer.beat.offers if offer.agent == agent), 0)
