"""Strict JSON: what is accepted means the same to every reader, and refusals name the place."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
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

tokens = st.sampled_from(
    [
        *(
            '"a:b"',
            '"[{"',
            '"\\u003a"',
            '"\\u003A"',
            '"\\u0000"',
            '"\\\\u0000"',
            '"\\ud83d\\ude00"',
        ),
        *(
            '"\\ud800"',
            '"\\udc00\\ud800"',
            '"\\ud800\\u0041"',
            '"\ud800"',
            '"\x01"',
            '"\x7f"',
            '"\\x"',
        ),
        *("9223372036854775807", "9223372036854775808", "-9223372036854775808"),
        *("-9223372036854775809", "18446744073709551616", "9" * 30, "1234567890123456789.5"),
        *("-0", "1E5", "1e400", "-1e400", "1e-400", "01", "1.", ".5", "NaN", "-Infinity", "tru"),
        *("5e-324", "2.2250738585072011e-308", "1.7976931348623157e308", "0.1", "1e23"),
    ]
)
key_tokens = st.sampled_from(
    ['"a"', '"\\u0061"', '"b"', '"b:"', '"\\u003a"', '"a\\u0000"', '"\\ud800"']
)
blanks = st.sampled_from(["", "", " ", "\n\t"])
documents = st.recursive(
    tokens | scalars.map(json.dumps) | scalars.map(dump),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda members: "[" + ",".join(members) + "]"),
        st.lists(st.tuples(key_tokens | keys.map(dump), blanks, blanks, inner), max_size=4).map(
            lambda members: "{" + ",".join(f"{k}{a}:{b}{v}" for k, a, b, v in members) + "}"
        ),
    ),
    max_leaves=12,
)
"""Texts that are JSON, and such as readers disagree about."""


def by_the_letter(text: str, max_depth: int) -> Any:
    """What `parse` promises, with nothing but the standard library; `ValueError` for a refusal."""

    def refuse(word: str) -> Any:
        raise ValueError(word)

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(pairs) if len({key for key, _ in pairs}) == len(pairs) else refuse("twice")

    def look(value: Any, depth: int) -> Any:
        inner = value if isinstance(value, list) else []
        if isinstance(value, dict):
            inner = value.values()
            if "\0" in "".join(value):
                refuse("NUL")
            "".join(f"{key} " for key in value).encode()
        if depth == max_depth and isinstance(value, dict | list):
            refuse("deep")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            refuse("integer")
        if isinstance(value, float) and math.isinf(value):
            refuse("float")
        if isinstance(value, str):
            value.encode()
        for member in inner:
            look(member, depth + 1)
        return value

    text.encode()
    return look(json.loads(text, object_pairs_hook=members, parse_constant=refuse), 0)


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


@settings(max_examples=500)
@given(documents, st.sampled_from([2, 3, 64]))
def test_quick_or_precise_it_is_the_same(text: str, max_depth: int) -> None:
    """Whichever reader takes a text, it is accepted, refused and understood by the same rules."""
    try:
        value = by_the_letter(text, max_depth)
    except ValueError:
        refusal(text, max_depth=max_depth)
    else:
        assert repr(parse(text, max_bytes=MANY, max_depth=max_depth)) == repr(value)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":"\\u003a"}',
        '{"a":1,"a":"\\u003A"}',
        '{"a":1,"\\u0061":2}',
        '[{"b":{"a:":1,"a:":1}},"::"]',
        '{"a":[],"a" :[]}',
    ],
)
def test_no_repeated_key_slips_through(text: str) -> None:
    """A key given twice is refused however it is written, and whatever else makes up for it."""
    assert "given twice" in refusal(text).reason


@given(st.floats(-1e308, 1e308), st.integers(0, 30))
def test_floats_are_read_to_the_last_bit(number: float, digits: int) -> None:
    """Any way of writing a float is read as the standard library reads it."""
    for text in (repr(number), f"{number:.{digits}e}"):
        assert repr(parse(text, max_bytes=MANY)) == repr(json.loads(text))


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
