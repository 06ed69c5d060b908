"""Task descriptions: what is accepted can be walked to its end; what is not is named exactly."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.core.errors import GraphError, LocalProtocolError
from agentos.core.graph import Graph, Node, parse_graph
from agentos.core.limits import Limits
from agentos.core.prompts import Template
from tests.graphs import LIMITS, acyclic, graph_of

ROOT = Path(__file__).parents[1]
GRAPHS = ROOT / "examples" / "graphs"
MANUAL = (ROOT / "docs" / "graph-format.md").read_text(encoding="utf-8")
REFUSED = re.findall(r"```json\n([^`]+)\n```\n```text\n([^\n]+)\n```", MANUAL)
MISSING = object()


def refusal(description: Any, limits: Limits = LIMITS) -> GraphError:
    """The error for a description, given as a value or as text."""
    text = description if isinstance(description, str) else json.dumps(description)
    with pytest.raises(GraphError) as caught:
        parse_graph(text, limits)
    return caught.value


def one(**fields: Any) -> dict[str, Any]:
    """A description of one node `a`, with these fields; MISSING leaves one out."""
    node = {"agent": "echo", "prompt": "hi", **fields}
    return {"nodes": {"a": {k: v for k, v in node.items() if v is not MISSING}}}


# -- what is accepted ------------------------------------------------------------------------------


def test_the_example_of_the_documentation() -> None:
    """The design's own example is read field by field, with the documented defaults."""
    graph = parse_graph(
        """{
          "input": {"topic": "message queues"},
          "nodes": {
            "plan":  {"agent": "writer", "prompt": "List three points about ${input.topic}."},
            "draft": {"agent": "writer", "prompt": "Write from these points:\\n${plan}",
                      "rounds": 2, "samples": 3, "voters": 3},
            "title": {"agent": "writer", "prompt": "Give a title to:\\n${draft}",
                      "timeout_s": 30, "retries": 0}
          },
          "output": "title"
        }""",
        LIMITS,
    )
    plan, draft, title = graph.nodes.values()
    assert plan == Node("plan", "writer", Template.parse("List three points about ${input.topic}."))
    assert (plan.rounds, plan.samples, plan.voters, plan.needs) == (1, 1, 0, ())
    assert (plan.timeout_s, plan.retries, plan.schema, plan.voter) == (60.0, 2, None, "writer")
    assert (draft.rounds, draft.samples, draft.voters, draft.voter) == (2, 3, 3, "writer")
    assert (title.timeout_s, title.retries) == (30.0, 0)
    assert graph.input == {"topic": "message queues"}
    assert (graph.output, graph.priority) == ("title", 0)
    assert graph.layers() == [["plan"], ["draft"], ["title"]]
    assert graph.agents == ("writer",)


@pytest.mark.parametrize("path", sorted(GRAPHS.glob("*.json")), ids=lambda path: path.name)
def test_the_shipped_examples_are_accepted(path: Path) -> None:
    """Every graph in examples/graphs can be submitted as it is."""
    graph = parse_graph(path.read_text(encoding="utf-8"), LIMITS)
    assert sum(map(len, graph.layers())) == len(graph.nodes)


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_the_errors_of_the_manual_are_real(text: str, message: str) -> None:
    """docs/graph-format.md shows each error exactly as a user gets it."""
    assert str(refusal(text)) == message


def test_the_manual_names_every_field() -> None:
    """Every field of a task and of a node is in the tables, and the manual's example is accepted."""
    example = MANUAL.partition("```json\n")[2].partition("```")[0]
    assert parse_graph(example, LIMITS).layers() == [["plan"], ["draft"], ["title"]]
    assert len(REFUSED) >= 10
    for field in (*Graph.__struct_fields__, *Node.__struct_fields__):
        assert field == "name" or f"| `{field}` |" in MANUAL


