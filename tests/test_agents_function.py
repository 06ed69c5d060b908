"""Python functions as agents."""

import asyncio
import functools
import math
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos import answers
from agentos.agents.function import FunctionAgent, agent
from agentos.core.errors import AgentError, ConfigError
from agentos.core.jsontext import parse
from agentos.core.ports import AgentAnswer, AgentRequest

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SCALARS = (
    st.none() | st.booleans() | INT64 | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v) | st.dictionaries(KEYS, v), max_leaves=20)
NOT_JSON = (
    st.binary()
    | st.sets(st.integers())
    | st.tuples(st.integers())
    | st.complex_numbers()
    | st.datetimes()
    | st.uuids()
    | st.sampled_from([math.nan, math.inf, -math.inf, 2**63, -(2**63) - 1, "\ud800", object(), int])
    | st.dictionaries(st.integers(), st.none(), min_size=1)
    | st.dictionaries(st.just("\ud800") | st.just("\0"), st.none(), min_size=1)
)


def request(prompt: str = "hello", schema: dict[str, Any] | None = None) -> AgentRequest:
    return AgentRequest(prompt=prompt, key="1/a/0/s0", timeout_s=10.0, schema=schema)


def call(function: Callable[..., Any], asked: AgentRequest | None = None) -> AgentAnswer:
    """Run one call of a function as an agent, from start to close."""

    async def run() -> AgentAnswer:
        made = FunctionAgent(function, name="made")
        try:
            return await made.call(asked or request())
        finally:
            await made.close()

    return asyncio.run(run())


@given(VALUES)
def test_json_value_unchanged(value: Any) -> None:
    """Any JSON value that a function returns arrives, as JSON text, as it was."""

    async def function(_prompt: str) -> Any:
        return value

    text = answers.encode(call(function).value, max_bytes=10**6)
    found = parse(text, max_bytes=10**6)
    assert repr(found) == repr(value)


@given(NOT_JSON, st.integers(0, 3))
def test_anything_else_is_a_typed_error(value: Any, depth: int) -> None:
    """Anything that JSON cannot carry, however deep inside, is an `AgentError` for good."""
    for _ in range(depth):
        value = {"inside": [value]}

    async def function(_prompt: str) -> Any:
        return value

    with pytest.raises(AgentError) as caught:
        answers.encode(call(function).value, max_bytes=10**6)
    assert not caught.value.retryable


def test_error_names_type_and_place() -> None:
    """The error for a wrong type names the type, and where in the answer it is."""
    with pytest.raises(AgentError, match=r"the answer's a\.1 is a tuple, not a JSON value"):
        answers.encode(call(lambda _: {"a": [1, (2, 3)]}).value, max_bytes=100)


@pytest.mark.parametrize("build", ["cycle", "doubling", "deep"])
def test_endless_values(build: str) -> None:
    """A value that contains itself, or multiplies, or is too deep, is refused and costs little."""
    value: list[Any] = []
    if build == "cycle":
        value.append(value)
    for _ in range({"cycle": 0, "doubling": 60, "deep": 64}[build]):
        value = [value, value] if build == "doubling" else [value]
    with pytest.raises(AgentError, match=r"larger than|nested deeper than 64"):
        answers.encode(value, max_bytes=100_000)


def test_depth_64_is_fine() -> None:
    """The bound itself is allowed."""
    value: Any = 1
    for _ in range(64):
        value = [value]
    assert answers.encode(call(lambda _: value).value, max_bytes=200) == "[" * 64 + "1" + "]" * 64


def test_sync_runs_in_a_thread() -> None:
    """A sync function does not run in the event loop's thread."""
    assert call(lambda _: threading.current_thread().name).value.startswith("agent-made-")


def test_request_parameter() -> None:
    """A function whose parameter is annotated `AgentRequest` is given the whole request."""

    def key(asked: AgentRequest) -> str:
        return asked.key

    async def prompt(asked: "AgentRequest") -> str:
        return asked.prompt

    assert call(key).value == "1/a/0/s0"
    assert call(prompt).value == "hello"


def test_answer_with_usage() -> None:
    """A function may return an `AgentAnswer`, and so report what it cost."""
    answer = AgentAnswer(value="x", prompt_tokens=3, completion_tokens=4)
    assert call(lambda _: answer) == answer


def test_callables() -> None:
    """Partial functions, objects and sync functions that return an awaitable all work."""

    class Shout:
        async def __call__(self, prompt: str) -> str:
            return prompt.upper()

    async def later(prompt: str) -> str:
        return prompt

    assert call(Shout()).value == "HELLO"
    assert call(functools.partial(int, base=36)).value == int("hello", 36)
    assert call(lambda prompt: later(prompt)).value == "hello"  # noqa: PLW0108
    assert call(str.upper).value == "HELLO"


@pytest.mark.parametrize("error", [ValueError("bad\nluck"), StopIteration("bad luck")])
def test_exception(error: Exception) -> None:
    """What a sync function raises is a retryable error that gives its type and message."""

    def function(_prompt: str) -> str:
        raise error

    with pytest.raises(AgentError, match=rf"'made' raised {type(error).__name__}: bad") as caught:
        call(function)
    assert caught.value.retryable
    assert "\n" not in str(caught.value)


