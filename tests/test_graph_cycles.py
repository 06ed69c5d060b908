"""Cycles in a graph: every one is found, and shown as it is."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.core.errors import GraphError
from agentos.core.graph import Graph
from tests.graphs import acyclic, graph_of


def test_a_cycle_is_shown() -> None:
    """The error shows the cycle itself, without the nodes that only lead to it."""
    with pytest.raises(GraphError) as caught:
        graph_of({"x": ["b"], "a": ["c"], "b": ["a"], "c": ["b"], "free": []})
    assert caught.value.where == "nodes.b"
    assert caught.value.reason.endswith("b -> a -> c -> b")
    with pytest.raises(GraphError, match="a -> b -> a"):
        graph_of({"a": ["b"], "b": ["a"]})


@given(acyclic(), st.data())
def test_every_cycle_is_found(edges: dict[str, list[str]], data: st.DataObject) -> None:
    """One edge that closes a cycle makes any graph refused, and what is shown is a cycle of it."""
    graph = graph_of(edges)
    pairs = [
        (high, low)
        for low in edges
        for high in edges
        if high != low and high in _reachable(graph, low)
    ]
    if not pairs:
        return
    high, low = data.draw(st.sampled_from(pairs))
    closed = {**edges, high: [*edges[high], low]}
    with pytest.raises(GraphError) as caught:
        graph_of(closed)
    shown = caught.value.reason.rpartition(": ")[2].split(" -> ")
    assert shown[0] == shown[-1]
    if "..." not in shown:
        assert all(after in closed[name] for name, after in pairwise(shown))


def _reachable(graph: Graph, name: str) -> set[str]:
    """What `name` depends on, directly or not."""
    found: set[str] = set()
    rest = [name]
    while rest:
        for other in graph.dependencies(rest.pop()):
            if other not in found:
                found.add(other)
                rest.append(other)
    return found


def test_the_longest_cycle_is_found() -> None:
    """A cycle of 10,000 nodes is found too, and the error stays short."""
    with pytest.raises(GraphError, match="a cycle of 10000 nodes") as caught:
        graph_of({f"n{i}": [f"n{(i + 1) % 10_000}"] for i in range(10_000)})
    assert len(str(caught.value)) < 500
