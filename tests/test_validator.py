"""The process that holds answers against schemas: it may be lost, and nothing else is."""

import asyncio
import os
import signal
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from agentos.agents.echo import EchoAgent
from agentos.core.errors import AgentError, UnusableAnswer
from agentos.core.jsontext import dump
from agentos.runtime import validator
from agentos.runtime.validator import Validator
from tests.processes import gone
from tests.rooms import MakeRoom, call, rooms

T = TypeVar("T")

BACKTRACKING = dump({"type": "string", "pattern": "^(a+)+$"})
ENDLESS = "a" * 60 + "!"
DOUBLING = dump(
    {
        "$defs": {
            f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} if i < 60 else {}
            for i in range(61)
        },
        "$ref": "#/$defs/d0",
    }
)
"""Two to the power of 60 looks at one value."""
OBJECT = dump({"type": "object"})


@pytest.fixture
def room() -> Iterator[MakeRoom]:
    """Makes rooms, and closes them; no thread of theirs may be left."""
    with rooms() as make:
        yield make


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 60))


def pid(made: Validator) -> int:
    assert made._process is not None
    return made._process.pid


@pytest.mark.parametrize(("schema", "value"), [(BACKTRACKING, ENDLESS), (DOUBLING, 1)])
def test_a_schema_without_end(schema: str, value: object) -> None:
    """It costs its own answer, for good; those that waited behind it are judged as ever."""

    async def work() -> None:
        made = Validator(1000)
        answers = [
            asyncio.create_task(made.meet(what, which))
            for what, which in [("{}", OBJECT), (value, schema), ('{"a": 1}', OBJECT), ({}, OBJECT)]
        ]
        done = await asyncio.gather(*answers, return_exceptions=True)
        assert [done[0], *done[2:]] == [{}, {"a": 1}, {}]
        assert isinstance(done[1], AgentError)
        assert "takes more than 2 s to hold this answer against" in done[1].reason
        assert not done[1].retryable
        await made.close()

    run(work())


def test_meanwhile_everything_goes_on(room: MakeRoom) -> None:
    """While a schema burns, the runner's loop and its other calls do not even notice."""
    made = room(EchoAgent("burns"), EchoAgent("lives"))
    made.invoke(call("burns", prompt=ENDLESS, schema=BACKTRACKING))
    begun = time.monotonic()
    for number in range(2, 12):
        made.invoke(call("lives", task_id=number, prompt="x"))
    first = made.results(10)
    assert {result.task_id for result in first} == set(range(2, 12))
    last = made.results(11)[10]
    assert last.task_id == 1
    assert time.monotonic() - begun > 1.0, "it was the last by far"
    assert "takes more than" in last.error


def test_a_process_that_dies() -> None:
    """What it was at may be asked again; the next question has a new process."""

    async def work() -> None:
        made = Validator(1000)
        assert await made.meet({}, OBJECT) == {}
        first = pid(made)
        os.kill(first, signal.SIGSTOP)
        asked = asyncio.create_task(made.meet({}, OBJECT))
        await asyncio.sleep(0)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(AgentError, match="ended with status -9") as caught:
            await asked
        assert caught.value.retryable
        assert await made.meet({}, OBJECT) == {}
        second = pid(made)
        assert second != first
        await made.close()
        assert gone(second)

    run(work())


def test_a_process_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for without end."""
    monkeypatch.setattr(validator, "LONGEST_S", 0.5)

    async def work() -> None:
        made = Validator(1000)
        await made.meet({}, OBJECT)
        os.kill(pid(made), signal.SIGSTOP)
        with pytest.raises(AgentError, match="ended with status -9"):
            await made.meet({}, OBJECT)
        await made.close()

    run(work())


def test_a_process_without_work_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """And there is another one for the next question."""
    monkeypatch.setattr(validator, "LONGEST_S", 3.0)

    async def work() -> None:
        made = Validator(1000)
        await made.meet({}, OBJECT)
        first = pid(made)
        while not gone(first):  # wait_for is the deadline
            await asyncio.sleep(0.01)
        assert await made.meet("{}", OBJECT) == {}
        await made.close()
        await made.close()

    run(work())


def test_nobody_waits_any_more() -> None:
    """A question that was given up changes nothing for the next ones."""

    async def work() -> None:
        made = Validator(1000)
        given_up = asyncio.create_task(made.meet({}, OBJECT))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(UnusableAnswer, match="1 is not of type 'object'"):
            await made.meet(1, OBJECT)
        await made.close()

    run(work())


def test_what_is_no_json_value_is_not_asked() -> None:
    """It is refused at once, and no process is started for it."""

    async def work() -> None:
        made = Validator(1000)
        for wrong in ({"n": {1}}, "\ud800", "x" * 2000):
            with pytest.raises(AgentError) as caught:
                await made.meet(wrong, OBJECT)
            assert not caught.value.retryable
        assert made._process is None
        assert made._task is None

    run(work())
