"""What has been committed, as the invariants know it: a copy that is changed by commits alone."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import msgspec

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import AgentOSError
from agentos.core.graph import Graph, parse_graph
from agentos.core.limits import Limits


class Violation(AgentOSError):
    """A rule was broken. `rule` is its name, the text says by whom and how."""

    code = "violation"

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class Change(NamedTuple):
    """A request that the store has carried out, and the row of its task after it."""

    question: m.Message
    sender: str
    answer: m.Message
    task: m.TaskInfo | None
    rows: tuple[m.SavedRow | None, ...]


class Entry(msgspec.Struct):
    """One task: its row, its saved rows, and what is counted of it."""

    task: m.TaskInfo
    graph: Graph
    rows: dict[str, m.SavedRow]
    issued: dict[Epoch, tuple[str, str, str]]
    """Who was given each epoch: claimant, region, owner."""
    since: float = 0.0
    """When its row's epoch was last changed."""
    claims: int = 0
    """Regional claims: one for each owner that it has had."""
    excuses: int = 0
    """Faults that have happened to its messages: each may cost a call."""
    started: dict[Epoch, int] = msgspec.field(default_factory=dict)
    """Which process of its owner's name has started calls under each epoch."""
    needs: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """By the row of a call: the rows that must be saved before it starts."""


class Ledger:
    """Every task that has been committed, by id."""

    def __init__(self) -> None:
        self.tasks: dict[int, Entry] = {}
        self.keys: dict[tuple[int, str], int] = {}

    def get(self, task_id: int) -> Entry | None:
        """The task, if it was ever committed."""
        return self.tasks.get(task_id)


@lru_cache(maxsize=4096)
def graph_of(description: str) -> Graph:
    """The graph of a description that was accepted."""
    return parse_graph(description, Limits())


def needs_of(entry: Entry, row: str) -> tuple[str, ...]:
    """The rows that must be saved before the call of this row may start."""
    known = entry.needs.get(row)
    if known is not None:
        return known
    name, number, slot = row.split("/")
    node, round_ = entry.graph.nodes[name], int(number)
    samples = [f"s{i}" for i in range(node.samples)]
    needed = list(node.dependencies)
    if slot.startswith("v"):
        needed += [m.call_row(name, round_, s) for s in samples]
    if round_ > 1:
        needed += [m.call_row(name, round_ - 1, s) for s in samples]
    entry.needs[row] = tuple(needed)
    return entry.needs[row]
