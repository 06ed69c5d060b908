"""One node's deliberation: who wins, and that it can be taken up from any saved answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.core.deliberation import Ask, Deliberation
from agentos.core.graph import Node
from agentos.core.prompts import Template
from tests.strategies import JSON_VALUES


def node(**fields: Any) -> Node:
    """A node with these fields."""
    return Node(name="n", agent="writer", prompt=Template(("hi",)), **fields)


def answer_all(deliberation: Deliberation, answers: dict[tuple[int, str], Any]) -> list[Ask]:
    """Answer everything that is asked; a missing answer is a void vote. Returns what was asked."""
    asked: list[Ask] = []
    while asks := deliberation.advance():
        asked += asks
        for ask in asks:
            place = (ask.round, ask.slot)
            if place in answers:
                deliberation.answer(*place, answers[place])
            else:
                deliberation.answer(*place, None)
    return asked


def choice(number: Any) -> dict[str, Any]:
    """A ballot."""
    return {"choice": number}


@pytest.mark.parametrize(
    ("samples", "winner", "tally"),
    [
        (["x"], "x", [1]),
        (["x", "y", "y"], "y", [1, 2, 2]),
        (["x", "y"], "x", [1, 1]),
        (["x", "y", "z", "y", "x"], "x", [2, 2, 1, 2, 2]),
        ([{"a": 1, "b": 2}, "x", {"b": 2, "a": 1}], {"a": 1, "b": 2}, [2, 1, 2]),
        ([None, False, 0, "0", None], None, [2, 1, 1, 1, 2]),
        ([1, True, 1.0, True], True, [1, 2, 1, 2]),
        ([None, None], None, [2, 2]),
    ],
)
def test_without_voters_the_most_frequent_sample_wins(
    samples: list[Any], winner: Any, tally: list[int]
) -> None:
    """Samples that agree win; between equals the earlier one does."""
    deliberation = Deliberation(node(samples=len(samples)), "hi")
    answer_all(deliberation, {(1, f"s{i}"): value for i, value in enumerate(samples)})
    assert deliberation.done
    assert json.dumps(deliberation.value) == json.dumps(winner)
    assert deliberation.votes == [tally]


@pytest.mark.parametrize(
    ("ballots", "winner", "tally"),
    [
        ([choice(1), choice(1), choice(0)], "b", [1, 2, 0]),
        ([choice(2), choice(1), choice(0)], "a", [1, 1, 1]),
        ([choice(2), choice(1), choice(2)], "c", [0, 1, 2]),
        ([choice(2), choice(3), choice(-1)], "c", [0, 0, 1]),
        ([choice(True), choice("1"), choice(1.0)], "a", [0, 0, 0]),
        (["1", [1], None], "a", [0, 0, 0]),
        ([{}, choice(None), choice(2)], "c", [0, 0, 1]),
        ([choice(1)], "b", [0, 1, 0]),
        ([], "a", [0, 0, 0]),
    ],
)
def test_with_voters_their_choice_wins(ballots: list[Any], winner: str, tally: list[int]) -> None:
    """A ballot that cannot be read, or never came, does not count; ties go to the earlier sample."""
    deliberation = Deliberation(node(samples=3, voters=3), "hi")
    samples = {(1, f"s{i}"): value for i, value in enumerate("abc")}
    answer_all(deliberation, samples | {(1, f"v{i}"): b for i, b in enumerate(ballots)})
    assert (deliberation.value, deliberation.votes) == (winner, [tally])


def test_each_round_is_shown_the_last_winner() -> None:
    """The second question holds the first round's winner; voters see the request and all samples."""
    deliberation = Deliberation(node(samples=2, voters=1, rounds=2), "the request")
    answers: dict[tuple[int, str], Any] = {
        (1, "s0"): "bad",
        (1, "s1"): "good",
        (1, "v0"): choice(1),
    }
    answers |= {(2, "s0"): "better", (2, "s1"): "best", (2, "v0"): choice(0)}
    asked = {(a.round, a.slot): a for a in answer_all(deliberation, answers)}
    assert asked[1, "s0"].prompt == "the request"
    assert "good" in asked[2, "s0"].prompt
    assert "bad" not in asked[2, "s0"].prompt
    for text in ("the request", "Answer 0:\nbad", "Answer 1:\ngood"):
        assert text in asked[1, "v0"].prompt
    assert asked[1, "v0"].schema is not None
    assert asked[1, "v0"].schema["properties"]["choice"]["enum"] == [0, 1]
    assert (deliberation.value, deliberation.votes) == ("better", [[0, 1], [1, 0]])


