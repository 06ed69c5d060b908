"""Requests, what becomes of them, and a run of many."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from agentos.client import AsyncClient
from agentos.core.errors import LocalProtocolError

RECENT = 1_000
"""Ends that a run remembers for showing how it goes at the moment."""
Outcome = Literal["succeeded", "failed", "cancelled", "refused", "unanswered"]
"""How a request ended: the first three are the task's own ends; `refused` was not accepted;
of `unanswered` the client heard no more (the task may go on)."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Request:
    """A task to hand in.

    Args:
        user_id: whose task it is.
        task_type: a label of yours.
        task_description: the graph, as a mapping or as JSON text (docs/graph-format.md).
        key: makes it idempotent: the same user and key name the same task.
    """

    user_id: int
    task_type: str
    task_description: Mapping[str, Any] | str
    key: str | None = None


@dataclass(frozen=True)
class Response:
    """What became of one request. Moments are `time.perf_counter`'s, in seconds.

    Args:
        outcome: how it ended.
        task_id: the task's number; None if it was not accepted.
        response: the task's response document (`output` or `error`, and `usage`), if it has one.
        error: why it did not succeed; empty if it did.
        cause: the same in short and without its particulars, for counting.
        intended_at: when the schedule wanted it sent.
        sent_at: when it was sent.
        ended_at: when the client knew how it ended.
    """

    outcome: Outcome
    task_id: int | None
    response: Mapping[str, Any] | None
    error: str
    cause: str
    intended_at: float
    sent_at: float
    ended_at: float

    @property
    def latency_s(self) -> float:
        """Seconds from the intended send time to the end."""
        return self.ended_at - self.intended_at

    @property
    def output(self) -> Any:
        """The task's output; None if it did not succeed."""
        return (self.response or {}).get("output")


class Run:
    """What has become of the requests of one `send_…` so far; may be looked at while it goes on.

    `responses` and `in_flight` (the moments at which it was intended and sent) are by the place of
    the request in the list.
    """

    def __init__(self) -> None:
        self.total = 0
        self.begun_at: float | None = None
        self.ended_at: float | None = None
        self.responses: dict[int, Response] = {}
        self.in_flight: dict[int, Range] = {}
        self.failed = 0
        self.recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        """When the last ones ended, and their latencies."""

    def begin(self, total: int) -> float:
        """Start the clock; returns the moment.

        Raises:
            LocalProtocolError: it has begun before: each `send_…` needs a run of its own.
        """
        if self.begun_at is not None:
            raise LocalProtocolError("this Run has been used: give each send_… a Run of its own")
        self.total = total
        self.begun_at = time.perf_counter()
        return self.begun_at

    def take(self, index: int, response: Response) -> None:
        """Note how a request ended."""
        del self.in_flight[index]
        self.responses[index] = response
        self.failed += response.outcome != "succeeded"
        self.recent.append((response.ended_at, response.latency_s))


class Options(TypedDict, total=False):
    """What every `send_…` also takes, by keyword.

    `poll_s`: seconds between two questions for a task's status (default 3); None waits for the
    pushed event instead, which measures to the millisecond.
    `timeout_s`: seconds to wait for the end of each task; for ever if None, the default.
    `client`: a connected client to use, instead of one connection of its own to the URL.
    `run`: filled as responses come, so that one can look on, and have what there is when the
    coroutine is cancelled.
    """

    poll_s: float | None
    timeout_s: float | None
    client: AsyncClient | None
    run: Run | None
