"""Graphs from their edges, and edges without a cycle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from agentos.core.graph import Graph, parse_graph
from agentos.core.limits import Limits

LIMITS = Limits()


def graph_of(edges: Mapping[str, list[str]], **top: Any) -> Graph:
    """A graph from each node's dependencies, half of them as references."""
    nodes = {
        name: {
            "agent": "echo",
            "prompt": " ".join(f"${{{other}}}" for other in needed[::2]),
            "needs": needed[1::2],
        }
        for name, needed in edges.items()
    }
    return parse_graph(json.dumps({"nodes": nodes, **top}), LIMITS)


@st.composite
def acyclic(draw: st.DrawFn) -> dict[str, list[str]]:
    """Nodes with dependencies that have no cycle, in an order that has nothing to do with them."""
    count = draw(st.integers(1, 12))
    edges = {
        f"n{i}": draw(st.lists(st.sampled_from([f"n{j}" for j in range(i)]), max_size=4))
        if i
        else []
        for i in range(count)
    }
    return {name: edges[name] for name in draw(st.permutations(list(edges)))}
