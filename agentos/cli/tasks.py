"""The commands of a client: submit, status, result, watch, cancel, list, check."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from agentos.blocking import Client, Task
from agentos.cli import output
from agentos.cli.options import ConfigFile, Json, LogLevel, TaskId, Url, configuration, connect
from agentos.cli.progress import TaskView, follow
from agentos.core import messages as m
from agentos.core.errors import ConfigError, GraphError
from agentos.core.graph import Graph, parse_graph
from agentos.core.limits import Limits

PAGE = 1_000

GraphFile = Annotated[str, typer.Argument(metavar="FILE|-", help="The task graph, as JSON.")]


def submit(
    file: GraphFile,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show its progress, then its result.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(help="Makes it idempotent: the same user and key name the same task."),
    ] = None,
    user: Annotated[int, typer.Option(min=0, help="Whose task it is.")] = 0,
    type_: Annotated[str, typer.Option("--type", help="A label of yours.")] = "graph",
    require_agents: Annotated[
        bool, typer.Option("--require-agents", help="Refuse it if nobody offers its agents.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
    log_level: LogLevel = "warning",
) -> int:
    """Hand a task in, and print its number. When this returns, the task survives any crash."""
    text = read_text(file)
    graph = _parsed(text)
    with connect(url, log_level) as client:
        task = client.submit(
            text, user_id=user, task_type=type_, key=key, require_agents=require_agents
        )
        if wait:
            return _wait(task, graph, as_json=as_json)
        if as_json:
            output.document({"task_id": task.task_id})
        else:
            output.line(str(task.task_id))
            output.hint(f"follow it with: agentos watch {task.task_id}")
    return 0


def _wait(task: Task, graph: Graph | None, *, as_json: bool) -> int:
    output.hint(f"task {task.task_id} is accepted")
    try:
        follow(task.watch(), TaskView(graph), as_json=as_json, one_document=True)
        return _print_end(task.wait(timeout_s=10.0), as_json=as_json)
    except KeyboardInterrupt:
        output.line(
            f"task {task.task_id} goes on; follow it with: agentos watch {task.task_id}",
            to_stderr=True,
        )
        return 130


def status(
    task_id: Annotated[
        int | None, typer.Argument(min=1, help="A task's number; without it, the cluster.")
    ] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Show the cluster: regions, proxies, counters.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
    log_level: LogLevel = "warning",
) -> None:
    """Show a task, or the cluster."""
    with connect(url, log_level) as client:
        if cluster or task_id is None:
            _print_cluster(client.cluster(), as_json=as_json)
            return
        task = client.task(task_id).status()
    if as_json:
        output.document(output.task_document(task))
        return
    shown = {
        "task": task.task_id,
        "state": task.state,
        "type": task.task_type,
        "user": task.user_id,
        "key": task.key or "",
        "region": task.region,
        "owner": task.owner,
        "epoch": f"{task.epoch.global_epoch}.{task.epoch.regional_epoch}",
        "attempts": task.attempts,
        "agents": ", ".join(task.agents),
        "accepted": output.moment(task.created_at),
        "changed": output.moment(task.updated_at),
        "error": task.error,
    }
    for name, value in shown.items():
        if value != "":
            output.line(f"{name:<9} {value}")


def _print_cluster(info: m.ClusterInfo, *, as_json: bool) -> None:
    if as_json:
        output.document(info)
        return
    output.line(f"{info.gateway}: {info.unfinished} unfinished tasks, {info.backlog} wait")
    rows: list[tuple[object, ...]] = []
    for region in info.regions:
        state = "alive" if region.alive else f"silent for {region.silent_s:.1f} s"
        rows.append((region.address, state, region.tasks, "", ""))
        rows += [
            (p.address, "alive" if p.alive else "silent", p.tasks, p.calls, " ".join(p.agents))
            for p in region.proxies
        ]
    output.table(("role", "state", "tasks", "calls", "agents"), rows)
    if info.counters:
        output.table(("event", "count"), sorted(info.counters.items()))


def result(
    task_id: TaskId,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to wait for the end; for ever if not given."),
    ] = None,
    url: Url = None,
    as_json: Json = False,
    log_level: LogLevel = "warning",
) -> int:
    """Wait for a task's end, and print its output (with --json: the response document)."""
    with connect(url, log_level) as client:
        task = client.task(task_id)
        task.status()  # there is such a task: say so now, not after the timeout
        return _print_end(task.wait(timeout), as_json=as_json)


