"""A run as lines of text that a person can read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.routes import kind_of
from agentos.simulation.links import Process

Write = Callable[[str], None]

_QUIET = frozenset({
    m.Tick, m.ProxyBeat, m.RegionBeat, m.Rouse, m.Heard, m.CountTasks, m.TaskCounts, m.Event,
    m.FindTasks,
})  # fmt: skip
"""Kinds that are left out of a short trace: they come all the time."""


class Trace:
    """Writes what happens.

    Args:
        write: takes each line.
        short: leave out heartbeats and what else is always there.
    """

    def __init__(self, write: Write, *, short: bool = False) -> None:
        self._write = write
        self._short = short

    def line(self, now: float, text: str) -> None:
        """Something happened."""
        self._write(f"{now:9.4f}  {text}")

    def took(self, now: float, process: Process, envelope: m.Envelope) -> None:
        """A message has arrived."""
        if self._short and _is_noise(envelope.message):
            return
        self.line(now, f"{envelope.sender} -> {process.address}  {describe(envelope.message)}")

    def called(self, now: float, process: Process, message: Any) -> None:
        """A proxy has told its agents something."""
        self.line(now, f"{process.address} -> agents  {describe(message)}")

    def fell(self, now: float, fault: str, envelope: m.Envelope, lane: str) -> None:
        """A fault has happened to a message."""
        if self._short and _is_noise(envelope.message):
            return
        where = f" ({lane})" if lane else ""
        text = f"{envelope.sender} -> {envelope.to}  {describe(envelope.message)}"
        self.line(now, f"!! {fault}: {text}{where}")


def _is_noise(message: Any) -> bool:
    return type(message) in _QUIET or (isinstance(message, m.TasksFound) and not message.tasks)


def describe(message: Any) -> str:
    """A message on one line: its kind, and what tells it from others of its kind."""
    words = [kind_of(type(message))]
    if isinstance(message, m.Invoke | m.Place):
        call = message.call
        rows = ",".join(message.rows) if isinstance(message, m.Place) else call.row
        words += [f"task {call.task_id} {call.epoch} {rows}"]
        words += [f"attempt {call.attempt}"] if call.attempt else []
        return " ".join(words)
    if getattr(message, "task_id", 0):
        words.append(f"task {message.task_id}")
    for name in ("expected", "epoch"):
        epoch = getattr(message, name, None)
        if isinstance(epoch, Epoch):
            words.append(f"{'from ' if name == 'expected' else ''}{epoch}")
    for name in ("row", "region", "owner", "proxy", "outcome", "state", "key", "code"):
        value = getattr(message, name, "")
        if isinstance(value, str) and value:
            words.append(value)
    if isinstance(message, m.Record):
        words += [row.node_id for row in message.rows]
        words += [f"end {message.end.state}"] if message.end else []
    elif isinstance(message, m.Recorded):
        words += message.nodes
    elif isinstance(message, m.PeerDown):
        words += message.proxies
    elif isinstance(message, m.Claimed):
        words.insert(1, "granted" if message.granted else "refused")
    elif isinstance(message, m.TasksFound):
        words.append(f"{len(message.tasks)} found")
    elif isinstance(message, m.CallResult) and message.value is None:
        words.append(f"error: {message.error}")
    return " ".join(words)