def test_dependencies_are_needs_then_references() -> None:
    """Both `needs` and references make dependencies, each once, in the order they are written."""
    nodes: dict[str, Any] = {name: {"agent": "e", "prompt": ""} for name in "abcd"}
    nodes["z"] = {"agent": "e", "prompt": "${d} ${a.0} ${b} ${d}", "needs": ["c", "b", "c"]}
    graph = parse_graph(json.dumps({"nodes": nodes}), LIMITS)
    assert graph.dependencies("z") == ("c", "b", "d", "a")
    assert graph.dependencies("a") == ()
    assert graph.dependents("a") == ("z",)
    assert graph.dependents("z") == ()
    assert graph.sinks == ("z",)
    for method in (graph.dependencies, graph.dependents):
        with pytest.raises(LocalProtocolError, match='no node "nope"'):
            method("nope")


def test_agents_include_the_voters() -> None:
    """`agents` names everything that the task will call, so that a proxy can tell if it can."""
    nodes = {
        "a": {"agent": "z.v1", "prompt": "", "samples": 2, "voters": 1, "voter": "judge"},
        "b": {"agent": "mid", "prompt": ""},
    }
    assert parse_graph(json.dumps({"nodes": nodes}), LIMITS).agents == ("judge", "mid", "z.v1")


def test_the_output_is_the_named_node_or_the_sinks() -> None:
    """The result is `output`'s value; without it the only sink's, or every sink's by name."""
    edges: dict[str, list[str]] = {"a": [], "b": ["a"], "c": ["a"]}
    values = {"a": 1, "b": [2], "c": None}
    assert graph_of(edges, output="a").result(values) == 1
    assert graph_of(edges).result(values) == {"b": [2], "c": None}
    assert graph_of({"a": [], "b": ["a"]}).result(values) == [2]
    with pytest.raises(LocalProtocolError, match="values of b, c"):
        graph_of(edges).result({"a": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rounds", LIMITS.max_rounds),
        ("samples", LIMITS.max_samples),
        ("retries", 0),
        ("retries", LIMITS.max_retries),
        ("timeout_s", 0.001),
        ("timeout_s", LIMITS.max_timeout_s),
        ("schema", {"type": ["object", "null"], "properties": {"x": {}}, "required": ["x"]}),
        ("prompt", ""),
        ("prompt", "$${not.a.reference}"),
    ],
)
def test_the_edges_are_accepted(field: str, value: Any) -> None:
    """A field may take exactly what its bound allows."""
    node = parse_graph(json.dumps(one(**{field: value})), LIMITS).nodes["a"]
    if field != "prompt":
        assert getattr(node, field) == value


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        *[
            (field, value, "must be an integer from")
            for field in ("rounds", "samples", "voters", "retries")
            for value in (-1, 10**9, True, 1.0, "2", None, [1])
        ],
        ("rounds", 0, "must be an integer from 1 to 16, not 0"),
        ("samples", 0, "must be an integer from 1 to 64, not 0"),
        ("timeout_s", 0, "must be a number of seconds above 0 and up to 86400, not 0"),
        ("timeout_s", -0.5, "not -0.5"),
        ("timeout_s", 86_401, "not 86401"),
        ("timeout_s", True, "not true"),
        ("timeout_s", "60", 'not "60"'),
        ("agent", MISSING, "is missing: it must be an agent's name"),
        ("agent", "", "must be an agent's name"),
        ("agent", "a b", 'not "a b"'),
        ("agent", "a" * 65, "1 to 64 of"),
        ("agent", "a/b", "must be an agent's name"),
        ("agent", None, "not null"),
        ("voter", "", "must be an agent's name"),
        ("voter", "judge", "nobody votes"),
        ("voters", 2, "samples must be at least 2"),
        ("prompt", MISSING, "is missing: it must be a string"),
        ("prompt", ["hi"], 'must be a string, not ["hi"]'),
        ("prompt", "see ${plan", "line 1, column 5: this ${ never closes"),
        ("prompt", "${a}", "${a} refers to the node itself"),
        ("prompt", "${nope.x}", '${nope.x}: there is no node "nope"'),
        ("prompt", "${input.x}", "${input.x}: the task description has no input"),
        ("needs", "a", "must be a list of node names"),
        ("needs", [1], "must be a list of node names"),
        ("needs", {"b": 1}, "must be a list of node names"),
        ("schema", [], "must be an object, not []"),
        ("schema", True, "must be an object"),
        ("schema", None, "must be an object"),
    ],
)
def test_bad_fields_are_named(field: str, value: Any, reason: str) -> None:
    """A field with a wrong type or value is named by its path, with what is allowed instead."""
    error = refusal(one(**{field: value}))
    assert error.where == f"nodes.a.{field}"
    assert reason in error.reason
    assert error.code == "bad_graph"


