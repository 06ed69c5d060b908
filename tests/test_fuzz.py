"""The fuzz targets in a short form, and whatever they have found."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.__main__ import at_random, known
from tests.fuzz.making import MAKERS
from tests.fuzz.targets import TARGETS, timed

FOUND = [(target, file) for target in TARGETS for file in known(target)]


@pytest.mark.parametrize(("target", "file"), FOUND, ids=[file.name for _, file in FOUND])
def test_what_was_found_is_mended(target: str, file: object) -> None:
    """An input that a fuzzer has found is handled for good."""
    timed(target, file.read_bytes())  # type: ignore[attr-defined]


@pytest.mark.parametrize("target", list(TARGETS))
def test_good_inputs_are_good(target: str) -> None:
    """What the fuzzers begin with is taken, not refused: otherwise they would test refusals only."""
    rng, taken = random.Random(7), 0
    for _ in range(300):
        data = MAKERS[target](rng)
        timed(target, data)
        taken += _is_taken(target, data)
    assert taken > 200


def _is_taken(target: str, data: bytes) -> bool:
    from agentos.core.errors import AgentOSError
    from agentos.core.graph import parse_graph
    from agentos.runtime.wire import open_sealed
    from tests.fuzz.targets import CODEC, LIMITS, SEPARATOR

    try:
        if target == "graph":
            parse_graph(data.decode(), LIMITS)
        else:
            for made in CODEC.decode(data.split(SEPARATOR)):
                open_sealed(made.message, LIMITS)  # type: ignore[arg-type]
    except AgentOSError:
        return False
    return True


@pytest.mark.parametrize("target", list(TARGETS))
def test_damaged_inputs(target: str) -> None:
    """A few thousand damaged inputs are refused with a typed error, or handled right."""
    outcome = at_random(target, 2.0, 2_026)
    assert outcome.failures == []
    assert outcome.runs > 100
