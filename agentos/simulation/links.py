"""The parts of the network: processes, links, and the ways of messages over them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from agentos.core import messages as m
from agentos.core.ports import Machine
from agentos.simulation.faults import Armed


class Lane:
    """One direction of one link.

    Attributes:
        name: like `proxy/r0/1 up`.
        cuts: how many partitions keep messages from passing now.
        cut_at: since when, if any do.
        generation: changes whenever what is on the lane is lost.
        free_at: when the last message that was sent in order arrives.
        armed: faults that wait for a message to happen to.
    """

    __slots__ = ("armed", "cut_at", "cuts", "free_at", "generation", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.cuts = 0
        self.cut_at = 0.0
        self.generation = 0
        self.free_at = 0.0
        self.armed: list[Armed] = []


class Link:
    """The two directions between a process and one of its possible parents."""

    __slots__ = ("down", "up")

    def __init__(self, child: str, parent: str) -> None:
        self.up = Lane(f"{child} to {parent}")
        self.down = Lane(f"{parent} to {child}")

    @property
    def lanes(self) -> tuple[Lane, Lane]:
        """Both directions."""
        return self.up, self.down


class Uplink:
    """A process's way up: the parents that it may have, and the one that it has.

    Attributes:
        parents: addresses, in order of preference.
        shortcuts: by gateway, a link past our parent for what is for the store.
        parent: the one that it talks to; None while it looks for one.
        known: the parent's incarnation that has welcomed us.
        waiting: what is to go up as soon as there is a parent.
    """

    __slots__ = (
        "at", "failures", "heard_at", "known", "links", "parent", "parents", "shortcuts", "waiting",
    )  # fmt: skip

    def __init__(self, child: str, parents: Sequence[str], shortcuts: Sequence[str] = ()) -> None:
        self.parents = tuple(parents)
        self.links = {parent: Link(child, parent) for parent in parents}
        self.shortcuts = {gateway: Link(child, gateway) for gateway in shortcuts}
        self.at = 0
        self.parent: Process | None = None
        self.known = 0
        self.heard_at = 0.0
        self.failures = 0
        self.waiting: deque[m.Envelope] = deque()

    @property
    def link(self) -> Link:
        """The link to the parent that it has, or tries next."""
        return self.links[self.parents[self.at]]

    def lanes(self, *, up: bool) -> list[Lane]:
        """All lanes of one direction that what is said to or by this process may take now."""
        links = [self.link, *self.shortcuts.values()]
        return [link.up if up else link.down for link in links]

    def all_lanes(self) -> list[Lane]:
        """Every lane of every link."""
        links = [*self.links.values(), *self.shortcuts.values()]
        return [lane for link in links for lane in link.lanes]


class Process:
    """One process with one role in it.

    Attributes:
        machine: made anew at every start.
        offset: its monotonic clock minus the simulation's: no two processes share one.
        incarnation: how often it was started.
        paused: whether it is stopped (SIGSTOP), and since when.
        held: what came while it was, in order.
        dying: whether it dies of the step that is being carried out.
        draining: whether it is ending in order (SIGTERM), to be started after `restart_s`.
        tick_at: when its next tick is due, in the simulation's time.
    """

    __slots__ = (
        "address", "alive", "armed", "draining", "dying", "held", "incarnation", "machine", "offset",
        "paused", "paused_at", "restart_s", "role", "tick_at", "uplink",
    )  # fmt: skip

    def __init__(self, address: str, uplink: Uplink | None) -> None:
        self.address = address
        self.role = m.role_of(address)
        self.uplink = uplink
        self.machine: Machine | None = None
        self.alive = False
        self.paused = False
        self.paused_at = 0.0
        self.draining = False
        self.dying = False
        self.restart_s = 0.0
        self.offset = 0.0
        self.incarnation = 0
        self.held: list[tuple[Callable[..., None], Any, Any]] = []
        self.armed: list[Armed] = []
        self.tick_at = float("inf")


class Way:
    """The way of messages from one process to an address, as long as nothing changes.

    `end`: who gets them, or (`held`) in whose uplink they wait, or None: they are lost.
    """

    __slots__ = ("end", "generations", "held", "hops", "lanes", "through", "unknown", "version")

    def __init__(self, version: int) -> None:
        self.version = version
        self.lanes: list[Lane] = []
        self.through: list[Process] = []
        self.hops = 0
        self.generations: list[int] = []
        self.end: Process | None = None
        self.held = False
        self.unknown = False