@pytest.mark.parametrize(
    ("description", "where", "reason"),
    [
        ("", "", "not JSON"),
        ("nope", "", "not JSON: Expecting value (line 1, column 1)"),
        ("[]", "", "must be an object, not []"),
        ("null", "", "must be an object, not null"),
        ({}, "nodes", "is missing: it must be an object"),
        ({"nodes": []}, "nodes", "must be an object, not []"),
        ({"nodes": {}}, "nodes", "at least one node"),
        ({"nodes": {"a": "x"}}, "nodes.a", 'must be an object, not "x"'),
        ({"nodes": {"a b": {}}}, 'nodes."a b"', '"a b" cannot name a node'),
        ({"nodes": {"": {}}}, 'nodes.""', "cannot name a node"),
        ({"nodes": {"é": {}}}, "nodes.é", "cannot name a node"),
        ({"nodes": {"a\n": {}}}, 'nodes."a\\n"', "cannot name a node"),
        ({"nodes": {"a" * 65: {}}}, f'nodes."{"a" * 56}...', "cannot name a node"),
        ({"nodes": {"input": {}}}, "nodes.input", "cannot name a node"),
        ({"nodes": {"a\0b": {}}}, 'nodes."a\\u0000b"', "neither NUL"),
        (one(promt="x"), "nodes.a.promt", 'unknown field; did you mean "prompt"?'),
        (one(zzz=1), "nodes.a.zzz", "unknown field; known are agent, prompt, needs"),
        (one(name="a"), "nodes.a.name", "unknown field"),
        ({**one(), "ouput": "a"}, "ouput", 'unknown field; did you mean "output"?'),
        ({**one(), "output": "b"}, "output", 'there is no node "b"'),
        ({**one(), "output": ["a"]}, "output", "must be a string"),
        ({**one(), "output": None}, "output", "must be a string, not null"),
        ({**one(), "priority": 10}, "priority", "an integer from 0 to 9, not 10"),
        ({**one(), "priority": -1}, "priority", "an integer from 0 to 9"),
        (one(needs=["a"]), "nodes.a.needs.0", "a node cannot need itself"),
        (one(needs=["b"]), "nodes.a.needs.0", 'there is no node "b"'),
        (one(needs=["input"]), "nodes.a.needs.0", 'there is no node "input"'),
        (one(schema={"type": 5}), "nodes.a.schema.type", "not a JSON Schema: 5"),
        (one(schema={"required": "x"}), "nodes.a.schema.required", "not a JSON Schema"),
        (
            {**one(prompt="${input.topik}"), "input": {"topic": 1}},
            "nodes.a.prompt",
            "${input.topik}: input has no 'topik': it is an object with the keys \"topic\"",
        ),
        ('{"nodes":{"a":{"agent":"e","prompt":"","rounds":NaN}}}', "nodes.a.rounds", "NaN"),
        ('{"nodes":{"a":{"agent":"e","prompt":"","timeout_s":1e999}}}', "nodes.a.timeout_s", "1e9"),
        (f'{{"input":[{2**63}]}}', "input.0", "an integer outside"),
        ('{"input":"\\ud800"}', "input", "lone surrogate"),
        ('{"nodes":{"a":{"agent":"e","prompt":"\\udfff"}}}', "nodes.a.prompt", "lone surrogate"),
        ('{"nodes":{"a":{},"a":{}}}', "nodes.a", "given twice"),
        ('{"nodes":{"a":{"agent":"x","agent":"y"}}}', "nodes.a.agent", "given twice"),
        ('{"input":' + "[" * 64 + "]" * 64 + "}", "", "deeper than 64"),
        ("[" * 100_000, "", "deeper than 64"),
    ],
)
def test_bad_descriptions_are_named(description: Any, where: str, reason: str) -> None:
    """Whatever is wrong elsewhere is named by its path as well."""
    error = refusal(description)
    assert error.where.startswith(where)
    assert bool(error.where) == bool(where)
    assert reason in error.reason
    str(error).encode()


