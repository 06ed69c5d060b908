"""A region's machine by itself, and what others say to it."""

from __future__ import annotations

from typing import Any

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.limits import Limits
from agentos.core.region import RegionMachine

ME, P0, P1, STRANGER = "region/r0", "proxy/r0/0", "proxy/r0/1", "proxy/r1/0"
LIMITS = Limits()
E10, E11, E12, E20 = Epoch(1, 0), Epoch(1, 1), Epoch(1, 2), Epoch(2, 0)


def region(*proxies: str, capacity: int = 10, slots: int = 4) -> RegionMachine:
    """A region that these proxies have greeted."""
    machine = RegionMachine(ME, LIMITS, incarnation="1")
    tell(machine, ME, m.Tick())
    for proxy in proxies:
        tell(machine, proxy, beat(capacity=capacity, slots=slots))
    return machine


def beat(
    *claims: m.Held, capacity: int = 10, slots: int = 4, incarnation: str = "1"
) -> m.ProxyBeat:
    """A proxy's heartbeat."""
    offers = (m.Offer("echo", slots),)
    return m.ProxyBeat(
        incarnation=incarnation, calls=0, capacity=capacity, offers=offers, claims=claims
    )


def tell(machine: RegionMachine, sender: str, message: m.Message, now: float = 0.0) -> list[m.Send]:
    """Hand a message to a machine."""
    return machine.handle(m.Envelope(ME, sender, message), now)


def assign(
    task_id: int = 1, epoch: Epoch = E10, agents: tuple[str, ...] = ("echo",), owner: str = ""
) -> m.Assign:
    """The gateway's word that a task is ours, or a proxy's of ours."""
    return m.Assign(task_id=task_id, epoch=epoch, agents=agents, owner=owner)


def claimed(claim: m.Message, **fields: Any) -> m.Claimed:
    """The store's answer to a claim: granted, unless said otherwise."""
    assert isinstance(claim, m.Claim)
    answer: dict[str, Any] = {
        "granted": True,
        "epoch": claim.expected.next_regional(),
        "region": claim.region,
        "owner": claim.owner,
        "state": "running",
    }
    return m.Claimed(task_id=claim.task_id, **(answer | fields))


def owning(*proxies: str) -> tuple[RegionMachine, str]:
    """A region whose task 1 is owned, and by whom."""
    machine = region(*proxies)
    (claim,) = tell(machine, "gateway/a", assign())
    assert isinstance(claim.message, m.Claim)
    assert tell(machine, "store", claimed(claim.message)) == []  # the store tells the owner
    return machine, claim.message.owner


def call(owner: str = P0, **fields: Any) -> m.Call:
    """A call of task 1."""
    usual: dict[str, Any] = {
        "task_id": 1,
        "epoch": E11,
        "row": "a/1/s0",
        "agent": "echo",
        "prompt": "hi",
    }
    return m.Call(owner=owner, timeout_s=5, **(usual | fields))


def ticks(machine: RegionMachine, seconds: float) -> list[m.Send]:
    """All that comes out of the next so many seconds, with the proxies alive."""
    sends: list[m.Send] = []
    while (due := machine.next_deadline()) is not None and due <= seconds:
        sends += tell(machine, ME, m.Tick(), due)
    return sends
