"""Child processes that leave nobody behind: not when they hang, nor when Ctrl-C is pressed."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

END_S = 30.0
SAID = 200
"""Characters of an error that are shown."""


class ChildFailed(Exception):
    """A child process has failed, or has not ended in time; the message says how."""


def tree(pid: int) -> list[psutil.Process]:
    """A process and all that it has started, and they, and so on; it first."""
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    return []


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kill -9 those that are left, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=END_S)


def end(process: subprocess.Popen[str]) -> None:
    """Ask a process to end, wait, and kill what is left of it and its children.

    Raises:
        ChildFailed: it had to be killed.
    """
    all_of_it = tree(process.pid)
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"it has not ended within {END_S:g} s, and was killed") from None
    finally:
        kill(all_of_it)


def output(
    command: Sequence[str],
    timeout_s: float | None = None,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """What a command prints; its children end with it.

    Raises:
        ChildFailed: it fails, or does not end within `timeout_s` seconds.
    """
    with (
        tempfile.TemporaryFile("w+") as errors,  # no pipe: what outlives it may keep that open
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env, cwd=folder
        ) as process,
    ):
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ChildFailed(f"it has not ended within {timeout_s:g} s") from None
        finally:
            if process.poll() is None:
                kill(tree(process.pid))
        if process.returncode:
            errors.seek(0)
            raise ChildFailed(last_line(errors.read()) or f"it ended with {process.returncode}")
    return said


def marked(variable: str, value: str) -> list[psutil.Process]:
    """The processes that have this in their environment: whom a child has left behind."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(variable) == value:
                found.append(process)
    return found


def last_line(text: str) -> str:
    """The last line that says something, cut if it is long: of a traceback, the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:SAID] if lines else ""
