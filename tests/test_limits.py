"""The bounds: the defaults fit together, and every contradiction is refused by name."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from agentos.core.errors import ConfigError
from agentos.core.limits import MAX_DESCRIPTION_BYTES, MAX_NODES, Limits

FIELDS = Limits.__struct_fields__


def test_the_defaults_fit_together() -> None:
    """A cluster without any configuration has limits that pass their own check."""
    limits = Limits()
    assert limits.check() is limits


def test_suspicion_takes_several_missed_heartbeats() -> None:
    """A peer is suspected after `suspect_after` heartbeats of silence, not after one."""
    assert Limits(heartbeat_s=0.25, suspect_after=4).suspicion_s == 1.0


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [0, -1])
def test_every_limit_must_be_positive(name: str, value: int) -> None:
    """No bound or interval may be 0 or negative; the error names the limit and the value."""
    limits = msgspec.structs.replace(Limits(), **{name: value})
    with pytest.raises(ConfigError, match=rf"limits\.{name} must be greater than 0, not {value}"):
        limits.check()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"heartbeat_s": math.nan}, "heartbeat_s must be greater than 0"),
        ({"heartbeat_s": 1e9}, "heartbeat_s must be at most"),
        ({"stop_grace_s": math.inf}, "stop_grace_s must be at most"),
        ({"heartbeat_s": "1"}, "float.*str.*limits.heartbeat_s"),
        ({"suspect_after": 1}, "suspect_after must be at least 2"),
        ({"reconnect_min_s": 3.0}, "reconnect_max_s must not be less"),
        ({"retry_min_s": 11.0}, "retry_max_s must not be less"),
        ({"max_frame_bytes": 5_999_999}, "max_frame_bytes must be at least 6000000"),
        ({"max_prompt_bytes": 3_000_000}, "max_frame_bytes must be at least 9000000"),
        ({"max_result_bytes": 3_000_000}, "max_frame_bytes must be at least 9000000"),
        ({"page_bytes": 3_000_000}, "max_frame_bytes must be at least 9000000"),
        (
            {"max_description_bytes": MAX_DESCRIPTION_BYTES + 1},
            "^limits.max_description_bytes must be at most 1000000: it may only be lowered$",
        ),
        (
            {"max_nodes": MAX_NODES + 1},
            "^limits.max_nodes must be at most 10000: it may only be lowered$",
        ),
    ],
)
def test_contradictions_are_refused(changed: dict[str, Any], named: str) -> None:
    """Limits that contradict each other are refused at the start, with the limit to change."""
    with pytest.raises(ConfigError, match=named):
        msgspec.structs.replace(Limits(), **changed).check()


def test_all_faults_are_named_at_once() -> None:
    """Somebody who got three limits wrong reads about all three, not about one at a time."""
    with pytest.raises(ConfigError) as caught:
        Limits(suspect_after=1, retry_min_s=11.0, mailbox=0).check()
    for name in ("suspect_after", "retry_max_s", "mailbox"):
        assert f"limits.{name}" in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"max_frame_bytes": 6_000_000},
        {"suspect_after": 2},
        {"reconnect_min_s": 2.0},
        {"retry_min_s": 10.0},
        {"max_nodes": 1},
        {"max_description_bytes": 1},
    ],
)
def test_the_edges_are_allowed(changed: dict[str, Any]) -> None:
    """A limit may be set to exactly what its rule allows."""
    msgspec.structs.replace(Limits(), **changed).check()


def test_an_unknown_limit_is_refused() -> None:
    """A misspelt limit is an error, not a limit that is quietly ignored."""
    with pytest.raises(msgspec.ValidationError, match="heartbeats_s"):
        msgspec.convert({"heartbeats_s": 1.0}, Limits)
