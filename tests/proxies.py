"""A proxy's machine by itself, and what others say to it."""

from __future__ import annotations

from typing import Any

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.limits import Limits
from agentos.core.proxy import ProxyMachine
from tests.machines import GRAPH

ME, OTHER, STRANGER, REGION = "proxy/r0/0", "proxy/r0/1", "proxy/r1/0", "region/r0"
E11, E12 = Epoch(1, 1), Epoch(1, 2)


def proxy(limits: Limits | None = None, **offers: int) -> ProxyMachine:
    """A proxy of region r0 that has said hello."""
    machine = ProxyMachine(
        ME, offers or {"echo": 1}, limits or Limits(), chance=lambda: 0.5, incarnation="1"
    )
    tell(machine, ME, m.Tick())
    return machine


def tell(
    machine: ProxyMachine, sender: str, message: m.Message, ref: str = "", now: float = 0.0
) -> list[m.Send]:
    """Hand a message to a machine."""
    return machine.handle(m.Envelope(machine.address, sender, message, ref), now)


def run(task_id: int = 1, epoch: Epoch = E11, saved: int = 0, graph: str = GRAPH) -> m.Run:
    """A claim for this proxy."""
    return m.Run(task_id=task_id, epoch=epoch, task_description=graph, saved=saved)


def running() -> tuple[ProxyMachine, m.Call]:
    """A proxy that owns task 1 and waits for its three samples, the first placed at OTHER."""
    machine = proxy()
    (place,) = tell(machine, REGION, run())
    assert isinstance(place.message, m.Place)
    call = place.message.call
    tell(machine, REGION, placed(call, OTHER))
    return machine, call


def placed(call: m.Call, where: str) -> m.Placed:
    """The region's word that a call is at `where`."""
    return m.Placed(
        task_id=call.task_id, epoch=call.epoch, row=call.row, attempt=call.attempt, proxy=where
    )


def result(call: m.Call, by: str, **fields: Any) -> m.CallResult:
    """An answer to a call."""
    return m.CallResult(
        task_id=call.task_id,
        epoch=call.epoch,
        row=call.row,
        attempt=call.attempt,
        proxy=by,
        **({"value": '"x"'} | fields),
    )


def beat(machine: ProxyMachine) -> m.ProxyBeat:
    """Its next heartbeat."""
    now = machine.next_deadline()
    assert now is not None
    sends = tell(machine, ME, m.Tick(), now=now)
    return next(s.message for s in sends if isinstance(s.message, m.ProxyBeat))
