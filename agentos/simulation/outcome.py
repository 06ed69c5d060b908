"""How large a simulated cluster is, and what became of a run."""

from __future__ import annotations

import msgspec

from agentos.core import messages as m


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How large the cluster and its load are: processes of each role, and tasks.

    `proxies` are those of each region. The store is one more process.
    """

    gateways: int = 2
    regions: int = 3
    proxies: int = 3
    clients: int = 4
    tasks: int = 20

    def addresses(self) -> list[str]:
        """Every process, parents before their children."""
        regions = [f"r{r}" for r in range(self.regions)]
        return [
            m.STORE,
            *(f"gateway/{chr(ord('a') + g)}" for g in range(self.gateways)),
            *(f"region/{r}" for r in regions),
            *(f"proxy/{r}/{p}" for r in regions for p in range(self.proxies)),
            *(f"client/c{c}" for c in range(self.clients)),
        ]


class Keep(msgspec.Struct, frozen=True):
    """What is left of a run while it is shrunk: numbers of faults, and names of tasks."""

    faults: frozenset[int]
    jobs: frozenset[str]


class Outcome(msgspec.Struct, frozen=True):
    """What became of one run.

    Args:
        seed: which.
        steps: messages and ticks that were handled.
        virtual_s: how much time went by in it.
        reached: faults that happened and states that were reached, with how often.
        rule: the rule that was broken; "" if none was.
        text: by whom, and how.
        fingerprint: the same for the same seed, on whatever machine it ran.
    """

    seed: int
    steps: int
    virtual_s: float
    reached: dict[str, int]
    rule: str = ""
    text: str = ""
    fingerprint: str = ""
