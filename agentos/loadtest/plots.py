"""A report as a picture, or as a page with the picture and the figures.

Needs the extra `load` (Matplotlib), which is imported when something is drawn, and not before.
"""

from __future__ import annotations

import html
import importlib.util
import io
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from agentos.core.errors import ConfigError
from agentos.loadtest.report import Latency, Report, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

SUFFIXES = (".html", ".png", ".svg")
COLOURS = {"succeeded": "tab:blue", "in flight": "tab:gray"}
BINS = 60
LEAST_S = 1e-4
"""Latencies are drawn on a logarithmic axis from here: 0.1 ms."""


def available() -> bool:
    """Whether the plotting library is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check(file: Path) -> None:
    """Say before the run what would go wrong after it.

    Raises:
        ConfigError: no such picture can be drawn here.
    """
    if file.suffix not in SUFFIXES:
        raise ConfigError(f"{file}: a plot is one of {', '.join(SUFFIXES)}")
    if not available():
        raise ConfigError(f"{file}: plots need Matplotlib: pip install matplotlib (or --no-plot)")


def save(
    report: Report,
    file: Path,
    *,
    against: Report | None = None,
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]] = (),
) -> None:
    """Draw a report into a file: `.png` or `.svg` alone, or `.html` with the figures.

    Args:
        report: what is drawn.
        file: where to; its ending says what.
        against: another report, drawn behind it.
        tables: for a page: the title, the columns and the rows of each.

    Raises:
        ConfigError: the file cannot be written.
    """
    figure = draw(report, against)
    data = io.BytesIO()
    if file.suffix == ".png":
        figure.savefig(data, format="png", dpi=110)
    else:
        figure.savefig(data, format="svg", dpi=110, metadata={"Date": None})
    content = data.getvalue()
    if file.suffix == ".html":
        content = _page(report, content.decode(), tables).encode()
    try:
        file.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror or error}") from error


def draw(report: Report, against: Report | None = None) -> Figure:
    """Latency over time, its distribution, and the tasks in flight, below each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 11), layout="constrained")
    over_time, distribution, flying = figure.subplots(3, 1)
    _draw_over_time(over_time, report, against)
    _draw_distribution(distribution, report, against)
    _draw_in_flight(flying, report, against)
    return figure


def _draw_over_time(axes: Axes, report: Report, against: Report | None) -> None:
    """A point for each request, where it was due; what has not ended yet at its age."""
    if against is not None:
        points = [(row.intended_s, _latency(row, against)) for row in against.requests]
        _scatter(axes, points, "lightgray", "against", "o")
    for outcome in sorted({row.outcome for row in report.requests}, reverse=True):
        rows = [row for row in report.requests if row.outcome == outcome]
        marker = {"succeeded": "o", "in flight": "^"}.get(outcome, "x")
        points = [(row.intended_s, _latency(row, report)) for row in rows]
        _scatter(axes, points, COLOURS.get(outcome, "tab:red"), outcome, marker)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_seconds())
    axes.set(title="latency over time", xlabel="due at (s)", ylabel="latency")
    axes.grid(visible=True, alpha=0.3)
    _legend(axes)


def _scatter(
    axes: Axes, points: Sequence[tuple[float, float]], colour: str, label: str, marker: str
) -> None:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    # Rasterized: a hundred thousand points would make a page of 20 MB.
    axes.scatter(xs, ys, s=9, c=colour, label=label, marker=marker, alpha=0.6, rasterized=True)


def _draw_distribution(axes: Axes, report: Report, against: Report | None) -> None:
    ended = [_latency(row, report) for row in report.requests if row.ended_s is not None]
    then = (
        [_latency(r, against) for r in against.requests if r.ended_s is not None] if against else []
    )
    if both := ended + then:
        low, high = min(both) / 1.1, max(both) * 1.1
        edges = [low * (high / low) ** (i / BINS) for i in range(BINS + 1)]
        for found, colour, label in ((then, "lightgray", "against"), (ended, "tab:blue", "now")):
            if found:  # in percent, so that runs of different lengths compare
                weights = [100 / len(found)] * len(found)
                axes.hist(found, edges, weights=weights, color=colour, alpha=0.7, label=label)
        _mark(axes, report.summary.latency)
        _legend(axes)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_seconds())
    axes.set(title="distribution of latency", xlabel="latency", ylabel="% of requests")
    axes.grid(visible=True, alpha=0.3)


def _mark(axes: Axes, latency: Latency | None) -> None:
    if latency is not None:
        for name, style in (("p50", "-"), ("p90", "--"), ("p99", ":")):
            value = max(getattr(latency, f"{name}_s"), LEAST_S)
            label = f"{name} {_seconds(1)(value)}"
            axes.axvline(value, color="black", linestyle=style, label=label)


def _seconds(places: int | None = None) -> EngFormatter:
    """`20 ms`, `1.5 s`."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter("s", places)


def _legend(axes: Axes) -> None:
    """Beside the picture, where it hides nothing."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))


def _draw_in_flight(axes: Axes, report: Report, against: Report | None) -> None:
    for one, colour, label in ((against, "lightgray", "against"), (report, "tab:blue", "now")):
        if one is not None:
            moments, counts = in_flight(one.requests)
            axes.step(moments, counts, where="post", color=colour, label=label, rasterized=True)
    axes.set_ylim(bottom=0)
    axes.set(title="tasks in flight", xlabel="time (s)", ylabel="tasks")
    axes.grid(visible=True, alpha=0.3)
    _legend(axes)


def in_flight(rows: Sequence[Row]) -> tuple[list[float], list[int]]:
    """How many requests were sent and not ended: the moments of change, the number from each on."""
    changes = [(row.sent_s, 1) for row in rows]
    changes += [(row.ended_s, -1) for row in rows if row.ended_s is not None]
    changes.sort()
    return [moment for moment, _ in changes], list(accumulate(change for _, change in changes))


def _latency(row: Row, report: Report) -> float:
    ended = report.summary.wall_s if row.ended_s is None else row.ended_s
    return max(ended - row.intended_s, LEAST_S)


_STYLE = (
    "body{font:15px system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:0 0 1.5rem}"
    "th,td{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ddd}"
    "svg{width:100%;height:auto}h2{font-size:1.1rem}"
)


def _page(
    report: Report,
    svg: str,
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]],
) -> str:
    """A page that needs nothing else, and runs nothing."""
    settings = " · ".join(f"{name} {value}" for name, value in report.settings.items())
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>agentos load</title>",
        f"<style>{_STYLE}</style><h1>agentos load</h1><p>{html.escape(settings)}</p>",
    ]
    for title, columns, rows in tables:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
        lines = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        parts.append(f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{body}</table>")
    return "\n".join([*parts, svg[svg.index("<svg") :], "</html>\n"])
