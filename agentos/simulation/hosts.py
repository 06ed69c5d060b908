"""The lives of processes: started, stopped, continued, killed, drained, woken by their clocks."""

from __future__ import annotations

from collections.abc import Callable

from agentos.core import messages as m
from agentos.core.limits import Limits
from agentos.core.ports import Machine
from agentos.simulation.ledger import Violation
from agentos.simulation.links import Process
from agentos.simulation.network import Network
from agentos.simulation.port import World

GRACE_S = 1.5
"""How long an orderly stop waits for the calls in flight, before it aborts them."""
ROUNDING_S = 1e-6
"""What two clocks may differ by because floats are rounded."""


class Hosts:
    """Starts and stops the processes of a network.

    Args:
        world: the simulation.
        network: with the processes in it.
        make: a new machine for a process.
        limits: for what is bounded.
    """

    def __init__(
        self,
        world: World,
        network: Network,
        make: Callable[[Process], Machine],
        limits: Limits,
    ) -> None:
        self.stalled: set[str] = set()
        """Processes that were stopped for longer than their leases."""
        self.on_stall: Callable[[str], None] = lambda _: None
        """Told of each that goes on after longer than a lease."""
        self._world = world
        self._network = network
        self._make = make
        self._limits = limits

    # -- life and death --------------------------------------------------------------------------

    def start(self, process: Process, connect_s: float) -> None:
        """Start a process, unless it runs; it greets its parent after `connect_s` seconds."""
        if process.alive:
            return
        process.alive, process.paused, process.draining, process.dying = True, False, False, False
        process.incarnation += 1
        # Monotonic clocks begin anywhere: no two processes can compare theirs.
        process.offset = float(int(self._world.chance() * 1e6))
        process.tick_at = float("inf")
        if process.incarnation > 1:
            self._world.hit("restart", process.address)
        process.machine = self._make(process)
        self._network.changed()
        self._network.connect(process, connect_s)
        self.alarm(process)

    def kill(self, process: Process, for_s: float) -> None:
        """Let a process die with all that it knows; what it had sent is on its way."""
        process.alive = process.paused = False
        process.machine = None
        process.held.clear()
        if process.uplink is not None:
            process.uplink.parent = None
            process.uplink.waiting.clear()
            for lane in process.uplink.lanes(up=False):
                lane.generation += 1
        for other in self._network.processes.values():
            for links in (other.uplink.links, other.uplink.shortcuts) if other.uplink else ():
                if link := links.get(process.address):
                    link.up.generation += 1
        self._network.changed()
        connect_s = 0.02 + self._world.chance()
        self._world.at(self._world.now + for_s, self.start, process, connect_s)

    # -- SIGSTOP and SIGCONT ---------------------------------------------------------------------

    def pause(self, process: Process, for_s: float) -> None:
        """Stop a process as SIGSTOP does, and continue it after `for_s` seconds."""
        if not process.alive or process.paused:
            return
        self._world.hit(f"pause_{process.role}", process.address)
        process.paused = True
        process.paused_at = self._world.now
        self._network.changed()
        self._world.at(self._world.now + for_s, self.resume, process, process.incarnation)

    def resume(self, process: Process, incarnation: int) -> None:
        """Continue it: first with all that has waited in its sockets, in order."""
        if not process.paused or process.incarnation != incarnation:
            return
        if len(process.held) > self._limits.mailbox:
            raise Violation("bounds", f"{len(process.held)} messages wait for {process.address}")
        self._world.trouble()
        self._world.show(f"-- {process.address} goes on")
        if self._world.now - process.paused_at > self._limits.suspicion_s:
            self.stalled.add(process.address)
            self.on_stall(process.address)
        process.paused = False
        self._network.changed()
        held, process.held = process.held, []
        for action, a, b in held:
            action(a, b)

    # -- SIGTERM ---------------------------------------------------------------------------------

    def drain(self, process: Process, for_s: float) -> None:
        """Stop a process in order, and start it again `for_s` seconds after it has ended."""
        if not process.alive or process.paused or process.draining:
            return
        self._world.hit(f"drain_{process.role}", process.address)
        process.draining = True
        process.restart_s = for_s
        self._tell(process, m.Drain())
        self._world.at(self._world.now + GRACE_S, self._abort, process, process.incarnation)

    def may_end(self, process: Process) -> None:
        """End a process that is drained."""
        if process.draining and getattr(process.machine, "drained", False):
            if running := self._world.running(process.address):
                text = f"{process.address} says so, and runs {running[0].row}"
                raise Violation("drained_means_idle", text)
            self._world.note("drained")
            self._world.show(f"-- {process.address} is drained, and ends")
            self._world.trouble()
            self.kill(process, process.restart_s)

    def _abort(self, process: Process, incarnation: int) -> None:
        if process.paused:
            process.held.append((self._abort, process, incarnation))
        elif process.alive and process.incarnation == incarnation:
            self._world.note("drain_took_too_long")
            self._tell(process, m.Drain(abort=True))
            if process.alive and process.incarnation == incarnation:
                self._world.kill(process, process.restart_s)

    def _tell(self, process: Process, message: m.Message) -> None:
        envelope = m.Envelope(process.address, process.address, message)
        self._world.handle(process, envelope, self._world.now + process.offset)

    # -- clocks ----------------------------------------------------------------------------------

    def alarm(self, process: Process) -> None:
        """Wake a process when its machine wants to be."""
        due = process.machine.next_deadline() if process.machine is not None else None
        if due is None:
            return
        at = due - process.offset
        if at < process.tick_at:
            process.tick_at = at = max(at, self._world.now)
            self._world.at(at, self._tick, process, (process.incarnation, at))

    def _tick(self, process: Process, alarm: tuple[int, float]) -> None:
        incarnation, at = alarm
        if process.incarnation != incarnation or not process.alive or process.tick_at != at:
            return
        if process.paused:
            process.held.append((self._tick, process, alarm))
            return
        process.tick_at = float("inf")
        machine = process.machine
        due = machine.next_deadline() if machine is not None else None
        if due is None:
            return
        local_now = self._world.now + process.offset
        if due > local_now + ROUNDING_S:
            self.alarm(process)
            return
        tick = m.Envelope(process.address, process.address, m.Tick())
        self._world.handle(process, tick, max(local_now, due))
        if process.machine is machine and process.tick_at <= self._world.now:
            raise Violation("machines_take_anything", f"{process.address} wants a tick again")
