"""Answers against JSON Schemas: what is unusable, and what a schema may not do to us."""

import io
import socket
from typing import Any

import msgspec
import pytest

from agentos.core.errors import AgentError, UnusableAnswer
from agentos.core.jsontext import dump
from agentos.schemas import Question, Schema, Verdict, serve
from tests.endpoints import VOTE

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def schema_of(schema: dict[str, Any]) -> Schema:
    return Schema(dump(schema))


def test_a_value_is_held_against_it_as_it_is() -> None:
    """What is no text meets the schema, or is unusable; the place of the fault is named."""
    assert schema_of(NUMBER).meets({"n": 1}) is False
    with pytest.raises(UnusableAnswer, match="at n: 'one' is not of type 'integer'"):
        schema_of(NUMBER).meets({"n": "one"})


@pytest.mark.parametrize(
    ("schema", "text", "read"),
    [
        (NUMBER, '{"n": 1}', True),
        ({"required": ["n"]}, '{"n": 1}', True),
        ({}, "5", True),
        ({}, "plain words", False),
        ({"type": "string"}, "plain words", False),
        ({"type": "string"}, "5", False),
        ({"type": "string"}, '"quoted"', True),
        ({"type": "string", "maxLength": 3}, '"abc"', True),
        ({"type": "string", "minLength": 5}, '"abc"', False),
        ({"type": ["string", "null"]}, "null", True),
    ],
)
def test_a_text_is_read_as_json(schema: dict[str, Any], text: str, read: bool) -> None:
    """What was read is the value if it meets the schema; else the text itself may."""
    assert schema_of(schema).meets(text) is read


def test_a_text_that_was_to_be_text() -> None:
    """It is not told that it is no JSON, but what it lacks."""
    with pytest.raises(UnusableAnswer, match="'ab' is too short: ab"):
        schema_of({"type": "string", "minLength": 3}).meets("ab")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("choose 1", "not usable JSON .*: choose 1"),
        ('```json\n{"choice": 1}\n```', r"not usable JSON .*: ```json\\n"),
        ('{"choice": NaN}', "NaN is not a JSON number"),
        ('{"choice": 1e999}', "too large"),
        ('{"choice": 9223372036854775808}', "integer outside"),
        ('{"choice": 1, "choice": 0}', "given twice"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        ('{"choice": "\\ud800"}', "lone surrogate"),
        ('{"choice": 2}', r"at choice: 2 is not one of \[0, 1\]: {\"choice\": 2}"),
        ("{}", "'choice' is a required property"),
        ('{"choice": 0, "why": 1}', "Additional properties"),
        ("null", "None is not of type 'object'"),
    ],
)
def test_a_text_that_does_not_meet_it(content: str, message: str) -> None:
    """An answer that is not strict JSON, or does not meet the schema, is unusable and quoted."""
    with pytest.raises(UnusableAnswer, match=message) as caught:
        schema_of(VOTE).meets(content)
    assert caught.value.retryable
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "wat"},
        {"$schema": [1]},
        {"pattern": "("},
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
    ],
)
def test_one_that_cannot_be_used(schema: dict[str, Any]) -> None:
    """A broken schema fails for good."""
    with pytest.raises(AgentError, match="the node's schema") as caught:
        schema_of(schema).meets("x")
    assert not caught.value.retryable


def test_nothing_is_fetched() -> None:
    """A schema that refers to another document fails for good: nobody is asked for it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        with pytest.raises(AgentError, match="refers to what it does not hold"):
            schema_of({"$ref": url}).meets("x")
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_questions_are_answered_line_by_line() -> None:
    """In order, each by what `meets` returned or raised, until there are no more."""
    asked: list[tuple[str, dict[str, Any]]] = [
        ("1", NUMBER),
        ('{"n": 1}', NUMBER),
        ('{"n": 1}', {"type": "wat"}),
        ("a", {"pattern": "a{99999999999}"}),
    ]
    lines = b"".join(
        msgspec.json.encode(Question(dump(schema), value, 100)) + b"\n" for value, schema in asked
    )
    said = io.BytesIO()
    serve(io.BytesIO(lines), said)
    verdicts = [msgspec.json.decode(line, type=Verdict) for line in said.getvalue().splitlines()]
    assert [v.read for v in verdicts] == [False, True, False, False]
    assert [v.retryable for v in verdicts] == [True, False, False, False]
    assert "1 is not of type 'object'" in verdicts[0].error
    assert "cannot be used, at $.type" in verdicts[2].error
    assert "cannot be used: OverflowError" in verdicts[3].error
