"""What may go wrong: the rates, and the plan of faults that is drawn from them.

The plan is drawn before a run begins, as a list: that is what makes a failing run shrinkable, by
leaving faults out of it. Each seed leaves out some kinds of faults altogether and turns others up,
since faults hide one another (Groce et al., "Swarm testing", ISSTA 2012).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

import msgspec

from agentos.core import messages as m
from agentos.core.errors import ConfigError
from agentos.core.routes import kind_of

FOR_GOOD_S: Final = 1e5
"""What lasts longer than this has no end that is worth saying."""
_SHARES: Final = ("agent_", "poison", "death")


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often each fault is tried: per virtual second in the whole cluster, or a share of calls.

    Args:
        for_s: virtual seconds during which things go wrong; then everything heals.
        swarm: whether each seed leaves out some kinds and turns up others.
        drop: messages that are lost.
        delay: links that stand still for a while; what is on them stays in order.
        duplicate: messages that arrive twice.
        reorder: messages that later ones overtake.
        partition: links that are cut, both ways.
        one_way: links that are cut in one direction.
        flap: runs of lost heartbeats, with one that gets through now and then.
        crash: processes that die, between two steps.
        death: the chance that one process, if there are others like it, dies for good.
        crash_in_step: processes that die in a step: what it decided is lost, all of it or some.
        crash_after_commit: the store dies after a commit and before its answers leave.
        pause: processes that are stopped (SIGSTOP) and continued later, often past their lease.
        drain: processes that are stopped in order (SIGTERM) and started again: rolling restarts.
        storage_slow: whiles in which a commit takes long.
        storage_fail: transactions that fail and are rolled back.
        answer_lost: commits whose answers are lost on the way.
        forge: writes to tasks that have ended, and writes and claims under epochs that are over or
            that nobody has issued, as a peer that has gone wrong might send them.
        agent_late: share of calls that take long.
        agent_never: share of calls that are never answered.
        agent_error: share of calls that fail and may be repeated.
        agent_unusable: share of calls that are answered with nothing, or with what is no JSON.
        agent_broken: share of calls that fail for good.
        poison: share of tasks whose calls kill the process that makes them.
    """

    for_s: float = 6.0
    swarm: bool = True
    drop: float = 3.0
    delay: float = 0.5
    duplicate: float = 1.5
    reorder: float = 1.0
    partition: float = 0.12
    one_way: float = 0.12
    flap: float = 0.1
    crash: float = 0.25
    death: float = 0.3
    crash_in_step: float = 0.35
    crash_after_commit: float = 0.1
    pause: float = 0.2
    drain: float = 0.15
    storage_slow: float = 0.15
    storage_fail: float = 0.3
    answer_lost: float = 0.3
    forge: float = 0.5
    agent_late: float = 0.05
    agent_never: float = 0.01
    agent_error: float = 0.05
    agent_unusable: float = 0.04
    agent_broken: float = 0.005
    poison: float = 0.01

    def check(self) -> Faults:
        """Return these rates if they can be drawn from.

        Raises:
            ConfigError: one is negative, or a share is more than 1.
        """
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value < 0 or (name.startswith(_SHARES) and value > 1):
                raise ConfigError(f"faults.{name}: {value} is no rate (shares are from 0 to 1)")
        return self

    @classmethod
    def none(cls, for_s: float = 0.0) -> Faults:
        """Nothing goes wrong."""
        rates = {name: 0.0 for name in cls.__struct_fields__ if name not in {"for_s", "swarm"}}
        return cls(for_s=for_s, swarm=False, **rates)


