"""Reads the members of one JSON object, each with its type and its bounds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any, Final, TypeVar

from agentos.core.errors import GraphError
from agentos.core.jsontext import join, quote

_T = TypeVar("_T")

_LONGEST_WORD: Final = 64
_MOST_CANDIDATES: Final = 1_000


def hint(word: str, known: Iterable[str]) -> str:
    """`; did you mean "prompt"?`, or nothing when no known word is close.

    Bounded, since the time that comparing takes grows with both lengths.
    """
    if len(word) > _LONGEST_WORD:
        return ""
    close = get_close_matches(word, islice(known, _MOST_CANDIDATES), 1)
    return f"; did you mean {quote(close[0])}?" if close else ""


class Fields:
    """The members of one object. Each reader raises `GraphError` for what it cannot accept.

    Args:
        value: the object, as `jsontext.parse` gave it.
        where: its path, like `nodes.draft`.
        known: the fields that it may have.

    Raises:
        GraphError: the object has a field that is not known.
    """

    def __init__(self, value: Mapping[str, Any], where: str, known: Sequence[str]) -> None:
        self._value = value
        self._where = where
        for name in value:
            if name not in known:
                reason = "unknown field" + (hint(name, known) or f"; known are {', '.join(known)}")
                raise GraphError(join(where, name), reason)

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def text(self, name: str) -> str:
        """A string."""
        return self._typed(name, str, "a string")

    def word(self, name: str, pattern: re.Pattern[str], words: str) -> str:
        """A string that matches `pattern`, which an error calls `words`."""
        value = self._typed(name, str, words)
        if pattern.fullmatch(value) is None:
            raise self._bad(name, words)
        return value

    def object(self, name: str) -> dict[str, Any]:
        """An object."""
        return self._typed(name, dict, "an object")

    def names(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty when it is missing."""
        names = self._value.get(name, [])
        if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
            raise self._bad(name, "a list of node names")
        return tuple(names)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """An integer from `low` to `high`."""
        value = self._value.get(name, default)
        # A bool is an int to isinstance(), and no number to JSON.
        if type(value) is not int or not low <= value <= high:
            raise self._bad(name, f"an integer from {low} to {high}")
        return value

    def seconds(self, name: str, default: float, high: float) -> float:
        """A duration in seconds, above 0 and up to `high`."""
        value = self._value.get(name, default)
        if type(value) not in {int, float} or not 0 < value <= high:
            raise self._bad(name, f"a number of seconds above 0 and up to {high:g}")
        return float(value)

    def _typed(self, name: str, kind: type[_T], words: str) -> _T:
        value = self._value.get(name)
        if not isinstance(value, kind):
            raise self._bad(name, words)
        return value

    def _bad(self, name: str, allowed: str) -> GraphError:
        where = join(self._where, name)
        if name not in self._value:
            return GraphError(where, f"is missing: it must be {allowed}")
        return GraphError(where, f"must be {allowed}, not {quote(self._value[name])}")
