"""Progress rows: what one owner has saved, the next one can read."""

from __future__ import annotations

import json

import pytest

from agentos.core import jsontext
from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import GraphError
from agentos.core.limits import MAX_DEPTH, Limits
from agentos.core.rows import answer_text, load

LIMITS = Limits()


def test_the_deepest_answer_is_read_again() -> None:
    """An answer of the last level that is accepted is one that a later owner goes on from."""
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    value = jsontext.parse(text, max_bytes=LIMITS.max_result_bytes)
    with pytest.raises(GraphError, match="deeper"):
        jsontext.parse(f"[{text}]", max_bytes=LIMITS.max_result_bytes)
    answer = m.CallResult(
        task_id=1, epoch=Epoch(1, 1), row="a", attempt=0, proxy="proxy/r/1", value=text
    )
    row = m.SavedRow("a", Epoch(1, 1), answer_text(answer, m.Usage()))
    assert json.dumps(load(row, LIMITS).value) == json.dumps(value)
