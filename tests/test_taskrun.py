"""One owner's walk of a graph: persist then send, and go on from any saved rows."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.errors import GraphError
from agentos.core.limits import Limits
from agentos.core.rows import split
from tests.owners import DIAMOND, E11, E12, OTHER, REGION, Owner, row


def test_persist_then_send() -> None:
    """No question is asked before every answer that it rests on is confirmed by the store."""
    owner = Owner(DIAMOND)
    assert set(owner.asked) == {"a/1/s0"}
    owner.answer("a/1/s0", "x")
    assert owner.asked == {}
    owner.commit()
    assert set(owner.asked) == {"b/1/s0", "b/1/s1", "c/1/s0"}
    owner.answer("b/1/s0", "y")
    owner.answer("b/1/s1", "z")
    assert set(owner.asked) == {"c/1/s0"}
    owner.commit()
    assert set(owner.asked) == {"c/1/s0"}
    owner.commit()
    assert set(owner.asked) == {"c/1/s0", "b/1/v0"}


VOTED = {
    "a": {"agent": "x", "prompt": "p", "samples": 3},
    "b": {"agent": "x", "prompt": "${a}"},
}


def test_a_result_goes_with_the_answers_that_are_not_confirmed() -> None:
    """If an earlier record was lost on its way, no result is in the database without its answers."""
    owner = Owner(VOTED)
    for slot in ("s0", "s1"):
        owner.answer(f"a/1/{slot}", "y")
    owner.commit()  # the first one alone
    owner.answer("a/1/s2", "y")
    assert [row.node_id for row in owner.records[-1].rows] == ["a/1/s1", "a/1/s2", "a"]


def test_a_result_waits_for_answers_that_are_too_large_to_go_with_it() -> None:
    """What does not fit into one record goes in two, the result in the second."""
    limits = msgspec.structs.replace(Limits(), page_bytes=70_000)
    owner = Owner(VOTED, limits=limits)
    for slot in ("s0", "s1", "s2"):
        owner.answer(f"a/1/{slot}", "y" * 30_000)
    assert [r.node_id for record in owner.records for r in record.rows] == [
        "a/1/s0", "a/1/s1", "a/1/s2",
    ]  # fmt: skip
    while owner.records:
        assert "b/1/s0" not in owner.asked
        owner.commit()
    assert "b/1/s0" in owner.asked


def test_the_end_is_written_with_the_last_row() -> None:
    """The last answer and the terminal state are one write; `Ended` follows its confirmation."""
    owner = Owner({"a": DIAMOND["a"]})
    owner.answer("a/1/s0", {"k": [1]})
    (record,) = owner.records
    assert [r.node_id for r in record.rows] == ["a"]
    assert record.end is not None
    assert json.loads(record.end.response)["output"] == {"k": [1]}
    assert m.Ended not in [type(send.message) for send in owner.sent]
    owner.commit()
    assert owner.run.over
    assert isinstance(owner.sent[-1].message, m.Ended)
    assert len(owner.timers) == 0


def test_a_silent_store_is_asked_again() -> None:
    """Whatever is not confirmed is written again, all of it, until it is."""
    owner = Owner(DIAMOND)
    owner.answer("a/1/s0", "x")
    first = owner.records.pop()
    for _ in range(3):
        owner.pass_time()
        assert owner.records.pop().rows == first.rows
    owner.commit(first)
    assert set(owner.asked) == {"b/1/s0", "b/1/s1", "c/1/s0"}


@settings(max_examples=60, deadline=None)
@given(seed=st.randoms(use_true_random=False), cut=st.integers(0, 12))
def test_another_owner_goes_on_from_what_was_saved(seed: Any, cut: int) -> None:
    """Cut anywhere, the next owner asks only for what is missing, and the output is the same."""

    def value(of: str) -> Any:
        return {"choice": 1} if "/v" in of else f"answer of {of}"

    def play(owner: Owner, steps: int) -> list[m.Row]:
        """So many answers and commits in any order; the rows that were confirmed."""
        saved: list[m.Row] = []
        while steps and (owner.asked or owner.records):
            steps -= 1
            if owner.records and (not owner.asked or seed.random() < 0.5):
                saved += owner.records[0].rows
                owner.commit()
            else:
                name = seed.choice(sorted(owner.asked))
                owner.answer(name, value(name))
        return saved

    whole = Owner(DIAMOND)
    play(whole, 1000)
    first = Owner(DIAMOND)
    saved = play(first, cut)
    second = Owner(DIAMOND, [m.SavedRow(r.node_id, E11, r.result) for r in saved])
    known = {r.node_id for r in saved}
    play(second, 1000)
    asked = {
        name
        for send in second.sent
        if isinstance(send.message, m.Place)
        for name in send.message.rows
    }
    assert not any(name in known or split(name)[0] in known for name in asked)
    written = [s.message for s in (*whole.sent, *second.sent) if isinstance(s.message, m.Record)]
    if not first.run.over:
        first_end, second_end = [record.end for record in written if record.end is not None]
        assert json.loads(first_end.response) == json.loads(second_end.response)


def test_a_failing_start_starts_nothing_after_it() -> None:
    """When one of several ready nodes cannot be asked, the others are not asked either."""
    nodes = {
        "a": {"agent": "echo", "prompt": ""},
        "b": {"agent": "echo", "prompt": "${a.x}"},
        "c": {"agent": "echo", "prompt": "${a.y}"},
        "d": {"agent": "echo", "prompt": "${a}"},
    }
    owner = Owner(nodes, [row("a", "text")])
    assert owner.asked == {}
    (record,) = owner.records
    assert record.end is not None
    assert "node 'b'" in record.end.error
    assert "has no 'x'" in record.end.error


def test_a_failed_node_ends_the_task_and_its_other_calls() -> None:
    """After the last attempt the task fails with the node named; calls in flight are aborted."""
    owner = Owner({"a": {"agent": "echo", "prompt": "", "retries": 1, "samples": 2}})
    owner.take(
        owner.run.calls.placed(
            m.Placed(task_id=1, epoch=E12, row="a/1/s1", attempt=0, proxy="proxy/r0/2"), 0.0
        )
    )
    owner.answer("a/1/s0", error="no\0pe", retryable=True)
    assert owner.records == []
    owner.pass_time()
    assert owner.asked["a/1/s0"].attempt == 1
    owner.answer("a/1/s0", error="no\0pe", retryable=True)
    (record,) = owner.records
    assert record.end is not None
    assert "after 2 attempts: no\\0pe" in record.end.error
    assert ("proxy/r0/2", m.AbortCalls) in [(s.to, type(s.message)) for s in owner.sent]


@pytest.mark.parametrize("value", ["{", "NaN", '{"a":1,"a":2}', "1e999", '"\\ud800"', "[" * 100])
def test_answers_that_cannot_be_stored_are_repeated(value: str) -> None:
    """What is no JSON that every reader understands is a failed attempt, not an accepted value."""
    owner = Owner({"a": {"agent": "echo", "prompt": "", "retries": 0}})
    owner.answer("a/1/s0", value=value)
    (record,) = owner.records
    assert record.end is not None
    assert record.end.state == "failed"
    assert "unusable answer" in record.end.error


def test_a_vote_that_cannot_be_had_does_not_count() -> None:
    """A voter that fails for good is left out; the node goes on."""
    nodes = {"a": {"agent": "echo", "prompt": "", "samples": 2, "voters": 1, "retries": 0}}
    owner = Owner(nodes, [row("a/1/s0", "x"), row("a/1/s1", "y")])
    owner.answer("a/1/v0", error="no", retryable=False)
    (record,) = owner.records
    assert [r.node_id for r in record.rows] == ["a/1/v0", "a"]
    assert record.end is not None
    assert json.loads(record.end.response)["output"] == "x"


def test_a_vote_that_was_done_without_stays_so() -> None:
    """The next owner decides as the one before did, and does not ask the voter again."""
    nodes = {"a": {"agent": "echo", "prompt": "", "samples": 2, "voters": 2, "rounds": 2}}
    samples = [row("a/1/s0", "x"), row("a/1/s1", "y")]
    first = Owner(nodes, samples)
    first.answer("a/1/v0", error="no", retryable=False)
    first.answer("a/1/v1", {"choice": 1})
    saved = [
        m.SavedRow(r.node_id, first.run.epoch, r.result) for q in first.records for r in q.rows
    ]
    first.commit(first.records[0])
    first.commit(first.records[1])
    second = Owner(nodes, [*samples, *saved])
    assert set(second.asked) == set(first.asked) == {"a/2/s0", "a/2/s1"}
    assert "The best answer so far:\ny" in second.asked["a/2/s0"].prompt


def test_costs_survive_a_change_of_owner() -> None:
    """What the earlier owner's saved calls cost is in the response, counted once."""
    usage = {"calls": 1, "retries": 0, "prompt_tokens": 10, "completion_tokens": 5}
    rows = [row("a", "x", usage=usage), row("b/1/s0", "y", usage=usage)]
    owner = Owner(DIAMOND, rows)
    for name in ("b/1/s1", "b/1/v0", "c/1/s0", "d/1/s0"):
        while name not in owner.asked:
            owner.commit()
        owner.answer(name, {"choice": 0})
    end = owner.records[-1].end
    assert end is not None
    told = json.loads(end.response)["usage"]
    assert (told["calls"], told["prompt_tokens"]) == (6, 20)


