"""What makes an answer usable: strict JSON, bounded.

Shared by every agent and by the runner; `agentos.schemas` has the shape that a node asks for. A
value that passes here can be stored, sent and read back; see `agentos.core.jsontext` for why each
thing that is refused is refused.
"""

from __future__ import annotations

import math
from typing import Any

import orjson

from agentos.core import jsontext
from agentos.core.errors import AgentError
from agentos.core.limits import MAX_DEPTH, MAX_INT, Limits

MAX_BYTES = Limits().max_frame_bytes
"""Nothing larger could travel; the runner holds answers to the cluster's own, lower bound."""
QUOTE_CHARACTERS = 200

_Place = tuple[Any, str | int] | None
"""Where a value was found: the place of its parent, and the step from there."""


def quote(text: str, limit: int = QUOTE_CHARACTERS) -> str:
    """A text as an error message may show it: shortened, on one line, every character printable.

    Args:
        text: anything, perhaps with control characters or lone surrogates.
        limit: the number of its characters to keep.
    """
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def describe(error: BaseException) -> str:
    """An exception of somebody else's, as its type and message; never raises."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 (anybody's __str__: what it raises says no more)
        message = "(its message cannot be shown)"
    return f"{type(error).__name__}: {quote(message)}"


def check(value: Any, *, max_bytes: int = MAX_BYTES) -> None:
    """Check that a Python value is one JSON value: of JSON's types, finite, bounded.

    Accepted are dict with str keys, list, str, int within 64 bits, finite float, bool and None.
    Nothing is converted: a tuple or a date would not come back as what it was.

    Raises:
        AgentError: it is not (not retryable: the same code would return the same again).
    """
    room = max_bytes
    stack: list[tuple[Any, int, _Place]] = [(value, 0, None)]
    while stack:
        item, depth, place = stack.pop()
        members = _members(item, place)
        # Each value takes a byte or more, so shared parts that multiply end here, not in memory.
        room -= 1 + (len(item) if isinstance(item, str) else 0)
        if room < 0:
            raise _refused(None, f"is larger than {max_bytes} bytes")
        if members is not None:
            if depth == MAX_DEPTH:
                raise _refused(None, f"is nested deeper than {MAX_DEPTH} levels")
            stack.extend((member, depth + 1, (place, step)) for step, member in members)


def encode(value: Any, *, max_bytes: int) -> str:
    """The JSON text of a value that `check` accepts.

    Raises:
        AgentError: the value is no JSON value, or its text is too large (not retryable).
    """
    if type(value) is not str or len(value) >= max_bytes:  # most answers are text, and short
        check(value, max_bytes=max_bytes)
    try:
        text = orjson.dumps(value)
    except TypeError as error:
        reason = f"cannot be written as JSON: {quote(str(error))}"
        raise AgentError(f"the answer {reason}", retryable=False) from None
    if len(text) > max_bytes:
        reason = f"the answer is {len(text)} bytes of JSON; at most {max_bytes} are allowed"
        raise AgentError(reason, retryable=False)
    return text.decode()


def _members(item: Any, place: _Place) -> Any:
    """The steps and members of an array or object; None for a scalar.

    Raises:
        AgentError: it is neither, or a scalar out of range.
    """
    kind = type(item)
    if kind is str or kind is bool or item is None:
        return None
    if isinstance(item, dict):
        for key in item:
            if type(key) is not str or "\0" in key:
                raise _refused(place, f"has the key {quote(repr(key), 60)}: keys must be text")
        return item.items()
    if isinstance(item, list):
        return enumerate(item)
    if isinstance(item, int):
        if not -MAX_INT - 1 <= item <= MAX_INT:
            raise _refused(place, "is an integer outside 64 bits")
    elif kind is float:
        if not math.isfinite(item):
            raise _refused(place, f"is {item}, which JSON cannot carry")
    elif not isinstance(item, str):
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        raise _refused(place, f"is a {module}{kind.__qualname__}, not a JSON value")
    return None


def _refused(place: _Place, reason: str) -> AgentError:
    steps: list[str | int] = []
    while place is not None:
        place, step = place
        steps.append(step)
    where = ""
    for step in reversed(steps):
        where = jsontext.join(where, step)
    subject = f"the answer's {quote(where)}" if where else "the answer"
    return AgentError(f"{subject} {reason}", retryable=False)
