"""Deadlines by key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentos.core.timers import Timers

OPERATIONS = st.lists(
    st.tuples(st.just("set"), st.integers(0, 5), st.integers(0, 20))
    | st.tuples(st.just("cancel"), st.integers(0, 5), st.just(0))
    | st.tuples(st.just("due"), st.just(0), st.integers(0, 20)),
    max_size=80,
)


@given(operations=OPERATIONS)
def test_it_is_the_obvious_dictionary(operations: list[tuple[str, int, int]]) -> None:
    """Every deadline comes exactly once, in order, and `next` is always the earliest one."""
    timers: Timers[int] = Timers()
    model: dict[int, float] = {}
    for operation, key, at in operations:
        if operation == "set":
            timers.set(key, at)
            model[key] = at
        elif operation == "cancel":
            timers.cancel(key)
            model.pop(key, None)
        else:
            due = timers.pop_due(at)
            assert set(due) == {k for k, deadline in model.items() if deadline <= at}
            assert [model[k] for k in due] == sorted(model[k] for k in due)
            assert len(due) == len(set(due))
            model = {k: deadline for k, deadline in model.items() if k not in due}
        assert timers.next() == min(model.values(), default=None)
        assert len(timers) == len(model)


def test_what_was_replaced_does_not_pile_up() -> None:
    """A deadline that is moved a hundred thousand times takes no more room than one."""
    timers: Timers[str] = Timers()
    for i in range(100_000):
        timers.set("k", float(i))
    assert len(timers._heap) < 200
    assert timers.pop_due(99_998.0) == []
    assert timers.pop_due(99_999.0) == ["k"]
