"""Strict JSON: what is accepted means the same to every reader, and refusals name the place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.core.errors import GraphError
from agentos.core.jsontext import dump, join, parse, quote

MANY = 1_000_000

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
keys = texts.map(lambda text: text.replace("\0", ""))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4)
)


def refusal(text: str, **bounds: Any) -> GraphError:
    """The error that `parse` raises."""
    with pytest.raises(GraphError) as caught:
        parse(text, **{"max_bytes": MANY, **bounds})
    return caught.value


@given(values)
def test_what_is_written_is_read_back(value: Any) -> None:
    """Every JSON value survives `dump` and `parse`: keys, order, integers and floats included."""
    text = dump(value)
    back = parse(text, max_bytes=MANY)
    assert back == value
    assert dump(back) == text


@given(values)
def test_agrees_with_the_standard_library(value: Any) -> None:
    """What is accepted is read exactly as the standard library reads it."""
    text = json.dumps(value)
    assert parse(text, max_bytes=MANY) == json.loads(text)


@given(st.one_of(st.text(max_size=60), st.text('{}[]",:0123456789eE+-.\\u d8tf\n', max_size=60)))
def test_garbage_raises_one_error_only(text: str) -> None:
    """No text whatever makes `parse` raise anything but `GraphError`."""
    try:
        parse(text, max_bytes=MANY)
    except GraphError as error:
        str(error).encode()


def test_dump_is_compact_and_keeps_characters() -> None:
    """Text is stored as it is read by people: no blanks, no escapes that JSON does not need."""
    assert dump({"a": [1, "é→"], "b": None}) == '{"a":[1,"é→"],"b":null}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_dump_refuses_what_json_cannot_say(value: object) -> None:
    """A value without a JSON form is an error, never `null` in its place."""
    with pytest.raises((TypeError, ValueError)):
        dump(value)


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ("", "", "not JSON: Expecting value (line 1, column 1)"),
        ('{"a":\n 1,}', "", "not JSON: Expecting property name enclosed in double quotes"),
        ("[1] x", "", "not JSON: Extra data (line 1, column 5)"),
        ('{"a":1,"a":2}', "a", "given twice"),
        ('{"n":{"b":[0,{"x":1,"y":2,"x":1}]}}', "n.b.1.x", "given twice"),
        ('{"a":{"k":1,"k":1},"a":2}', "a", "given twice"),
        ('[{"a":NaN}]', "0.a", "NaN is not a JSON number"),
        ("[-Infinity]", "0", "-Infinity is not a JSON number"),
        (f'{{"a":{2**63}}}', "a", "9223372036854775808 is an integer outside"),
        (f"[1,{-(2**63) - 1}]", "1", "-9223372036854775809 is an integer outside"),
        ("9" * 5000, "", "99999999999999999999... (5000 characters) is an integer outside"),
        ('{"x":1e999}', "x", "1e999 is too large"),
        ("[-1e999]", "0", "-1e999 is too large"),
        ('{"a":"\\ud800"}', "a", "a lone surrogate in"),
        ('["ok","\\udc00\\ud800"]', "1", "a lone surrogate in"),
        ('{"a":{"\\ud800":1}}', 'a."\\ud800"', "neither NUL nor a lone surrogate"),
        ('{"a":"\ud800"}', "", "a lone surrogate at character 7"),
        ('{"a":{"b\\u0000":1}}', 'a."b\\u0000"', "neither NUL nor a lone surrogate"),
        ('"\x00"', "", "not JSON: Invalid control character"),
    ],
)
def test_refusals_name_the_place(text: str, where: str, reason: str) -> None:
    """Each thing that readers disagree about is refused, with the path of the fault."""
    error = refusal(text)
    assert error.where == where
    assert reason in error.reason
    str(error).encode()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (str(2**63 - 1), 2**63 - 1),
        (str(-(2**63)), -(2**63)),
        ("-0.0", 0.0),
        ("1e308", 1e308),
        ("1e-999", 0.0),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ('"\\u0000"', "\0"),
        (' {"a" : [ ] }\n', {"a": []}),
    ],
)
def test_the_edges_are_accepted(text: str, value: Any) -> None:
    """What every 64-bit reader can hold is read exactly."""
    assert parse(text, max_bytes=MANY) == value


def test_the_outer_path_comes_first() -> None:
    """`where` is put before every path, so that an error names the place in the whole."""
    assert refusal('{"x":NaN}', where="draft/1/s0").where == "draft/1/s0.x"
    assert refusal("nope", where="draft").where == "draft"


def test_size_is_counted_in_bytes() -> None:
    """The bound is on UTF-8 bytes, what a frame and a disk hold, not on characters."""
    assert parse('"éé"', max_bytes=6) == "éé"
    assert "6 bytes of JSON; at most 5" in refusal('"éé"', max_bytes=5).reason


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_bounded(start: str, end: str) -> None:
    """64 levels are read; 65 are refused, and so are 100,000, without exhausting the stack."""
    assert parse(start * 64 + "1" + end * 64, max_bytes=MANY)
    for depth in (65, 100_000):
        error = refusal(start * depth + "1" + end * depth)
        assert error.reason == "nested deeper than 64 levels"
        assert "deeper than 64" in refusal(start * depth).reason


@given(st.integers(1, 30), st.integers(1, 30), texts)
def test_depth_does_not_count_siblings_or_text(depth: int, bound: int, text: str) -> None:
    """Only arrays and objects inside each other count: not many side by side, nor brackets in text."""
    noise = dump(["]" * 3, text, "[[[[{{\\", '"[', {}])
    document = "[" * depth + ",".join([noise] * 40) + "]" * depth
    if depth + 2 <= bound:
        parse(document, max_bytes=MANY, max_depth=bound)
    else:
        assert "nested deeper" in refusal(document, max_depth=bound).reason


def test_paths_and_values_are_shown_safely() -> None:
    """Names and values in errors are short and printable: no terminal codes, no half characters."""
    assert join("", "nodes") == "nodes"
    assert join("nodes", "a b") == 'nodes."a b"'
    assert join("needs", 0) == "needs.0"
    assert quote(True) == "true"
    assert quote({"a": [1, "é"]}) == '{"a":[1,"é"]}'
    assert len(quote("x" * MANY)) == 60
    assert quote("\x9b31m\u202e") == '"\\x9b31m\\u202e"'
    assert quote("\ud800").isascii()
