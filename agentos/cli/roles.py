"""The commands of an operator: up, gateway, store, region, proxy, restart, cleanup."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from agentos import logs
from agentos.cli import output
from agentos.cli.options import ConfigFile, Json, LogLevel, configuration, urls
from agentos.config import Config
from agentos.core.errors import ConfigError
from agentos.datadir import ClusterRecord
from agentos.datadir import cleanup as end_leftovers
from agentos.datadir import restart as rolling_restart
from agentos.role import Ready, RoleSpec
from agentos.topology import database_in

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DIR", help="The folder of the database. Default: agentos-data."
    ),
]
Listen = Annotated[str, typer.Option("--listen", metavar="URL", help="Where to listen.")]
Grace = Annotated[
    float | None,
    typer.Option(
        "--grace",
        metavar="SECONDS",
        help="How long an orderly stop waits for calls in flight.",
        show_default="limits.stop_grace_s: 5",
    ),
]
ROLLING = ("region/*", "proxy/*")
BACK_S = 60.0
"""How long one role may take from being asked to stop to being ready again."""


def up(
    regions: Annotated[
        int | None, typer.Option(min=1, max=1000, help="How many regions.", show_default="1")
    ] = None,
    proxies: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Proxies in each region.", show_default="2"),
    ] = None,
    gateways: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="How many gateways. Several share a store, which is a process of its own.",
            show_default="1",
        ),
    ] = None,
    store: Annotated[
        bool | None,
        typer.Option("--store", help="A store of its own below a single gateway too."),
    ] = None,
    data: DataOption = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="URL",
            help="Where the gateway listens; further ones take the next free ports.",
            show_default="tcp://127.0.0.1:7170",
        ),
    ] = None,
    max_restarts: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Deaths of one role within a minute that are repaired; one more stops the cluster.",
            show_default="5",
        ),
    ] = None,
    grace: Grace = None,
    config: ConfigFile = None,
    as_json: Json = False,
    log_level: LogLevel = "warning",
) -> int:
    """Run a whole cluster on this machine, a process for each role, until Ctrl-C or SIGTERM.

    Prints a line with the address when it is ready, and writes DIR/cluster.json. A role that dies
    is started again. Both Ctrl-C and SIGTERM stop everything in order (exit code 0); a second one
    does not wait.
    """
    from agentos.supervisor import Supervisor

    logs.configure(log_level, as_json=as_json)
    found = configuration(config).with_grace(grace)
    found = found.with_cluster(
        regions=regions,
        proxies=proxies,
        gateways=gateways,
        store=store,
        data=data,
        listen=listen,
        max_restarts=max_restarts,
    )

    def ready(record: ClusterRecord) -> None:
        if as_json:
            output.document(record)
        else:
            output.line(_announcement(found, record))

    asyncio.run(Supervisor(found, log_level=log_level, log_json=as_json, on_ready=ready).run())
    return 0


def _announcement(config: Config, record: ClusterRecord) -> str:
    cluster = config.cluster
    numbers = {
        "gateway": cluster.gateways,
        "region": len(cluster.region_names),
        "proxy": len(cluster.proxy_names),
    }
    roles = ", ".join(output.count(number, role) for role, number in numbers.items())
    apart = "a store, " if cluster.store_apart else ""
    return (
        f"agentos is ready at {','.join(record.urls)} ({apart}{roles}; "
        f"agents: {', '.join(config.agents)}; data in {cluster.data})"
    )


def gateway(
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="URL",
            help="Where to listen.",
            show_default="tcp://127.0.0.1:7170",
        ),
    ] = None,
    data: DataOption = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL[,URL]", help="A store elsewhere, instead of a database in DIR."),
    ] = None,
    name: Annotated[str, typer.Option(help="Its name among several gateways.")] = "main",
    grace: Grace = None,
    config: ConfigFile = None,
    as_json: Json = False,
    log_level: LogLevel = "info",
) -> None:
    """Run a gateway, with the store in it or below one elsewhere."""
    found = configuration(config, keys=False).with_grace(grace)
    found = found.with_cluster(data=data, listen=listen)
    spec = RoleSpec(
        role=f"gateway/{name}",
        listen=found.cluster.listen,
        parents=urls(store) if store else (),
        database="" if store else _database(found),
        data="" if store else found.cluster.data,
        limits=found.limits,
        log_level=log_level,
    )
    _run(spec, as_json=as_json)


def store(
    listen: Listen = "tcp://127.0.0.1:7171",
    data: DataOption = None,
    grace: Grace = None,
    config: ConfigFile = None,
    as_json: Json = False,
    log_level: LogLevel = "info",
) -> None:
    """Run a store of its own, for several gateways on one database."""
    found = configuration(config, keys=False).with_grace(grace).with_cluster(data=data)
    spec = RoleSpec(
        role="store",
        listen=listen,
        database=_database(found),
        data=found.cluster.data,
        limits=found.limits,
        log_level=log_level,
    )
    _run(spec, as_json=as_json)


def region(
    name: Annotated[str, typer.Argument(help="Its name, like `eu`.")],
    gateway: Annotated[
        str, typer.Option(metavar="URL[,URL]", help="The gateways above it, tried in order.")
    ] = "tcp://127.0.0.1:7170",
    listen: Listen = "tcp://127.0.0.1:*",
    grace: Grace = None,
    config: ConfigFile = None,
    as_json: Json = False,
    log_level: LogLevel = "info",
) -> None:
    """Run a region. It waits for its gateway if that is not there yet."""
    found = configuration(config, keys=False).with_grace(grace)
    spec = RoleSpec(
        role=f"region/{_named(name, 'NAME', 1)}",
        listen=listen,
        parents=urls(gateway),
        limits=found.limits,
        log_level=log_level,
    )
    _run(spec, as_json=as_json)


def proxy(
    name: Annotated[
        str, typer.Argument(metavar="REGION/NAME", help="Its region and name, like `eu/1`.")
    ],
    region_url: Annotated[
        str, typer.Option("--region-url", metavar="URL[,URL]", help="Where its region listens.")
    ],
    gateway: Annotated[
        str,
        typer.Option(
            "--gateway",
            metavar="URL[,URL]",
            help="Where its region's gateways listen, if it can reach them: results are saved faster.",
        ),
    ] = "",
    grace: Grace = None,
    config: ConfigFile = None,
    as_json: Json = False,
    log_level: LogLevel = "info",
) -> None:
    """Run an agent proxy with the agents that the configuration gives it."""
    found = configuration(config).with_grace(grace)
    spec = RoleSpec(
        role=f"proxy/{_named(name, 'REGION/NAME', 2)}",
        parents=urls(region_url),
        shortcuts=urls(gateway) if gateway else (),
        agents=found.offered_by(name),
        limits=found.limits,
        log_level=log_level,
    )
    _run(spec, as_json=as_json)


def cleanup(
    data: DataOption = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """End what a crash left behind: the processes in DIR/cluster.json that are still ours."""
    folder = _data(data, config)
    if not Path(folder).is_dir():
        raise ConfigError(f"there is no folder {folder}")
    fates = end_leftovers(folder)
    if as_json:
        output.document(fates)
    elif not fates:
        output.line(f"{folder}: nothing was left behind")
    for name, fate in {} if as_json else fates.items():
        output.line(f"{name}: {'had ended already' if fate == 'gone' else fate}")


def restart(
    roles: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ROLE",
            help="Roles by name, or patterns like 'proxy/eu/*'. Default: all regions and proxies.",
        ),
    ] = None,
    data: DataOption = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that one role may take to come back.")
    ] = BACK_S,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Restart roles of a running `agentos up`, one after the other; each is awaited.

    A role hands its tasks back before it stops, so that nothing is lost, and nothing that was
    saved is repeated.
    """
    found = {}
    for what, process in rolling_restart(_data(data, config), roles or ROLLING, timeout):
        if what == "back":
            found[process.name] = process.pid
        if not as_json:
            said = "stops" if what == "stops" else f"is back: process {process.pid}"
            output.line(f"{process.name} {said}")
    if as_json:
        output.document(found)


def _run(spec: RoleSpec, *, as_json: bool) -> None:
    from agentos.role import run as run_role

    logs.configure(spec.log_level, as_json=as_json)
    # `agentos` is a script in a folder of its own; agents are looked for where one works.
    sys.path.insert(0, str(Path.cwd()))

    def ready(found: Ready) -> None:
        if as_json:
            output.document(found)
        else:
            output.line(f"{found.role} is ready" + (f" at {found.url}" if found.url else ""))

    run_role(spec, ready)


def _data(given: str | None, file: Path | None) -> str:
    """The data folder that `--data`, the environment or the configuration names."""
    return configuration(file, keys=False).with_cluster(data=given).cluster.data


def _database(config: Config) -> str:
    return config.cluster.database or database_in(config.cluster.data)


def _named(name: str, metavar: str, parts: int) -> str:
    pieces = name.split("/")
    if len(pieces) != parts or not all(pieces):
        raise typer.BadParameter(f"{name!r} is no {metavar}")
    return name
