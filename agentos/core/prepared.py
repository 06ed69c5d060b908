"""Descriptions that come again: a fleet runs one graph many times over, mostly with other inputs.

As a database prepares a statement once, so the nodes of a graph are parsed and checked once; they
are found again by their text, to the byte, and only the input is read anew.
"""

from __future__ import annotations

from typing import Final

import msgspec

from agentos.core.errors import GraphError
from agentos.core.graph import Graph, parse_graph
from agentos.core.jsontext import dump, parse
from agentos.core.limits import MAX_DEPTH, Limits
from agentos.core.prompts import INPUT, PromptError, Reference

KEPT_BYTES: Final = 4 * 1024 * 1024
"""What kept graphs may weigh together; see `Kept.weight`."""
NODE_BYTES: Final = 2_048
SEGMENT_BYTES: Final = 128
"""About what a parsed node, and each piece of its prompt, takes in memory beside its text."""
SCHEMA_FACTOR: Final = 24
"""What a schema takes for each byte of its text, at the most: an empty list, three with its comma,
takes 64."""

_Key = tuple[tuple[str, bytes], ...]
"""The members of a description and their texts, that of the input left out."""
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Kept:
    """A graph that was read, without its input: that is another each time.

    Attributes:
        weight: about what it takes in memory, in bytes.
        input: where its prompts look into the input.
    """

    def __init__(self, graph: Graph, key: _Key) -> None:
        self.graph: Final = graph.with_input(None)
        weight = sum(len(name) + len(text) for name, text in key)
        for node in graph.nodes.values():
            weight += NODE_BYTES + SEGMENT_BYTES * len(node.prompt.segments)
            if node.schema is not None:
                weight += SCHEMA_FACTOR * len(dump(node.schema))
        self.weight: Final = weight
        self.input: Final[list[Reference]] = [
            reference
            for node in graph.nodes.values()
            for reference in node.prompt.references
            if reference.root == INPUT
        ]


class PreparedGraphs:
    """Reads descriptions as `parse_graph` does, and those that it has read lately faster.

    Args:
        limits: what descriptions are held to.
        most: what the graphs that are kept may weigh together; the one that was not wanted for the
            longest time goes first.
    """

    def __init__(self, limits: Limits, most: int = KEPT_BYTES) -> None:
        self._limits = limits
        self._most = most
        self._weight = 0
        self._kept: dict[_Key, Kept] = {}

    def read(self, text: str) -> Graph:
        """Read a task description.

        Raises:
            GraphError: whatever `parse_graph` says of it.
        """
        parts = self._apart(text)
        if parts is None:
            return parse_graph(text, self._limits)
        key, given = parts
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._kept[key] = kept  # the last to go
            graph = self._with_input(kept, given)
            if graph is not None:
                return graph
        graph = parse_graph(text, self._limits)
        if kept is None:
            self._keep(key, Kept(graph, key))
        return graph

    def _apart(self, text: str) -> tuple[_Key, msgspec.Raw | None] | None:
        """The members, and the input apart; `None` for what is not certain to be one plain object.

        The decoder keeps the last of two equal names, so every byte is accounted for: quotes, a
        colon and a comma (or the last brace) for each member, and the first brace. A name written
        with escapes does not fit either, nor does white space; those are simply not kept.
        """
        try:
            data = text.encode()
            members = _MEMBERS.decode(data)
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
            return None
        size = 1
        for name, value in members.items():
            size += len(name) + len(value) + 4
        if size != len(data) or size > self._limits.max_description_bytes:
            return None
        given = members.get(INPUT)
        key = tuple([(name, b"" if name == INPUT else bytes(v)) for name, v in members.items()])
        return key, given

    def _with_input(self, kept: Kept, given: msgspec.Raw | None) -> Graph | None:
        """The graph with this input; `None` if that will not do, and `parse_graph` is to say why."""
        if given is None:
            return kept.graph
        most, depth = self._limits.max_description_bytes, MAX_DEPTH - 1
        try:
            value = parse(bytes(given).decode(), max_bytes=most, max_depth=depth)
            for reference in kept.input:
                reference.resolve({INPUT: value})
        except (GraphError, PromptError):
            return None
        return kept.graph.with_input(value)

    def _keep(self, key: _Key, kept: Kept) -> None:
        if kept.weight > self._most:
            return
        self._kept[key] = kept
        self._weight += kept.weight
        while self._weight > self._most:
            self._weight -= self._kept.pop(next(iter(self._kept))).weight
