"""A task description: the graph of agent calls that a client hands in, parsed, checked and walked.

docs/graph-format.md describes it for users. Whatever can be known to be wrong before the task runs
is refused here, with the path of the fault, what was given and what is allowed. Nothing here
recurses along the graph, so a chain of 10,000 nodes is as good as any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, Final

from agentos.core.errors import GraphError, LocalProtocolError
from agentos.core.fields import Fields, hint
from agentos.core.jsontext import join, parse, quote
from agentos.core.limits import Limits
from agentos.core.nodes import Graph as Graph  # noqa: PLC0414 - exported, also for mypy
from agentos.core.nodes import Node as Node  # noqa: PLC0414
from agentos.core.prompts import INPUT, PromptError, Reference, Template

MAX_PRIORITY: Final = 9

_NODE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_AGENT_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_AGENT_NAME_WORDS: Final = "an agent's name: 1 to 64 of A-Z a-z 0-9 . _ and -"
_GRAPH_FIELDS: Final = ("input", "nodes", "output", "priority")
_SCHEMA_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "type": (str, list),
    "properties": (dict,),
    "required": (list,),
    "enum": (list,),
    "items": (dict, bool),
    "additionalProperties": (dict, bool),
}
_LONGEST_CYCLE: Final = 12


_NODE_FIELDS: Final = tuple(name for name in Node.__struct_fields__ if name != "name")


class Walk:
    """The frontier of one run: hands out each node once, as soon as all that it needs is done.

    A walk of the whole graph costs O(nodes + edges), in whatever order the nodes finish.

    Args:
        graph: what is walked.
        done: nodes that have finished already; they are not handed out.

    Raises:
        LocalProtocolError: `done` names a node that the graph does not have.
    """

    def __init__(self, graph: Graph, done: Iterable[str] = ()) -> None:
        self._graph = graph
        self._done = set(done)
        self._missing = graph._missing.copy()
        for name in sorted(self._done):
            for other in graph.dependents(name):
                self._missing[other] -= 1
        self._fresh = [name for name, missing in self._missing.items() if not missing]

    @property
    def done(self) -> bool:
        """Whether every node has finished."""
        return len(self._done) == len(self._graph.nodes)

    def ready(self) -> list[str]:
        """The nodes that may start now and were not handed out before, in the graph's order."""
        fresh = [name for name in self._fresh if name not in self._done]
        self._fresh = []
        return fresh

    def finish(self, name: str) -> list[str]:
        """Note that a node is done; hand out the nodes that waited for it alone.

        Raises:
            LocalProtocolError: there is no such node, it has finished before, or something that it
                needs has not finished. Nothing is changed.
        """
        dependents = self._graph._of(self._graph._dependents, name)
        if name in self._done:
            raise LocalProtocolError(f"node {name!r} has finished already")
        if self._missing[name]:
            raise LocalProtocolError(f"node {name!r} still waits for {self._missing[name]} others")
        self._done.add(name)
        started = []
        for other in dependents:
            self._missing[other] -= 1
            if not self._missing[other] and other not in self._done:
                started.append(other)
        return started


def parse_graph(text: str, limits: Limits) -> Graph:
    """Read a task description.

    Args:
        text: its JSON text.
        limits: the bounds on sizes, nodes, rounds, samples, voters, retries and timeouts.

    Raises:
        GraphError: it cannot be run; `where` is the path of the fault, like `nodes.draft.rounds`.
    """
    value = parse(text, max_bytes=limits.max_description_bytes)
    if not isinstance(value, dict):
        raise GraphError("", f"a task description must be an object, not {quote(value)}")
    top = Fields(value, "", _GRAPH_FIELDS)
    nodes = top.object("nodes")
    if not nodes:
        raise GraphError("nodes", "must hold at least one node")
    if len(nodes) > limits.max_nodes:
        raise GraphError("nodes", f"{len(nodes)} nodes; at most {limits.max_nodes} are allowed")
    graph = Graph(
        input=value.get("input"),
        nodes={name: _node(name, node, limits) for name, node in nodes.items()},
        output=top.text("output") if "output" in top else None,
        priority=top.integer("priority", 0, 0, MAX_PRIORITY),
    )
    if graph.output is not None and graph.output not in graph.nodes:
        raise GraphError("output", _no_node(graph.output, graph.nodes))
    for node in graph.nodes.values():
        _check_edges(node, graph, has_input="input" in top)
    _check_cycles(graph)
    return graph


