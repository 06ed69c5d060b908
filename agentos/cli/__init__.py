"""The `agentos` command.

Exit codes: 0 it went well; 1 the task failed or was cancelled, or the cluster could not be kept
running; 2 the command line, the configuration or the input is wrong; 3 no cluster answered, or
not in time, or its database failed; 130 Ctrl-C, 143 SIGTERM, 141 when nobody reads the output any
more (`up` and the roles stop in order and say 0). Errors are lines on standard error, `error: …`.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from agentos import logs
from agentos.cli import output
from agentos.cli.options import Interrupted, Json
from agentos.core import errors

DISTRIBUTION = "agentos-cluster"
FAILED, WRONG, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130
_DEBUG = "--debug"
_CLIENTS = "Use a cluster"

_COMMANDS: Mapping[str, Mapping[str, str]] = {
    "Run a cluster": {
        "up": "roles:up",
        "demo": "demo:demo",
        "gateway": "roles:gateway",
        "store": "roles:store",
        "region": "roles:region",
        "proxy": "roles:proxy",
        "restart": "roles:restart",
        "cleanup": "roles:cleanup",
    },
    _CLIENTS: {
        "submit": "tasks:submit",
        "status": "tasks:status",
        "result": "tasks:result",
        "watch": "tasks:watch",
        "cancel": "tasks:cancel",
        "list": "tasks:list_",
        "check": "tasks:check",
        "load": "load:load",
    },
    "This program": {"simulate": "simulate:simulate_", "version": "version"},
}
"""By panel of `agentos --help`: where each command is, in a module of this package or in this one."""

_EXIT_CODES: tuple[tuple[tuple[type[errors.AgentOSError], ...], int], ...] = (
    ((errors.ClusterUnreachable, errors.ResultTimeout, errors.Overloaded), UNREACHABLE),
    (
        (
            errors.AddressTaken,
            errors.AgentNotOffered,
            errors.ConfigError,
            errors.GraphError,
            errors.KeyConflict,
            errors.LocalProtocolError,
            errors.StorageError,
            errors.TaskNotFound,
        ),
        WRONG,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its arguments; the process's own if None.

    Returns:
        the exit code.
    """
    _open_streams()
    logs.import_without_rich()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = _DEBUG in arguments
    arguments = [argument for argument in arguments if argument != _DEBUG]
    try:
        command = typer.main.get_command(_app(arguments))
        code = command.main(arguments, prog_name="agentos", standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # Typer makes the one of the other
        return _quiet()
    except (KeyboardInterrupt, Interrupted, typer.Abort) as error:
        return _interrupted(error)
    except typer.TyperException as error:
        return _complain(error.format_message() or "see agentos --help", WRONG)
    except errors.AgentOSError as error:
        if debug:
            traceback.print_exc()
        return _complain(str(error), _exit_code(error, next(iter(arguments), "")))
    except Exception as error:
        if (interrupt := _interrupt_behind(error)) is not None:
            return _interrupted(interrupt)
        if debug:
            raise
        what = f"{type(error).__name__}: {error}"
        return _complain(f"{what} (agentos --debug shows where)", FAILED)
    return code if isinstance(code, int) else 0


def _open_streams() -> None:
    """A service may be started without standard streams; nothing else may take their places."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - for the process's life


def _interrupted(error: BaseException) -> int:
    return 128 + error.number if isinstance(error, Interrupted) else INTERRUPTED


def _interrupt_behind(error: BaseException) -> BaseException | None:
    """The Ctrl-C that an error came of, if one did.

    Where it strikes while `threading.Condition.wait` takes its lock back, the lock is released
    without being held, and that RuntimeError covers the interrupt.
    """
    before: BaseException | None = error
    while before is not None and not isinstance(before, KeyboardInterrupt | Interrupted):
        before = before.__context__
    return before


def _app(arguments: Sequence[str]) -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=(
            "Exit codes: 0 it went well; 1 the task failed or was cancelled, or the cluster could "
            "not be kept running; 2 bad usage, input or configuration; 3 no cluster answered, or "
            "not in time, or its database failed; 130 Ctrl-C, 143 SIGTERM, 141 nobody reads the "
            "output."
        ),
    )
    app.callback()(_about)
    # Only what was asked for is imported: the other commands take longer to load than to run.
    wanted = arguments[0] if arguments else ""
    known = any(wanted in commands for commands in _COMMANDS.values())
    for panel, commands in _COMMANDS.items():
        for name, place in commands.items():
            if name == wanted or not known:
                app.command(name, rich_help_panel=panel)(_command(place))
    return app


def _command(place: str) -> Callable[..., Any]:
    module, _, function = place.rpartition(":")
    home = import_module(f"{__name__}.{module}") if module else sys.modules[__name__]
    command: Callable[..., Any] = getattr(home, function)
    return command


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


def _about(
    _debug: Annotated[
        bool, typer.Option(_DEBUG, help="Show where an error comes from. May stand anywhere.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Like `version`."),
    ] = False,
) -> None:
    """Agent OS: durable coordination for clusters of AI agents."""


def version(as_json: Json = False) -> None:
    """Print the version."""
    from importlib.metadata import version as installed_version

    from agentos.build import is_compiled

    found, compiled = installed_version(DISTRIBUTION), is_compiled()
    if as_json:
        output.document({"name": DISTRIBUTION, "version": found, "compiled": compiled})
    else:
        output.line(f"{DISTRIBUTION} {found}{' (compiled)' if compiled else ''}")


def _exit_code(error: errors.AgentOSError, command: str) -> int:
    if isinstance(error, errors.StorageError) and command in _COMMANDS[_CLIENTS]:
        return UNREACHABLE  # a running cluster's database, which may be well again in a moment
    return next((code for kinds, code in _EXIT_CODES if isinstance(error, kinds)), FAILED)


def _complain(text: str, code: int) -> int:
    for line in text.splitlines() or [text]:
        output.line(f"error: {line}", to_stderr=True)
    return code


def _quiet() -> int:
    """Whoever read our output has enough (`| head`): end without a word, as programs in C do."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
