"""Records on their way to the store: joined, cut into pages, and of texts that can be stored."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.rows import joined, pages, plain, wire_size
from tests.owners import E11, E12, ME

RECORDS = st.builds(
    m.Record,
    task_id=st.integers(1, 2),
    epoch=st.sampled_from([E11, E12]),
    rows=st.lists(st.builds(m.Row, st.sampled_from("abcd"), st.text(max_size=9)), max_size=3).map(
        tuple
    ),
    end=st.none() | st.just(m.End("succeeded", "{}")),
)


@given(st.lists(RECORDS | st.just(m.Ended(task_id=1, epoch=E11, state="succeeded")), max_size=12))
def test_records_that_are_joined_say_the_same(said: list[m.Message]) -> None:
    """Every row and every end is still there, once, in its order; nothing else is touched."""
    most = 200
    before = [m.Envelope("store", ME, message) for message in said]
    after = joined(before, most)

    def saved(envelopes: list[m.Envelope]) -> dict[Any, list[Any]]:
        parts: dict[Any, list[Any]] = {}
        for q in (e.message for e in envelopes):
            if isinstance(q, m.Record):
                end = [] if q.end is None else [q.end]
                parts.setdefault((q.task_id, q.epoch), []).extend([*q.rows, *end])
        return parts

    assert saved(after) == saved(before)
    assert [e for e in after if isinstance(e.message, m.Ended)] == [
        e for e in before if isinstance(e.message, m.Ended)
    ]
    for q in (e.message for e in after if e not in before):
        assert isinstance(q, m.Record)
        assert 6 * sum(len(row.result) + 1 for row in q.rows) <= most


def test_answers_that_come_together_are_saved_together() -> None:
    """Three nodes that end in one turn cost one transaction, beside which others keep theirs."""

    def record(task_id: int, name: str) -> m.Envelope:
        rows = (m.Row(name, '{"value":1}'),)
        return m.Envelope("store", ME, m.Record(task_id=task_id, epoch=E11, rows=rows))

    first, second = joined(
        [record(1, "a"), record(2, "a"), record(1, "b"), record(1, "c")], 1_000_000
    )
    assert [row.node_id for row in first.message.rows] == ["a", "b", "c"]  # type: ignore[union-attr]
    assert second == record(2, "a")


@given(sizes=st.lists(st.integers(2, 50), max_size=20), most=st.integers(1, 60))
def test_pages_fit_and_lose_nothing(sizes: list[int], most: int) -> None:
    """Every row is on one page, in order; no page of several is too large; the end comes last."""
    rows = [m.Row(f"n{i}", "x" * size) for i, size in enumerate(sizes)]
    end = m.End("failed", "{}")
    parts = pages(rows, end, most)
    assert [r for part, _ in parts for r in part] == rows
    assert all(
        len(part) == 1 or sum(len(r.result) for r in part) <= most for part, _ in parts if part
    )
    assert [e for _, e in parts] == [None] * (len(parts) - 1) + [end]


@given(st.lists(st.text(max_size=20), min_size=1, max_size=8), st.integers(1, 200))
def test_pages_are_cut_by_bytes(texts: list[str], most: int) -> None:
    """What fits one page is not cut, and no page of several rows takes more bytes than allowed."""
    rows = [m.Row(f"n{i}", text) for i, text in enumerate(texts)]
    parts = pages(rows, None, most)
    assert len(parts) == 1 or sum(map(wire_size, texts)) > most
    for part, _ in parts:
        assert len(part) == 1 or sum(wire_size(row.result) for row in part) <= most


@given(text=st.text(max_size=50))
def test_every_error_can_be_stored(text: str) -> None:
    """Whatever an agent's error says, its text is one that every database takes."""
    safe = plain(text + "\0\ud800")
    assert "\0" not in safe
    assert safe.encode()
