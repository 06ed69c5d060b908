"""The graph of a task as a value: its nodes, and what each needs. Made by `graph.parse_graph`.

Apart from `graph`, which can be compiled: mypyc knows no `msgspec.Struct`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from agentos.core.errors import LocalProtocolError
from agentos.core.jsontext import quote
from agentos.core.prompts import INPUT, Template

_Names = TypeVar("_Names", tuple[str, ...], list[str])


class Node(msgspec.Struct, frozen=True):
    """One node: what is asked of which agent, how often, and what must be known before.

    Args:
        name: unique in its graph.
        agent: what a proxy must offer to get the calls.
        prompt: the question; its references are dependencies.
        needs: further dependencies.
        rounds: deliberation rounds; each after the first is shown the winner of the last.
        samples: answers to get in each round.
        voters: further calls in each round that choose among the samples.
        voter: the agent that votes; the node's own unless given.
        timeout_s: how long one call may take, in seconds.
        retries: further attempts that one call gets.
        schema: the JSON Schema that each answer must meet.
    """

    name: str
    agent: str
    prompt: Template
    needs: tuple[str, ...] = ()
    rounds: int = 1
    samples: int = 1
    voters: int = 0
    voter: str = ""
    timeout_s: float = 60.0
    retries: int = 2
    schema: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.voter:
            msgspec.structs.force_setattr(self, "voter", self.agent)

    @property
    def lone(self) -> bool:
        """Whether it is a single call, whose answer is the node's result."""
        return self.rounds == 1 and self.samples == 1

    @property
    def dependencies(self) -> tuple[str, ...]:
        """The nodes that must finish before: `needs`, then those that the prompt refers to."""
        referred = [part.root for part in self.prompt.references if part.root != INPUT]
        return tuple(dict.fromkeys([*self.needs, *referred]))


class Graph(msgspec.Struct, frozen=True, dict=True):
    """A task description that can be run. Made by `parse_graph`.

    Args:
        input: any JSON value; prompts refer to it as `${input}`.
        nodes: by name, in the order of the description.
        output: the node whose value is the task's; without it, the sinks' values are.
        priority: 0 to 9; higher goes first where tasks wait.
    """

    input: Any
    nodes: Mapping[str, Node]
    output: str | None = None
    priority: int = 0

    def dependencies(self, name: str) -> tuple[str, ...]:
        """The nodes that must finish before this one, each once.

        Raises:
            LocalProtocolError: there is no such node.
        """
        return self._of(self._dependencies, name)

    def dependents(self, name: str) -> tuple[str, ...]:
        """The nodes that wait for this one, in the order of the description.

        Raises:
            LocalProtocolError: there is no such node.
        """
        return tuple(self._of(self._dependents, name))

    def with_input(self, value: Any) -> Graph:
        """The same graph for another input; what was derived from its nodes is shared."""
        other = msgspec.structs.replace(self, input=value)
        other.__dict__.update(self.__dict__)
        return other

    @cached_property
    def agents(self) -> tuple[str, ...]:
        """The agents that the task calls, voters included, sorted."""
        nodes = self.nodes.values()
        return tuple(sorted({n.agent for n in nodes} | {n.voter for n in nodes if n.voters}))

    @cached_property
    def sinks(self) -> tuple[str, ...]:
        """The nodes that no other waits for, in the order of the description."""
        return tuple(name for name in self.nodes if not self._dependents[name])

    def layers(self) -> list[list[str]]:
        """The nodes by the longest path that leads to them: a layer needs only earlier ones.

        Inside a layer they have the order of the description. Kahn, "Topological sorting of large
        networks" (1962), a layer at a time.
        """
        from agentos.core.graph import Walk

        order = {name: position for position, name in enumerate(self.nodes)}
        walk = Walk(self)
        layers = []
        layer = walk.ready()
        while layer:
            layers.append(layer)
            layer = sorted((n for name in layer for n in walk.finish(name)), key=order.__getitem__)
        return layers

    def result(self, values: Mapping[str, Any]) -> Any:
        """The task's output: the value of `output`, of the only sink, or of each sink by name.

        Args:
            values: the value of each finished node, by name.

        Raises:
            LocalProtocolError: the value of a node that belongs to the output is missing.
        """
        names = self.sinks if self.output is None else (self.output,)
        missing = [name for name in names if name not in values]
        if missing:
            raise LocalProtocolError(f"the output needs the values of {', '.join(missing)}")
        if len(names) == 1:
            return values[names[0]]
        return {name: values[name] for name in names}

    def _of(self, table: Mapping[str, _Names], name: str) -> _Names:
        if name not in table:
            raise LocalProtocolError(f"there is no node {quote(name)} in this graph")
        return table[name]

    @cached_property
    def _dependencies(self) -> Mapping[str, tuple[str, ...]]:
        return {name: node.dependencies for name, node in self.nodes.items()}

    @cached_property
    def _missing(self) -> dict[str, int]:
        """How many nodes each one waits for."""
        return {name: len(needed) for name, needed in self._dependencies.items()}

    @cached_property
    def _dependents(self) -> Mapping[str, list[str]]:
        dependents: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, needed in self._dependencies.items():
            for other in needed:
                dependents[other].append(name)
        return dependents
