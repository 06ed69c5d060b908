"""What the agents were really asked, from the log outside: what was repeated, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.chaos.hand import EVERYTHING, Done
from tests.chaos.watch import LOOK_S, Change, Watch

UNEXPLAINED = "unexplained"
REPLACED = "its owner was replaced before the answer was saved"
VERBS = {
    "kill": "was killed",
    "term": "was stopped in order",
    "stop": "stood still",
    "freeze": "stood still",
    "cut": "was cut off",
}
LONG_S = 10.0
"""How long after a deed an owner may be replaced because of it."""
WAKING_S = 5.0
"""For so long after it stood still or was cut off a process may not know that it was replaced."""


class Call(msgspec.Struct):
    """One time that an agent was asked."""

    begun: float
    pid: int
    proxy: str
    ended: float = 0.0
    how: str = ""
    """`end`, `abort`, or "" if the process died over it."""


class Key(NamedTuple):
    """A call's idempotency key: the task, and the row without it."""

    task_id: int
    row: str

    @property
    def node(self) -> str:
        """The node that it is for."""
        return self.row.partition("/")[0]


def read(log: Path) -> dict[Key, list[Call]]:
    """The calls by their keys, in the order in which they began."""
    calls: dict[Key, list[Call]] = defaultdict(list)
    for line in log.read_text().splitlines():
        at, pid, proxy, event, name = line.split(" ")
        task_id, _, row = name.partition("/")
        key = Key(int(task_id), row)
        if event == "begin":
            calls[key].append(Call(float(at), int(pid), proxy))
            continue
        mine = [call for call in calls[key] if call.pid == int(pid) and not call.how]
        if mine:
            mine[0].ended, mine[0].how = float(at), event
    return calls


class Repeats(NamedTuple):
    """Why calls were made again (`why`), and which were made although their answer was saved."""

    why: Counter[str]
    needless: list[str]


def repeats(calls: dict[Key, list[Call]], watch: Watch, done: Sequence[Done]) -> Repeats:
    """Find each call that was made more than once, and what made it so."""
    why: Counter[str] = Counter()
    needless = []
    for key, asked in calls.items():
        saved = watch.saved.get((key.task_id, key.row)) or watch.saved.get((key.task_id, key.node))
        for before, again in pairwise(asked):
            reason = _reason(before, again, watch.changes.get(key.task_id, []), done)
            if saved is not None and again.begun > saved:
                if _zombie(again, done):
                    reason = "by an owner or executor that did not know yet that it was replaced"
                else:
                    needless.append(f"{key.task_id}/{key.row} at {again.begun:.3f}: {reason}")
            why[reason] += 1
    return Repeats(why, needless)


def _reason(before: Call, again: Call, changes: Sequence[Change], done: Sequence[Done]) -> str:
    start, end = before.begun, again.begun
    if not before.how or before.ended > end:
        for deed in done:
            hit = deed.pid == before.pid or deed.act.target == EVERYTHING
            if hit and deed.at < end and deed.until > start - 1:
                return f"its executor {VERBS[deed.act.what]}"
    for i, change in enumerate(changes):
        if start - LOOK_S < change.at < end + 2 * LOOK_S:
            owners = [before.row.owner for before in changes[:i] if before.row.owner]
            return _why_replaced(owners[-1] if owners else "", change.at, done)
    near = [deed for deed in done if deed.at < end and deed.until > start - WAKING_S]
    if near:
        act = near[-1].act
        return f"the answer was lost: {act.what} of a {_kind(act.target)}"
    return "aborted" if before.how == "abort" else UNEXPLAINED


def _why_replaced(owner: str, at: float, done: Sequence[Done]) -> str:
    """What had happened to an owner whose answers were not saved before its successor came."""
    near = [deed.act for deed in reversed(done) if deed.at < at < deed.until + LONG_S]
    region = "/".join(["region", *owner.split("/")[1:2]])
    for who, name in (("its owner", owner), ("its owner's region", region)):
        for act in near:
            if act.target in {name, EVERYTHING} or act.target.startswith(f"{name}>"):
                return f"{who} {VERBS[act.what]}"
    what = f": {near[0].what} of a {_kind(near[0].target)}" if near else ""
    return f"{REPLACED}{what}"


def _kind(target: str) -> str:
    return "link" if ">" in target else target.partition("/")[0]


def _zombie(call: Call, done: Sequence[Done]) -> bool:
    """Whether the process that made this call could not have heard yet that it was replaced."""
    region = call.proxy.split("/")[1]
    for deed in done:
        if not deed.at < call.begun < deed.until + WAKING_S:
            continue
        itself = deed.act.target == call.proxy
        if itself and deed.act.what in {"stop", "freeze"}:
            return True
        above = not deed.act.target.startswith(("proxy", "region"))  # gateways, store, links to it
        if not itself and (above or f"/{region}" in deed.act.target):
            return True
    return False


class Takeover(NamedTuple):
    """One task whose owner was killed. `clean`: nothing else was wrong at that time."""

    role: str
    seconds: float
    clean: bool


def takeovers(calls: dict[Key, list[Call]], watch: Watch, done: Sequence[Done]) -> list[Takeover]:
    """From each kill of an owner, or of its region, to the next call of its tasks by another."""
    begun: dict[int, list[Call]] = defaultdict(list)
    for key, asked in calls.items():
        begun[key.task_id] += asked
    found = []
    for deed in done:
        if deed.act.what != "kill":
            continue
        for task_id, epoch in deed.tasks.items():
            claims = (
                change.at
                for change in watch.changes.get(task_id, [])
                if change.row.epoch > epoch and change.at > deed.at
            )
            claimed = next(claims, None)
            if claimed is None:
                continue  # it ended with the last answer, or its owner never was without a region
            # A call that the dead owner had placed elsewhere is none of its successor's.
            later = [c.begun for c in begun[task_id] if c.begun > claimed - 2 * LOOK_S]
            if later:
                seconds = min(later) - deed.at
                clean = not any(_disturbs(other, deed, min(later)) for other in done)
                found.append(Takeover(deed.act.target.partition("/")[0], seconds, clean))
    return found


def _disturbs(other: Done, deed: Done, until: float) -> bool:
    """Whether another deed concerned the same region, or what all regions share."""
    if other is deed or other.at > until or other.until < deed.at - WAKING_S:
        return False
    region = deed.act.target.split("/")[1]
    target = other.act.target
    return f"/{region}" in target or not target.startswith(("proxy", "region"))
