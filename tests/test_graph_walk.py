"""The walk of a graph: every node once, after all it needs, from any point on."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.core.errors import LocalProtocolError
from agentos.core.graph import Walk
from tests.graphs import acyclic, graph_of


@given(acyclic(), st.randoms(use_true_random=False))
def test_a_walk_visits_every_node_once(edges: dict[str, list[str]], random: Random) -> None:
    """Each node is handed out exactly once, after all it needs, in whatever order nodes finish."""
    graph = graph_of(edges)
    walk = Walk(graph)
    finished: list[str] = []
    running = walk.ready()
    handed_out = list(running)
    assert running == [name for name in edges if not edges[name]]
    while running:
        assert not walk.done
        name = running.pop(random.randrange(len(running)))
        assert set(graph.dependencies(name)) <= set(finished)
        finished.append(name)
        fresh = walk.finish(name)
        assert walk.ready() == []
        running += fresh
        handed_out += fresh
    assert walk.done
    assert sorted(handed_out) == sorted(edges)


@given(acyclic(), st.randoms(use_true_random=False))
def test_a_walk_goes_on_from_what_was_saved(edges: dict[str, list[str]], random: Random) -> None:
    """A new owner's walk hands out what is not done and nothing else, from any point of a run."""
    graph = graph_of(edges)
    first = Walk(graph)
    running, done = first.ready(), []
    for _ in range(random.randrange(len(edges) + 1)):
        name = running.pop(random.randrange(len(running)))
        done.append(name)
        running += first.finish(name)
    second = Walk(graph, done)
    assert sorted(second.ready()) == sorted(running)
    assert second.done == (len(done) == len(edges))


@given(acyclic(), st.data())
def test_a_walk_goes_on_from_any_saved_nodes(
    edges: dict[str, list[str]], data: st.DataObject
) -> None:
    """Whatever set of nodes is done, even one whose dependencies are not, the rest runs once."""
    done = data.draw(st.sets(st.sampled_from(list(edges))))
    walk = Walk(graph_of(edges), done)
    running = walk.ready()
    handed_out = []
    while running:
        handed_out.append(running.pop())
        running += walk.finish(handed_out[-1])
    assert sorted(handed_out) == sorted(edges.keys() - done)
    assert walk.done


@given(acyclic())
def test_layers_agree_with_the_dependencies(edges: dict[str, list[str]]) -> None:
    """Each node is in the first layer after those of all its dependencies, in the graph's order."""
    graph = graph_of(edges)
    layers = graph.layers()
    level = {name: number for number, layer in enumerate(layers) for name in layer}
    assert sorted(level) == sorted(edges)
    for name in edges:
        assert level[name] == 1 + max((level[o] for o in graph.dependencies(name)), default=-1)
    order = list(edges)
    assert all(layer == sorted(layer, key=order.index) for layer in layers)
    assert set(graph.sinks) == {name for name in edges if not graph.dependents(name)}
    for name in edges:
        assert all(name in graph.dependencies(other) for other in graph.dependents(name))


def test_a_walk_refuses_what_cannot_be_and_changes_nothing() -> None:
    """Finishing an unknown, waiting or finished node is a misuse that leaves the walk as it was."""
    graph = graph_of({"a": [], "b": ["a"], "c": ["a", "b"]})
    walk = Walk(graph)
    assert walk.ready() == ["a"]
    for name, reason in (("nope", "no node"), ("c", "waits for 2 others")):
        with pytest.raises(LocalProtocolError, match=reason):
            walk.finish(name)
    assert walk.finish("a") == ["b"]
    with pytest.raises(LocalProtocolError, match="finished already"):
        walk.finish("a")
    assert walk.finish("b") == ["c"]
    assert walk.finish("c") == []
    assert walk.done
    with pytest.raises(LocalProtocolError, match='no node "x"'):
        Walk(graph, ["x"])


def test_a_finished_node_is_not_handed_out() -> None:
    """A node that finished before anybody took it is not handed out any more."""
    walk = Walk(graph_of({"a": [], "b": []}))
    walk.finish("a")
    assert walk.ready() == ["b"]
    assert walk.ready() == []


@pytest.mark.parametrize(
    "edges",
    [
        {f"n{i}": [f"n{i + 1}"] if i < 9_999 else [] for i in range(10_000)},
        {f"n{i}": ["n0"] if i else [] for i in range(10_000)},
        {"all": [f"n{i}" for i in range(9_999)], **{f"n{i}": [] for i in range(9_999)}},
    ],
    ids=["chain", "fan-out", "fan-in"],
)
def test_the_largest_graphs_are_walked(edges: dict[str, list[str]]) -> None:
    """A chain or a fan of 10,000 nodes parses and runs to the end, without deep recursion."""
    walk = Walk(graph_of(edges))
    running = walk.ready()
    while running:
        running += walk.finish(running.pop())
    assert walk.done
