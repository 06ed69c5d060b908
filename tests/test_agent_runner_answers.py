"""What agents answer and raise: whatever it is, the call gets its one result."""

import asyncio
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentos import answers
from agentos.agents.echo import EchoAgent
from agentos.agents.function import FunctionAgent
from agentos.core import messages as m
from agentos.core.errors import AgentError
from agentos.core.jsontext import parse
from agentos.core.limits import Limits
from agentos.core.ports import AgentAnswer, AgentRequest
from tests.rooms import Made, MakeRoom, Room, rooms

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
JSON = st.recursive(SCALARS, lambda v: st.lists(v) | st.dictionaries(KEYS, v), max_leaves=10)
ODD = st.sampled_from([b"x", (1,), {1}, {1: 1}, math.nan, 2**63, "\ud800", object(), int])


@pytest.fixture
def room() -> Iterator[MakeRoom]:
    """Makes rooms, and closes them; no thread of theirs may be left."""
    with rooms() as make:
        yield make


class Unspeakable(Exception):
    """An exception whose message cannot be read."""

    def __str__(self) -> str:
        raise ValueError


def test_exception_without_words(room: MakeRoom) -> None:
    """Even an exception whose message cannot be read is answered for."""

    async def answer(_request: AgentRequest) -> AgentAnswer:
        raise Unspeakable

    error = room(Made(answer)).ask().error
    assert error == "agent 'made' raised Unspeakable: (its message cannot be shown)"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad luck"),
        TimeoutError("bad luck"),
        SystemExit("bad luck"),
        KeyboardInterrupt("bad luck"),
        RecursionError("bad luck"),
    ],
)
def test_unexpected_exception(room: MakeRoom, error: BaseException) -> None:
    """Whatever an agent raises is a retryable error, and the runner goes on."""

    async def answer(_request: AgentRequest) -> AgentAnswer:
        raise error

    made = room(Made(answer), EchoAgent())
    result = made.ask()
    assert result.error == f"agent 'made' raised {type(error).__name__}: bad luck"
    assert result.retryable
    assert made.ask("echo").value == '"hello"'


def test_agent_that_cancels_itself(room: MakeRoom) -> None:
    """An agent that ends as cancelled although nobody asked it to is answered for."""

    async def answer(_request: AgentRequest) -> AgentAnswer:
        raise asyncio.CancelledError

    result = room(Made(answer)).ask()
    assert "cancelled its own call" in result.error
    assert result.retryable


def test_agent_that_cancels_its_task(room: MakeRoom) -> None:
    """An agent that cancels the task that it runs in is answered for, and its place is free."""

    async def answer(_request: AgentRequest) -> AgentAnswer:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(600)
        raise AssertionError

    made = room(Made(answer, max_concurrency=1))
    for _ in range(2):
        result = made.ask()
        assert "cancelled its own call" in result.error
        assert result.retryable


def test_sync_exit(room: MakeRoom) -> None:
    """`sys.exit` in a sync function ends neither the runner nor the process."""
    made = room(FunctionAgent(sys.exit, name="made"))
    assert "raised SystemExit" in made.ask().error
    assert "raised SystemExit" in made.ask().error


class Unreadable(AgentError):
    """An error whose parts cannot be read."""

    @property
    def retryable(self) -> bool:
        raise ValueError("not telling")

    @retryable.setter
    def retryable(self, value: bool) -> None:
        pass


class Slippery(dict[str, Any]):
    """A value whose members cannot be read."""

    def items(self) -> Any:
        raise ValueError("not telling")


@pytest.mark.parametrize("kind", ["error", "value"])
def test_unreadable(room: MakeRoom, kind: str) -> None:
    """An error or a value that raises while it is read is answered for: no call waits for ever."""

    async def answer(_request: AgentRequest) -> AgentAnswer:
        if kind == "error":
            raise Unreadable("x", retryable=True)
        return AgentAnswer(value=Slippery(a=1))

    result = room(Made(answer)).ask()
    assert result.error == "agent 'made' answered what cannot be read: ValueError: not telling"
    assert not result.retryable


@example(reason="x", retryable=True, after=10**400)
@given(
    st.text(),
    st.booleans(),
    st.none() | st.floats() | st.integers(-(10**400), 10**400),
)
def test_error_always_fits_a_message(reason: str, retryable: bool, after: float | None) -> None:
    """Whatever an agent's error says, what is sent about it can be read by everybody."""

    async def answer(_request: AgentRequest) -> AgentAnswer:
        raise AgentError(reason * 1000, retryable=retryable, retry_after_s=after)

    made = Room(Made(answer))
    try:
        result = made.ask()
    finally:
        made.runner.close()
    assert result.retryable is retryable
    assert len(result.error) <= 10_000
    assert result.error.encode().decode().isprintable()
    assert result.retry_after_s is None or 0 <= result.retry_after_s <= 86_400


@given(JSON | ODD | st.lists(ODD), st.integers(-5, 2**70), st.sampled_from([1, None, "x", 2.5]))
def test_any_answer(value: Any, prompt_tokens: int, completion_tokens: Any) -> None:
    """Any JSON value arrives unchanged as JSON text; anything else is an error for good."""

    async def answer(_request: AgentRequest) -> AgentAnswer:
        return AgentAnswer(
            value=value, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
        )

    made = Room(Made(answer))
    try:
        result = made.ask()
    finally:
        made.runner.close()
    if result.value is None:
        assert result.error
        assert not result.retryable
    else:
        assert repr(parse(result.value, max_bytes=10**6)) == repr(value)
    counts = (result.usage.prompt_tokens, result.usage.completion_tokens)
    assert all(isinstance(count, int) and 0 <= count < 2**63 for count in counts)


@example(value="x" * 98, most=100)
@example(value="x" * 99, most=100)
@given(value=JSON | ODD | st.text(max_size=30), most=st.integers(0, 40))
def test_text_is_written_as_any_value_is(value: Any, most: int) -> None:
    """The short way for text leads to the same JSON, and to the same refusals."""

    def outcome(write: Callable[[], str]) -> str:
        try:
            return write()
        except AgentError as error:
            return f"refused, {error.retryable}: {error.reason}"

    def checked() -> str:
        answers.check(value, max_bytes=most)
        text = answers.encode([value], max_bytes=1000)[1:-1]
        if (size := len(text.encode())) > most:
            reason = f"the answer is {size} bytes of JSON; at most {most} are allowed"
            raise AgentError(reason, retryable=False)
        return text

    found = outcome(lambda: answers.encode(value, max_bytes=most))
    wanted = outcome(checked)
    assert found == wanted


def test_not_an_answer(room: MakeRoom) -> None:
    """An agent of somebody else's that returns no `AgentAnswer` is told so."""

    async def answer(_request: AgentRequest) -> str:
        return "x"

    result = room(Made(answer)).ask()
    assert "returned a str, not an AgentAnswer" in result.error
    assert not result.retryable


def test_too_large(room: MakeRoom) -> None:
    """An answer over the cluster's bound is an error for good; its tokens are still counted."""

    async def answer(request: AgentRequest) -> AgentAnswer:
        return AgentAnswer(value="x" * int(request.prompt), completion_tokens=5)

    made = room(Made(answer), limits=Limits(max_result_bytes=100))
    assert made.ask(prompt="98").value == '"' + "x" * 98 + '"'
    result = made.ask(prompt="99")
    assert (result.error, result.retryable) == (
        "the answer is 101 bytes of JSON; at most 100 are allowed",
        False,
    )
    assert result.usage == m.Usage(1, 0, 0, 5)
