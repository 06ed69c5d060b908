"""An owner's walk of what is large: wide and deep graphs, long answers, outputs and ballots."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from agentos.core import messages as m
from agentos.core.limits import Limits
from agentos.runtime.wire import JsonCodec
from tests.owners import ME, Owner


def steps_of(nodes: dict[str, Any]) -> float:
    """Calls of Python and built-in functions that a run makes for each node, and all around it."""
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        owner = Owner(nodes)
        while not owner.run.over:
            for row_id in [*owner.asked]:
                owner.answer(row_id, "x")
            for _ in [*owner.records]:
                owner.commit()
    finally:
        sys.setprofile(before)
    return calls / len(nodes)


@pytest.mark.parametrize("shape", ["chain", "fan"])
def test_a_node_costs_the_same_in_a_large_graph(shape: str) -> None:
    """Nothing is done for each node that takes longer the more nodes there are, wide or deep."""
    few, many = 50, 1_000

    def graph(count: int) -> dict[str, Any]:
        names = [f"n{i}" for i in range(count)]
        before = dict(zip(names[1:], names, strict=False)) if shape == "chain" else {}
        nodes = {"first": {"agent": "echo", "prompt": "x"}}
        for name in names:
            nodes[name] = {"agent": "echo", "prompt": f"${{{before.get(name, 'first')}}}"}
        last = names[-1:] if shape == "chain" else names
        nodes["last"] = {"agent": "echo", "prompt": "".join(f"${{{name}}}" for name in last)}
        return nodes

    assert steps_of(graph(many)) < 1.2 * steps_of(graph(few))


def test_a_wide_graph_goes_through_in_slices() -> None:
    """Ten thousand ready nodes don't keep their owner from its heartbeats: few run at once."""
    count, limits = 1_000, Limits(calls_per_task=50)
    owner = Owner({f"n{i}": {"agent": "x", "prompt": "1"} for i in range(count)}, limits=limits)
    answered = 0
    while not any(record.end for record in owner.records):
        assert 0 < len(owner.asked) <= 50
        owner.answer(next(iter(owner.asked)), "y")
        answered += 1
        if len(owner.records) > 10 and not owner.records[-1].end:
            owner.commit()
    assert answered == count


def test_votes_and_further_rounds_go_through_in_slices_too() -> None:
    """What follows from answers waits for room as the first questions do."""
    node = {"agent": "x", "prompt": "1", "samples": 2, "voters": 8, "rounds": 2}
    limits = Limits(calls_per_task=20)
    owner = Owner({f"n{i}": node for i in range(100)}, limits=limits)
    answered = 0
    while not any(record.end for record in owner.records):
        assert 0 < len(owner.asked) < 20 + 8
        # The samples of all nodes first, so that as many votes as can be are wanted at once.
        name = min(owner.asked, key=lambda row: "/v" in row)
        owner.answer(name, {"choice": 0} if "/v" in name else "y")
        answered += 1
        if len(owner.records) > 10 or len(owner.asked) < 5:
            for record in [*owner.records]:
                owner.commit(record)
    assert answered == 100 * 2 * (2 + 8)


@pytest.mark.parametrize("text", ["x" * 900_000, "漢" * 300_000, '"' * 440_000])
def test_every_record_fits_a_frame(text: str) -> None:
    """However large the answers are, and whatever has to be repeated, what is written can travel."""
    limits = Limits()
    nodes = {f"n{i}": {"agent": "x", "prompt": "1"} for i in range(6)}
    owner = Owner({**nodes, "last": {"agent": "x", "prompt": "1", "needs": list(nodes)}})
    for name in nodes:
        owner.answer(f"{name}/1/s0", text)
    owner.pass_time()  # the store was silent: everything again
    for record in [*owner.records]:
        owner.commit(record)
    owner.answer("last/1/s0", text)
    while not owner.run.over:
        owner.commit()
    codec = JsonCodec(limits)
    for send in owner.sent:
        codec.encode(m.Envelope(send.to, ME, send.message, send.ref))


def test_a_ballot_that_cannot_travel_fails_its_node() -> None:
    """A vote on answers too long to be quoted together is an error with its reason, not a hang."""
    node = {"agent": "x", "prompt": "1", "samples": 3, "voters": 1}
    owner = Owner({"a": node})
    for i in range(3):
        owner.answer(f"a/1/s{i}", "x" * 900_000)
    for record in [*owner.records]:
        owner.commit(record)
    end = owner.records[-1].end
    assert end is not None
    assert end.state == "failed"
    assert "node 'a': the prompt of a vote of round 1 takes 27" in end.error


def test_an_output_too_large_fails_the_task() -> None:
    """A response that no frame can carry is not written; the reason says what to do."""
    limits = Limits(page_bytes=500)
    owner = Owner({n: {"agent": "echo", "prompt": ""} for n in "ab"}, limits=limits)
    for name in "ab":
        owner.answer(f"{name}/1/s0", "x" * 300)
    while owner.records[0].end is None:
        owner.commit()
    end = owner.records[0].end
    assert end is not None
    assert end.state == "failed"
    assert "set `output`" in end.error
