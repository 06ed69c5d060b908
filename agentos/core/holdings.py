"""What a region holds: its tasks, their owners, and what it has heard of newer claims."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.floors import Floors
from agentos.core.timers import patience

Claims = frozenset[tuple[int, Epoch]]
"""Tasks, with the epochs under which they are held."""

REMEMBERED = 8_192
"""Stops and early ends that are remembered, so that what was on its way meets them."""


class Holding:
    """A task of this region. `claim` is the one that is under way, or the last that was granted.

    `attempts` are the owners that it has lost in a row, `lost` whether the last one is to be added.
    `widowed`: the owner died while the claim for it was under way.
    """

    def __init__(
        self,
        epoch: Epoch,
        agents: tuple[str, ...],
        attempts: int = 0,
        lost: bool = False,
        widowed: bool = False,
        owner: str = "",
        claim: m.Claim | None = None,
        claiming: bool = False,
        repeats: int = 0,
        since: float = 0.0,
        watchers: dict[str, None] | None = None,
    ) -> None:
        self.epoch = epoch
        self.agents = agents
        self.attempts = attempts
        self.lost = lost
        self.widowed = widowed
        self.owner = owner
        self.claim = claim
        self.claiming = claiming
        self.repeats = repeats
        """How often the claim was repeated."""
        self.since = since
        self.watchers: dict[str, None] = {} if watchers is None else watchers

    def claim_for(self, task_id: int, region: str, owner: str, incarnation: str) -> None:
        """Have the claim that makes it this proxy's."""
        self.claim = m.Claim(
            task_id=task_id,
            expected=self.epoch,
            scope="regional",
            claimant=region,
            region=region,
            owner=owner,
            incarnation=incarnation,
            lost=self.lost,
        )

    def awaits(self, q: m.Claimed) -> bool:
        """Whether this can be the answer to the claim under way, and not to one before it."""
        claim = self.claim
        if claim is None or not self.claiming:
            return False
        if q.granted:
            return q.epoch == claim.expected.next_regional() and q.owner == claim.owner
        passed = q.epoch > claim.expected or q.region != claim.region
        return passed or (q.state in m.TERMINAL and q.epoch == claim.expected)

    def ask_back(self, task_id: int) -> m.Send:
        """Have its owner give it back, once what is in flight is saved."""
        return m.Send(self.owner, m.Yield(task_id=task_id, epoch=self.epoch))

    def watch(self, q: m.Watch | m.Unwatch, most: int) -> list[m.Send]:
        """Note a client who wants to hear of it, of `most`, or no more; its owner is told."""
        if isinstance(q, m.Unwatch):
            self.watchers.pop(q.client, None)
        elif len(self.watchers) < most:
            self.watchers[q.client] = None
        return [m.Send(self.owner, q)] if self.owner and not self.claiming else []

    def introduce(self, task_id: int) -> list[m.Send]:
        """Tell who watches of the owner, and the owner of who watches."""
        out = []
        for client in self.watchers:
            placed = m.Event(task_id=task_id, epoch=self.epoch, event="placed", proxy=self.owner)
            watch = m.Watch(task_id=task_id, client=client)
            out += [m.Send(client, placed), m.Send(self.owner, watch)]
        return out


class Sweep:
    """One reading of the region's unfinished tasks, page by page.

    `suspects` are the claims that the reading before did not list, `unlisted` those that this one
    does not. Only what is neither listed twice is given up: an end may be on its way here.
    """

    def __init__(self, ref: str = "", begun: float = 0.0, suspects: Claims = frozenset()) -> None:
        self.ref = ref
        self.begun = begun
        self.heard = begun
        self.done = not ref
        self.listed: set[int] = set()
        self._suspects = suspects
        self._unlisted: Claims = frozenset()
        self._count = 0
        self._given_up = 0
        """How many readings in a row were given up before this one."""

    def next(self, incarnation: str, now: float) -> Sweep:
        """The reading after this one."""
        following = Sweep(f"{incarnation}.{self._count + 1}", now, self._unlisted)
        following._count = self._count + 1
        following._given_up = 0 if self.done else self._given_up + 1
        return following

    def under_way(self, now: float, resend_s: float) -> bool:
        """Whether pages still come: one that is lost is not waited for.

        One that is late is, and longer each time: the next reading takes nothing of what this one
        asked for, so that of a slow store nothing would ever be read.
        """
        return not self.done and now - self.heard <= patience(resend_s, self._given_up)

    def judge(self, held: Iterable[tuple[int, Epoch]]) -> list[tuple[int, Epoch]]:
        """At the end of the reading: those of the claims held that neither reading has listed."""
        self._unlisted = frozenset(claim for claim in held if claim[0] not in self.listed)
        return sorted(self._unlisted & self._suspects)


