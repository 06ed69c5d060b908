"""One run of a simulated cluster: the real machines, a virtual clock, and a plan of faults."""

from __future__ import annotations

import heapq
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from agentos.core import messages as m
from agentos.core.errors import AgentOSError
from agentos.core.gateway import GatewayMachine
from agentos.core.limits import Limits
from agentos.core.ports import Machine
from agentos.core.proxy import ProxyMachine
from agentos.core.region import RegionMachine
from agentos.core.routes import allowed
from agentos.simulation.agents import Agents, Answer
from agentos.simulation.behaviour import QUIET_S, Behaviour
from agentos.simulation.chaos import Chaos
from agentos.simulation.clients import ClientMachine
from agentos.simulation.faults import FOR_GOOD_S, Armed, Faults, calm, plan
from agentos.simulation.hosts import Hosts
from agentos.simulation.ledger import Change, Violation
from agentos.simulation.links import Lane, Process, Uplink
from agentos.simulation.network import Network
from agentos.simulation.outcome import Keep, Outcome, Shape
from agentos.simulation.store import StoreHost
from agentos.simulation.trace import Trace, describe
from agentos.simulation.workload import OFFERS, Job, draw_jobs, offers_for
from agentos.storage.memory import MemoryDatabase

START_S = 1.5
"""Virtual seconds that a cluster gets to find itself before anything goes wrong."""
HEALED_S = 90.0
"""Virtual seconds within which every task must have ended once everything has healed."""
SETTLED_S = 3.0
"""Virtual seconds after the last end within which the last call must be over, if all was quiet."""
CALM_EVERY = 8
"""Of so many seeds one is calm: only its agents fail, so that a needless takeover shows."""

LIMITS = Limits(tasks_per_proxy=3, calls_per_task=3, waiting_calls=2)
"""Small bounds, so that they are reached."""

Wire = Callable[[m.Envelope], m.Envelope]
"""Writes and reads an envelope as between processes."""