def test_rows_of_nodes_that_are_gone_are_ignored() -> None:
    """A description that was replaced has no use for what was saved of its old nodes."""
    owner = Owner({"a": DIAMOND["a"]}, [row("old", 1), row("old/1/s0", 1)])
    assert set(owner.asked) == {"a/1/s0"}


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"value":1,"usage":[]}', "[" * 10_000])
def test_rows_that_cannot_be_read_are_an_error(text: str) -> None:
    """Never a crash of another kind: whoever builds the run can tell the task's owner."""
    with pytest.raises((GraphError, msgspec.ValidationError)):
        Owner({"a": DIAMOND["a"]}, [m.SavedRow("a", E11, text)])


def test_waits_are_bounded_on_both_sides() -> None:
    """A peer that says "again in 0 s" makes no busy loop, one that says "in 30 years" no dead task."""
    owner = Owner({"a": DIAMOND["a"]})
    refused = m.CallRefused(
        task_id=1, epoch=E12, row="a/1/s0", attempt=0, reason="", retry_after_s=0.0
    )
    for told, least, most in ((0.0, 0.01, 1.0), (1e9, 1.0, 60.0)):
        again = msgspec.structs.replace(refused, retry_after_s=told)
        owner.run.calls.refused(again, REGION, 10.0)
        due = owner.timers.next()
        assert due is not None
        assert least <= due - 10.0 <= most
    owner.answer("a/1/s0", error="busy", retryable=True, retry_after_s=1e9)
    due = owner.timers.next()
    assert due is not None
    assert due <= owner.limits.max_timeout_s + 1.0


