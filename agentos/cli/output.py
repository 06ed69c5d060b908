"""What the commands print: JSON, plain lines in a pipe, tables and colour on a terminal.

What a model wrote is shown as text: neither markup nor control sequences in it reach the terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from agentos.core import messages as m

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def plain(text: object) -> str:
    """Text without control characters but for line feeds and tabs."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text))


def line(text: str, *, to_stderr: bool = False) -> None:
    """Print a line at once: into a pipe exactly as it is, else without control characters."""
    stream = sys.stderr if to_stderr else sys.stdout
    exact = not to_stderr and not on_terminal()
    stream.write((text if exact else plain(text)) + "\n")
    stream.flush()


def hint(text: str) -> None:
    """Print what a person may do next: to a terminal only."""
    if on_terminal():
        line(text, to_stderr=True)


def document(value: object) -> None:
    """Print one JSON document: indented on a terminal, on one line in a pipe."""
    indent = 2 if on_terminal() else None
    sys.stdout.write(json.dumps(msgspec.to_builtins(value), indent=indent) + "\n")
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: with rules on a terminal, in aligned columns that are never cut in a pipe."""
    cells = [[plain(cell) for cell in row] for row in rows]
    if on_terminal():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        shown = Table(*columns, box=box.SIMPLE)
        for row in cells:
            shown.add_row(*map(Text, row))
        Console().print(shown)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in ([*columns], *cells):
        text = "  ".join(
            cell.replace("\n", " ").ljust(width) for cell, width in zip(row, widths, strict=True)
        )
        sys.stdout.write(text.rstrip() + "\n")
    sys.stdout.flush()


def task_document(task: m.TaskInfo) -> dict[str, Any]:
    """A task's row with its response as JSON, not as text."""
    found: dict[str, Any] = msgspec.to_builtins(task)
    if task.response is not None:
        found["response"] = json.loads(task.response)
    return found


def count(number: int, what: str) -> str:
    """A number of things in words: `1 proxy`, `2 proxies`, `2 gateways`."""
    ies = what.endswith("y") and what[-2] not in "aeiou"
    plural = what[:-1] + "ies" if ies else what + "s"
    return f"{number} {what if number == 1 else plural}"


def moment(seconds: float) -> str:
    """A time for people: UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def value(found: Any) -> str:
    """A task's output for people: text as it is, anything else as JSON."""
    return found if isinstance(found, str) else json.dumps(found, indent=2, ensure_ascii=False)


def summary(response: dict[str, Any], wall_s: float | None = None) -> None:
    """Print what a task cost."""
    usage = response.get("usage", {})
    row: list[object] = [
        response.get("task_id", ""),
        response.get("state", ""),
        *(
            usage.get(name, 0)
            for name in ("calls", "retries", "prompt_tokens", "completion_tokens")
        ),
    ]
    columns = ["task", "state", "calls", "retries", "prompt tokens", "completion tokens"]
    if wall_s is not None:
        columns.insert(2, "wall time")
        row.insert(2, f"{wall_s:.2f} s")
    table(columns, [row])