class Holdings:
    """The tasks of a region by id and by owner.

    Args:
        owns: told how many tasks a proxy owns when that changes.
    """

    def __init__(self, owns: Callable[[str, int], None]) -> None:
        self._tasks: dict[int, Holding] = {}
        self._of: dict[str, dict[int, Holding]] = {}
        self._owns = owns
        self._stops = Floors(REMEMBERED)
        self._ended: OrderedDict[int, tuple[Epoch, str]] = OrderedDict()
        """Ends of which we heard before we heard of the task: the claim's epoch, and its owner."""
        self._trial: tuple[int, float] = (0, 0.0)
        """The task that was last let run although it must not lose another owner, and until when."""

    def put(self, task_id: int, task: Holding) -> Holding:
        """Hold a task, in place of what was held of it before."""
        self.forget(task_id)
        self._tasks[task_id] = task
        return task

    def get(self, task_id: int) -> Holding | None:
        """The task, if it is held."""
        return self._tasks.get(task_id)

    def __getitem__(self, task_id: int) -> Holding:
        return self._tasks[task_id]

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def items(self) -> list[tuple[int, Holding]]:
        """A copy, so that tasks may be forgotten on the way."""
        return list(self._tasks.items())

    def of(self, owner: str) -> list[tuple[int, Holding]]:
        """The tasks that a proxy owns."""
        return list(self._of.get(owner, {}).items())

    def own(self, task_id: int, owner: str) -> None:
        """Note who owns a task; "" for nobody."""
        self._own(task_id, self._tasks[task_id], owner)

    def _own(self, task_id: int, task: Holding, owner: str) -> None:
        if task.owner:
            others = self._of[task.owner]
            del others[task_id]
            if not others:
                del self._of[task.owner]
            self._owns(task.owner, len(others))
        task.owner, task.widowed = owner, False
        if owner:
            mine = self._of.setdefault(owner, {})
            mine[task_id] = task
            self._owns(owner, len(mine))

    def try_alone(self, task_id: int, now: float, for_s: float) -> bool:
        """Whether a task may run that fails if it loses one more owner: such tasks one at a time.

        What kills its owner takes along whatever runs beside it; the innocent must not fail with it.
        """
        other, until = self._trial
        if other != task_id and now < until and other in self._tasks and self._tasks[other].owner:
            return False
        self._trial = (task_id, now + for_s)
        return True

    def forget(self, task_id: int) -> None:
        """Hold it no more."""
        task = self._tasks.pop(task_id, None)
        if task is not None:
            self._own(task_id, task, "")

    def ended(self, task_id: int, epoch: Epoch, owner: str) -> None:
        """Remember an end of which we hear before we hear of the task."""
        self._ended[task_id] = epoch, owner
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def is_over(self, task_id: int, epoch: Epoch, owner: str) -> bool:
        """Whether a claim of which we hear now has been replaced already, or has ended."""
        ended = self._ended.pop(task_id, None) == (epoch, owner)
        return ended or self.newest(task_id) > epoch

    def stopped(self, task_id: int, epoch: Epoch) -> None:
        """Remember that everything older than this epoch has to stop."""
        self._stops.lift(task_id, epoch)

    def newest(self, task_id: int) -> Epoch:
        """The newest epoch that is known of a task."""
        task, stopped = self._tasks.get(task_id), self._stops.of(task_id)
        return stopped if task is None else max(stopped, task.epoch)