class Fault(msgspec.Struct, frozen=True):
    """One fault of a plan.

    Args:
        number: its place in the plan that it was drawn for.
        at: virtual seconds from the start.
        kind: a field of `Faults`.
        target: the process that it happens to; for links, the one below.
        up: for links: whether what goes up is hit.
        for_s: how long it lasts, or until the process is started again.
        what: the kind of message that it waits for; "" for any but heartbeats.
        pattern: for `flap`: which of the next messages are lost.
        share: for crashes in a step: the share of its messages that leave all the same.
    """

    number: int
    at: float
    kind: str
    target: str
    up: bool = True
    for_s: float = 0.0
    what: str = ""
    pattern: tuple[bool, ...] = (True,)
    share: float = 0.0

    def __str__(self) -> str:
        words = [f"{self.kind} {self.target}"]
        if self.kind in ON_A_LINK:
            words.append("up" if self.up else "down")
        if self.what:
            words.append(f"at {self.what}")
        if 0.0 < self.for_s < FOR_GOOD_S:
            words.append(f"for {self.for_s:.2f} s")
        return " ".join(words)


class Armed:
    """A fault that waits for the messages that it happens to.

    Args:
        kind: its name.
        what: the name of the kind of message; "" for any but heartbeats.
        for_s: how long a message is held up.
        pattern: which of the messages that it meets are hit, one after the other.
        share: for crashes: the share of a step's messages that leave all the same.
    """

    __slots__ = ("for_s", "kind", "pattern", "share", "what")

    def __init__(
        self, kind: str, what: str, for_s: float, pattern: Sequence[bool], share: float = 0.0
    ) -> None:
        self.kind = kind
        self.what = KIND_OF[what] if what else None
        self.for_s = for_s
        self.pattern = list(reversed(pattern))
        self.share = share

    @property
    def spent(self) -> bool:
        """Whether it has happened to all that it was meant for."""
        return not self.pattern

    def meets(self, envelope: m.Envelope) -> bool:
        """Whether this message is one that it waits for."""
        kind = type(envelope.message)
        return bool(self.pattern) and (
            kind not in HEARTBEATS if self.what is None else kind is self.what
        )

    def strike(self) -> bool:
        """Whether the message that it has met is hit; the next one may not be."""
        return self.pattern.pop()


HEARTBEATS: Final = frozenset({m.ProxyBeat, m.RegionBeat, m.Rouse, m.Tick})
KIND_OF: Final[Mapping[str, type[m.Message]]] = {
    kind_of(kind): kind
    for kind in (
        m.Submit, m.Submitted, m.Cancel, m.Cancelled, m.Watch, m.Ended, m.CreateTask,
        m.TaskCreated, m.Claim, m.Claimed, m.Record, m.Recorded, m.Assign, m.Declined, m.Run,
        m.Dropped, m.Stop, m.Place, m.Call, m.Placed, m.CallResult, m.AbortCalls,
        m.PeerDown, m.FindTasks, m.TasksFound, m.TaskCounts, m.GetProgress, m.Progress,
        m.ProxyBeat, m.RegionBeat, m.Rouse, m.Tick,
    )
}  # fmt: skip

ON_A_LINK: Final = frozenset({"drop", "delay", "duplicate", "reorder", "flap", "one_way"})
HEARD: Final[Mapping[str, tuple[str, ...]]] = {
    "store": ("create_task", "claim", "record"),
    "gateway": ("submit", "task_created", "claimed", "ended", "declined", "tasks_found"),
    "region": ("assign", "claimed", "dropped", "ended", "place", "tasks_found", "tick"),
    "proxy": ("run", "recorded", "call", "placed", "call_result", "progress", "stop"),
    "client": ("submitted", "ended"),
}
"""What a process of each role hears, at which a fault may be aimed."""
_WEIGHTS: Final[Mapping[str, int]] = {"proxy": 2, "region": 3, "gateway": 3, "store": 5}
"""How often a process of a role is hit: there are many proxies, and one store."""


def calm(faults: Faults) -> Faults:
    """Only the agents fail, and for longer."""
    shares = {n: getattr(faults, n) for n in Faults.__struct_fields__ if n.startswith("agent_")}
    return msgspec.structs.replace(Faults.none(2 * faults.for_s), **shares)


