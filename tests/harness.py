"""A whole cluster in one thread: the real machines, a virtual clock, and faults on request.

The bus delivers what machines send, each message after a small delay drawn from a seed; two
messages between the same two addresses keep their order, as on a real link. Time jumps from one
event to the next, so that an hour of heartbeats costs a second.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgspec

from agentos.core import messages as m
from agentos.core.limits import Limits
from agentos.core.ports import Machine
from agentos.core.routes import allowed
from agentos.runtime.wire import JsonCodec, open_sealed

MAX_DELAY_S = 0.005
"""The longest that one message travels."""


class Reply(msgspec.Struct, frozen=True):
    """What the scripted agents do with a call: answer `value`, or fail with `error`, or neither."""

    value: Any = None
    error: str = ""
    retryable: bool = True
    after_s: float = 0.0
    never: bool = False


Script = Callable[[m.Call], Reply]


class Bus:
    """Machines by address, clients' mailboxes, scripted agents, and the messages between them.

    Args:
        script: what the agents of every proxy answer.
        seed: of the delays and of the machines' chance.
    """

    def __init__(self, script: Script, seed: int = 0) -> None:
        self.now = 0.0
        self.random = Random(seed)
        self.mail: dict[str, list[m.Message]] = defaultdict(list)
        self.log: list[tuple[float, m.Envelope]] = []
        """Everything that was delivered, and when."""
        self.fault: Callable[[m.Envelope], int] = lambda _: 1
        """How many copies of an envelope arrive."""
        self.checks: list[Callable[[m.Envelope], None]] = []
        """Called with every envelope that is sent: what must hold at that moment."""
        self._limits = Limits()
        self._codec = JsonCodec(self._limits)
        self._script = script
        self._machines: dict[str, Machine] = {}
        self._paused: dict[str, list[m.Envelope]] = {}
        self._events: list[tuple[float, int, m.Envelope]] = []
        self._count = 0
        self._last: dict[tuple[str, str], float] = {}
        self._uplinks: dict[str, str] = {}

    # -- who is there ----------------------------------------------------------------------------

    def add(self, machine: Machine) -> None:
        """Put a machine on the bus, or a fresh one in the place of its forerunner."""
        self._machines[machine.address] = machine
        self._paused.pop(machine.address, None)

    def attach(self, address: str, gateway: str) -> None:
        """Let what `address` sends to `gateway` go to this gateway."""
        self._uplinks[address] = gateway

    def kill(self, address: str) -> None:
        """Take a machine away for good; what is sent to it is lost."""
        del self._machines[address]

    def pause(self, address: str) -> None:
        """Stop a machine as SIGSTOP does: what is sent to it waits."""
        self._paused.setdefault(address, [])

    def resume(self, address: str) -> None:
        """Let it go on, with all that has waited."""
        for envelope in self._paused.pop(address, []):
            self._schedule(envelope, 0.0)

    def machine(self, address: str) -> Machine:
        """The machine of this address."""
        return self._machines[address]

    # -- messages and time -----------------------------------------------------------------------

    def send(self, sender: str, to: str, message: m.Message, ref: str = "") -> None:
        """Send a message as if `sender` had."""
        if to == m.GATEWAY:
            to = self._uplinks.get(sender, next(iter(self._gateways()), to))
        envelope = m.Envelope(to, sender, message, ref)
        for check in self.checks:
            check(envelope)
        inside = m.role_of(to) == "agents" or to == sender  # of one process: nothing is lost there
        if not inside:
            envelope = self._over_the_wire(envelope)
        for _ in range(1 if inside else self.fault(envelope)):
            self._schedule(envelope, self.random.uniform(0, MAX_DELAY_S))

    def step(self) -> bool:
        """Deliver the next message or tick; false when nothing will ever happen again."""
        due, sleeper = self._next_tick()
        if self._events and self._events[0][0] <= due:
            at, _, envelope = heapq.heappop(self._events)
            self.now = max(self.now, at)
            self._deliver(envelope)
        elif sleeper is not None:
            self.now = max(self.now, due)
            self._handle(m.Envelope(sleeper, sleeper, m.Tick()))
            after = self._machines[sleeper].next_deadline()
            assert after is None or after > self.now, f"{sleeper} wants a tick at {after} again"
        else:
            return False
        return True

    def run_until(self, condition: Callable[[], bool], max_s: float) -> None:
        """Go on until the condition holds; fail when it does not within `max_s` virtual seconds."""
        end = self.now + max_s
        while not condition():
            assert self.step(), "nothing will ever happen again"
            assert self.now <= end, f"still waiting after {max_s} virtual seconds"

    def run_for(self, seconds: float) -> None:
        """Let so much virtual time pass."""
        end = self.now + seconds
        self.run_until(lambda: self.now >= end, seconds + 1)

    def run_steps(self, count: int) -> None:
        """Deliver so many messages and ticks."""
        for _ in range(count):
            self.step()

    def sent(self, kind: type[m.Message]) -> Iterator[tuple[float, m.Envelope]]:
        """The messages of one kind that were delivered, and when."""
        return ((at, e) for at, e in self.log if isinstance(e.message, kind))

    # -- inside ----------------------------------------------------------------------------------

    def _over_the_wire(self, envelope: m.Envelope) -> m.Envelope:
        """Written and read as between processes: what a machine says must fit, and be allowed."""
        [read] = self._codec.decode(self._codec.encode(envelope))
        assert isinstance(read.message, m.Sealed)
        message = open_sealed(read.message, self._limits)
        assert allowed(type(message), read.sender, read.to), read
        return m.Envelope(read.to, read.sender, message, read.ref)

    def _gateways(self) -> Iterator[str]:
        return (a for a in self._machines if m.role_of(a) == "gateway")

    def _schedule(self, envelope: m.Envelope, delay_s: float) -> None:
        pair = (envelope.sender, envelope.to)
        at = max(self.now + delay_s, self._last.get(pair, 0.0))
        if m.role_of(envelope.sender) != "agents":
            self._last[pair] = at
        self._count += 1
        heapq.heappush(self._events, (at, self._count, envelope))

    def _next_tick(self) -> tuple[float, str | None]:
        due = [
            (deadline, address)
            for address, machine in self._machines.items()
            if address not in self._paused and (deadline := machine.next_deadline()) is not None
        ]
        return min(due, default=(float("inf"), None))

    def _deliver(self, envelope: m.Envelope) -> None:
        if envelope.to in self._paused:
            self._paused[envelope.to].append(envelope)
        elif m.role_of(envelope.to) == "agents":
            self._answer(envelope)
        elif envelope.to in self._machines:
            self._handle(envelope)
        else:
            self.log.append((self.now, envelope))
            assert isinstance(envelope.message, m.Message)
            self.mail[envelope.to].append(envelope.message)

    def _handle(self, envelope: m.Envelope) -> None:
        self.log.append((self.now, envelope))
        for send in self._machines[envelope.to].handle(envelope, self.now):
            self.send(envelope.to, send.to, send.message, send.ref)

    def _answer(self, envelope: m.Envelope) -> None:
        """The agent runner of the proxy that this came from."""
        self.log.append((self.now, envelope))
        message, proxy = envelope.message, envelope.sender
        if isinstance(message, m.Invoke):
            call = message.call
            reply = self._script(call)
            if reply.never:
                return
            result = m.CallResult(
                task_id=call.task_id,
                epoch=call.epoch,
                row=call.row,
                attempt=call.attempt,
                proxy=proxy,
                value=None if reply.error else msgspec.json.encode(reply.value).decode(),
                error=reply.error,
                retryable=reply.retryable,
                usage=m.Usage(1, 0, 3, 5),
                seconds=reply.after_s,
            )
            self._schedule(m.Envelope(proxy, m.AGENTS, result), reply.after_s)
        elif isinstance(message, m.Revoke):
            key = (message.task_id, message.epoch, message.row, message.attempt)
            self._events = [e for e in self._events if not _is_answer(e[2], proxy, key)]
            heapq.heapify(self._events)


def _is_answer(envelope: m.Envelope, proxy: str, key: tuple[Any, ...]) -> bool:
    q = envelope.message
    return (
        isinstance(q, m.CallResult)
        and (envelope.sender, envelope.to) == (m.AGENTS, proxy)
        and (q.task_id, q.epoch, q.row, q.attempt) == key
    )