def _node(name: str, value: Any, limits: Limits) -> Node:
    if not _NODE_NAME.fullmatch(name) or name == INPUT:
        allowed = f'1 to 64 of A-Z a-z 0-9 _ and -, other than "{INPUT}"'
        reason = f"{quote(name)} cannot name a node: a name is {allowed}"
        raise GraphError(join("nodes", name), reason)
    where = f"nodes.{name}"
    if not isinstance(value, dict):
        raise GraphError(where, f"a node must be an object, not {quote(value)}")
    fields = Fields(value, where, _NODE_FIELDS)
    agent = fields.word("agent", _AGENT_NAME, _AGENT_NAME_WORDS)
    prompt = Template.parse(fields.text("prompt"), f"{where}.prompt")
    if len(value) == 2:  # these two: most nodes have no more
        return Node(name, agent, prompt)
    node = Node(
        name=name,
        agent=agent,
        prompt=prompt,
        needs=fields.names("needs"),
        rounds=fields.integer("rounds", 1, 1, limits.max_rounds),
        samples=fields.integer("samples", 1, 1, limits.max_samples),
        voters=fields.integer("voters", 0, 0, limits.max_voters),
        voter=fields.word("voter", _AGENT_NAME, _AGENT_NAME_WORDS) if "voter" in fields else "",
        timeout_s=fields.seconds("timeout_s", 60.0, limits.max_timeout_s),
        retries=fields.integer("retries", 2, 0, limits.max_retries),
        schema=_schema(fields.object("schema"), where) if "schema" in fields else None,
    )
    if node.voters and node.samples == 1:
        reason = f"{node.voters} voters have nothing to choose from: samples must be at least 2"
        raise GraphError(f"{where}.voters", reason)
    if "voter" in fields and not node.voters:
        raise GraphError(f"{where}.voter", "nobody votes: voters must be at least 1")
    return node


def _schema(schema: dict[str, Any], where: str) -> dict[str, Any]:
    """Refuse what is no JSON Schema at first sight; its agent's runner checks the rest."""
    for keyword, types in _SCHEMA_TYPES.items():
        if keyword in schema and not isinstance(schema[keyword], types):
            place = f"{where}.schema.{keyword}"
            raise GraphError(place, f"not a JSON Schema: {quote(schema[keyword])}")
    return schema


def _check_edges(node: Node, graph: Graph, *, has_input: bool) -> None:
    where = f"nodes.{node.name}"
    for position, need in enumerate(node.needs):
        if need == node.name:
            raise GraphError(f"{where}.needs.{position}", "a node cannot need itself")
        if need not in graph.nodes:
            raise GraphError(f"{where}.needs.{position}", _no_node(need, graph.nodes))
    for reference in node.prompt.references:
        if reference.root == INPUT:
            _check_input(reference, graph.input, f"{where}.prompt", has_input=has_input)
        elif reference.root == node.name:
            raise GraphError(f"{where}.prompt", f"{reference} refers to the node itself")
        elif reference.root not in graph.nodes:
            reason = f"{reference}: {_no_node(reference.root, graph.nodes)}"
            raise GraphError(f"{where}.prompt", reason)


def _check_input(reference: Reference, value: Any, where: str, *, has_input: bool) -> None:
    if not has_input:
        raise GraphError(where, f"{reference}: the task description has no input")
    try:
        reference.resolve({INPUT: value})
    except PromptError as error:
        raise GraphError(where, str(error)) from None


def _check_cycles(graph: Graph) -> None:
    """Refuse a cycle, and show one: every node that no layer has leads into one."""
    if _is_in_order(graph):
        return
    placed = set(chain.from_iterable(graph.layers()))
    if len(placed) == len(graph.nodes):
        return
    name = next(name for name in graph.nodes if name not in placed)
    path: dict[str, int] = {}
    while name not in path:
        path[name] = len(path)
        name = next(other for other in graph.dependencies(name) if other not in placed)
    cycle = list(path)[path[name] :]
    shown = cycle if len(cycle) <= _LONGEST_CYCLE else [*cycle[: _LONGEST_CYCLE - 1], "..."]
    reason = f"a cycle of {len(cycle)} nodes, each of which needs the next: "
    raise GraphError(f"nodes.{name}", reason + " -> ".join([*shown, name]))


def _is_in_order(graph: Graph) -> bool:
    """Whether each node is written after all that it needs, as most descriptions are."""
    before: set[str] = set()
    for name, needed in graph._dependencies.items():
        if not before.issuperset(needed):
            return False
        before.add(name)
    return True


def _no_node(name: str, nodes: Mapping[str, Node]) -> str:
    return f"there is no node {quote(name)}" + hint(name, nodes)