class Simulation:
    """A cluster in one thread. The same arguments give the same run, byte for byte.

    Args:
        seed: of everything that is left to chance.
        shape: how many processes and tasks.
        faults: what goes wrong, and how often.
        graph: the description of every task; graphs are drawn if None.
        answer: makes the agents' answers.
        limits: the cluster's bounds and intervals.
        offers: agents that the proxies offer, with their slots: those of the first, the second, ….
        wire: writes and reads each message between processes; they are passed as they are if None.
        keep: what is left of the run while it is shrunk.
        trace: takes a line for everything that happens.
    """

    def __init__(
        self,
        seed: int,
        *,
        shape: Shape | None = None,
        faults: Faults | None = None,
        graph: str | None = None,
        answer: Answer | None = None,
        limits: Limits = LIMITS,
        offers: Sequence[Mapping[str, int]] | None = None,
        wire: Wire | None = None,
        keep: Keep | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.now = 0.0
        self.steps = 0
        self.reached: Counter[str] = Counter()
        self.troubled_at = 0.0
        self.troubles = 0
        self.seed = seed
        self.limits = limits
        self.trace = trace
        self.random = Random(seed)  # noqa: S311 - it is to be repeated, not to be secret
        self.chance = self.random.random
        self._wire = wire
        self._events: list[tuple[float, int, Callable[..., None], Any, Any]] = []
        self._count = 0
        self._roles: dict[tuple[type, str, str], bool] = {}
        shape, faults = shape or Shape(), (faults or Faults()).check()
        offers = offers or (OFFERS if graph is None else offers_for(graph))
        if faults.swarm and seed % CALM_EVERY == 0:
            faults = calm(faults)
        addresses = shape.addresses()
        clients = [a for a in addresses if m.role_of(a) == "client"]
        jobs = draw_jobs(
            self.random,
            shape.tasks,
            clients,
            faults.for_s,
            agents=self._offered(offers, addresses),
            graph=graph,
            poison=faults.poison,
        )
        drawn = plan(self.random, faults, addresses)
        self.plan = [f for f in drawn if keep is None or f.number in keep.faults]
        self.jobs = [job for job in jobs if keep is None or job.name in keep.jobs]
        self.poison = {job.name for job in self.jobs if job.poison}
        self._left = sum(2 if job.twin else 1 for job in self.jobs)
        self.network = Network(self, limits)
        self.hosts = Hosts(self, self.network, self._machine, limits)
        self.behaviour = Behaviour(self, limits, self.offers, self.hosts.stalled)
        self.hosts.on_stall = self.behaviour.went_on
        self.agents = Agents(self, seed, faults, self._job_of, answer)
        self.database = MemoryDatabase(clock=lambda: 1e9 + self.steps * 7919 % 1000)
        self._build(addresses)
        self.chaos = Chaos(self, self.network, self.hosts, self.store, self.behaviour.ledger)
        for fault in self.plan:
            self.at(START_S + fault.at, self.chaos.inject, fault)
        self.healed_at = START_S + faults.for_s
        self.at(self.healed_at, self._heal)

    def _offered(self, offers: Sequence[Mapping[str, int]], addresses: Sequence[str]) -> list[str]:
        """What the proxies of every region offer together; and note what each one does."""
        self.offers: dict[str, Mapping[str, int]] = {}
        everywhere: list[dict[str, None]] = []
        for region in (a for a in addresses if m.role_of(a) == "region"):
            proxies = [a for a in addresses if m.region_of(a) == region and m.role_of(a) == "proxy"]
            own = {a: offers[i % len(offers)] for i, a in enumerate(proxies)}
            self.offers |= own
            everywhere.append({agent: None for offer in own.values() for agent in offer})
        return [agent for agent in everywhere[0] if all(agent in one for one in everywhere)]

    def _build(self, addresses: Sequence[str]) -> None:
        gateways = [a for a in addresses if m.role_of(a) == "gateway"]
        for i, address in enumerate(addresses):
            uplink = None
            match m.role_of(address):
                case "gateway":
                    uplink = Uplink(address, [m.STORE])
                case "region" | "client":
                    first = i % len(gateways)
                    uplink = Uplink(address, [*gateways[first:], *gateways[:first]])
                case "proxy":
                    uplink = Uplink(address, [m.region_of(address)], gateways if i % 2 else ())
            self.network.add(Process(address, uplink))
        store = self.network.processes[m.STORE]
        self.store = StoreHost(self, store, self.database, self.limits)
        for i, address in enumerate(addresses):
            self.at(i * 0.001, self.hosts.start, self.network.processes[address], 0.001)

    # -- running ---------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Run until every client has the end of every task that it handed in, and a little longer.

        Returns:
            what became of it; a broken rule is in it, and is not raised.
        """
        rule = text = ""
        try:
            self.run_until(lambda: self._left == 0 and self.now > self.healed_at)
            end = self.now + SETTLED_S
            self.run_until(lambda: self.now >= max(end, self.troubled_at + QUIET_S))
            self._final_checks()
        except Violation as violation:
            rule, text = violation.rule, str(violation)
            self.show(f"VIOLATION {violation}")
        return Outcome(
            self.seed, self.steps, self.now, dict(self.reached), rule, text, self.fingerprint()
        )

    def run_until(self, over: Callable[[], bool]) -> None:
        """Go on until the condition holds.

        Raises:
            Violation: a rule was broken; `liveness`, if tasks do not end after everything healed.
        """
        events = self._events
        while not over():
            if self.now > self.healed_at + HEALED_S:
                raise Violation("liveness", self._unfinished())
            at, _, action, a, b = heapq.heappop(events)
            self.now = at
            action(a, b)

    def fingerprint(self) -> str:
        """Two runs that differ anywhere differ in this."""
        return (
            f"{self.steps}-{self.now:.9f}-{zlib.crc32(repr(self.random.getstate()).encode()):08x}"
        )

    def at(self, time: float, action: Callable[..., None], a: Any = None, b: Any = None) -> None:
        """Call `action(a, b)` at this virtual time; in the order of the calls, if at the same."""
        self._count += 1
        heapq.heappush(self._events, (time, self._count, action, a, b))

    # -- processes -------------------------------------------------------------------------------

    def _machine(self, process: Process) -> Machine:
        """What a process begins with: all that its forerunner knew is lost."""
        address, name = process.address, f"i{process.incarnation}"
        self.behaviour.began(address)
        match process.role:
            case "store":
                return self.store.make()
            case "gateway":
                own = f"{address.rpartition('/')[2]}.{name}"
                return GatewayMachine(self.limits, address=address, incarnation=own)
            case "region":
                return RegionMachine(address, self.limits, incarnation=name)
            case "proxy":
                return ProxyMachine(
                    address,
                    self.offers[address],
                    self.limits,
                    chance=self.chance,
                    incarnation=name,
                )
        client = ClientMachine(address, self._client_done)
        begun = process.offset + self.now + START_S
        for job in self.jobs:
            if address in {job.client, job.twin}:
                client.add(job, begun + job.at)
        return client

    def kill(self, process: Process, for_s: float) -> None:
        """Let a process die, with all that it knows, and start it again after `for_s` seconds."""
        if process.alive:
            again = f", again in {for_s:.2f} s" if for_s < FOR_GOOD_S else ""
            self.hit(f"crash_{process.role}", process.address + again)
            self.agents.crashed(process.address)
            self.hosts.kill(process, for_s)

    # -- messages --------------------------------------------------------------------------------

    def deliver(self, process: Process, envelope: m.Envelope) -> None:
        """A message has reached the process that it is for."""
        if self.trace is not None:
            self.trace.took(self.now, process, envelope)
        if process.role == "store":
            self.store.deliver(envelope)
        else:
            self.handle(process, envelope, self.now + process.offset)

    def handle(self, process: Process, envelope: m.Envelope, local_now: float) -> None:
        """Let a process's machine take a message, at this time of its own clock."""
        machine = process.machine
        assert machine is not None, f"{process.address} is alive"
        try:
            sends = machine.handle(envelope, local_now)
        except Exception as error:
            raise Violation(
                "machines_take_anything",
                f"{process.address} raised {error!r} at {describe(envelope.message)}",
            ) from error
        crash = None
        if process.armed:
            crash = self._crash(process, envelope)
            if crash is not None:
                process.dying, sends = True, sends[: int(len(sends) * crash.share)]
        self.handled(process, envelope, sends)
        if crash is not None:
            self.hit("crash_in_step", f"{process.address}: {len(sends)} of its messages leave")
            self.kill(process, crash.for_s)
        elif process.alive:
            self.hosts.alarm(process)
            if process.draining:
                self.hosts.may_end(process)

    def _crash(self, process: Process, envelope: m.Envelope) -> Armed | None:
        for armed in process.armed:
            if armed.meets(envelope):
                process.armed.remove(armed)
                return armed
        return None

    def handled(self, process: Process, envelope: m.Envelope, sends: Sequence[m.Send]) -> None:
        """A step is over; these messages leave."""
        self.steps += 1
        address = process.address
        for send in sends:
            if send.to == m.AGENTS:
                if self.trace is not None:
                    self.trace.called(self.now, process, send.message)
                self.agents.take(process, send.message)
        self.behaviour.step(process, envelope, sends)
        for send in sends:
            if send.to != m.AGENTS:
                self._send(process, m.Envelope(send.to, address, send.message, send.ref))

    def _send(self, process: Process, envelope: m.Envelope) -> None:
        kind: Any = type(envelope.message)
        key = (kind, envelope.sender, envelope.to)
        if key not in self._roles:
            self._roles[key] = allowed(*key)
        if not self._roles[key]:
            text = f"{envelope.sender} may not send {describe(envelope.message)} to {envelope.to}"
            raise Violation("messages_travel", text)
        if self._wire is not None:
            try:
                envelope = self._wire(envelope)
            except AgentOSError as error:
                text = f"{envelope.sender} -> {envelope.to}, {describe(envelope.message)}: {error}"
                raise Violation("messages_travel", text) from error
        self.network.send(process, envelope)

    def committed(self, changes: Sequence[Change]) -> None:
        """These are durable now; nobody has been told yet."""
        self.behaviour.committed(changes)

    # -- faults ----------------------------------------------------------------------------------

    def _heal(self, _a: object = None, _b: object = None) -> None:
        self.agents.faulty = False
        self.chaos.heal()

    def hit(self, kind: str, text: str) -> None:
        """Count and show a fault that has happened."""
        self.reached[kind] += 1
        if not kind.startswith("agent_"):  # an agent that fails makes nobody suspect anybody
            self.trouble()
        self.show(f"!! {kind}: {text}")

    def fell(self, fault: str, envelope: m.Envelope, lane: Lane | None, for_s: float = 0.0) -> None:
        """A fault has happened to this message: one that is late is trouble until it arrives."""
        task_id = getattr(envelope.message, "task_id", 0)
        if not task_id and isinstance(envelope.message, m.Place):
            task_id = envelope.message.call.task_id
        entry = self.behaviour.ledger.get(task_id)
        if entry is not None:
            entry.excuses += 1
        self.reached[fault] += 1
        self.troubled_at = max(self.troubled_at, self.now + for_s)
        if self.trace is not None:
            self.trace.fell(self.now, fault, envelope, lane.name if lane else "")

    def trouble(self) -> None:
        """Something has gone wrong, or is well again: whoever suspects somebody has a reason."""
        self.troubled_at = max(self.troubled_at, self.now)
        self.troubles += 1

    def note(self, mark: str) -> None:
        """Count something that was reached."""
        self.reached[mark] += 1

    def show(self, line: str) -> None:
        """Put a line into the trace."""
        if self.trace is not None:
            self.trace.line(self.now, line)

    # -- what the others ask ---------------------------------------------------------------------

    def running(self, proxy: str) -> list[m.Call]:
        """The calls that the agents of a proxy are making."""
        return list(self.agents.running.get(proxy, {}).values())

    def is_led(self, proxy: str) -> bool:
        """Whether anybody is left to tell a proxy that its claims are over: its region."""
        return self.network.processes[m.region_of(proxy)].alive

    def _job_of(self, task_id: int) -> tuple[str, bool]:
        entry = self.behaviour.ledger.get(task_id)
        name = "" if entry is None else entry.task.key or ""
        return name, name in self.poison

    def _client_done(self, client: str, job: Job, ended: m.Ended) -> None:
        self.behaviour.done(client, job.name, ended)
        self._left -= 1

    # -- at the end ------------------------------------------------------------------------------

    def _unfinished(self) -> str:
        waiting = [
            f"{e.task.key} is {e.task.state} at {e.task.epoch} with {e.task.owner or e.task.region}"
            for e in self.behaviour.ledger.tasks.values()
            if e.task.state not in m.TERMINAL
        ]
        text = "; ".join(waiting) or f"{self._left} clients wait for ends that are recorded"
        return f"{HEALED_S:.0f} s after everything has healed: {text}"

    def _final_checks(self) -> None:
        for proxy in self.offers:
            for call in self.running(proxy):
                if call.timeout_s > QUIET_S:
                    continue  # an abort that was lost costs what is left of the time limit
                text = f"{proxy} still runs {call.row} of task {call.task_id}, which has ended"
                raise Violation("zombies_stop_spending", text)
        known = self.behaviour.ledger.tasks
        for task_id, entry in known.items():
            rows = {row.node_id: row for row in self.database.get_progress_list(task_id)}
            if self.database.get_task(task_id) != entry.task or rows != entry.rows:
                raise Violation("writes_are_fenced", f"task {task_id} changed behind our back")