def test_async_exception() -> None:
    """The same holds for an async function."""

    async def function(_prompt: str) -> str:
        raise KeyError("x")

    with pytest.raises(AgentError, match="'made' raised KeyError") as caught:
        call(function)
    assert caught.value.retryable


def test_agent_error_decides() -> None:
    """A function that raises `AgentError` decides itself whether and when to try again."""

    def function(_prompt: str) -> str:
        raise AgentError("no such customer", retryable=False, retry_after_s=3.0)

    with pytest.raises(AgentError, match=r"^no such customer$") as caught:
        call(function)
    assert (caught.value.retryable, caught.value.retry_after_s) == (False, 3.0)


def test_concurrency() -> None:
    """Sync calls run at the same time up to `max_concurrency`; the next one waits for a thread."""
    release, lock = threading.Event(), threading.Lock()
    names: list[str] = []

    def function(_prompt: str) -> str:
        with lock:
            names.append(threading.current_thread().name)
        release.wait(10)
        return "done"

    async def run() -> None:
        made = FunctionAgent(function, name="two", max_concurrency=2)
        calls = [asyncio.create_task(made.call(request())) for _ in range(3)]
        async with asyncio.timeout(10):
            while len(names) < 2:
                await asyncio.sleep(0.001)
        release.set()
        await asyncio.gather(*calls)
        await made.close()

    asyncio.run(run())
    assert len(names) == 3
    assert len(set(names)) == 2


def test_abandoned_call_is_never_started() -> None:
    """A call that is aborted while it waits for a thread does not run at all."""
    release = threading.Event()
    ran: list[str] = []

    def function(prompt: str) -> None:
        ran.append(prompt)
        release.wait(10)

    async def run() -> None:
        made = FunctionAgent(function, name="one", max_concurrency=1)
        first = asyncio.create_task(made.call(request("first")))
        second = asyncio.create_task(made.call(request("second")))
        third = asyncio.create_task(made.call(request("third")))
        async with asyncio.timeout(10):
            while not ran:
                await asyncio.sleep(0.001)
        second.cancel()
        await asyncio.wait([second])
        release.set()
        await asyncio.gather(first, third)
        await made.close()

    asyncio.run(run())
    assert ran == ["first", "third"]


def test_reopens() -> None:
    """An agent that was closed can be called again: decorated functions outlive a cluster."""
    made = FunctionAgent(str.upper, name="up")

    async def once() -> Any:
        answer = await made.call(request())
        await made.close()
        return answer.value

    assert [asyncio.run(once()), asyncio.run(once())] == ["HELLO", "HELLO"]


def test_decorator() -> None:
    """`@agent` makes an agent that can still be called as the function."""

    @agent
    def plain(prompt: str) -> str:
        """Say it back."""
        return prompt

    @agent(name="shout", max_concurrency=4)
    def loud(prompt: str) -> str:
        return prompt.upper()

    assert (plain.name, plain("a"), plain.__doc__) == ("plain", "a", "Say it back.")
    assert (loud.name, loud.max_concurrency, loud("a")) == ("shout", 4, "A")


def test_misuse() -> None:
    """A function without a name, or of the wrong shape, is refused when the agent is made."""
    with pytest.raises(ConfigError, match="no name of its own"):
        FunctionAgent(lambda prompt: prompt)
    with pytest.raises(ConfigError, match="must take one argument"):
        FunctionAgent(lambda: "x", name="none")
    with pytest.raises(ConfigError, match="must take one argument"):
        FunctionAgent(lambda a, b: "x", name="two")
    with pytest.raises(ConfigError, match="max_concurrency must be at least 1, not 0"):
        FunctionAgent(str.upper, max_concurrency=0)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable module of a user's own."""
    source = """
        from agentos.agents.function import agent

        @agent(name="shout", max_concurrency=3)
        def shout(prompt): return prompt.upper()

        def whisper(prompt): return prompt.lower()

        number = 3
    """
    (tmp_path / "users_own.py").write_text(textwrap.dedent(source))
    (tmp_path / "users_broken.py").write_text("import surely_not_installed")
    (tmp_path / "users_raising.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    return "users_own"


def test_from_path(module: str) -> None:
    """An import path names a callable or an agent, and may give it another name."""
    assert FunctionAgent.from_path(f"{module}:whisper").name == "whisper"
    assert FunctionAgent.from_path(f"{module}:shout").name == "shout"
    renamed = FunctionAgent.from_path(f"{module}:shout", name="loud")
    assert (renamed.name, renamed.max_concurrency, renamed("a")) == ("loud", 3, "A")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("users_own", "write package.module:attribute"),
        ("users_own:", "write package.module:attribute"),
        ("users_missing:x", "there is no module 'users_missing'"),
        ("users_broken:x", "there is no module 'surely_not_installed'"),
        ("users_raising:x", "importing users_raising raised ZeroDivisionError"),
        ("users_own:wisper", "has no 'wisper'; did you mean \"whisper\""),
        ("users_own:number", "a int cannot be called"),
    ],
)
def test_from_path_errors(module: str, path: str, message: str) -> None:
    """A path that leads to no callable says which part of it is wrong."""
    with pytest.raises(ConfigError, match=message):
        FunctionAgent.from_path(path)
