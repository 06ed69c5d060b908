"""References in prompts: `${node}`, `${node.path.0.x}`, `${input.topic}`; `$${` is a literal `${`.

A reference is replaced once, by text that is never looked at again: whatever a model answered,
`${x}`, `{x.__class__}` or `{{ x }}`, stays text. A path goes through object keys and list
positions only, never through attributes (`str.format` on somebody else's text leaks globals, and
template languages run code).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

import msgspec

from agentos.core.errors import AgentOSError, GraphError, LocalProtocolError
from agentos.core.jsontext import dump, quote
from agentos.core.limits import MAX_DEPTH

INPUT: Final = "input"
"""The root that stands for the task's input; so no node may have this name."""

# No accepted value is deeper than MAX_DEPTH, so no longer path leads anywhere. The literal first
# character lets `re` skip what cannot match.
_MARK: Final = re.compile(
    rf"\$(?:\$\{{|\{{(?:([A-Za-z0-9_-]{{1,64}})((?:\.[\w-]{{1,64}}){{0,{MAX_DEPTH}}})\}})?)"
)
"""`$${`, or a reference with its root and its path, or a `${` that is not one."""
_POSITION: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_KEYS_SHOWN: Final = 10


class PromptError(AgentOSError):
    """A prompt that cannot be filled in: a reference leads nowhere, or the text gets too long."""

    code = "prompt"


class Reference(msgspec.Struct, frozen=True, gc=False):
    """`${root.step.step}`: a node's name or `input`, and the way into its value."""

    root: str
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "${" + ".".join((self.root, *self.path)) + "}"

    def resolve(self, values: Mapping[str, Any]) -> Any:
        """The value that this names.

        Args:
            values: JSON values by root.

        Raises:
            PromptError: the root's value has no such path; the message says what it has.
            LocalProtocolError: there is no value for the root yet.
        """
        if self.root not in values:
            raise LocalProtocolError(f"{self}: no value is known for {self.root!r}")
        value = values[self.root]
        for taken, step in enumerate(self.path):
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and _is_position(step, len(value)):
                value = value[int(step)]
            else:
                at = ".".join((self.root, *self.path[:taken]))
                raise PromptError(f"{self}: {at} has no {step!r}: it is {_describe(value)}")
        return value


class Template(msgspec.Struct, frozen=True, gc=False):
    """A prompt's text, cut at its references."""

    segments: tuple[str | Reference, ...]

    @classmethod
    def parse(cls, text: str, where: str = "") -> Template:
        """Find the references in `text`.

        Args:
            text: the prompt as it was written.
            where: its path in the task description, for errors.

        Raises:
            GraphError: a `${` never closes, or what it encloses is not a reference.
        """
        if "${" not in text:
            return cls((text,) if text else ())
        return cls(tuple(_segments(text, where)))

    @property
    def references(self) -> tuple[Reference, ...]:
        """The references, in the order of the text."""
        return tuple([part for part in self.segments if isinstance(part, Reference)])

    def render(self, values: Mapping[str, Any], max_bytes: int) -> str:
        """The prompt with every reference replaced: strings as they are, the rest as JSON.

        Args:
            values: the JSON value of each root.
            max_bytes: the longest prompt, in bytes of UTF-8.

        Raises:
            PromptError: a value lacks what is referred to, or the prompt gets too long.
            LocalProtocolError: there is no value for a root yet.
        """
        parts = []
        size = 0
        for segment in self.segments:
            value = segment if isinstance(segment, str) else segment.resolve(values)
            part = value if isinstance(value, str) else dump(value)
            size += len(part) if part.isascii() else len(part.encode(errors="surrogatepass"))
            if size > max_bytes:
                place = "" if isinstance(segment, str) else f" at {segment}"
                raise PromptError(f"the prompt grows over {max_bytes} bytes{place}")
            parts.append(part)
        return "".join(parts)


def _segments(text: str, where: str) -> Iterator[str | Reference]:
    """Literal text and references in turn, as they stand in `text`."""
    literal = 0
    for mark in _MARK.finditer(text):
        root, path = mark.groups()
        if root is None:
            if mark[0] == "$${":
                continue
            raise _bad_reference(text, mark.start(), where)
        if literal < mark.start():
            yield _unescape(text[literal : mark.start()])
        yield Reference(root, tuple(path[1:].split("."))) if path else Reference(root)
        literal = mark.end()
    if literal < len(text):
        yield _unescape(text[literal:])


def _unescape(text: str) -> str:
    return text.replace("$${", "${")


def _bad_reference(text: str, start: int, where: str) -> GraphError:
    end = text.find("}", start)
    body = text[start + 2 : end]
    if end < 0 or "\n" in body or "${" in body:
        return _fault(text, start, where, "this ${ never closes")
    reason = f"{quote(f'${{{body}}}')} is not a reference like ${{plan}} or ${{plan.points.0}}"
    return _fault(text, start, where, reason)


def _fault(text: str, start: int, where: str, reason: str) -> GraphError:
    line = text.count("\n", 0, start) + 1
    column = start - text.rfind("\n", 0, start)
    return GraphError(
        where, f"line {line}, column {column}: {reason}; write $${{ for a literal ${{"
    )


def _is_position(step: str, length: int) -> bool:
    return _POSITION.fullmatch(step) is not None and int(step) < length


def _describe(value: Any) -> str:
    """What a value is, for somebody whose path was wrong."""
    if isinstance(value, dict):
        names = ", ".join(quote(key) for key in islice(value, _KEYS_SHOWN))
        more = f" and {len(value) - _KEYS_SHOWN} more" if len(value) > _KEYS_SHOWN else ""
        return f"an object with the keys {names}{more}" if value else "an object without keys"
    if isinstance(value, list):
        return f"a list of {len(value)}, counted from 0"
    if isinstance(value, str):
        return "text, which is never parsed (give the node a `schema` to get an object)"
    return quote(value)
