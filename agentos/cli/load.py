"""`agentos load`: many tasks in a pattern, and what became of them in figures and pictures."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from agentos import logs
from agentos.cli import loadview, output
from agentos.cli.options import Json, LogLevel, Url, gateways, number
from agentos.cli.tasks import read_text
from agentos.core.errors import ConfigError
from agentos.loadtest import (
    Options,
    Report,
    Request,
    Run,
    plots,
    send_all,
    send_batch_interval,
    send_dynamic_batch_interval,
    send_in_interval,
)
from agentos.reach import urls_of

Pattern = Literal["all", "interval", "batch", "dynamic"]
GRAPHS = 100
"""Requests that `--graph` makes unless `-n` says otherwise."""
INTERVAL_S = (0.0, 1.0)
BATCHES = {"batch": (10, 10), "dynamic": (1, 20)}


@dataclass(frozen=True)
class Span:
    """What an option of the form LOW[:HIGH] was given."""

    low: float
    high: float


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """A request as the file of `--requests` has it."""

    task_description: dict[str, Any] | str
    user_id: int = 0
    task_type: str = "graph"
    key: str | None = None


def _span(text: str) -> Span:
    low, colon, high = text.partition(":")
    try:
        found = Span(float(low), float(high if colon else low))
    except ValueError:
        found = Span(-1, -1)
    if not 0 <= found.low <= found.high < float("inf"):
        raise typer.BadParameter(f"{text} is no range like 0.5 or 0.1:0.5 of numbers from 0")
    return found


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{text} is not a number of seconds above 0")
    return value


def load(
    pattern: Annotated[
        Pattern,
        typer.Option(
            help="all at once; one after each interval; batches of one size; of random sizes."
        ),
    ] = "all",
    graph: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Every request is this task graph.")
    ] = None,
    requests: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="The requests: a JSON array, or an object a line."),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "-n",
            help=f"How many to send. Default: {GRAPHS}, or those of --requests once.",
            parser=number(1),
        ),
    ] = None,
    interval: Annotated[
        Span | None,
        typer.Option(
            metavar="LOW[:HIGH]",
            help="Seconds between two sends, drawn from this range. Default: 0:1.",
            parser=_span,
        ),
    ] = None,
    batch: Annotated[
        Span | None,
        typer.Option(
            metavar="SIZE[:SIZE]",
            help="Requests in a batch. Default: 10, or 1:20 for dynamic.",
            parser=_span,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the intervals and sizes.", parser=number(0))
    ] = None,
    poll: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Ask for each task's status so often (and measure no finer), instead of waiting "
            "for the pushed end.",
            parser=_seconds,
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="How long to wait for each task's end; for ever if not given.",
            parser=_seconds,
        ),
    ] = None,
    report: Annotated[Path, typer.Option(metavar="FILE", help="Where the report goes.")] = Path(
        "report.json"
    ),
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw it, as .html, .png or .svg. Default: the report's name with .html, if the "
            "extra `load` is installed.",
        ),
    ] = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Draw nothing.")] = False,
    against: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An earlier report to compare with.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
    log_level: LogLevel = "error",
) -> int:
    """Send many tasks, and measure what becomes of them. Ctrl-C shows what there is.

    Latencies count from the moment at which the pattern wanted the request sent, so that a cluster
    that stalls cannot hide it. Exit code 1 if a task did not succeed.
    """
    logs.configure(log_level)
    plan = _plan(pattern, interval, batch, seed)
    req_list = _requests(graph, requests, count)
    picture = _picture(report, plot, wanted=not no_plot)
    earlier = Report.read(against) if against else None
    urls = urls_of(gateways(url))
    settings = {
        "pattern": pattern,
        "requests": graph or requests,
        **plan.settings,
        "poll_s": poll,
        "timeout_s": timeout,
        "url": ",".join(urls),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    run = Run()
    options: Options = {"poll_s": poll, "timeout_s": timeout, "run": run}
    stopped = asyncio.run(_until_done(lambda: plan.send(urls, req_list, options), run))
    if run.begun_at is None:  # stopped before it was connected: nothing was sent
        run.total = len(req_list)
    found = Report.of(run, settings)
    if as_json:
        output.document(loadview.document(found, earlier))
    else:
        loadview.show(found, earlier)
    if stopped:
        loadview.say_stopped(found)
    _keep(found, report, picture, earlier)
    return 128 + stopped if stopped else int(found.summary.succeeded < found.summary.requests)


# -- what is sent ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """A pattern with its ranges and its seed."""

    pattern: Pattern
    interval: tuple[float, float]
    batch: tuple[int, int]
    seed: int

    @property
    def settings(self) -> Mapping[str, Any]:
        """What of it counts, for the report."""
        found: dict[str, Any] = {}
        if self.pattern != "all":
            found |= {"interval_s": list(self.interval), "seed": self.seed}
        if self.pattern in BATCHES:
            found["batch"] = list(self.batch)
        return found

    async def send(self, urls: list[str], req_list: Sequence[Request], options: Options) -> None:
        """Send the requests, and wait for the end of all."""
        match self.pattern:
            case "all":
                await send_all(urls, req_list, **options)
            case "interval":
                await send_in_interval(urls, req_list, self.interval, seed=self.seed, **options)
            case "batch":
                await send_batch_interval(
                    urls, req_list, self.interval, self.batch[0], seed=self.seed, **options
                )
            case "dynamic":
                await send_dynamic_batch_interval(
                    urls, req_list, self.interval, self.batch, seed=self.seed, **options
                )


def _plan(pattern: Pattern, interval: Span | None, batch: Span | None, seed: int | None) -> _Plan:
    """What the options say together. Raises `BadParameter` where they contradict each other."""
    if interval and pattern == "all":
        raise typer.BadParameter("--interval is for the patterns interval, batch and dynamic")
    if batch and pattern not in BATCHES:
        raise typer.BadParameter("--batch is for the patterns batch and dynamic")
    sizes = BATCHES.get(pattern, (1, 1))
    if batch:
        low, high = sizes = (int(batch.low), int(batch.high))
        if low != batch.low or high != batch.high or low < 1:
            raise typer.BadParameter("--batch takes whole numbers from 1")
        if pattern == "batch" and low != high:
            raise typer.BadParameter("--batch takes one size; a range is for --pattern dynamic")
    between = (interval.low, interval.high) if interval else INTERVAL_S
    return _Plan(pattern, between, sizes, secrets.randbits(32) if seed is None else seed)


def _requests(graph: str | None, requests: str | None, count: int | None) -> list[Request]:
    """The requests that the options name. Raises `BadParameter` and `ConfigError`."""
    if (graph is None) == (requests is None):
        raise typer.BadParameter("give the tasks with --graph FILE or with --requests FILE")
    if graph is not None:
        return [Request(0, "graph", read_text(graph))] * (count or GRAPHS)
    assert requests is not None
    found = _read_requests(requests)
    return list(islice(cycle(found), count or len(found)))


def _read_requests(file: str) -> list[Request]:
    """A file's requests. Raises `ConfigError`, which names the request."""
    text = read_text(file)
    try:
        documents = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except ValueError as error:
        raise ConfigError(f"{file}: neither a JSON array nor an object a line: {error}") from error
    if not documents:
        raise ConfigError(f"{file}: there is no request in it")
    found = []
    for place, document in enumerate(documents, 1):
        try:
            line = msgspec.convert(document, _Line)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{file}: request {place}: {error}") from error
        found.append(Request(line.user_id, line.task_type, line.task_description, line.key))
    return found


