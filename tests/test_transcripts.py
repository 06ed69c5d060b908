"""Scenarios worth naming, step by step, as texts that a person can read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.scenario import rewritten

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
REWRITE = "REWRITE_TRANSCRIPTS"
"""Set this environment variable to write what happens now into the files; read the difference."""


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_scenario_goes_as_it_is_written(path: Path) -> None:
    """Every step of this scenario has the effects that its transcript shows."""
    text = path.read_text(encoding="utf-8")
    happens = rewritten(text)
    if os.environ.get(REWRITE):
        path.write_text(happens, encoding="utf-8")
    else:
        assert happens == text, f"if this is what should happen: {REWRITE}=1 pytest {__file__}"


def test_the_scenarios_are_there() -> None:
    """None of the transcripts has been lost."""
    assert len(TRANSCRIPTS) >= 9
