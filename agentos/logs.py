"""Logs: structlog to standard error, as lines for people, or as JSON for programs.

Tracebacks are plain: structlog's rich ones show the values of local variables, and those hold
prompts and results.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Literal, TextIO, get_args

from agentos.core.errors import ConfigError

Level = Literal["debug", "info", "warning", "error"]


def import_without_rich() -> None:
    """Import structlog as where rich is not installed, if neither has been imported yet.

    For processes of our own. structlog imports rich for tracebacks that we do not use, which takes
    longer than all else that a role imports; whoever draws tables imports it later.
    """
    if sys.modules.keys() & {"structlog", "rich"}:
        return
    modules: dict[str, Any] = sys.modules
    modules["rich"] = None
    try:
        import_module("structlog")
    finally:
        del modules["rich"]


def quiet_unless_configured() -> None:
    """Warnings and errors only, to standard error, unless the application has set structlog up.

    Called where a library user enters (a host, a client): structlog's own default would print
    every line to standard output.
    """
    import structlog

    if not structlog.is_configured():
        configure("warning")


class _Unbreakable:
    """A stream whose reader may go away: a log line that nobody can read must not stop a role."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return 0

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return


def configure(level: str, stream: TextIO | None = None, *, as_json: bool = False) -> None:
    """Set logging up for this process.

    Args:
        level: the least that is logged: debug, info, warning or error.
        stream: where to; standard error unless given.
        as_json: whether each line is a JSON document; else it is `key=value` text, with colours
            on a terminal.

    Raises:
        ConfigError: there is no such level.
    """
    if level not in get_args(Level):
        raise ConfigError(f"{level!r} is no log level: use {', '.join(get_args(Level))}")
    import structlog

    stream = stream or sys.stderr
    terminal = stream.isatty()
    renderers: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(
                colors=terminal, exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    for_people = terminal and not as_json
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(
                fmt="%H:%M:%S" if for_people else "iso", utc=not for_people
            ),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=_Unbreakable(stream)),  # type: ignore[arg-type]
    )
