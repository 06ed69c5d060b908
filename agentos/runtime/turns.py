"""The inner loop of an actor's shell: messages in, envelopes out. Apart, so that it is compiled."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from agentos.core import messages as m
from agentos.core.ports import Machine
from agentos.runtime.mailbox import Batch, Mailbox
from agentos.runtime.switch import Switch

Failed = Callable[[m.Envelope, float], Machine | None]
"""Told of a message that made the machine raise, and when: the machine to go on with, if any."""


def opened(
    mailbox: Mailbox, switch: Switch, waiting: deque[m.Envelope], until: float
) -> Iterator[m.Envelope]:
    """Take messages while there is time, opened; what nobody can open, the switch refuses.

    Args:
        mailbox: where their senders are charged for the time that each one takes.
        switch: opens them.
        waiting: what is taken from; what there was no time for is left in it.
        until: when the time is over, in seconds on the monotonic clock. The first is always taken.
    """
    began = time.monotonic()
    while waiting:
        envelope = waiting.popleft()
        known = switch.open(envelope)
        if known is not None:
            yield known
        now = time.monotonic()
        mailbox.charge(envelope.sender, now - began)
        began = now
        if now > until:
            return


def handled(
    machine: Machine, address: str, turn: Iterable[m.Envelope], now: float, failed: Failed
) -> Batch:
    """Let a machine handle messages one by one; returns what it has to send, in order."""
    out: Batch = []
    current: Machine | None = machine
    for envelope in turn:
        if current is None:
            continue  # the actor has given up
        try:
            sends = current.handle(envelope, now)
        except Exception:  # noqa: BLE001 - the shell's boundary: nothing off the wire stops an actor
            current = failed(envelope, now)
            continue
        out += envelopes(address, sends)
    return out


def envelopes(sender: str, sends: Sequence[m.Send]) -> Batch:
    """What a machine has to send, with its address on it."""
    return [m.Envelope(send.to, sender, send.message, send.ref) for send in sends]
