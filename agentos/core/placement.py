"""The gateway's half that gives tasks to regions, and the sweeper that repairs.

What waits, waits in the database: only counts of it are in memory, by the agents that it needs,
so that a task that nobody can run holds up none that somebody can.
"""

from __future__ import annotations

from collections.abc import Collection

from agentos.core import messages as m
from agentos.core.balancing import Balancer
from agentos.core.limits import Limits
from agentos.core.liveness import Liveness
from agentos.core.rooms import Rooms
from agentos.core.timers import patience

PAGE = 256

Agents = tuple[str, ...]


class Placing:
    """A claim that is under way, and when it is to be repeated."""

    def __init__(self, claim: m.Claim, agents: Agents, due: float, repeats: int = 0) -> None:
        self.claim = claim
        self.agents = agents
        self.due = due
        self.repeats = repeats


class Regions(Liveness[m.RegionBeat]):
    """Living and suspected regions, as their heartbeats describe them.

    When all are silent there is nobody who could take their tasks over: to wait costs nothing, and
    an overloaded machine's only region keeps what it has.
    """

    def __init__(self, suspicion_s: float) -> None:
        super().__init__(suspicion_s)
        self._rooms: dict[str, Rooms] = {}

    def heard(self, address: str, beat: m.RegionBeat, now: float) -> bool:
        """Note a heartbeat; return whether the region is new, or was suspected until now."""
        rooms = self._rooms[address] = Rooms()
        for proxy in beat.proxies:
            if proxy.alive:
                rooms.put(proxy.address, frozenset(proxy.agents), proxy.tasks, proxy.capacity)
        return super().heard(address, beat, now)

    def rooms(self, region: str) -> Rooms:
        """A region's proxies, as its last heartbeat says, with what was given since."""
        return self._rooms[region]

    def forget_silent(self, now: float) -> None:
        """Drop those that have been suspected for so long that nobody asks after them."""
        super().forget_silent(now)
        if len(self) < len(self._rooms):
            self._rooms = {a: rooms for a, rooms in self._rooms.items() if self.get(a)}

    def _one_cause(self, silent: int, living: int) -> bool:
        return silent == living


