"""Descriptions that come again are read as they would be the first time, only faster."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentos.core import prepared
from agentos.core.errors import GraphError
from agentos.core.graph import Graph, parse_graph
from agentos.core.limits import Limits
from agentos.core.prepared import NODE_BYTES, SEGMENT_BYTES, PreparedGraphs

LIMITS = Limits(max_description_bytes=400, max_nodes=4)

PROMPTS = st.sampled_from(
    [
        "x",
        "${input}",
        "${input.topic}",
        "${input.list.1}",
        "${a}",
        "${a.b} $${",
        "${",
        "é",
        "\ud800",
    ]
)
NODES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "input", "no name"]),
    st.fixed_dictionaries(
        {"agent": st.just("echo"), "prompt": PROMPTS},
        optional={"samples": st.integers(0, 3), "schema": st.just({"type": "object"})},
    ),
    max_size=4,
)
LEAVES = st.sampled_from([None, "", "text", "é", "\ud800", 1, 2**63, 2**70, 0.5, []])
INPUTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["topic", "list", "a\0", "\ud800"]), inner, max_size=2)
    ),
    max_leaves=8,
) | st.sampled_from([1, 5, 61, 62, 63, 64, 65]).map(
    lambda levels: json.loads("[" * levels + "]" * levels)
)
SHAPES = st.fixed_dictionaries(
    {"nodes": NODES},
    optional={"output": st.sampled_from(["a", "zz"]), "priority": st.just(3)},
)
HARMS = st.sampled_from(
    ["", "", "", "", '"input":1,', '"nodes":{},', '"\\u006eodes":{},', " ", '"input":' + 400 * "[,"]
)


@st.composite
def texts(draw: st.DrawFn) -> list[str]:
    """Descriptions of one or two graphs, with many inputs; some no good in one way or another."""
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=2))
    found = []
    for _ in range(draw(st.integers(1, 8))):
        description = dict(draw(st.sampled_from(shapes)))
        if draw(st.booleans()):
            description["input"] = draw(INPUTS | st.just("x" * 400))
        text = json.dumps(
            description,
            separators=draw(st.sampled_from([(",", ":"), (",", ":"), (", ", ": ")])),
            ensure_ascii=draw(st.booleans()),
        )
        text = "{" + draw(HARMS) + text[1:]
        found.append(text[: draw(st.sampled_from([None, None, None, None, -1]))])
    return found


def outcome(read: Callable[[str], Graph], text: str) -> Graph | str:
    """What is read, or the words of the refusal."""
    try:
        graph = read(text)
    except GraphError as error:
        return str(error)
    return graph


GOOD = '{"input":1,"nodes":{"a":{"agent":"echo","prompt":"x"}}}'


@given(texts())
@example([GOOD, '{"nodes":{},' + GOOD[1:]])  # the decoder keeps the last of two equal names
@example([GOOD, '{"\\u006eodes":{},' + GOOD[1:]])
@example([GOOD, GOOD.replace("1", "[[[[[]]]]]"), GOOD.replace("1", "[[[[[[]]]]]]")])  # too deep
@example([GOOD, GOOD.replace("1", f'"{"x" * 400}"')])  # too long
@example([GOOD, GOOD.replace("1", f'"{"é" * 190}"')])
@example([GOOD, GOOD.replace("1", '"\ud800"')])
def test_reads_what_the_parser_reads(found: list[str]) -> None:
    """Whatever came before: the same graph, or the same refusal."""
    graphs = PreparedGraphs(LIMITS, most=10_000)
    for text in found + found:
        expected, read = (
            outcome(partial(parse_graph, limits=LIMITS), text),
            outcome(graphs.read, text),
        )
        assert read == expected
        if isinstance(read, Graph) and isinstance(expected, Graph):
            assert read.agents == expected.agents
            assert read.sinks == expected.sinks
            assert read.layers() == expected.layers()


def graph_text(given: Any, prompt: str = "${input.topic}") -> str:
    """A compact description with this input."""
    nodes = {"a": {"agent": "echo", "prompt": prompt}}
    return json.dumps({"input": given, "nodes": nodes}, separators=(",", ":"))


def test_nodes_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another input for the same nodes is not another graph."""
    parsed: list[str] = []

    def counting(text: str, limits: Limits) -> Graph:
        parsed.append(text)
        return parse_graph(text, limits)

    monkeypatch.setattr(prepared, "parse_graph", counting)
    graphs = PreparedGraphs(Limits())
    read = [graphs.read(graph_text({"topic": topic})) for topic in ("bees", "tides", "bees")]
    assert [graph.input["topic"] for graph in read] == ["bees", "tides", "bees"]
    assert len(parsed) == 1
    assert read[1].nodes is read[0].nodes


def test_an_input_is_judged_each_time() -> None:
    """What a prompt looks for must be in every input, and the refusal names the place."""
    graphs = PreparedGraphs(Limits())
    graphs.read(graph_text({"topic": "bees"}))
    with pytest.raises(GraphError, match=r"nodes\.a\.prompt.*input has no 'topic'"):
        graphs.read(graph_text({"title": "bees"}))
    with pytest.raises(GraphError, match="this key is given twice"):
        graphs.read(graph_text({"topic": "bees"}).replace('"bees"', '"bees","topic":"x"'))


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not wanted for the longest time is forgotten; what is too large is never kept."""
    parsed: list[str] = []

    def counting(text: str, limits: Limits) -> Graph:
        parsed.append(text)
        return parse_graph(text, limits)

    monkeypatch.setattr(prepared, "parse_graph", counting)
    first, second, third = (graph_text(None, prompt) for prompt in ("one", "two", "three"))
    graphs = PreparedGraphs(Limits(), most=2 * (NODE_BYTES + SEGMENT_BYTES + 100))
    for text in (first, second, first, third, first, second):
        graphs.read(text)
    assert parsed == [first, second, third, second]
    parsed.clear()
    small = PreparedGraphs(Limits(), most=NODE_BYTES)
    for text in (first, first):
        small.read(text)
    assert parsed == [first, first]


def test_no_input_is_kept() -> None:
    """Somebody's input is not held in memory for as long as its graph is remembered."""
    graphs = PreparedGraphs(Limits())
    large = {"topic": "bees", "more": [{} for _ in range(10_000)]}
    graphs.read(graph_text(large))
    (kept,) = graphs._kept.values()
    assert kept.graph.input is None
    assert kept.weight < 3 * NODE_BYTES


def test_a_schema_weighs_what_it_takes() -> None:
    """A schema of many small parts takes many times its text: such graphs are not all kept."""
    node = {"agent": "echo", "prompt": "x", "schema": {"enum": [[]] * 100_000}}
    text = json.dumps({"nodes": {"a": node}}, separators=(",", ":"))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    graph = parse_graph(text, Limits())
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert prepared.Kept(graph, ()).weight > taken
