"""`agentos simulate`: clusters in one thread, with everything that can go wrong."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from agentos.cli import output
from agentos.cli.options import Json, number
from agentos.cli.tasks import read_text
from agentos.core import messages as m
from agentos.core.errors import ConfigError
from agentos.core.graph import parse_graph
from agentos.core.limits import Limits
from agentos.runtime.wire import JsonCodec, open_sealed
from agentos.simulation import Faults, Outcome, Report, Settings, Shape, Trace, shrink, simulate
from agentos.simulation.coverage import FAULTS, STATES
from agentos.tomlfile import read_toml

INTERRUPTED = 130
SHOWN = 60
"""Lines of a transcript that are shown from its end; `--trace` shows all."""


class JsonWire:
    """Writes and reads a message as between processes. Picklable, so that workers can have it."""

    def __call__(self, envelope: m.Envelope) -> m.Envelope:
        limits = Limits()
        codec = JsonCodec(limits)
        [read] = codec.decode(codec.encode(envelope))
        assert isinstance(read.message, m.Sealed), "what comes off the wire is not opened yet"
        return m.Envelope(read.to, read.sender, open_sealed(read.message, limits), read.ref)


def simulate_(
    seeds: Annotated[
        int, typer.Option(help="How many runs, each of another seed.", parser=number(1))
    ] = 200,
    first: Annotated[int, typer.Option(help="The first seed.", parser=number(0))] = 0,
    seed: Annotated[int | None, typer.Option(help="Run this seed alone.", parser=number(0))] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="With --seed: show every message of the run.")
    ] = False,
    graph: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="The graph of every task; else random ones."),
    ] = None,
    gateways: Annotated[int, typer.Option(parser=number(1))] = Shape().gateways,
    regions: Annotated[int, typer.Option(parser=number(1))] = Shape().regions,
    proxies: Annotated[
        int, typer.Option(help="In each region.", parser=number(1))
    ] = Shape().proxies,
    tasks: Annotated[int, typer.Option(parser=number(0))] = Shape().tasks,
    faults: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rates of faults, as TOML.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes to use.", parser=number(1))] = 1,
    as_json: Json = False,
) -> int:
    """Simulate clusters under faults: crashes, lost messages, partitions, zombies, bad storage.

    Everything runs in one thread on a virtual clock, from a seed, with the roles that run in
    production. Every step is checked. A run that breaks a rule is shrunk and shown.
    """
    settings = Settings(
        shape=Shape(gateways=gateways, regions=regions, proxies=proxies, tasks=tasks),
        faults=_faults(faults),
        graph=_graph(graph),
        wire=JsonWire(),
    )
    if seed is not None and trace:
        return _trace(seed, settings)
    numbers = range(first, first + seeds) if seed is None else range(seed, seed + 1)
    with _progress(len(numbers), wanted=not as_json) as advance:
        report = simulate(numbers, settings, jobs=jobs, on_outcome=advance)
    replay = _replay(graph, faults, settings.shape)
    if as_json:
        output.document(_document(report, replay))
    else:
        _print(report, replay)
    if report.interrupted:
        return INTERRUPTED
    return 0 if report.ok else 1


def _graph(file: str | None) -> str | None:
    if file is None:
        return None
    text = read_text(file)
    parse_graph(text, Limits())
    return text


def _faults(file: Path | None) -> Faults:
    if file is None:
        return Faults()
    table, _ = read_toml(file)
    try:
        return msgspec.convert(table, Faults).check()
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}") from error


def _trace(seed: int, settings: Settings) -> int:
    outcome = settings.simulation(seed, trace=Trace(output.line)).run()
    return 1 if outcome.rule else 0


@contextlib.contextmanager
def _progress(total: int, *, wanted: bool) -> Iterator[Callable[[Outcome], None]]:
    """A bar on the terminal, if there is one."""
    if not wanted or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress("seeds", *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda _: bar.advance(task)


def _replay(graph: str | None, faults: Path | None, shape: Shape) -> str:
    """The command that runs a seed again, but for the seed."""
    words = ["agentos", "simulate"]
    if graph is not None:
        words += ["--graph", graph]
    if faults is not None:
        words += ["--faults", str(faults)]
    for name in ("gateways", "regions", "proxies", "tasks"):
        if getattr(shape, name) != getattr(Shape(), name):
            words += [f"--{name}", str(getattr(shape, name))]
    return shlex.join([*words, "--seed"])


def _document(report: Report, replay: str) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "seeds": report.seeds,
        "steps": report.steps,
        "virtual_s": round(report.virtual_s, 3),
        "wall_s": round(report.wall_s, 3),
        "faults": {name: report.reached.get(name, 0) for name in FAULTS},
        "states": {name: report.reached.get(name, 0) for name in STATES},
        "never_reached": report.missing,
        "failures": [
            {"seed": f.seed, "rule": f.rule, "text": f.text, "replay": f"{replay} {f.seed} --trace"}
            for f in report.failures
        ],
    }


def _print(report: Report, replay: str) -> None:
    if report.seeds > 1:
        reached = report.reached
        output.table(
            ["fault", "times", "meaning"],
            [(name, reached.get(name, 0), text) for name, text in FAULTS.items()],
        )
        output.line("")
        output.table(
            ["state", "times", "meaning"],
            [(name, reached.get(name, 0), text) for name, text in STATES.items()],
        )
        output.line("")
    speed = report.seeds / max(report.wall_s, 1e-9)
    output.line(
        f"{output.count(report.seeds, 'seed')}, {report.steps} steps, "
        f"{report.virtual_s / 3600:.2f} virtual hours in {report.wall_s:.1f} s "
        f"({speed:.1f} seeds/s): {output.count(len(report.failures), 'violation')}"
    )
    if report.judges_coverage and report.missing:
        output.line(f"error: never reached: {', '.join(report.missing)}", to_stderr=True)
    if report.failures:
        _explain(report, replay)


def _explain(report: Report, replay: str) -> None:
    """Every violation, and a short transcript of the first."""
    for failure in report.failures:
        output.line(f"error: seed {failure.seed}: {failure.text}", to_stderr=True)
        output.line(f"  replay: {replay} {failure.seed} --trace", to_stderr=True)
    first = min(report.failures, key=lambda failure: failure.virtual_s)
    shrunk = shrink(first, report.settings)
    output.line(
        f"\nseed {first.seed}, shrunk to {output.count(len(shrunk.jobs), 'task')} and "
        f"{output.count(len(shrunk.faults), 'fault')} in {shrunk.runs} runs:"
    )
    for fault in shrunk.faults:
        output.line(f"  {fault.at:9.4f}  {fault}")
    if len(shrunk.lines) > SHOWN:
        output.line(f"  … {len(shrunk.lines) - SHOWN} lines before")
    for line in shrunk.lines[-SHOWN:]:
        output.line(f"  {line}")
