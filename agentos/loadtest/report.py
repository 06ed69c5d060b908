"""What a run measured: its figures, as a document that can be kept and compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from agentos.core.errors import ConfigError
from agentos.loadtest.run import Outcome, Response, Run

USAGE = ("calls", "retries", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True)
class Latency:
    """A distribution of latencies in seconds; percentiles are nearest ranks, so each was seen."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, latencies: Sequence[float]) -> Self | None:
        """The distribution of some latencies; None of none."""
        if not latencies:
            return None
        found = sorted(latencies)
        mean = math.fsum(found) / len(found)
        p50, p90, p99 = (percentile(found, percent) for percent in (50, 90, 99))
        return cls(len(found), min(max(mean, found[0]), found[-1]), p50, p90, p99, found[-1])


@dataclass(frozen=True)
class Summary:
    """The figures of a run. `requests` = `succeeded` + all of `failed` + `in_flight` + `not_sent`.

    Args:
        requests: how many were to be sent.
        succeeded: tasks that succeeded.
        failed: how many did not, by cause.
        in_flight: sent, and not ended when the run was interrupted.
        not_sent: not sent when the run was interrupted.
        wall_s: seconds from the start to the last end.
        per_s: tasks that succeeded, per second of that.
        latency: of all that ended, from the intended send time.
        latency_succeeded: of those that succeeded.
        oldest_s: how long the oldest of `in_flight` had been due.
        late_s: the most by which the client itself sent a request too late.
        usage: what the tasks' responses say that they cost.
    """

    requests: int
    succeeded: int
    failed: Mapping[str, int]
    in_flight: int
    not_sent: int
    wall_s: float
    per_s: float
    latency: Latency | None
    latency_succeeded: Latency | None
    oldest_s: float
    late_s: float
    usage: Mapping[str, int]


@dataclass(frozen=True)
class Row:
    """One request that was sent: moments in seconds from the run's start, None if not reached."""

    intended_s: float
    sent_s: float
    ended_s: float | None
    outcome: Outcome | Literal["in flight"]
    cause: str = ""
    task_id: int | None = None


@dataclass(frozen=True)
class Report:
    """A run's settings, its figures, and its requests in the order of their list."""

    settings: Mapping[str, Any]
    summary: Summary
    requests: Sequence[Row]
    format: Literal["agentos-load-1"] = field(default="agentos-load-1")

    @classmethod
    def of(cls, run: Run, settings: Mapping[str, Any]) -> Self:
        """Sum a run up, whether it came to its end or was interrupted.

        Args:
            run: what was given to a `send_…` as `run`.
            settings: anything that tells how it was run; a JSON object.
        """
        begun = run.begun_at or 0.0
        ended = run.ended_at or begun
        rows = {
            index: Row(intended - begun, sent - begun, None, "in flight")
            for index, (intended, sent) in run.in_flight.items()
        }
        rows |= {index: _row(response, begun) for index, response in run.responses.items()}
        return cls(settings, _summary(run, ended - begun), [rows[index] for index in sorted(rows)])

    def write(self, file: Path) -> None:
        """Write it as JSON.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            file.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        except OSError as error:
            raise ConfigError(f"cannot write {file}: {error.strerror or error}") from error

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            ConfigError: it cannot be read, or is no such report.
        """
        try:
            return msgspec.json.decode(file.read_bytes(), type=cls)
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
        except msgspec.DecodeError as error:
            raise ConfigError(f"{file} is no report of `agentos load`: {error}") from error


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest rank: the least value that `percent` of all are not above.

    Args:
        ordered: at least one value, the least first.
        percent: above 0, and 100 at most.
    """
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


def compare(
    now: Summary, then: Summary
) -> list[tuple[str, float | None, float | None, Literal["", "s"]]]:
    """The figures of two runs side by side: name, now, then, unit."""
    pairs: list[tuple[str, float | None, float | None, Literal["", "s"]]] = [
        ("tasks/s", now.per_s, then.per_s, ""),
        ("succeeded", now.succeeded, then.succeeded, ""),
        ("failed", sum(now.failed.values()), sum(then.failed.values()), ""),
    ]
    for name in ("mean", "p50", "p90", "p99", "max"):
        values = [
            None if summary.latency is None else getattr(summary.latency, f"{name}_s")
            for summary in (now, then)
        ]
        pairs.append((name, values[0], values[1], "s"))
    pairs += [
        (name.replace("_", " "), now.usage.get(name), then.usage.get(name), "") for name in USAGE
    ]
    return pairs


def _row(response: Response, begun: float) -> Row:
    return Row(
        response.intended_at - begun,
        response.sent_at - begun,
        response.ended_at - begun,
        response.outcome,
        response.cause,
        response.task_id,
    )


def _summary(run: Run, wall_s: float) -> Summary:
    responses = run.responses.values()
    good = [response.latency_s for response in responses if response.outcome == "succeeded"]
    causes = Counter(r.cause for r in responses if r.outcome != "succeeded")
    sent = [(r.intended_at, r.sent_at) for r in responses] + list(run.in_flight.values())
    ended_at = run.ended_at or 0.0
    return Summary(
        requests=run.total,
        succeeded=len(good),
        failed=dict(causes.most_common()),
        in_flight=len(run.in_flight),
        not_sent=run.total - len(sent),
        wall_s=wall_s,
        per_s=len(good) / wall_s if wall_s > 0 else 0.0,
        latency=Latency.of([response.latency_s for response in responses]),
        latency_succeeded=Latency.of(good),
        oldest_s=max((ended_at - intended for intended, _ in run.in_flight.values()), default=0.0),
        late_s=max((sent_at - intended for intended, sent_at in sent), default=0.0),
        usage={name: sum(map(_used(name), responses)) for name in USAGE},
    )


def _used(name: str) -> Any:
    """A function from a response to how much of that it used."""

    def used(response: Response) -> int:
        usage = (response.response or {}).get("usage") or {}
        return int(usage.get(name, 0))

    return used
