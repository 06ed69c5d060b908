"""TOML tables into typed records, with every fault in its place.

`tomllib` tells values and no places, and `msgspec.convert` stops at the first fault: here all of
them are found, each with the file and the line of its key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agentos.core.errors import ConfigError
from agentos.core.fields import hint

_PART = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_KEY = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*\[\[?\s*({_KEY})\s*\]\]?\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(rf"\s*({_KEY})\s*=")


class Faults:
    """What is wrong with a configuration.

    Args:
        place: where a key like `cluster.proxies` stands: its file and line, or its option.
    """

    def __init__(self, place: Callable[[str], str]) -> None:
        self._place = place
        self._found: list[str] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, key: str, reason: str, place: str = "") -> None:
        """Note one; `place` if it is not where the key stands."""
        self._found.append(f"{place or self._place(key)}: {key}: {reason}")

    def done(self) -> None:
        """Raise `ConfigError` with everything that was noted, a line for each."""
        if self._found:
            raise ConfigError("\n".join(self._found))


def read_toml(file: Path) -> tuple[dict[str, Any], Callable[[str], str]]:
    """Read a TOML file.

    Returns:
        its tables, and a function that tells where a key stands, like `agentos.toml:12`.

    Raises:
        ConfigError: it cannot be read, or is not TOML; the message names the line.
    """
    import tomllib  # only where there is a file to read

    try:
        text = file.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 text ({error})") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: is not TOML: {error}") from error
    lines = TomlLines(text)

    def place(key: str) -> str:
        line = lines.of(key)
        return f"{file}:{line}" if line else str(file)

    return document, place


def read_fields(
    table: Mapping[str, Any], kind: type[msgspec.Struct], where: str, faults: Faults
) -> dict[str, Any]:
    """The members of a table that can be used, converted to the types of a record's fields.

    Args:
        table: what was given.
        kind: the record.
        where: the table's name.
        faults: takes what cannot be used: unknown keys, wrong types, what is missing.
    """
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    values = {}
    for name, value in table.items():
        key = f"{where}.{name}"
        if name not in fields:
            known = hint(name, fields) or f"; known are {', '.join(fields)}"
            faults.add(key, "unknown key" + known)
        elif isinstance(value, float) and not math.isfinite(value):
            faults.add(key, f"must be a number, not {value}")
        else:
            try:
                values[name] = msgspec.convert(value, fields[name].type)
            except msgspec.ValidationError as error:
                faults.add(key, in_words(error))
    for name, field in fields.items():
        if field.required and name not in table:
            faults.add(where, f"{name} is missing")
    return values


def in_words(error: msgspec.ValidationError) -> str:
    """What msgspec found, as part of a sentence."""
    text = str(error).replace(" - at `$", " at `")
    return text[:1].lower() + text[1:]


class TomlLines:
    """The lines of the keys of one text, for error messages.

    A key inside an inline table has the line of the table's own key.

    Args:
        text: TOML that `tomllib` has accepted.
    """

    def __init__(self, text: str) -> None:
        self._lines: dict[str, int] = {}
        table: tuple[str, ...] = ()
        quoted = ""
        for number, line in enumerate(text.splitlines(), 1):
            if not quoted:
                if header := _HEADER.match(line):
                    table = _parts(header[1])
                    self._note(table, number)
                elif key := _ASSIGNMENT.match(line):
                    self._note((*table, *_parts(key[1])), number)
            for mark in ('"""', "'''"):
                if quoted in {"", mark} and line.count(mark) % 2:
                    quoted = "" if quoted else mark
                    break

    def of(self, key: str) -> int:
        """The line of a dotted key, or of the nearest table around it; 0 if there is none."""
        while key:
            if key in self._lines:
                return self._lines[key]
            key = key.rpartition(".")[0]
        return 0

    def _note(self, parts: tuple[str, ...], number: int) -> None:
        for end in range(1, len(parts) + 1):
            self._lines.setdefault(".".join(parts[:end]), number)


def _parts(key: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_PART, key))
