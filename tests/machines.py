"""What the tests of one machine at a time share: a graph, and a look at what it sends and holds."""

from __future__ import annotations

import json
from typing import Any

from agentos.core import messages as m

GRAPH = json.dumps(
    {
        "nodes": {
            "a": {"agent": "echo", "prompt": "hi", "samples": 3, "voters": 1, "rounds": 2},
            "b": {"agent": "echo", "prompt": "${a}"},
        }
    }
)


def kinds(sends: list[m.Send]) -> list[tuple[str, type]]:
    """To whom goes what."""
    return [(send.to, type(send.message)) for send in sends]


def sizes(machine: Any) -> dict[str, int]:
    """How much each part of a machine holds."""
    names = getattr(machine, "__dict__", None) or machine.__mypyc_attrs__
    parts = {name: getattr(machine, name) for name in names}
    parts = {name: part for name, part in parts.items() if hasattr(part, "__len__")}
    return {name: len(part) for name, part in parts.items() if not isinstance(part, str)}
