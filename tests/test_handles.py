"""What a client makes of a graph that it is handed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentos.core import jsontext
from agentos.core.errors import GraphError
from agentos.core.limits import Limits
from agentos.handles import text_of
from tests.strategies import JSON_VALUES

ODD = st.sampled_from(
    [
        float("nan"),
        float("inf"),
        2**70,
        (1, 2),
        {1},
        b"x",
        "\ud800",
        object(),
        datetime.now(UTC),
        Limits(),
    ]
)


@given(JSON_VALUES | ODD | st.dictionaries(st.text() | st.integers(), JSON_VALUES | ODD))
def test_a_graph_is_written_as_json(value: Any) -> None:
    """A graph given as a mapping arrives as what it is; what JSON has no word for is refused."""

    def outcome(write: Callable[[Any], str]) -> Any:
        try:
            return jsontext.parse(write({"nodes": value}), max_bytes=10**6)
        except (GraphError, TypeError, ValueError):
            return GraphError

    assert repr(outcome(text_of)) == repr(outcome(jsontext.dump))
