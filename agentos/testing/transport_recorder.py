"""A receiver that remembers what a transport calls it with, for tests of transports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from agentos.core import messages as m
from agentos.core.ports import Connection, Receiver

DEADLINE_S = 20.0
"""How long something that must happen may take, on a slow and busy machine."""


class Recorder(Receiver):
    """A receiver that remembers, and lets a test wait for what must come.

    Args:
        on_received: called with every batch before it is remembered; may raise.
    """

    def __init__(
        self, on_received: Callable[[Connection, Sequence[m.Envelope]], Any] | None = None
    ):
        self.condition = threading.Condition()
        self.batches: list[tuple[Connection, list[m.Envelope]]] = []
        self.errors: list[tuple[Connection, Exception]] = []
        self.ended: list[Connection] = []
        self._on_received = on_received

    def received(self, connection: Connection, envelopes: Sequence[m.Envelope]) -> None:
        if self._on_received is not None:
            self._on_received(connection, envelopes)
        with self.condition:
            self.batches.append((connection, list(envelopes)))
            self.condition.notify_all()

    def failed(self, connection: Connection, error: Exception) -> None:
        with self.condition:
            self.errors.append((connection, error))
            self.condition.notify_all()

    def closed(self, connection: Connection) -> None:
        with self.condition:
            self.ended.append(connection)
            self.condition.notify_all()

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait until `happened()` is true, looking again after every call to this receiver.

        Raises:
            AssertionError: `DEADLINE_S` have passed.
        """
        with self.condition:
            assert self.condition.wait_for(happened, DEADLINE_S), (
                f"after {DEADLINE_S:g} s only {len(self.refs())} envelopes, "
                f"{len(self.errors)} errors, {len(self.ended)} closed"
            )

    def wait_for(self, count: int) -> None:
        """Wait until `count` envelopes have come."""
        self.wait_until(lambda: sum(len(batch) for _, batch in self.batches) >= count)

    def refs(self, connection: Connection | None = None) -> list[str]:
        """The refs of the envelopes that have come, in order: all, or those of one connection."""
        return [
            envelope.ref
            for source, batch in list(self.batches)
            if connection is None or source is connection
            for envelope in batch
        ]

    def connections(self) -> list[Connection]:
        """Who has sent something, in order of appearance."""
        return list(dict.fromkeys(source for source, _ in list(self.batches)))


def note(ref: object, text: str = "") -> m.Envelope:
    """A small envelope, told from others by its ref."""
    return m.Envelope(to="inbox", sender="outbox", message=m.Say(value=text), ref=str(ref))


def eventually(happened: Callable[[], bool]) -> None:
    """Call `happened` until it returns true.

    Raises:
        AssertionError: it did not within `DEADLINE_S`.
    """
    deadline = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s"
        time.sleep(0.002)
