"""Strict JSON text: what is accepted here can be stored, sent and read back by any 64-bit client.

RFC 8259 leaves open what a reader does with duplicate keys, huge numbers and lone surrogates, and
readers differ (Seriot, "Parsing JSON is a Minefield", 2016). A stored task must never be one that
somebody else reads differently, so each of these is refused here, and the refusal names its place.

There are two readers. The quick one is written in C, and knows only that a text is good; whatever
it is not sure of, the precise one reads again, which says what is wrong and where.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

import msgspec

from agentos.core.errors import GraphError
from agentos.core.limits import MAX_DEPTH, MAX_INT

MIN_INT: Final = -MAX_INT - 1

_STRING_OR_BRACKET: Final = re.compile(r'"(?:[^"\\]++|\\.?)*+"?|[\[{\]}]', re.DOTALL)
_LONE_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_PLAIN_KEY: Final = re.compile(r"[\w-]{1,64}")
_LONG_NUMBER: Final = re.compile("[0-9][0-9]{18}")  # in this form it is found twice as fast
_ESCAPED_NUL_OR_COLON: Final = re.compile(r"\\u00(?:00|3[aA])")
_LONGEST_QUOTE: Final = 60
_UNSURE: Final = object()


class _Fault:
    """Takes the place of what is refused: the decoder's hooks do not know where they are."""

    def __init__(self, reason: str, key: str | None = None) -> None:
        self.reason: Final = reason
        self.key: Final = key


def parse(text: str, *, max_bytes: int, max_depth: int = MAX_DEPTH, where: str = "") -> Any:
    """Read one JSON value.

    Args:
        text: the JSON text.
        max_bytes: its largest size, in bytes of UTF-8.
        max_depth: how many arrays and objects may be inside each other.
        where: the path of the text itself, put before every path in an error.

    Raises:
        GraphError: the text is not JSON, is over a bound, or holds a duplicate key, NaN, Infinity,
            an integer outside 64 bits, a float too large for a double, a lone surrogate, or a key
            with a NUL. Its `where` is the path of the fault, like `nodes.a.prompt`.
    """
    if len(text) > max_bytes or not text.isascii():
        _check_size(text, max_bytes, where)
    value = _read_quickly(text, max_depth)
    return _read_precisely(text, max_depth, where) if value is _UNSURE else value


def _read_quickly(text: str, max_depth: int) -> Any:
    """The value, if it is certain that the precise reader would give the same; else `_UNSURE`.

    What msgspec's decoder lets through is looked for: in the text what may be an integer outside
    64 bits or a NUL; in the value its depth; and a key given twice by writing the value again: a
    member that was lost has taken its colon with it (no escape may hide one, so none is let in).
    """
    if _LONG_NUMBER.search(text) or ("\\u00" in text and _ESCAPED_NUL_OR_COLON.search(text)):
        return _UNSURE
    try:
        value = _QUICK_DECODER.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return _UNSURE
    opened = text.count("{") + text.count("[")
    if opened and text.count(":") != msgspec.json.encode(value).count(b":"):
        return _UNSURE
    return _UNSURE if opened > max_depth and _is_deeper(value, max_depth) else value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether arrays and objects are inside each other at more than so many levels."""
    layer: Iterable[Any] = [value]
    for _ in range(levels + 1):
        layer = [part for part in layer if isinstance(part, dict | list)]
        if not layer:
            return False
        layer = chain.from_iterable(p.values() if isinstance(p, dict) else p for p in layer)
    return True


def _read_precisely(text: str, max_depth: int, where: str) -> Any:
    _check_depth(text, max_depth, where)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise GraphError(where, f"not JSON: {error.msg} ({place})") from None
    found = _first_fault(value)
    if found is not None:
        steps, reason = found
        for step in reversed(steps):
            where = join(where, step)
        raise GraphError(where, reason)
    return value


def dump(value: Any) -> str:
    """The compact JSON text of a value, in the order that it has.

    Raises:
        TypeError: the value holds something that JSON has no word for.
        ValueError: it holds NaN or Infinity, or contains itself.
    """
    return _ENCODER.encode(value)


def join(where: str, step: str | int) -> str:
    """The path of one member: `join("nodes.a", "prompt")` is `nodes.a.prompt`."""
    plain = isinstance(step, int) or _PLAIN_KEY.fullmatch(step) is not None
    shown = str(step) if plain else quote(step)
    return f"{where}.{shown}" if where else shown


def quote(value: Any) -> str:
    """A JSON value as an error message shows it: short, on one line, every character printable."""
    text = dump(value[:_LONGEST_QUOTE] if isinstance(value, str) else value)
    if len(text) > _LONGEST_QUOTE:
        text = text[: _LONGEST_QUOTE - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _check_size(text: str, max_bytes: int, where: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        reason = f"not Unicode text: a lone surrogate at character {error.start + 1}"
        raise GraphError(where, reason) from None
    if size > max_bytes:
        raise GraphError(where, f"{size} bytes of JSON; at most {max_bytes} are allowed")


def _check_depth(text: str, max_depth: int, where: str) -> None:
    """Look before the decoder recurses: 100,000 levels would end it in a RecursionError."""
    if text.count("{") + text.count("[") <= max_depth:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        if match[0] in "[{":
            depth += 1
            if depth > max_depth:
                raise GraphError(where, f"nested deeper than {max_depth} levels")
        elif match[0] in "]}":
            depth -= 1


def _first_fault(value: Any) -> tuple[list[str | int], str] | None:
    """The first fault in a decoded value: the steps to it, innermost first, and what is wrong."""
    if isinstance(value, str):
        return None if _is_unicode(value) else ([], f"a lone surrogate in {quote(value)}")
    if isinstance(value, _Fault):
        return ([] if value.key is None else [value.key]), value.reason
    members: Any = ()
    if isinstance(value, dict):
        members = value.items()
        for key in value:
            if "\0" in key or not _is_unicode(key):
                return [key], "a key may hold neither NUL nor a lone surrogate"
    elif isinstance(value, list):
        members = enumerate(value)
    for step, member in members:
        found = _first_fault(member)
        if found is not None:
            found[0].append(step)
            return found
    return None


def _is_unicode(text: str) -> bool:
    return text.isascii() or _LONE_SURROGATE.search(text) is None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Fault:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    times = Counter(key for key, _ in pairs)
    return _Fault("this key is given twice", next(key for key in times if times[key] > 1))


def _integer(text: str) -> int | _Fault:
    # Twenty digits are enough for 64 bits, and int() itself refuses 4,300 and more.
    if len(text) <= 20:
        number = int(text)
        if MIN_INT <= number <= MAX_INT:
            return number
    return _Fault(f"{_short(text)} is an integer outside {MIN_INT} to {MAX_INT}")


def _float(text: str) -> float | _Fault:
    number = float(text)
    if math.isinf(number):
        return _Fault(f"{_short(text)} is too large for a 64-bit floating-point number")
    return number


def _constant(text: str) -> _Fault:
    return _Fault(f"{text} is not a JSON number")


def _short(digits: str) -> str:
    return digits if len(digits) <= 30 else f"{digits[:20]}... ({len(digits)} characters)"


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
_QUICK_DECODER: Final = msgspec.json.Decoder()
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
