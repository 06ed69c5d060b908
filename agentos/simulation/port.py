"""What the parts of a simulation need of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from agentos.core import messages as m
from agentos.simulation.ledger import Change
from agentos.simulation.links import Lane, Process

Action = Callable[..., None]


class World(Protocol):
    """A run, as its parts see it.

    Attributes:
        now: the virtual time, in seconds.
        troubled_at: when something last went wrong, or was made whole; later than now, if it is
            known to go on until then.
        troubles: how often it did.
    """

    now: float
    troubled_at: float
    troubles: int

    def at(self, time: float, action: Action, a: Any = None, b: Any = None) -> None:
        """Call `action(a, b)` at this virtual time; in the order of the calls, if at the same."""
        ...

    def chance(self) -> float:
        """A float in [0, 1), the next of the seed's."""
        ...

    def deliver(self, process: Process, envelope: m.Envelope) -> None:
        """A message has reached the process that it is for."""
        ...

    def handle(self, process: Process, envelope: m.Envelope, local_now: float) -> None:
        """Let a process's machine take a message, at this time of its own clock."""
        ...

    def handled(self, process: Process, envelope: m.Envelope, sends: Sequence[m.Send]) -> None:
        """A step is over; these messages leave."""
        ...

    def committed(self, changes: Sequence[Change]) -> None:
        """These are durable now; nobody has been told yet."""
        ...

    def is_led(self, proxy: str) -> bool:
        """Whether the region of a proxy is alive."""
        ...

    def running(self, proxy: str) -> list[m.Call]:
        """The calls that the agents of a proxy are making."""
        ...

    def kill(self, process: Process, for_s: float) -> None:
        """Let a process die, with all that it knows, and start it again after `for_s` seconds."""
        ...

    def hit(self, kind: str, text: str) -> None:
        """Count and show a fault that has happened to somebody."""
        ...

    def fell(self, fault: str, envelope: m.Envelope, lane: Lane | None, for_s: float = 0.0) -> None:
        """Count and show a fault that has happened to a message, and lasts for so long."""
        ...

    def trouble(self) -> None:
        """Something has gone wrong, or is well again: whoever suspects somebody has a reason."""
        ...

    def note(self, mark: str) -> None:
        """Count something that was reached."""
        ...

    def show(self, line: str) -> None:
        """Put a line into the trace."""
        ...
