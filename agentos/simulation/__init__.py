"""A whole cluster in one thread, with everything that can go wrong: the deterministic simulator.

The machines are the real ones (`agentos.core`), the storage is the model that the real one is
tested against, and everything else is virtual: the clock, the links, the processes, the agents. A
seed decides all of it, so that a failure can be seen again as often as one likes.

    from agentos.simulation import Faults, Settings, simulate

    report = simulate(200, Settings(graph=my_graph, faults=Faults(crash=2.0)))
    assert report.ok, report.failures

The idea is FoundationDB's (Zhou et al., "FoundationDB: A Distributed Unbundled Transactional Key
Value Store", SIGMOD 2021, section 4); separate checks of safety at every step, and of liveness once
everything has healed, are TigerBeetle's (`src/vopr.zig`).
"""

from agentos.simulation.campaign import Report, Settings, simulate
from agentos.simulation.faults import Fault, Faults
from agentos.simulation.ledger import Violation
from agentos.simulation.outcome import Outcome, Shape
from agentos.simulation.shrink import Shrunk, shrink
from agentos.simulation.trace import Trace
from agentos.simulation.world import Simulation

__all__ = [
    "Fault",
    "Faults",
    "Outcome",
    "Report",
    "Settings",
    "Shape",
    "Shrunk",
    "Simulation",
    "Trace",
    "Violation",
    "shrink",
    "simulate",
]