def test_voters_may_be_another_agent() -> None:
    """`voter` names who votes; the node's schema binds the samples only."""
    schema = {"type": "string"}
    deliberation = Deliberation(node(samples=2, voters=1, voter="judge", schema=schema), "hi")
    asked = answer_all(deliberation, {(1, "s0"): "x", (1, "s1"): "y", (1, "v0"): choice(0)})
    assert [(a.agent, a.schema == schema) for a in asked] == [
        ("writer", True),
        ("writer", True),
        ("judge", False),
    ]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Node, dict[tuple[int, str], Any]]:
    """Any node, with an answer for all of its places but for some votes."""
    samples = draw(st.integers(1, 4))
    voters = draw(st.integers(0, 3)) if samples > 1 else 0
    shape = node(samples=samples, voters=voters, rounds=draw(st.integers(1, 3)))
    few = JSON_VALUES | st.sampled_from(["x", "y"])
    ballots = st.builds(choice, st.integers(-1, samples)) | JSON_VALUES
    answers: dict[tuple[int, str], Any] = {}
    for round_ in range(1, shape.rounds + 1):
        answers |= {(round_, f"s{i}"): draw(few) for i in range(samples)}
        answers |= {(round_, f"v{i}"): draw(ballots) for i in range(voters) if draw(st.booleans())}
    return shape, answers


@given(case=cases(), data=st.data())
def test_replay_asks_only_for_what_is_missing(
    case: tuple[Node, dict[tuple[int, str], Any]], data: st.DataObject
) -> None:
    """From any part of the saved answers it asks for exactly the rest and ends in the same value."""
    shape, answers = case
    first = Deliberation(shape, "hi")
    asked = answer_all(first, answers)
    places = [(a.round, a.slot) for a in asked]
    assert len(places) == len(set(places)) == shape.rounds * (shape.samples + shape.voters)
    saved = {
        place: answers[place]
        for place in data.draw(st.lists(st.sampled_from(places), unique=True))
        if place in answers
    }
    second = Deliberation(shape, "hi")
    for place in data.draw(st.permutations(list(saved))):
        second.answer(*place, saved[place])
    again = answer_all(second, answers)
    assert [(a.round, a.slot) for a in again] == [p for p in places if p not in saved]
    prompts = {(a.round, a.slot): (a.prompt, a.schema) for a in asked}
    assert all(prompts[a.round, a.slot] == (a.prompt, a.schema) for a in again)
    assert json.dumps([second.value, second.votes]) == json.dumps([first.value, first.votes])


@given(case=cases(), seed=st.randoms())
def test_the_order_of_the_answers_does_not_matter(
    case: tuple[Node, dict[tuple[int, str], Any]], seed: Any
) -> None:
    """Answers in any order, one by one and doubled, lead to the same value, each asked once."""
    shape, answers = case
    straight = Deliberation(shape, "hi")
    answer_all(straight, answers)
    deliberation = Deliberation(shape, "hi")
    waiting = deliberation.advance()
    asked = list(waiting)
    while waiting:
        ask = waiting.pop(seed.randrange(len(waiting)))
        place = (ask.round, ask.slot)
        if place in answers:
            deliberation.answer(*place, answers[place])
            deliberation.answer(*place, "a second answer")
        else:
            deliberation.answer(*place, None)
        new = deliberation.advance()
        waiting += new
        asked += new
    assert deliberation.done
    assert len(asked) == len({(a.round, a.slot) for a in asked})
    assert json.dumps(deliberation.value) == json.dumps(straight.value)
