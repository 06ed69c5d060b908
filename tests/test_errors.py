"""Every error under one root: its code on the wire, and its way from one process to another."""

from __future__ import annotations

import inspect
import pickle

import pytest

from agentos.core import errors
from agentos.core.errors import AgentError, AgentOSError, GraphError, Overloaded, UnusableAnswer

KINDS = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, AgentOSError)
]
MADE = [
    GraphError("nodes.a", "has no agent"),
    Overloaded("the queue is full", 2.5),
    AgentError("no answer", retryable=True, retry_after_s=3.0),
    UnusableAnswer("cut off"),
]


def test_no_two_errors_share_a_code() -> None:
    """What is raised in one process is raised as the same class in another: by its code."""
    codes = [kind.code for kind in KINDS]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling(kind: type[AgentOSError]) -> None:
    """Worker processes of others hand errors over by pickling them."""
    error = next((one for one in MADE if type(one) is kind), None) or kind("because")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.args == error.args