def _print_end(ended: m.Ended, *, as_json: bool) -> int:
    """Print how a task ended; returns the exit code."""
    response = json.loads(ended.response) if ended.response else {}
    response = {"task_id": ended.task_id, "state": ended.state} | response
    if as_json:
        output.document(response)
    elif ended.state == "succeeded":
        output.line(output.value(response.get("output")))
    if ended.state == "succeeded":
        return 0
    reason = ended.error or ended.state
    output.line(f"error: task {ended.task_id} {ended.state}: {reason}", to_stderr=True)
    return 1


def watch(
    task_id: TaskId, url: Url = None, as_json: Json = False, log_level: LogLevel = "warning"
) -> int:
    """Show a task's events until it ends (with --json: one JSON document a line)."""
    with connect(url, log_level) as client:
        task = client.task(task_id)
        task.status()
        ended = follow(task.watch(), TaskView(), as_json=as_json)
    return 0 if ended is not None and ended.state == "succeeded" else 1


def cancel(
    task_id: TaskId, url: Url = None, as_json: Json = False, log_level: LogLevel = "warning"
) -> int:
    """End a task now, and abort its calls. A task that has ended stays as it is."""
    with connect(url, log_level) as client:
        state = client.task(task_id).cancel()
    if as_json:
        output.document({"task_id": task_id, "state": state})
    else:
        output.line(f"task {task_id}: {state}")
    return 0


def list_(
    state: Annotated[
        m.State | None, typer.Option(help="Only tasks in this state.", show_default=False)
    ] = None,
    user: Annotated[int | None, typer.Option(min=0, help="Only this user's tasks.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 100,
    url: Url = None,
    as_json: Json = False,
    log_level: LogLevel = "warning",
) -> None:
    """List tasks, the newest first."""
    with connect(url, log_level) as client:
        tasks = list(islice(_pages(client, state, user, limit), limit))
    if as_json:
        output.document([output.task_document(task) for task in tasks])
        return
    columns = ("task", "state", "type", "user", "owner", "attempts", "accepted")
    output.table(
        columns,
        (
            (
                task.task_id,
                task.state,
                task.task_type,
                task.user_id,
                task.owner or task.region,
                task.attempts,
                output.moment(task.created_at),
            )
            for task in tasks
        ),
    )


def _pages(
    client: Client, state: m.State | None, user: int | None, limit: int
) -> Iterator[m.TaskInfo]:
    """Every task that fits, page by page."""
    before = 0
    while page := client.list(state=state, user_id=user, before=before, limit=min(limit, PAGE)):
        yield from page
        before = page[-1].task_id
        if len(page) < min(limit, PAGE):
            return


def check(
    file: GraphFile,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Check a task graph without running it; show its layers and the agents that it needs."""
    graph = parse_graph(read_text(file), configuration(config, keys=False).limits)
    shown: dict[str, Any] = {
        "nodes": len(graph.nodes),
        "layers": graph.layers(),
        "agents": list(graph.agents),
        "output": graph.output or list(graph.sinks),
    }
    if as_json:
        output.document(shown)
        return
    rows = []
    for number, layer in enumerate(shown["layers"], 1):
        for name in layer:
            node = graph.nodes[name]
            votes = f"{node.voters} by {node.voter}" if node.voters else ""
            needs = " ".join(node.dependencies)
            rows.append((number, name, node.agent, node.rounds, node.samples, votes, needs))
    output.table(("layer", "node", "agent", "rounds", "samples", "votes", "needs"), rows)
    sinks = " ".join(graph.sinks if graph.output is None else [graph.output])
    layers = len(shown["layers"])
    output.line(
        f"{file}: {shown['nodes']} nodes in {layers} layers, "
        f"agents: {' '.join(graph.agents)}, output: {sinks}"
    )


def read_text(file: str) -> str:
    """The text of a file, or of standard input for `-`.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 text ({error})") from error


def _parsed(text: str) -> Graph | None:
    """The graph, for showing its nodes. Whether it can be run is for the cluster's limits to say."""
    try:
        return parse_graph(text, Limits())
    except GraphError:
        return None
