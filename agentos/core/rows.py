"""Progress rows: what a run writes of its answers, and how the next owner reads it.

A node's result is the row of its name; each answer of a node with several calls has a row of its
own, `node/round/slot`. Both are JSON objects with the `value` and what it cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agentos.core import jsontext
from agentos.core import messages as m
from agentos.core.deliberation import Ask
from agentos.core.epoch import Epoch
from agentos.core.limits import MAX_DEPTH, Limits
from agentos.core.saved import Answer
from agentos.core.saved import Saved as Saved  # noqa: PLC0414 - exported, also for mypy

EXCERPT = 160
"""Characters of an answer that an event quotes."""
ERROR = 4_000
"""Characters of an error that are kept."""
ESCAPE = 6
"""Bytes of the longest form that a character has in JSON, `\\u0000` (RFC 8259, section 7)."""
MOST_TOKENS = 10**9
"""Tokens that are believed of one call, so that no sum of them leaves 64 bits."""


def split(row_id: str) -> tuple[str, int, str]:
    """Node, round and slot of a row; round 0 and no slot for a node's own row.

    Raises:
        ValueError: the round is no number.
    """
    node, _, place = row_id.partition("/")
    round_, _, slot = place.partition("/")
    return node, int(round_) if place else 0, slot


def node_of(row_id: str) -> str:
    """The node that a row belongs to."""
    return row_id.partition("/")[0]


def load(row: m.SavedRow, limits: Limits) -> Saved:
    """Read one row.

    Raises:
        GraphError: it is not JSON that can have been written here.
        msgspec.ValidationError: it lacks what a row holds.
    """
    value = jsontext.parse(
        row.result,
        max_bytes=limits.max_frame_bytes,
        max_depth=MAX_DEPTH + 1,
        where=f"row {row.node_id}",
    )
    return msgspec.convert(value, Saved)


def usage_of(result: m.CallResult) -> m.Usage:
    """What one call cost, as far as an endpoint's figures can be believed."""
    told = result.usage
    return m.Usage(
        1,
        result.attempt,
        min(told.prompt_tokens, MOST_TOKENS),
        min(told.completion_tokens, MOST_TOKENS),
    )


def answer_text(result: m.CallResult, usage: m.Usage) -> m.Json:
    """The row of one answer. The value's text is embedded as it came, not written again."""
    assert result.value is not None, f"{result.row} has no value to save"
    seconds = int(result.seconds * 1e6) / 1e6  # to the µs: `round` takes ten times as long
    row = Answer(msgspec.Raw(result.value), result.proxy, seconds, usage)
    return msgspec.json.encode(row).decode()


def node_text(value: Any, votes: list[list[int]], usage: m.Usage) -> m.Json:
    """The row of a node with several calls: the winner of its last round, and how it won."""
    return msgspec.json.encode({"value": value, "votes": votes, "usage": usage}).decode()


def response_text(task_id: int, state: str, outcome: dict[str, Any], usage: m.Usage) -> m.Json:
    """The response document of a task."""
    response = {"task_id": task_id, "state": state, **outcome, "usage": usage}
    return msgspec.json.encode(response).decode()


def wire_size(text: str) -> int:
    """The bytes that a text takes inside a JSON body: UTF-8, with its escapes."""
    return len(msgspec.json.encode(text))


def too_large(ask: Ask, most: int) -> str:
    """What is wrong with a question that quotes long answers; "" if it can travel.

    Args:
        ask: the question.
        most: bytes that a prompt may have.
    """
    if surely_fits(len(ask.prompt), most):
        return ""
    size, escaped = len(ask.prompt.encode()), wire_size(ask.prompt)
    if size > most:
        taken = f"{size} bytes, more than {most}"
    elif escaped > 3 * most:
        taken = f"{escaped} bytes with its escapes, more than {3 * most}"
    else:
        return ""
    kind = "vote" if ask.slot[0] == "v" else "sample"
    return (
        f"the prompt of a {kind} of round {ask.round} takes {taken}: "
        "ask for shorter answers, or for fewer"
    )


def surely_fits(characters: int, most: int) -> bool:
    """Whether so many characters take at most `most` bytes, whatever they are: mostly they do.

    No character takes more than the six bytes of an escape, so that nothing need be encoded.
    """
    return ESCAPE * characters <= most


def pages(
    rows: Sequence[m.Row], end: m.End | None, most: int
) -> list[tuple[tuple[m.Row, ...], m.End | None]]:
    """Split what is to be recorded so that each part fits a frame; the end goes with the last.

    Args:
        rows: progress rows.
        end: how the task ends, if it does.
        most: bytes of a part (`wire_size`), unless a single row is larger.
    """
    characters = len(end.response) + 1 if end is not None else 0  # the quotes take two bytes more
    for row in rows:
        characters += len(row.result) + 1
    if surely_fits(characters, most):
        return [(tuple(rows), end)]
    parts: list[list[m.Row]] = [[]]
    size = 0
    for row in rows:
        more = wire_size(row.result)
        if parts[-1] and size + more > most:
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += more
    if end is not None and parts[-1] and size + wire_size(end.response) > most:
        parts.append([])
    ends = [None] * (len(parts) - 1) + [end]
    return [(tuple(part), last) for part, last in zip(parts, ends, strict=True)]


class _Joined:
    """Records of one claim that are to be one: where the first stood, and what is in them."""

    def __init__(self, at: int, rows: list[m.Row], end: m.End | None, characters: int = 0) -> None:
        self.at = at
        self.rows = rows
        self.end = end
        self.characters = characters


def joined(envelopes: Sequence[m.Envelope], most: int) -> list[m.Envelope]:
    """The same messages with the records of one claim as one, at the place of the first.

    Answers that came together are saved together: one fenced transaction does for all of them,
    and one message each way.

    Args:
        envelopes: what a proxy has to send.
        most: bytes of a record; what might be larger stays as it is.
    """
    out: list[m.Envelope] = []
    open_: dict[tuple[int, Epoch], _Joined] = {}
    for envelope in envelopes:
        q = envelope.message
        if type(q) is not m.Record:
            out.append(envelope)
            continue
        characters = sum(len(row.result) + 1 for row in q.rows)
        characters += len(q.end.response) + 1 if q.end is not None else 0
        key = (q.task_id, q.epoch)
        first = open_.get(key)
        if (
            first is None
            or first.end is not None
            or not surely_fits(first.characters + characters, most)
        ):
            open_[key] = _Joined(len(out), list(q.rows), q.end, characters)
            out.append(envelope)
            continue
        first.rows += q.rows
        first.end = q.end
        first.characters += characters
        record = m.Record(task_id=q.task_id, epoch=q.epoch, rows=tuple(first.rows), end=q.end)
        out[first.at] = m.Envelope(envelope.to, envelope.sender, record, envelope.ref)
    return out


def plain(text: str) -> str:
    """An error's text as every database can store it: neither NUL nor lone surrogates, not long."""
    text = text if len(text) <= ERROR else text[:ERROR] + "…"
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


def excerpt(value: Any, seconds: float | None = None) -> str:
    """The beginning of an answer, for people."""
    text = value if isinstance(value, str) else jsontext.dump(value)
    text = text if len(text) <= EXCERPT else text[:EXCERPT] + "…"
    return text if seconds is None else f"{seconds:.2f}s {text}"
