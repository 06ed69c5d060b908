"""How a load test is shown: a bar while it runs, tables when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import msgspec

from agentos.cli import output
from agentos.loadtest import Latency, Report, Run, compare, percentile

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_S = 0.25
MOST_CAUSES = 10

LATENCY = ("latency", "count", "mean", "p50", "p90", "p99", "max")
COST = ("calls", "retries", "prompt tokens", "completion tokens", "client late by")

Table = tuple[str, Sequence[str], Sequence[Sequence[object]]]
"""A title, columns and rows."""


def duration(seconds: float) -> str:
    """A time for people: `3.2 ms`, `4.50 s`."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


@contextlib.asynccontextmanager
async def watching(run: Run) -> AsyncIterator[None]:
    """Show on the terminal, if there is one, how a run goes; drawn in the loop that changes it."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live

    with Live(
        get_renderable=lambda: _bar(run), console=Console(stderr=True), auto_refresh=False
    ) as live:

        async def refresh() -> None:
            while True:
                live.refresh()
                await asyncio.sleep(REFRESH_S)

        drawing = asyncio.create_task(refresh())
        try:
            yield
        finally:
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)


def _bar(run: Run) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(run.total or 1, len(run.responses), width=24), Text(progress(run)))
    return grid


def progress(run: Run) -> str:
    """How a run goes, on one line: rate and percentiles are those of the last 1,000 ends."""
    if run.begun_at is None:
        return "connecting …"
    now = run.ended_at or time.perf_counter()
    parts = [
        f"{len(run.responses)}/{run.total} done",
        f"{len(run.in_flight)} in flight",
        f"{run.failed} failed",
    ]
    if run.recent:
        since = run.begun_at if len(run.recent) == len(run.responses) else run.recent[0][0]
        latencies = sorted(latency for _, latency in run.recent)
        parts.append(f"{len(run.recent) / max(now - since, 1e-3):.0f} tasks/s")
        parts += [f"p{p} {duration(percentile(latencies, p))}" for p in (50, 99)]
    return "  ".join([*parts, f"{now - run.begun_at:.1f} s"])


def tables(report: Report, against: Report | None) -> list[Table]:
    """A report's figures."""
    s = report.summary
    failed = sum(s.failed.values())
    found: list[Table] = [
        (
            "requests",
            ("requests", "succeeded", "failed", "in flight", "not sent", "time", "tasks/s"),
            [
                (
                    s.requests,
                    s.succeeded,
                    failed,
                    s.in_flight,
                    s.not_sent,
                    duration(s.wall_s),
                    f"{s.per_s:.1f}",
                )
            ],
        )
    ]
    if failed:
        causes = list(s.failed.items())
        rows: list[tuple[object, ...]] = [*causes[:MOST_CAUSES]]
        if more := causes[MOST_CAUSES:]:
            rows.append((f"{len(more)} other causes", sum(number for _, number in more)))
        found.append(("failed by cause", ("cause", "failed"), rows))
    latencies = [("all that ended", s.latency)]
    if failed:
        latencies.append(("succeeded", s.latency_succeeded))
    shown = [(name, *_cells(latency)) for name, latency in latencies if latency]
    if shown:
        found.append(("latency, from the intended send time", LATENCY, shown))
    used = [*s.usage.values(), f"{duration(s.late_s)} at most"]
    found.append(("cost", COST, [used]))
    if against is not None:
        found.append(_comparison(report, against))
    return found


def _cells(latency: Latency) -> tuple[object, ...]:
    """The columns of a distribution, from count to max."""
    count, *seconds = astuple(latency)
    return (count, *map(duration, seconds))


def _comparison(now: Report, then: Report) -> Table:
    rows = [
        (name, *(_figure(value, unit) for value in (new, old)), _change(new, old))
        for name, new, old, unit in compare(now.summary, then.summary)
    ]
    started = then.settings.get("started", "")
    return (f"against the run of {started}", ("figure", "now", "then", "change"), rows)


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "s":
        return duration(value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _change(now: float | None, then: float | None) -> str:
    if now is None or not then:
        return ""
    return f"{100 * (now / then - 1):+.1f} %"


def show(report: Report, against: Report | None) -> None:
    """Print a report's figures."""
    for number, (_, columns, rows) in enumerate(tables(report, against)):
        if number:
            output.line("")
        output.table(columns, rows)


def document(report: Report, against: Report | None) -> dict[str, Any]:
    """A report's figures as JSON, without its single requests."""
    found: dict[str, Any] = {
        "settings": report.settings,
        "summary": msgspec.to_builtins(report.summary),
    }
    if against is not None:
        found["against"] = {
            "settings": against.settings,
            "summary": msgspec.to_builtins(against.summary),
        }
    return found


def say_stopped(report: Report) -> None:
    """Say what is left when a run was interrupted."""
    s = report.summary
    text = f"interrupted: {s.not_sent} of {s.requests} were not sent"
    if s.in_flight:
        oldest = f"the oldest for {duration(s.oldest_s)}"
        text += f"; {output.count(s.in_flight, 'task')} in flight ({oldest}) will go on"
    output.line(text, to_stderr=True)
