"""A task as it runs: which node runs on which proxy, its samples and its votes.

Events are hints, some may be missed: the view never shows less than it was told, and the end
always comes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

import msgspec

from agentos.cli.output import document, line, on_terminal, plain
from agentos.core import messages as m
from agentos.core.graph import Graph

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_ROWS = 20
EXCERPT = 60


class NodeView:
    """What is known of one node.

    `slots` are those of this round that were heard of, `calls` the proxy of each that runs.
    """

    def __init__(self, name: str, samples: int = 0, voters: int = 0) -> None:
        self.name = name
        self.samples = samples
        self.voters = voters
        self.state = "waiting"
        self.round = 1
        self.slots: set[str] = set()
        self.calls: dict[str, str] = {}
        self.proxies: list[str] = []
        self.answers = 0
        self.votes = 0
        self.retries = 0
        self.text = ""

    def take(self, event: m.Event) -> None:
        """Note what happened."""
        if event.event == "node":
            self.state, self.text = "done", event.text
            self.calls.clear()
            return
        if event.round > self.round:
            self.round, self.answers, self.votes = event.round, 0, 0
            self.slots.clear()
        self.slots |= {event.slot} - {""}
        self.state = "running" if self.state == "waiting" else self.state
        if event.event == "call":
            self.calls[event.slot] = event.proxy
            if event.proxy not in self.proxies:
                self.proxies.append(event.proxy)
            return
        self.calls.pop(event.slot, None)
        self.answers += event.event == "answer"
        self.votes += event.event in {"vote", "void"}
        self.retries += event.event in {"retry", "lost"}


class TaskView:
    """What is known of one task.

    Args:
        graph: its description, if it is at hand: then nodes that wait are shown too.
    """

    def __init__(self, graph: Graph | None = None) -> None:
        self.nodes = (
            {n.name: NodeView(n.name, n.samples, n.voters) for n in graph.nodes.values()}
            if graph
            else {}
        )
        self.total = len(self.nodes)
        self.where: str | None = None
        self.why = ""
        self.ended: m.Ended | None = None

    def take(self, message: m.Event | m.Ended) -> None:
        """Note what happened."""
        if isinstance(message, m.Ended):
            self.ended = message
            if message.state == "succeeded":  # whatever was not heard of each node
                for node in self.nodes.values():
                    node.state = "done"
        elif message.node:
            node = self.nodes.setdefault(message.node, NodeView(message.node))
            node.take(message)
        elif message.event in {"placed", "started"}:
            self.where, self.why = message.proxy, message.text

    def knows(self, message: m.Event | m.Ended) -> bool:
        """Whether it only says again where the task is."""
        if not isinstance(message, m.Event) or message.event != "placed":
            return False
        return (message.proxy, message.text) == (self.where, self.why)

    @property
    def done(self) -> int:
        """How many nodes are finished, as far as is known."""
        return sum(node.state == "done" for node in self.nodes.values())


def sentence(message: m.Event | m.Ended, node: NodeView | None = None) -> str:
    """One event for people."""
    if isinstance(message, m.Ended):
        if message.state == "cancelled":
            return f"task {message.task_id} is cancelled"
        why = f": {message.error}" if message.error else ""
        return f"task {message.task_id} {message.state}{why}"
    at = f" {_short(message.proxy)}" if message.proxy else ""
    text = f"  {_excerpt(message.text)}" if message.text else ""
    if not message.node:
        if message.event == "placed":
            why = f": {plain(message.text)}" if message.text else ""
            return f"placed in{at}" if at else f"waits to be placed{why}"
        return f"{message.event} on{at}" if at else message.event
    call = f"{message.node}: {_slot(message, node)}"
    return {
        "call": f"{call} ->{at}",
        "answer": f"{call} <-{at}{text}",
        "vote": f"{call} <-{at}{text}",
        "void": f"{call} does not count:{text[1:]}",
        "retry": f"{call} failed on{at}, is tried again:{text[1:]}",
        "lost": f"{call} was lost with{at}, is placed again",
        "node": f"{message.node}: done{text}",
    }.get(message.event, f"{call} {message.event}{at}{text}")


def _slot(event: m.Event, node: NodeView | None) -> str:
    kind = "vote" if event.slot.startswith("v") else "sample"
    number = int(event.slot[1:]) + 1 if event.slot[1:].isdecimal() else event.slot
    single = kind == "sample" and node is not None and _is_single(node)
    name = "call" if single else f"{kind} {number}"
    return f"round {event.round}, {name}" if event.round > 1 else name


def _is_single(node: NodeView) -> bool:
    """Whether a node has one sample; without its graph, as far as was heard of it."""
    return node.samples == 1 if node.samples else node.slots == {"s0"}


def _short(address: str) -> str:
    return address.removeprefix("proxy/").removeprefix("region/")


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


# -- showing it ------------------------------------------------------------------------------------


class Reporter:
    """Shows events as they come: a line for each, for pipes and files. A context manager.

    An end that is no success is left to whoever says so on standard error.
    """

    def __init__(self, view: TaskView) -> None:
        self._view = view
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, message: m.Event | m.Ended) -> None:
        """Print it."""
        if isinstance(message, m.Ended) and message.state != "succeeded":
            return
        node = self._view.nodes.get(message.node) if isinstance(message, m.Event) else None
        line(plain(f"{time.monotonic() - self._begun:7.2f}s  {sentence(message, node)}"))


class _JsonLines(Reporter):
    """A JSON document for each event."""

    def show(self, message: m.Event | m.Ended) -> None:
        """Print it."""
        document(event_document(message))


class _Silent(Reporter):
    """Nothing: for `--json` commands that print one document at the end."""

    def show(self, message: m.Event | m.Ended) -> None:
        """Nothing."""


class _Live(Reporter):
    """A table that changes in place: for terminals."""

    def __init__(self, view: TaskView) -> None:
        super().__init__(view)
        from rich.live import Live

        self._live = Live(get_renderable=self._table, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, message: m.Event | m.Ended) -> None:  # noqa: ARG002 - the view has it
        """Draw the table anew."""
        self._live.refresh()

    def _table(self) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        view = self._view
        nodes = Table("node", "state", "on", "samples", "votes", "answer", box=box.SIMPLE)
        rows = _rows(view)
        for node in rows:
            nodes.add_row(*(Text(plain(cell)) for cell in _cells(node)), style=_STYLES[node.state])
        hidden = len(view.nodes) - len(rows)
        seconds = time.monotonic() - self._begun
        state: str = view.ended.state if view.ended else "running"
        where = f" on {_short(view.where)}" if view.where else ""
        if view.why and not view.where and not view.ended:
            state = f"waits to be placed: {plain(view.why)}"
        status = f" {view.done}/{view.total or '?'} nodes, {state}{where}, {seconds:.1f} s"
        bar = Table.grid()
        bar.add_row(ProgressBar(view.total or 1, view.done, width=30), Text(status))
        more = Text(f"  … and {hidden} more nodes") if hidden else Text("")
        return Group(nodes, more, bar) if hidden else Group(nodes, bar)


_STYLES = {"waiting": "dim", "running": "yellow", "done": "green"}


def _rows(view: TaskView) -> list[NodeView]:
    """All nodes, or of very many the ones where something happens."""
    nodes = list(view.nodes.values())
    if len(nodes) <= MOST_ROWS:
        return nodes
    running = [node for node in nodes if node.state == "running"]
    done = [node for node in nodes if node.state == "done"]
    return (running + done[::-1])[:MOST_ROWS]


def _cells(node: NodeView) -> Iterator[str]:
    yield node.name if node.round == 1 else f"{node.name} (round {node.round})"
    yield node.state + (f", {node.retries} retries" if node.retries else "")
    yield " ".join(_short(p) for p in (dict.fromkeys(node.calls.values()) or node.proxies))
    yield f"{node.answers}/{node.samples}" if node.samples else str(node.answers or "")
    yield f"{node.votes}/{node.voters}" if node.voters else ""
    yield _excerpt(node.text)


def event_document(message: m.Event | m.Ended) -> dict[str, Any]:
    """One event as JSON; the last one is `ended`, with the response as JSON."""
    found: dict[str, Any] = msgspec.to_builtins(message)
    if isinstance(message, m.Ended):
        found["event"] = "ended"
        found["response"] = json.loads(message.response) if message.response else None
    return found


def reporter(view: TaskView, *, as_json: bool, one_document: bool = False) -> Reporter:
    """The reporter that fits where standard output goes.

    Args:
        view: what it shows.
        as_json: whether `--json` was given.
        one_document: whether that asks for one document at the end, not for each event.
    """
    if as_json:
        return _Silent(view) if one_document else _JsonLines(view)
    return _Live(view) if on_terminal() else Reporter(view)


def follow(
    messages: Iterable[m.Event | m.Ended],
    view: TaskView,
    *,
    as_json: bool,
    one_document: bool = False,
) -> m.Ended | None:
    """Show a task until it ends; returns how it ended."""
    with reporter(view, as_json=as_json, one_document=one_document) as shown:
        for message in messages:
            if view.knows(message):
                continue  # said again, to a client that looks for itself now and then
            view.take(message)
            shown.show(message)
    return view.ended
