"""`agentos demo`: a whole cluster in this process, a real model, and a task that one can watch."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import agentos
from agentos import logs
from agentos.agents.local_model import LocalModelServer
from agentos.cli import output
from agentos.cli.article import ARTICLE
from agentos.cli.options import ConfigFile, Json, LogLevel, configuration, interrupt_on_signals
from agentos.cli.progress import TaskView, follow
from agentos.cli.tasks import read_text
from agentos.cluster import Cluster
from agentos.config import Config, LocalConfig, make_agents, needs_local_model
from agentos.core import messages as m
from agentos.core.errors import ConfigError
from agentos.core.graph import parse_graph

REGIONS, PROXIES = 2, 2
AGENT = "writer"
END_S = 10.0


def demo(
    graph: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The task graph, instead of the article.")
    ] = None,
    config: ConfigFile = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the database, and say where.")] = False,
    as_json: Json = False,
    log_level: LogLevel = "warning",
) -> int:
    """Run a task on a cluster of 1 gateway, 2 regions and 4 proxies, and watch it.

    The agent `writer` is a small model on this machine, unless the configuration has one of that
    name: with `type = "openai"` and a model, the demo runs on OpenAI.
    """
    interrupt_on_signals()
    logs.configure(log_level, as_json=as_json)
    found = configuration(config).with_cluster(regions=REGIONS, proxies=PROXIES)
    agents = {AGENT: LocalConfig()} | dict(found.agents)
    text = read_text(str(graph)) if graph else _article()
    parsed = parse_graph(text, found.limits)
    if unknown := sorted(set(parsed.agents) - set(agents)):
        raise ConfigError(
            f"the graph calls {', '.join(map(repr, unknown))}, and the demo offers "
            f"{', '.join(map(repr, agents))}: name the missing agents in agentos.toml (--config)"
        )
    with contextlib.ExitStack() as stack:
        data = _folder(stack, keep=keep)
        local_url = ""
        wanted = {name: agents[name] for name in agents if name in parsed.agents}
        if needs_local_model(wanted.values()):
            _say("starting the local model …", as_json=as_json)
            local_url = stack.enter_context(LocalModelServer()).url
        _say("starting 1 gateway, 2 regions, 4 proxies …", as_json=as_json)
        cluster = stack.enter_context(_cluster(found, wanted, local_url, data))
        client = stack.enter_context(cluster.client())
        begun = time.monotonic()
        task = client.submit(text)
        follow(task.watch(), TaskView(parsed), as_json=as_json, one_document=True)
        ended = task.wait(timeout_s=END_S)
        wall_s = time.monotonic() - begun
    _print(ended, wall_s, as_json=as_json)
    if keep:
        _say(f"the database is {data}/agentos.db", as_json=as_json)
    return 0 if ended.state == "succeeded" else 1


def _cluster(found: Config, agents: Any, local_url: str, data: str) -> Cluster:
    config = Config(cluster=found.cluster, limits=found.limits, agents=agents)
    return Cluster(
        make_agents(agents, local_url),
        data=data,
        regions=REGIONS,
        proxies=PROXIES,
        listen="tcp://127.0.0.1:*",
        limits=found.limits,
        offers={name: list(config.offered_by(name)) for name in config.cluster.proxy_names},
    )


def _folder(stack: contextlib.ExitStack, *, keep: bool) -> str:
    if keep:
        return tempfile.mkdtemp(prefix="agentos-demo-")
    return stack.enter_context(tempfile.TemporaryDirectory(prefix="agentos-demo-"))


def _article() -> str:
    """The example's graph: the file in a checkout, the copy of it elsewhere."""
    file = Path(agentos.__file__).parents[1] / "examples" / "graphs" / "article.json"
    return file.read_text(encoding="utf-8") if file.is_file() else ARTICLE


def _say(text: str, *, as_json: bool) -> None:
    if not as_json:
        output.line(text)


def _print(ended: m.Ended, wall_s: float, *, as_json: bool) -> None:
    response = json.loads(ended.response) if ended.response else {}
    response = {"task_id": ended.task_id, "state": ended.state} | response
    if as_json:
        output.document(response | {"wall_s": round(wall_s, 3)})
        return
    if ended.state == "succeeded":
        output.line("")
        output.line(output.value(response.get("output")))
        output.line("")
    else:
        output.line(f"error: {ended.error or ended.state}", to_stderr=True)
    output.summary(response, wall_s)
