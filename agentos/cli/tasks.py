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
from agentos.cli.options import (
    ConfigFile,
    Json,
    LogLevel,
    TaskId,
    Url,
    configuration,
    connect,
    number,
    text_up_to,
)
from agentos.cli.progress import TaskView, follow, sentence
from agentos.config import Config
from agentos.core import messages as m
from agentos.core.errors import (
    ClusterUnreachable,
    ConfigError,
    GraphError,
    Overloaded,
    ResultTimeout,
)
from agentos.core.fields import hint
from agentos.core.graph import Graph, parse_graph
from agentos.core.jsontext import join
from agentos.core.limits import Limits
from agentos.schemas import check_schema

PAGE = 1_000

GraphFile = Annotated[str, typer.Argument(metavar="FILE|-", help="The task graph, as JSON.")]


def submit(
    file: GraphFile,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show its progress, then its result.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(
            help="Makes it idempotent: the same user and key name the same task.",
            callback=text_up_to(200),
        ),
    ] = None,
    user: Annotated[int, typer.Option(help="Whose task it is.", parser=number(0))] = 0,
    type_: Annotated[
        str, typer.Option("--type", help="A label of yours.", callback=text_up_to(64))
    ] = "graph",
    require_agents: Annotated[
        bool, typer.Option("--require-agents", help="Refuse it if nobody offers its agents.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
    log_level: LogLevel = "error",
) -> int:
    """Hand a task in, and print its number. When this returns, the task survives any crash."""
    text = read_text(file)
    graph = _parsed(text)
    if graph is not None:
        _check_schemas(graph)
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
    try:
        if not as_json:
            output.line(f"task {task.task_id} is accepted")
        follow(task.watch(), TaskView(graph), as_json=as_json, one_document=True)
        return _print_end(task.wait(timeout_s=10.0), as_json=as_json)
    except KeyboardInterrupt:
        _say_it_goes_on(task)
        return 130
    except (ClusterUnreachable, Overloaded, ResultTimeout):
        _say_it_goes_on(task)
        raise


def _say_it_goes_on(task: Task) -> None:
    how = f"follow it with: agentos watch {task.task_id}"
    output.line(f"task {task.task_id} goes on; {how}", to_stderr=True)


def status(
    task_id: Annotated[
        int | None,
        typer.Argument(help="A task's number; without it, the cluster.", parser=number(1)),
    ] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Show the cluster: regions, proxies, counters.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
    log_level: LogLevel = "error",
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
        for p in region.proxies:
            known = "alive" if p.alive else "silent"
            state = known if region.alive else "unknown"
            rows.append((p.address, state, p.tasks, p.calls, " ".join(p.agents)))
    output.table(("role", "state", "tasks", "calls", "agents"), rows)
    counted = [(info.gateway, info.counters), *((r.address, r.counters) for r in info.regions)]
    events = [(role, *event) for role, counters in counted for event in sorted(counters.items())]
    if events:
        output.table(("role", "event", "count"), events)


def result(
    task_id: TaskId,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to wait for the end; for ever if not given."),
    ] = None,
    url: Url = None,
    as_json: Json = False,
    log_level: LogLevel = "error",
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
    return _exit_code(ended)


def _exit_code(ended: m.Ended | None) -> int:
    """The exit code for how a task ended; says what went wrong."""
    if ended is None or ended.state == "succeeded":
        return int(ended is None)
    output.line(f"error: {sentence(ended)}", to_stderr=True)
    return 1


def watch(
    task_id: TaskId, url: Url = None, as_json: Json = False, log_level: LogLevel = "error"
) -> int:
    """Show a task's events until it ends (with --json: one JSON document a line)."""
    with connect(url, log_level) as client:
        task = client.task(task_id)
        task.status()
        ended = follow(task.watch(), TaskView(), as_json=as_json)
    return _exit_code(ended)


def cancel(
    task_id: TaskId, url: Url = None, as_json: Json = False, log_level: LogLevel = "error"
) -> int:
    """End a task now, and abort its calls. A task that has ended stays as it is."""
    with connect(url, log_level) as client:
        state = client.task(task_id).cancel()
    if as_json:
        output.document({"task_id": task_id, "state": state})
    elif state == "cancelled":
        output.line(f"task {task_id} is cancelled")
    else:
        output.line(f"task {task_id} had already ended: {state}")
    return 0


def list_(
    state: Annotated[
        m.State | None, typer.Option(help="Only tasks in this state.", show_default=False)
    ] = None,
    user: Annotated[
        int | None, typer.Option(help="Only this user's tasks.", parser=number(0))
    ] = None,
    limit: Annotated[
        int, typer.Option(help="At most so many, the newest.", parser=number(1))
    ] = 100,
    url: Url = None,
    as_json: Json = False,
    log_level: LogLevel = "error",
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
    found = configuration(config, keys=False)
    graph = parse_graph(read_text(file), found.limits)
    _check_schemas(graph)
    if as_json:
        document: dict[str, Any] = {
            "nodes": len(graph.nodes),
            "layers": graph.layers(),
            "agents": list(graph.agents),
            "output": graph.output or list(graph.sinks),
        }
        output.document(document)
    else:
        _print_graph(_called(file), graph)
    if found.source:  # what a cluster elsewhere offers is not known
        _warn_of_missing_agents(graph, found)


def _check_schemas(graph: Graph) -> None:
    """Refuse what is no JSON Schema now, not when a node's first answer has been paid for."""
    for node in graph.nodes.values():
        if node.schema is None:
            continue
        try:
            check_schema(node.schema)
        except GraphError as error:
            where = join(join("nodes", node.name), "schema")
            raise GraphError(where + error.where.removeprefix("$"), error.reason) from None


def _warn_of_missing_agents(graph: Graph, config: Config) -> None:
    proxies = config.cluster.proxy_names
    offered = sorted({name for proxy in proxies for name in config.offered_by(proxy)})
    for name in graph.agents:
        if name not in offered:
            known = hint(name, offered) or f"; it offers {', '.join(offered) or 'none'}"
            text = f"warning: {config.source} offers no agent named {name!r}{known}"
            output.line(text, to_stderr=True)


def _print_graph(title: str, graph: Graph) -> None:
    layers = graph.layers()
    rows = []
    for layer, names in enumerate(layers, 1):
        for name in names:
            node = graph.nodes[name]
            votes = f"{node.voters} by {node.voter}" if node.voters else ""
            needs = " ".join(node.dependencies)
            rows.append((layer, name, node.agent, node.rounds, node.samples, votes, needs))
    output.table(("layer", "node", "agent", "rounds", "samples", "votes", "needs"), rows)
    sinks = " ".join(graph.sinks if graph.output is None else [graph.output])
    size = f"{output.count(len(graph.nodes), 'node')} in {output.count(len(layers), 'layer')}"
    output.line(f"{title}: {size}, agents: {' '.join(graph.agents)}, output: {sinks}")


def read_text(file: str) -> str:
    """The text of a graph's file, or of standard input for `-`.

    Raises:
        ConfigError: it cannot be read.
    """
    what = f"cannot read the graph {_called(file)}"
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except OSError as error:
        raise ConfigError(f"{what}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what}: it is not UTF-8 text ({error})") from error


def _called(file: str) -> str:
    return "standard input" if file == "-" else file


def _parsed(text: str) -> Graph | None:
    """The graph, for showing its nodes. Whether it can be run is for the cluster's limits to say."""
    try:
        return parse_graph(text, Limits())
    except GraphError:
        return None
