"""Which waiting call goes first."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.core.scheduling import Policy, Priority, make_policy

OPERATIONS = st.lists(
    st.tuples(st.just("push"), st.sampled_from("abcdef"), st.integers(-1, 2))
    | st.tuples(st.just("discard"), st.sampled_from("abcdef"), st.just(0))
    | st.tuples(st.just("pop"), st.just(""), st.just(0)),
    max_size=60,
)


@pytest.mark.parametrize("name", ["fifo", "priority"])
@given(operations=OPERATIONS)
def test_it_is_the_obvious_list(name: str, operations: list[tuple[str, str, int]]) -> None:
    """Any sequence of calls gives what a plain list, searched every time, would give."""
    policy: Policy[int] = make_policy(name)
    model: list[tuple[str, int, int]] = []
    for number, (operation, key, priority) in enumerate(operations):
        known = next((entry for entry in model if entry[0] == key), None)
        if operation == "push":
            policy.push(key, number, priority)
            if known is None:
                model.append((key, number, priority))
        elif operation == "discard":
            assert policy.discard(key) == (None if known is None else known[1])
            model = [entry for entry in model if entry is not known]
        else:
            first = model[0] if model else None
            if name == "priority" and model:
                first = max(model, key=lambda entry: entry[2])
            assert policy.pop() == (None if first is None else first[1])
            model = [entry for entry in model if entry is not first]
        assert len(policy) == len(model)


def test_what_was_taken_out_does_not_pile_up() -> None:
    """A call that is revoked over and over leaves nothing behind."""
    policy: Priority[int] = Priority()
    for i in range(10_000):
        policy.push(f"k{i}", i, 0)
        policy.discard(f"k{i}")
    held: Any = policy._heap
    assert len(held) < 200