class Placement:
    """Regions, their room, the backlog, and the claims that connect them.

    Args:
        claimant: the gateway's name in its claims.
        limits: bounds and intervals.
        balancer: chooses the region for a task, and for a new one the proxy too.
    """

    def __init__(self, claimant: str, limits: Limits, balancer: Balancer) -> None:
        self.regions = Regions(limits.suspicion_s)
        self.placed = 0
        self._claimant = claimant
        self._limits = limits
        self._balancer = balancer
        self._placing: dict[int, Placing] = {}
        self._by_region: dict[str, int] = {}
        self._backlog: dict[Agents, int] = {}
        self._finding: set[Agents] = set()
        self._counted_at: float | None = None
        self._judge_from = 0.0

    @property
    def unfinished(self) -> int:
        """Tasks that are not finished, as of the last count."""
        return sum(self._by_region.values()) + self.backlog

    @property
    def backlog(self) -> int:
        """Those of them that no region has."""
        return sum(self._backlog.values())

    # -- regions -------------------------------------------------------------------------------

    def heard(self, q: m.Heard, now: float) -> list[m.Send]:
        """A region's heartbeat, from itself or by way of the gateway that it dials."""
        if q.beat is None:
            return []
        self.regions.heard(q.region, q.beat, now)
        return self.pull(now)

    def capable(self, agents: Collection[str], *, full: bool = False) -> dict[str, float]:
        """Living regions that offer these agents, with their loads; those with room, or all."""
        loads = {}
        for address, peer in self.regions.living():
            tasks, capacity = peer.beat.tasks + peer.given, peer.beat.capacity
            if (full or tasks < capacity) and set(agents) <= set(peer.beat.agents):
                loads[address] = tasks / max(1, capacity)
        return loads

    def why_waiting(self, agents: Agents) -> str:
        """What keeps a task that needs these agents from being placed, in words."""
        if self.capable(agents, full=True):
            return "every region that could run it is full"
        regions = sorted(self.regions.living(), key=lambda region: region[0])
        offers = "; ".join(f"{a} offers {sorted(peer.beat.agents)}" for a, peer in regions)
        return f"no living region offers all of {sorted(agents)}; {offers or 'no region is alive'}"

    def choose(self, agents: Agents) -> tuple[str, str]:
        """Where a new task that needs these agents goes: a region with room, and a proxy of it.

        What is not there is "". A region that is given a task without an owner finds one.
        """
        if self._backlog.get(agents):
            return "", ""  # behind a backlog a new task waits too: the database has the order
        region = self._give(self.capable(agents))
        if not region:
            return "", ""
        rooms = self.regions.rooms(region)
        owner = self._balancer.choose(rooms.for_task(agents)) or ""
        rooms.add(owner, 1)
        return region, owner

    def _give(self, loads: dict[str, float]) -> str:
        region = self._balancer.choose(loads)
        if region is None:
            return ""
        peer = self.regions.get(region)
        assert peer is not None, f"{region} was chosen, so it is known"
        peer.given += 1
        return region

    def created(self, task: m.TaskCreated, agents: Agents) -> list[m.Send]:
        """A task is committed, placed at a region or not."""
        if task.region:
            self._by_region[task.region] = self._by_region.get(task.region, 0) + 1
            return [self._assign(task, agents, 0)]
        self._backlog[agents] = self._backlog.get(agents, 0) + 1
        return []

    def ended(self, owner: str, now: float) -> list[m.Send]:
        """A region, or one of its proxies, has finished a task: there is room for another."""
        region = owner if m.role_of(owner) == "region" else m.region_of(owner)
        peer = self.regions.get(region)
        if peer is not None:
            peer.given -= 1
            self.regions.rooms(region).add(owner, -1)
            self._by_region[region] = max(0, self._by_region.get(region, 0) - 1)
        return self.pull(now)

    # -- claims --------------------------------------------------------------------------------

    def place(
        self, task: m.TaskBrief, now: float, exclude: str = "", *, lost: bool = False
    ) -> list[m.Send]:
        """Claim an unfinished task for a region that can run it; for nobody, if none can.

        Args:
            task: which, as its row was last seen.
            now: the time.
            exclude: a region that will not do.
            lost: whether its owner is taken for dead.
        """
        if task.task_id in self._placing:
            return []
        loads = self.capable(task.agents)
        loads.pop(exclude, None)
        region = self._give(loads)
        if not region and not task.region:
            return []
        claim = m.Claim(
            task_id=task.task_id,
            expected=task.epoch,
            scope="global",
            claimant=self._claimant,
            region=region,
            lost=lost,
        )
        self._placing[task.task_id] = Placing(claim, task.agents, now + self._limits.resend_s)
        return [m.Send(m.STORE, claim)]

    def claimed(self, q: m.Claimed) -> list[m.Send]:
        """The store's answer: granted, the task is the region's."""
        placing = self._placing.get(q.task_id)
        if placing is None or not _answers(q, placing.claim):
            return []
        del self._placing[q.task_id]
        if not q.granted:
            return []
        if not q.region:
            self._backlog[placing.agents] = self._backlog.get(placing.agents, 0) + 1
            return []
        self.placed += 1
        self._by_region[q.region] = self._by_region.get(q.region, 0) + 1
        return [self._assign(q, placing.agents, q.attempts)]

    def cancelled(self, task_id: int) -> None:
        """It needs no place any more."""
        self._placing.pop(task_id, None)

    def declined(self, q: m.Declined, region: str, now: float) -> list[m.Send]:
        """A region handed a task back: another one, or the backlog."""
        brief = m.TaskBrief(q.task_id, q.epoch, region, "", q.agents, 0, 0)
        return self.place(brief, now, exclude=region, lost=q.lost)

    def repeat(self, now: float) -> list[m.Send]:
        """Claims whose answers have been missing for too long, again."""
        out = []
        for placing in self._placing.values():
            if placing.due <= now:
                placing.repeats += 1
                placing.due = now + patience(self._limits.resend_s, placing.repeats)
                out.append(m.Send(m.STORE, placing.claim))
        return out

    @staticmethod
    def _assign(task: m.TaskCreated | m.Claimed, agents: Agents, attempts: int) -> m.Send:
        assign = m.Assign(
            task_id=task.task_id,
            epoch=task.epoch,
            agents=agents,
            attempts=attempts,
            owner=task.owner,
        )
        return m.Send(task.region, assign)

    # -- the sweeper ---------------------------------------------------------------------------

    def pull(self, now: float) -> list[m.Send]:  # noqa: ARG002 - the shape of its neighbours
        """Ask for as much of the backlog as there is room for, by the agents needed."""
        out = []
        for agents, count in self._backlog.items():
            if not count or agents in self._finding:
                continue
            room = 0
            for region in self.capable(agents):
                peer = self.regions.get(region)
                assert peer is not None, f"{region} is living, so it is known"
                room += peer.beat.capacity - peer.beat.tasks - peer.given
            if room > 0:
                self._finding.add(agents)
                find = m.FindTasks(region="", agents=agents, limit=min(PAGE, room))
                out.append(m.Send(m.STORE, find))
        return out

    def found(self, q: m.TasksFound, now: float) -> list[m.Send]:
        """Tasks that nobody has, or whose region is gone: each gets a place."""
        out: list[m.Send] = []
        if not q.region and q.agents is not None:
            self._finding.discard(q.agents)
            self._backlog[q.agents] = max(0, self._backlog.get(q.agents, 0) - len(q.tasks))
        elif self.regions.alive(q.region):
            return []  # it came back before we acted
        for task in q.tasks:
            out += self.place(task, now, exclude=q.region, lost=bool(q.region))
        if q.region and len(q.tasks) == PAGE:
            last = max(task.task_id for task in q.tasks)
            out.append(m.Send(m.STORE, m.FindTasks(region=q.region, after=last, limit=PAGE)))
        return out

    def counted(self, q: m.TaskCounts, now: float) -> list[m.Send]:
        """The truth about what is unfinished; the tasks of regions that are gone are taken back.

        After the store was silent nobody is judged for a while: the regions of other gateways are
        heard by way of it.
        """
        if (
            self._counted_at is not None
            and now - self._counted_at > self._limits.sweep_s + self._limits.heartbeat_s
        ):
            self._judge_from = now + self._limits.suspicion_s
        self._counted_at = now
        self._backlog = {c.agents: c.count for c in q.counts if not c.region}
        self._finding.clear()
        self._by_region = {}
        for count in q.counts:
            if count.region:
                known = self._by_region.get(count.region, 0)
                self._by_region[count.region] = known + count.count
        dead = [region for region in self._by_region if not self.regions.alive(region)]
        if now < self._judge_from:
            return self.pull(now)
        find = [m.Send(m.STORE, m.FindTasks(region=region, after=0, limit=PAGE)) for region in dead]
        return [*self.pull(now), *find]


def _answers(q: m.Claimed, claim: m.Claim) -> bool:
    """Whether this can be the answer to this claim, and not to one before it."""
    if q.granted:
        return q.epoch == claim.expected.next_global()
    return q.epoch > claim.expected or (q.state in m.TERMINAL and q.epoch == claim.expected)
