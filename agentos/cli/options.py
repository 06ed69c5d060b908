"""Options that several commands have in common, and what they lead to."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from agentos import logs
from agentos.config import Config, load
from agentos.core.limits import MAX_INT
from agentos.datadir import living_cluster
from agentos.topology import from_here

if TYPE_CHECKING:
    from agentos.blocking import Client

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="AGENTOS_URL",
        metavar="URL[,URL]",
        help="The gateways to talk to, tried in order. Default: those of the `agentos up` whose "
        "data folder is here, else where agentos.toml has the gateway listen, else "
        "tcp://127.0.0.1:7170.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")
]
LogLevel = Annotated[
    logs.Level, typer.Option("--log-level", help="The least that is logged, to standard error.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration. Default: what AGENTOS_CONFIG names, or ./agentos.toml.",
    ),
]


def number(low: int) -> Callable[[str], int]:
    """A parser of an option: a number from `low` up to what a database can hold."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= MAX_INT:
            raise typer.BadParameter(f"{text} is not a number from {low} to {MAX_INT}")
        return value

    return integer


def text_up_to(most: int) -> Callable[[str | None], str | None]:
    """A check of an option: a text that is not empty, of `most` characters or less."""

    def check(value: str | None) -> str | None:
        if value is not None and not 1 <= len(value) <= most:
            raise typer.BadParameter(f"it must have 1 to {most} characters, not {len(value)}")
        return value

    return check


TaskId = Annotated[
    int, typer.Argument(help="The number that `agentos submit` printed.", parser=number(1))
]


def urls(text: str) -> tuple[str, ...]:
    """The URLs in a list separated by commas.

    Raises:
        BadParameter: there are none.
    """
    found = tuple(url.strip() for url in text.split(",") if url.strip())
    if not found:
        raise typer.BadParameter("at least one URL is needed")
    return found


def connect(url: str | None, log_level: str = "error", timeout_s: float = 10.0) -> Client:
    """A client of the cluster that the options name.

    Raises:
        ClusterUnreachable: no gateway answers.
    """
    from agentos.blocking import Client

    logs.configure(log_level)
    return Client(gateways(url), timeout_s=timeout_s)


def gateways(url: str | None) -> tuple[str, ...] | None:
    """The URLs that `--url` names, else those of this folder's cluster; None for the default.

    Raises:
        ConfigError: `--url` names none, and what is configured here cannot be read.
    """
    return urls(url) if url else _of_this_folder()


def _of_this_folder() -> tuple[str, ...] | None:
    """All gateways of the cluster whose data folder is here, or where one is to listen."""
    cluster = configuration(None, keys=False).cluster
    record = living_cluster(cluster.data)
    if record is not None:
        return record.urls
    any_port = cluster.listen.endswith(":*")
    return None if any_port else (from_here(cluster.listen),)


def configuration(file: Path | None, *, keys: bool = True) -> Config:
    """The configuration that `--config` and the environment name.

    Raises:
        ConfigError: what is wrong with it.
    """
    return load(file, os.environ, keys=keys)


def interrupt_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the program as Ctrl-C does, and only the first of them all.

    What a `with` block has to clean up is cleaned up, and not interrupted in it.
    """

    def interrupt(number: int, _frame: object) -> NoReturn:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` means it
            signal.signal(number, interrupt)


class Interrupted(BaseException):
    """A signal ended the command. `number`: which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
