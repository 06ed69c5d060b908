"""Processes, the links between them, and what may happen to a message on its way.

The shape of the real thing (`agentos.runtime.switch`, `agentos.runtime.uplink`): a tree of
processes, the store at the root, gateways below it, regions and clients below the gateways,
proxies below their regions. Every process dials out to one parent of a list, and to the next when
that has been silent for too long; a message goes up until somebody knows the way down. So a
region that is down cuts its proxies from the store, and a link that breaks takes with it what is
on it. Every other proxy has a shortcut: what is for the store goes straight to the gateway above its
region, and its answers come straight back, for as long as that gateway knows it from the region.

A message costs one event, however many links it crosses: its way is worked out when it is sent,
and looked at again when it arrives if anything has changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentos.core import messages as m
from agentos.core.limits import Limits
from agentos.simulation.faults import Armed
from agentos.simulation.links import Lane, Link, Process, Uplink, Way
from agentos.simulation.port import World

HOP_S = 0.0003
"""What a link adds to a message's time, at least; at most three times as much."""
NO_SUCH_ACTOR = "no_such_actor"


class Network:
    """All processes, and the messages between them.

    Args:
        world: the simulation.
        limits: for pings and back-off.
    """

    def __init__(self, world: World, limits: Limits) -> None:
        self.processes: dict[str, Process] = {}
        self._world = world
        self._limits = limits
        self._patience_s = limits.link_ping_s * limits.suspect_after
        self._version = 0
        self._ways: dict[tuple[str, str], Way] = {}

    def add(self, process: Process) -> None:
        """Make a process known; it is not started yet."""
        self.processes[process.address] = process

    def changed(self) -> None:
        """Something about processes or links is different: ways are worked out again."""
        self._version += 1
        self._ways.clear()

    # -- sending ---------------------------------------------------------------------------------

    def send(self, here: Process, envelope: m.Envelope) -> None:
        """Send a message from a process (its author's, or one where it has waited)."""
        way = self._ways.get((here.address, envelope.to))
        if way is None:
            way = self._ways[here.address, envelope.to] = self._way(here, envelope.to)
        if way.end is None:
            self._not_sent(here, envelope, way)
            return
        world = self._world
        at = world.now + way.hops * HOP_S * (1.0 + 2.0 * world.chance())
        copies, ordered = 1, True
        for lane in way.lanes:
            if lane.armed:
                for armed in lane.armed:
                    if armed.meets(envelope):
                        copies, at, ordered = self._befall(armed, lane, envelope, copies, at)
                lane.armed = [a for a in lane.armed if not a.spent]
            at = max(at, lane.free_at)
        if ordered:
            for lane in way.lanes:
                lane.free_at = at
        for copy in range(copies):
            world.at(at + copy * HOP_S * 100 * world.chance(), self._arrive, envelope, way)

    def _befall(
        self, armed: Armed, lane: Lane, envelope: m.Envelope, copies: int, at: float
    ) -> tuple[int, float, bool]:
        """What an armed fault does: how many copies arrive, when, and whether in order."""
        if not armed.strike():
            return copies, at, True
        late_s = armed.for_s if armed.kind in {"delay", "reorder"} else 0.0
        self._world.fell(armed.kind, envelope, lane, late_s)
        match armed.kind:
            case "drop" | "flap":
                return 0, at, True
            case "duplicate":
                return copies + 1, at, True
            case _:
                return copies, at + late_s, armed.kind != "reorder"

    def _not_sent(self, here: Process, envelope: m.Envelope, way: Way) -> None:
        if way.held:
            self._world.note("waited_for_a_parent")
            holder = way.through[-1] if way.through else here
            assert holder.uplink is not None, f"{holder.address} has no way up"
            holder.uplink.waiting.append(envelope)
            return
        if way.unknown and envelope.ref and not isinstance(envelope.message, m.Refused):
            self._world.note("nobody_has_the_address")
            reason = f"nobody has the address {envelope.to!r}"
            refused = m.Refused(code=NO_SUCH_ACTOR, reason=reason)
            back = m.Envelope(envelope.sender, envelope.to, refused, envelope.ref)
            if envelope.sender != here.address:
                self.send(here, back)
            else:
                self._world.at(self._world.now, self._to_itself, here, back)
            return
        self._world.fell("lost_on_a_broken_link", envelope, None)

    def _to_itself(self, process: Process, envelope: m.Envelope) -> None:
        if process.paused:
            process.held.append((self._to_itself, process, envelope))
        elif process.alive:
            self._world.deliver(process, envelope)

    def _arrive(self, envelope: m.Envelope, way: Way) -> None:
        if way.version != self._version:
            for lane, generation in zip(way.lanes, way.generations, strict=True):
                if lane.generation != generation:
                    self._world.fell("lost_on_a_broken_link", envelope, lane)
                    return
        target = way.end
        assert target is not None, "a message that was sent has somebody to reach"
        for process in (*way.through, target):
            if process.paused:  # it waits in that process's sockets
                process.held.append((self._arrive, envelope, way))
                return
        if target.alive:  # what somebody tells himself is on no lane
            self._world.deliver(target, envelope)

    # -- ways ------------------------------------------------------------------------------------

    def _way(self, here: Process, to: str) -> Way:
        """Up until the addressee is here or known below, then down."""
        way = Way(self._version)
        target = self.processes.get(to)
        above = self._above(target) if target is not None else []
        while True:
            if here is target or (to == m.GATEWAY and here.role == "gateway"):
                return self._reaches(way, here)
            if target is not None and here in above:
                return self._down(way, target, above, here)
            shortcut = self._shortcut(here) if to == m.STORE else None
            if shortcut is not None:
                gateway, link = shortcut
                if link.up.cuts:
                    return way
                if here.uplink is not None and here.uplink.link.up.cuts:
                    self._world.note("saved_past_its_region")
                way.lanes.append(link.up)
                here = gateway
                way.through.append(here)
                continue
            uplink = here.uplink
            if uplink is None:
                way.unknown = True
                return way
            if uplink.parent is None:
                way.held = True
                return way
            parent, lane = uplink.parent, uplink.link.up
            if not parent.alive or parent.incarnation != uplink.known or lane.cuts:
                if parent.alive and not parent.paused and not lane.cuts:
                    # It does not know us: it says so at once, and we greet it again.
                    self._world.at(self._world.now + 2 * HOP_S, self._greet, here, uplink.known)
                return way
            way.lanes.append(lane)
            here = parent
            way.through.append(here)

    def _above(self, process: Process) -> list[Process]:
        """Everybody who knows the way down to a process: those through whom it is greeted."""
        found = []
        uplink = process.uplink
        while uplink is not None and (parent := uplink.parent) is not None:
            if not parent.alive or parent.incarnation != uplink.known:
                break
            found.append(parent)
            uplink = parent.uplink
        return found

    def _down(self, way: Way, target: Process, above: list[Process], here: Process) -> Way:
        steps = above[: above.index(here)]
        shortcut = self._shortcut(target)
        if shortcut is not None and shortcut[0] not in (here, *steps):
            shortcut = None
        if shortcut is not None:
            del steps[0]
        lanes = []
        for process in (target, *steps):
            assert process.uplink is not None, "what is below somebody has a way up"
            lane = process.uplink.link.down
            if shortcut is not None and process is target:
                lane = shortcut[1].down
            if lane.cuts or not process.alive:
                return way
            lanes.append(lane)
        way.lanes += reversed(lanes)
        way.through += reversed(steps)
        return self._reaches(way, target)

    def _shortcut(self, process: Process) -> tuple[Process, Link] | None:
        """Where the way past its parent leads that it would use now, and that way, if it has one."""
        uplink = process.uplink
        region = uplink.parent if uplink is not None and uplink.shortcuts else None
        if uplink is None or region is None or region.uplink is None:
            return None
        known = region.alive and region.incarnation == uplink.known
        gateway = region.uplink.parent if known else None
        if gateway is None or not (gateway.alive and gateway.incarnation == region.uplink.known):
            return None
        link = uplink.shortcuts.get(gateway.address)
        if link is None or any(
            lane.cuts and self._world.now - lane.cut_at > self._patience_s for lane in link.lanes
        ):
            return None  # there is none, or it has been silent for so long that it was given up
        return gateway, link

    def cut(self, lanes: Sequence[Lane]) -> None:
        """Nothing passes here any more, until these are mended."""
        for lane in lanes:
            if not lane.cuts:
                lane.cut_at = self._world.now
            lane.cuts += 1
            lane.generation += 1
        self.changed()
        given_up = self._world.now + self._patience_s + HOP_S
        self._world.at(given_up, lambda *_: self.changed())

    @staticmethod
    def _reaches(way: Way, target: Process) -> Way:
        way.end = target
        way.through = [process for process in way.through if process is not target]
        way.hops = len(way.lanes)
        way.generations = [lane.generation for lane in way.lanes]
        return way

    # -- links -----------------------------------------------------------------------------------

    def connect(self, process: Process, after_s: float) -> None:
        """Let a process that has just started look for a parent."""
        uplink = process.uplink
        if uplink is not None:
            uplink.parent, uplink.at, uplink.failures = None, 0, 0
            uplink.waiting.clear()
            self._world.at(self._world.now + after_s, self._dial, process, process.incarnation)

    def _dial(self, process: Process, incarnation: int) -> None:
        """Greet the next parent; stay with it if it answers, try another if it does not."""
        if self._put_off(process, incarnation, self._dial):
            return
        uplink = process.uplink
        assert uplink is not None, "only those below somebody dial"
        parent = self.processes[uplink.parents[uplink.at]]
        if not self._answers(uplink, parent):
            uplink.failures += 1
            if uplink.failures % self._limits.suspect_after == 0:
                uplink.at = (uplink.at + 1) % len(uplink.parents)
            self._again(self._dial, process, self._pause_s(uplink.failures))
            return
        if uplink.failures:
            self._world.note("found_another_parent")
        uplink.parent, uplink.known = parent, parent.incarnation
        uplink.heard_at, uplink.failures = self._world.now, 0
        self.changed()
        self._rouse(process)
        waiting = list(uplink.waiting)
        uplink.waiting.clear()
        for envelope in waiting:
            self.send(process, envelope)
        self._again(self._probe, process, self._limits.link_ping_s)

    def _probe(self, process: Process, incarnation: int) -> None:
        """Is the parent there, and does it know us? If it is silent for too long, find another."""
        if self._put_off(process, incarnation, self._probe):
            return
        uplink = process.uplink
        assert uplink is not None, "only those below somebody probe"
        parent = uplink.parent
        if parent is None:
            return
        if self._answers(uplink, parent):
            uplink.heard_at = self._world.now
            if uplink.known != parent.incarnation:
                self._greet(process, uplink.known)
        elif self._world.now - uplink.heard_at > self._patience_s:
            uplink.link.up.generation += 1
            uplink.link.down.generation += 1
            uplink.parent, uplink.failures = None, 1
            uplink.at = (uplink.at + 1) % len(uplink.parents)
            self.changed()
            self._again(self._dial, process, self._pause_s(0))
            return
        self._again(self._probe, process, self._limits.link_ping_s)

    def _greet(self, process: Process, known: int) -> None:
        """A parent that was started anew is told who we are."""
        uplink = process.uplink
        if uplink is None or uplink.parent is None or uplink.known != known:
            return
        if process.alive and not process.paused and self._answers(uplink, uplink.parent):
            uplink.known = uplink.parent.incarnation
            self.changed()
            self._rouse(process)

    def _rouse(self, process: Process) -> None:
        """A proxy with a new link says to its region that it is there.

        Real ones probe a link seldom while they rest, but see at once that it was closed; here all
        of them probe, and that is how they see it.
        """
        if process.role == "proxy":
            roused = m.Envelope(process.address, m.NEIGHBOUR, m.Rouse())
            self._world.at(self._world.now, self._to_itself, process, roused)

    @staticmethod
    def _answers(uplink: Uplink, parent: Process) -> bool:
        link = uplink.links[parent.address]
        return parent.alive and not parent.paused and not link.up.cuts and not link.down.cuts

    def _put_off(
        self, process: Process, incarnation: int, action: Callable[[Process, int], None]
    ) -> bool:
        """Whether it is not the time: the process is gone, or stopped until it is continued."""
        if process.paused:
            process.held.append((action, process, incarnation))
        return process.paused or not process.alive or process.incarnation != incarnation

    def _again(
        self, action: Callable[[Process, int], None], process: Process, after_s: float
    ) -> None:
        self._world.at(self._world.now + after_s, action, process, process.incarnation)

    def _pause_s(self, failures: int) -> float:
        low, high = self._limits.reconnect_min_s, self._limits.reconnect_max_s
        most = min(high, low * 2.0 ** min(failures, 16))
        return low / 2 + self._world.chance() * most
