"""References in prompts: replaced literally, once; what leads nowhere is a typed error."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.core.errors import GraphError, LocalProtocolError
from agentos.core.prompts import PromptError, Reference, Template

MANY = 1_000_000

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
steps = st.from_regex(r"[\w-]{1,8}", fullmatch=True)
references = st.builds(Reference, names, st.lists(steps, max_size=3).map(tuple))
tricky = st.lists(
    st.sampled_from(
        ["${plan}", "$${", "${", "}", "$", "{x.__class__}", "{{ x }}", "{% raw %}", "%(x)s", "\\1"]
    ),
    max_size=6,
).map("".join)


def render(text: str, max_bytes: int = MANY, **values: Any) -> str:
    """Parse and render in one step."""
    return Template.parse(text, "nodes.a.prompt").render(values, max_bytes)


def escape(text: str) -> str:
    """`text` as a prompt that says exactly this."""
    return text.replace("${", "$${")


@given(st.one_of(texts, tricky))
def test_a_models_answer_stays_text(answer: str) -> None:
    """Whatever an answer holds, `${x}`, `{x.__class__}` or `{{ }}`, is inserted and not expanded."""
    assert render("<${plan}>", plan=answer) == f"<{answer}>"
    assert render("${a}${b}", a=answer, b=answer) == answer + answer
    assert render("${a.x.0}", a={"x": [answer]}) == answer


@given(st.one_of(texts, tricky))
def test_any_text_can_be_written(text: str) -> None:
    """With `$${` for `${`, every text is a prompt that renders to itself and refers to nothing."""
    template = Template.parse(escape(text))
    assert template.render({}, MANY) == text
    assert template.references == ()


@given(st.lists(st.one_of(texts.filter(lambda t: not t.endswith("$")), references), max_size=6))
def test_pieces_are_found_again(pieces: list[str | Reference]) -> None:
    """References and text between them are read as they were written, in their order."""
    text = "".join(escape(p) if isinstance(p, str) else str(p) for p in pieces)
    template = Template.parse(text)
    written = [p for p in pieces if isinstance(p, Reference)]
    assert list(template.references) == written


@given(st.text(max_size=60) | st.text("${}.ab0\n $", max_size=30))
def test_no_text_raises_anything_else(text: str) -> None:
    """Parsing raises `GraphError` or nothing, whatever the text."""
    with suppress(GraphError):
        Template.parse(text)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("text", "text"),
        ("", ""),
        (None, "null"),
        (True, "true"),
        (12, "12"),
        (1.5, "1.5"),
        ([1, "é"], '[1,"é"]'),
        ({"a": {"b": []}}, '{"a":{"b":[]}}'),
    ],
)
def test_values_are_inserted_as_text_or_json(value: Any, shown: str) -> None:
    """A string is inserted as it is, any other value as compact JSON."""
    assert render("=${plan}=", plan=value) == f"={shown}="


def test_paths_go_through_keys_and_positions() -> None:
    """`${plan.points.0.x}` takes object keys and list positions; digits can be keys as well."""
    plan = {"points": [{"x": "first"}], "0": "key", "größe": 3, "a-b": 4}
    assert render("${plan.points.0.x}", plan=plan) == "first"
    assert render("${plan.0}", plan=plan) == "key"
    assert render("${plan.größe}${plan.a-b}", plan=plan) == "34"
    assert render("${input.topic}", input={"topic": "queues"}) == "queues"


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("${p.b}", {"a": 1, "c d": 2}, "${p.b}: p has no 'b': it is an object with the keys \"a\""),
        ("${p.x.b}", {"x": {}}, "${p.x.b}: p.x has no 'b': it is an object without keys"),
        ("${p.3}", [1, 2, 3], "${p.3}: p has no '3': it is a list of 3, counted from 0"),
        ("${p.-1}", [1], "it is a list of 1"),
        ("${p.00}", [1], "it is a list of 1"),
        ("${p.x}", [1], "it is a list of 1"),
        ("${p.\u0660}", [1], "it is a list of 1"),
        ("${p." + "9" * 64 + "}", [1], "it is a list of 1"),
        ("${p.a}", '{"a": 1}', "it is text, which is never parsed"),
        ("${p.a}", None, "it is null"),
        ("${p.a}", 5, "it is 5"),
        ("${p.__class__}", {}, "it is an object without keys"),
        ("${p.__class__}", [], "it is a list of 0"),
        ("${p.upper}", "x", "it is text"),
        ("${p.b}", {f"k{i}": 1 for i in range(12)}, '"k9" and 2 more'),
    ],
)
def test_a_path_that_leads_nowhere(text: str, value: Any, reason: str) -> None:
    """The error names the reference, how far it got, and what is there instead."""
    with pytest.raises(PromptError) as caught:
        render(text, p=value)
    assert reason in str(caught.value)


def test_a_missing_node_is_the_callers_fault() -> None:
    """Rendering before a dependency has finished is a misuse, told apart from a bad path."""
    with pytest.raises(LocalProtocolError, match="no value is known for 'plan'"):
        render("${plan}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hi ${plan", "line 1, column 4: this ${ never closes"),
        ("a\nbc ${plan\n}", "line 2, column 4: this ${ never closes"),
        ("${a ${b}", "line 1, column 1: this ${ never closes"),
        ("${", "line 1, column 1: this ${ never closes"),
        ("${}", '"${}" is not a reference'),
        ("${ plan }", '"${ plan }" is not a reference'),
        ("${a..b}", "is not a reference"),
        ("${.a}", "is not a reference"),
        ("${a.}", "is not a reference"),
        ("${a.b c}", "is not a reference"),
        ("${é}", "is not a reference"),
        ("${" + "a" * 65 + "}", "is not a reference"),
        ("${a[0]}", "is not a reference"),
        ("${a." + "9" * 65 + "}", "is not a reference"),
        ("${a" + ".b" * 65 + "}", "is not a reference"),
    ],
)
def test_a_bad_reference_is_refused(text: str, reason: str) -> None:
    """A reference that cannot be read is refused with its line and column, and the way to escape."""
    with pytest.raises(GraphError) as caught:
        Template.parse(text, "nodes.a.prompt")
    assert caught.value.where == "nodes.a.prompt"
    assert reason in caught.value.reason
    assert "write $${ for a literal ${" in caught.value.reason


def test_dollars_and_braces_alone_are_text() -> None:
    """Prices, shell variables and JSON in a prompt need no escaping."""
    text = 'Pay $5 or $x, reply {"a": {}} or $$ and }'
    assert render(text) == text
    assert render("$${plan} costs $$${x}") == "${plan} costs $${x}"


def test_a_prompt_is_bounded() -> None:
    """A prompt may take `max_bytes` of UTF-8 and no more; the error names the reference."""
    assert render("${a}!", 5, a="éé") == "éé!"
    with pytest.raises(PromptError, match=r"grows over 4 bytes"):
        render("${a}!", 4, a="éé")
    with pytest.raises(PromptError, match=r"over 3 bytes at \$\{a\}"):
        render("${a}!", 3, a="éé")


def test_a_prompt_that_would_explode_is_stopped_early() -> None:
    """100,000 references to a large value are refused at the bound, not after building them all."""
    template = Template.parse("${a}" * 100_000)
    with pytest.raises(PromptError, match="grows over"):
        template.render({"a": "x" * 100_000}, MANY)


def test_equal_text_gives_equal_templates() -> None:
    """A template is a value: compared by what it says."""
    assert Template.parse("a${b.0}") == Template(("a", Reference("b", ("0",))))
    assert json.dumps(str(Reference("b", ("0",)))) == '"${b.0}"'