def test_a_watcher_who_comes_late_hears_how_far_it_is_and_the_last_node_too() -> None:
    """Whoever watches sees every node done: those before, those after, and the last one."""
    owner = Owner({"a": {"agent": "x", "prompt": "1"}, "b": {"agent": "x", "prompt": "${a}"}})
    owner.answer("a/1/s0", "x")
    owner.commit()
    for _ in range(2):  # asking again repeats nothing
        owner.take(owner.run.watch("client/x", progress=True))
    owner.answer("b/1/s0", "y")
    owner.commit()
    assert heard(owner) == [
        ("started", ""), ("node", "a"), ("call", "b"), ("answer", "b"), ("node", "b"),
    ]  # fmt: skip
    assert isinstance(owner.sent[-1].message, m.Ended)


def heard(owner: Owner) -> list[tuple[str, str]]:
    """The events that client/x was sent, with their nodes."""
    sent = [s.message for s in owner.sent if s.to == "client/x"]
    return [(e.event, e.node) for e in sent if isinstance(e, m.Event)]


def test_a_call_is_heard_of_before_its_answer() -> None:
    """Also if the executor's answer overtakes the region's word of where the call was placed."""
    owner = Owner({"a": {"agent": "x", "prompt": "1", "samples": 2}})
    owner.take(owner.run.watch("client/x", progress=True))
    placed = m.Placed(task_id=1, epoch=E12, row="a/1/s0", attempt=0, proxy=OTHER)
    owner.take(owner.run.calls.placed(placed, 0.0))
    owner.answer("a/1/s0", "x")
    owner.answer("a/1/s1", "y")
    late = msgspec.structs.replace(placed, row="a/1/s1")
    owner.take(owner.run.calls.placed(late, 0.0))
    assert heard(owner) == [
        ("started", ""), ("call", "a"), ("answer", "a"), ("call", "a"), ("answer", "a"),
    ]  # fmt: skip