def plan(random: Random, faults: Faults, processes: Sequence[str]) -> list[Fault]:
    """Draw what goes wrong in one run, in order of time.

    Args:
        random: the run's.
        faults: the rates.
        processes: every address in the cluster.
    """
    drawn = []
    hosts = [p for p in processes if m.role_of(p) in _WEIGHTS]
    weights = [_WEIGHTS[m.role_of(p)] for p in hosts]
    children = [p for p in processes if m.role_of(p) != "store"]
    for kind in _PLANNED:
        expected = float(getattr(faults, kind)) * faults.for_s
        if faults.swarm:
            expected *= random.choice((0.0, 0.5, 1.0, 2.0))
        count = int(expected) + (random.random() < expected % 1.0)
        for _ in range(count):
            at = random.random() * faults.for_s
            if kind == "flap":
                target = random.choice([p for p in hosts if m.role_of(p) in {"proxy", "region"}])
            elif kind in ON_A_LINK or kind == "partition":
                target = random.choice(children)
            elif kind in _AT_THE_STORE or kind == "forge":
                target = m.STORE
            elif kind == "drain":
                target = random.choice([p for p in hosts if p != m.STORE])
            else:
                (target,) = random.choices(hosts, weights)
            drawn.append(_draw(random, kind, at, target))
    drawn += _deaths(random, faults, hosts)
    drawn.sort(key=lambda fault: fault.at)
    return [msgspec.structs.replace(fault, number=n) for n, fault in enumerate(drawn)]


_AT_THE_STORE: Final = frozenset(
    {"crash_after_commit", "storage_slow", "storage_fail", "answer_lost"}
)
_PLANNED: Final = tuple(
    name
    for name in Faults.__struct_fields__
    if name not in {"for_s", "swarm"} and not name.startswith(_SHARES)
)


def _deaths(random: Random, faults: Faults, hosts: Sequence[str]) -> list[Fault]:
    """Who dies for good: nobody whose like is not there a second time, and one of each at most."""
    if random.random() >= faults.death:
        return []
    gateways, regions, proxies = (
        [p for p in hosts if m.role_of(p) == role] for role in ("gateway", "region", "proxy")
    )
    mortal = gateways if len(gateways) > 1 else []
    mortal = [*mortal, *regions, *proxies] if len(regions) > 1 else mortal
    if not mortal:
        return []
    at = random.random() * faults.for_s
    return [Fault(0, at, "death", random.choice(mortal), for_s=FOR_GOOD_S)]


def _draw(random: Random, kind: str, at: float, target: str) -> Fault:
    up = random.random() < 0.5
    for_s, what, share = 0.0, "", 0.0
    pattern: tuple[bool, ...] = (True,)
    role = m.role_of(target)
    match kind:
        case "drop" | "duplicate" | "delay" | "reorder":
            if random.random() < 0.5:
                what = random.choice(SAID.get(role, ()) if up else HEARD[role])
            for_s = random.uniform(0.02, 2.5)
        case "flap":
            up = True
            what = "proxy_beat" if role == "proxy" else "region_beat"
            pattern = (True,) * 4 + (False,) + (True,) * random.randint(2, 4)
        case "partition" | "one_way":
            for_s = random.uniform(0.3, 5.0)
        case "crash":
            for_s = random.uniform(0.2, 4.0)
        case "crash_in_step":
            what = random.choice(("", *HEARD[role]))
            for_s = random.uniform(0.2, 4.0)
            share = random.choice((0.0, 0.0, 0.5))
        case "crash_after_commit" | "drain":
            for_s = random.uniform(0.2, 2.0)
        case "pause":
            for_s = random.choice((0.4, 2.0, 3.0, 5.0)) * random.uniform(0.8, 1.2)
        case "forge":
            what, share = random.choice(("record", "end", "claim")), random.random()
        case "storage_fail":
            pattern = (True,) * random.randint(1, 3)
        case "storage_slow":
            for_s = random.uniform(0.5, 2.5)
    return Fault(0, at, kind, target, up, for_s, what, pattern, share)


SAID: Final[Mapping[str, tuple[str, ...]]] = {
    "gateway": ("create_task", "claim", "assign", "find_tasks"),
    "region": ("claim", "call", "placed", "ended", "declined", "find_tasks"),
    "proxy": ("record", "place", "ended", "call_result", "dropped", "get_progress"),
    "client": ("submit", "cancel", "watch"),
}
"""What one of each role sends up."""
