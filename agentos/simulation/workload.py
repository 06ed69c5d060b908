"""What the clients of a run do: which tasks they hand in, when, and what else they do with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

import msgspec

from agentos.core.graph import parse_graph
from agentos.core.jsontext import dump
from agentos.core.limits import Limits

OFFERS: Final[Sequence[Mapping[str, int]]] = (
    {"writer": 2, "critic": 1},
    {"writer": 1},
    {"writer": 2, "critic": 2, "expert": 1},
)
"""What proxies offer, in turn: not every proxy offers every agent."""

WEIGHTS: Final = (8, 3, 1)
"""How often the agents are called that are offered first, second and third."""
SHAPES: Final = ("one", "chain", "fan_out", "samples", "votes", "rounds")


class Job(msgspec.Struct, frozen=True):
    """One task of a run, as its client sees it.

    Args:
        name: its key.
        at: when it is handed in, in virtual seconds.
        client: by whom.
        description: the graph, as JSON text.
        watch: whether its client wants to see its progress.
        cancel_after_s: when its client changes its mind; None: never.
        twin: another client that hands in the same task under the same key, a little later.
        poison: whether a call of it kills the process that makes it.
    """

    name: str
    at: float
    client: str
    description: str
    watch: bool = False
    cancel_after_s: float | None = None
    twin: str = ""
    poison: bool = False


def offers_for(graph: str) -> Sequence[Mapping[str, int]]:
    """What proxies offer, in turn, so that a graph of the user's own can run: two of three all of it.

    Raises:
        GraphError: it cannot be run.
    """
    agents = parse_graph(graph, Limits()).agents
    return dict.fromkeys(agents, 2), {agents[0]: 1}, dict.fromkeys(agents, 2)


def draw_jobs(
    random: Random,
    count: int,
    clients: Sequence[str],
    for_s: float,
    *,
    agents: Sequence[str] = ("writer",),
    graph: str | None = None,
    poison: float = 0.0,
) -> list[Job]:
    """Draw what the clients do.

    Args:
        random: the run's.
        count: tasks.
        clients: addresses.
        for_s: virtual seconds over which they come.
        agents: that are offered; the first are called most.
        graph: the description of every task; drawn if None.
        poison: the share of tasks that kill their owners.
    """
    jobs = []
    for i in range(count):
        client = clients[i % len(clients)]
        others = [other for other in clients if other != client]
        jobs.append(
            Job(
                name=f"t{i:02}",
                at=random.random() * for_s,
                client=client,
                description=graph if graph is not None else draw_graph(random, f"t{i:02}", agents),
                watch=random.random() < 0.2,
                cancel_after_s=random.uniform(0.0, 3.0) if random.random() < 0.15 else None,
                twin=random.choice(others) if others and random.random() < 0.15 else "",
                poison=random.random() < poison,
            )
        )
    return jobs


def draw_graph(random: Random, name: str, agents: Sequence[str]) -> str:
    """A small graph of one of the usual shapes."""

    def node(prompt: str, **more: Any) -> dict[str, Any]:
        return {
            "agent": random.choices(agents, WEIGHTS[: len(agents)])[0],
            "prompt": prompt,
            "timeout_s": random.choice((1.0, 1.5, 2.0)),
            "retries": random.choice((1, 2, 3)),
            **more,
        }

    nodes: dict[str, dict[str, Any]] = {}
    shape = random.choice(SHAPES)
    match shape:
        case "one":
            nodes["a"] = node(f"{name} a")
        case "chain":
            nodes["a"] = node(f"{name} a")
            for last, this in zip("ab", "bc"[: random.randint(1, 2)], strict=False):
                nodes[this] = node(f"{name} {this} after ${{{last}}}")
        case "fan_out":
            nodes["a"] = node(f"{name} a")
            nodes["b"] = node(f"{name} b after ${{a}}")
            nodes["c"] = node(f"{name} c after ${{a}}")
            nodes["d"] = node(f"{name} d", needs=["b", "c"])
        case "samples":
            nodes["a"] = node(f"{name} a", samples=random.randint(2, 4))
            nodes["b"] = node(f"{name} b after ${{a}}")
        case "votes":
            nodes["a"] = node(f"{name} a", samples=2, voters=random.randint(1, 3))
        case "rounds":
            nodes["a"] = node(f"{name} a", rounds=2, samples=random.randint(1, 2))
    return dump({"nodes": nodes, "priority": random.randint(0, 2)})