def test_a_misspelt_node_gets_a_hint() -> None:
    """A reference or an `output` that is nearly a node's name says which was probably meant."""
    nodes = {"draft": {"agent": "e", "prompt": ""}, "title": {"agent": "e", "prompt": "${drafts}"}}
    error = refusal({"nodes": nodes})
    assert error.where == "nodes.title.prompt"
    assert error.reason == '${drafts}: there is no node "drafts"; did you mean "draft"?'
    error = refusal({"nodes": {"draft": {"agent": "e", "prompt": ""}}, "output": "darft"})
    assert error.reason == 'there is no node "darft"; did you mean "draft"?'


def test_sizes_are_bounded() -> None:
    """A description over 1 MB or 10,000 nodes is refused, and lower limits are kept."""
    assert "at most 1000000" in refusal(one(prompt="x" * 1_000_000)).reason
    many = {"nodes": {f"n{i}": {"agent": "e", "prompt": ""} for i in range(10_001)}}
    assert refusal(many).reason == "10001 nodes; at most 10000 are allowed"
    few = Limits(max_nodes=1, max_rounds=2, max_description_bytes=200)
    assert "at most 200" in refusal(one(prompt="x" * 200), few).reason
    assert "from 1 to 2" in refusal(one(rounds=3), few).reason
    two = {"nodes": {name: {"agent": "e", "prompt": ""} for name in "ab"}}
    assert "at most 1 " in refusal(two, few).reason


# -- fuzzing ---------------------------------------------------------------------------------------

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 10**9),
    st.floats(),
    st.sampled_from(["", "a", "input", "${a}", "${b.x}", "${", "\0", "\ud800", "agent"]),
    st.just([]),
    st.just({}),
)
field_names = st.sampled_from(
    ["agent", "prompt", "needs", "rounds", "samples", "voters", "voter", "timeout_s", "schema", "x"]
)


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "input", "a b"]),
        st.one_of(
            junk,
            st.dictionaries(field_names, junk, max_size=4).map(
                lambda fields: {"agent": "e", "prompt": "", **fields}
            ),
        ),
        max_size=3,
    ),
    st.dictionaries(st.sampled_from(["input", "output", "priority", "x"]), junk, max_size=2),
)
def test_any_json_is_accepted_or_refused(nodes: dict[str, Any], top: dict[str, Any]) -> None:
    """No description makes parsing raise anything but `GraphError`; what is accepted runs."""
    text = json.dumps({"nodes": nodes, **top})
    with suppress(GraphError):
        graph = parse_graph(text, LIMITS)
        assert sum(map(len, graph.layers())) == len(graph.nodes)


@given(acyclic(), st.randoms(use_true_random=False), st.integers(1, 5))
def test_damaged_text_is_accepted_or_refused(
    edges: dict[str, list[str]], random: Random, damages: int
) -> None:
    """Characters of a good description lost, doubled or changed give `GraphError` or a graph."""
    nodes = {name: {"agent": "e", "prompt": "", "needs": need} for name, need in edges.items()}
    text = list(json.dumps({"nodes": nodes, "output": "n0", "priority": 3}))
    for _ in range(damages):
        at = random.randrange(len(text))
        text[at : at + random.randrange(2)] = random.choice(["", "{", '"', "9" * 20, "\\", "${"])
    with suppress(GraphError):
        parse_graph("".join(text), LIMITS)


@given(acyclic(), st.integers(0, 9), st.sampled_from([None, "n0"]))
def test_parsing_is_deterministic(
    edges: dict[str, list[str]], priority: int, output: str | None
) -> None:
    """The same description gives an equal graph, also after JSON was decoded and encoded again."""
    nodes = {
        name: {"agent": "e", "prompt": "é".join(f"${{{n}}}" for n in need), "timeout_s": 2.5}
        for name, need in edges.items()
    }
    description = {"nodes": nodes, "priority": priority, **({"output": output} if output else {})}
    text = json.dumps(description)
    first, second = parse_graph(text, LIMITS), parse_graph(text, LIMITS)
    again = parse_graph(json.dumps(json.loads(text), indent=2, ensure_ascii=False), LIMITS)
    assert first == second == again
    assert list(first.nodes) == list(again.nodes)
    assert first.layers() == again.layers()