# -- sending it, and keeping what came of it -------------------------------------------------------


async def _until_done(send: Callable[[], Awaitable[None]], run: Run) -> int:
    """Send, and show how it goes; returns the signal that stopped it, or 0."""
    loop, sending = asyncio.get_running_loop(), asyncio.ensure_future(send())
    stopped: list[int] = []

    def stop(number: int) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)  # the next one ends the program at once
        stopped.append(number)
        sending.cancel()

    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop, each)
    async with loadview.watching(run):
        await asyncio.wait([sending])
    if not (stopped and sending.cancelled()):
        sending.result()
    return stopped[0] if stopped else 0


def _picture(report: Path, plot: Path | None, *, wanted: bool) -> Path | None:
    """Where to draw, if at all. Raises before the run what would be wrong after it."""
    for file in filter(None, (report, plot)):
        if not file.parent.is_dir():
            raise ConfigError(f"{file}: there is no folder {file.parent}")
        if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
            raise ConfigError(f"{file}: this cannot be written: name another file")
    if plot is not None and wanted:
        plots.check(plot)
        return plot
    return report.with_suffix(".html") if wanted and plots.available() else None


def _keep(found: Report, report: Path, picture: Path | None, earlier: Report | None) -> None:
    found.write(report)
    if picture is not None:
        tables = loadview.tables(found, earlier)
        plots.save(found, picture, against=earlier, tables=tables)
    names = " and ".join(str(file) for file in (report, picture) if file)
    output.line(f"the report is in {names}", to_stderr=True)
