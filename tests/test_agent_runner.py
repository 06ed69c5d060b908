"""The room that runs agents: one result for each call, and an end that leaves nothing."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from agentos.agents.echo import EchoAgent
from agentos.agents.function import FunctionAgent
from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import ConfigError
from agentos.core.ports import AgentAnswer, AgentRequest
from agentos.runtime.agents import AgentRunner
from tests.rooms import PROXY, Made, MakeRoom, call, rooms


@pytest.fixture
def room() -> Iterator[MakeRoom]:
    """Makes rooms, and closes them; no thread of theirs may be left."""
    with rooms() as make:
        yield make


def test_result_echoes_the_call(room: MakeRoom) -> None:
    """A result names the call, the proxy that asked, the usage and the time it took."""
    made = room(EchoAgent("echo", delay_s=0.02))
    made.runner.handle(
        [m.Envelope("agents", PROXY, m.Invoke(call=call("echo", attempt=3, prompt="a b")), "r1")]
    )
    result = made.results(1)[0]
    envelope = made.envelopes[0]
    assert (envelope.to, envelope.sender, envelope.ref) == (PROXY, "agents", "r1")
    assert result.seconds > 0.01
    assert result == m.CallResult(
        task_id=1,
        epoch=Epoch(1, 2),
        row="a/0/s0",
        attempt=3,
        proxy=PROXY,
        value='"a b"',
        usage=m.Usage(1, 0, 2, 2),
        seconds=result.seconds,
    )


def test_request(room: MakeRoom) -> None:
    """An agent sees the prompt, the idempotency key, the time, the attempt and the schema."""
    seen: list[AgentRequest] = []

    async def answer(request: AgentRequest) -> AgentAnswer:
        seen.append(request)
        return AgentAnswer(value=None)

    room(Made(answer)).ask(task_id=7, attempt=2, schema='{"type":"null"}', timeout_s=9.0)
    assert seen == [
        AgentRequest(
            prompt="hello", key="7/a/0/s0", timeout_s=9.0, attempt=2, schema={"type": "null"}
        )
    ]


def test_schema_binds_every_agent(room: MakeRoom) -> None:
    """Whichever agent answers, what does not meet the schema is unusable; JSON text is decoded."""
    schema = '{"type":"object","required":["k"]}'
    host = room(EchoAgent("made"))
    assert host.ask(prompt='{"k": 3}', schema=schema).value == '{"k":3}'
    for prompt in ("no JSON at all", '{"z": 3}'):
        result = host.ask(prompt=prompt, schema=schema)
        assert result.value is None
        assert result.retryable
        assert prompt in result.error


@pytest.mark.parametrize("schema", ["{", "[]", "NaN"])
def test_bad_schema(room: MakeRoom, schema: str) -> None:
    """A schema that is no JSON object is an error for good."""
    result = room(EchoAgent("made")).ask(schema=schema)
    assert "the call's schema is not" in result.error
    assert not result.retryable


def test_vote(room: MakeRoom) -> None:
    """The echo agent can vote: it takes the first choice."""
    schema = '{"type":"object","properties":{"choice":{"type":"integer","enum":[3,4]}}}'
    assert room(EchoAgent("made")).ask(schema=schema).value == '{"choice":3}'


def test_batch_is_delivered_together(room: MakeRoom) -> None:
    """Calls that come together and end together are delivered in one list."""
    made = room(EchoAgent("made"))
    made.invoke(*(call(task_id=n) for n in range(1, 501)))
    assert {result.task_id for result in made.results(500)} == set(range(1, 501))
    assert len(made.lists) == 1


def test_several_proxies(room: MakeRoom) -> None:
    """Proxies that share a runner get their own results, even for the same call."""
    made = room(EchoAgent("made", delay_s=0.01))
    made.invoke(call(), sender="proxy/eu/1")
    made.invoke(call(), sender="proxy/eu/2")
    results = made.results(2)
    assert {(e.to, r.proxy) for e, r in zip(made.envelopes, results, strict=True)} == {
        ("proxy/eu/1", "proxy/eu/1"),
        ("proxy/eu/2", "proxy/eu/2"),
    }


def test_same_invoke_again(room: MakeRoom) -> None:
    """The same invocation again, while it runs, is the same call: it runs once."""
    ran: list[str] = []

    async def answer(request: AgentRequest) -> AgentAnswer:
        ran.append(request.key)
        await asyncio.sleep(0.01)
        return AgentAnswer(value=1)

    made = room(Made(answer))
    made.invoke(call(), call())
    made.invoke(call(task_id=2))
    assert [result.task_id for result in made.results(2)] == [1, 2]
    assert ran == ["1/a/0/s0", "2/a/0/s0"]


def test_unknown_agent(room: MakeRoom) -> None:
    """A call to an agent that is not here is an error for good, naming those that are."""
    result = room(EchoAgent("one"), EchoAgent("two")).ask("three")
    assert result.error == "there is no agent 'three' here; there are: one, two"
    assert not result.retryable


def test_same_name_twice() -> None:
    """Two agents of one name are refused before anything starts."""
    with pytest.raises(ConfigError, match="given twice: echo"):
        AgentRunner([EchoAgent(), EchoAgent()], print)


def test_timeout(room: MakeRoom) -> None:
    """A call that takes too long is a retryable error that names the time; it is cancelled."""
    cancelled = threading.Event()

    async def answer(_request: AgentRequest) -> AgentAnswer:
        try:
            await asyncio.sleep(600)
        finally:
            cancelled.set()
        raise AssertionError

    result = room(Made(answer)).ask(timeout_s=0.05)
    assert result.error == "agent 'made' did not answer within 0.05 s"
    assert result.retryable
    assert cancelled.is_set()


def test_sync_timeout(room: MakeRoom) -> None:
    """A sync function that takes too long is answered for in time, though its thread goes on."""
    release = threading.Event()
    made = room(FunctionAgent(lambda _: release.wait(20), name="made", max_concurrency=1))
    assert "did not answer within 0.05 s" in made.ask(timeout_s=0.05).error
    assert "did not answer within 0.05 s" in made.ask(timeout_s=0.05).error
    release.set()
    assert made.ask().value == "true"


def test_stray_message(room: MakeRoom) -> None:
    """A message that is not for a runner is dropped, and the next one is handled."""
    made = room(EchoAgent("made"))
    made.runner.handle([m.Envelope("agents", PROXY, m.Tick())])
    assert made.ask().value == '"hello"'


def test_deliver_that_raises() -> None:
    """A failure to deliver is logged, and later results are delivered."""
    delivered = threading.Event()
    tries: list[int] = []

    def deliver(envelopes: list[m.Envelope]) -> None:
        tries.append(len(envelopes))
        if len(tries) == 1:
            raise OSError("no way out")
        delivered.set()

    runner = AgentRunner([EchoAgent("made")], deliver)
    runner.handle([m.Envelope("agents", PROXY, m.Invoke(call=call()))])
    while not tries:
        time.sleep(0.001)
    runner.handle([m.Envelope("agents", PROXY, m.Invoke(call=call()))])
    assert delivered.wait(10)
    runner.close()


def test_close(room: MakeRoom) -> None:
    """Closing cancels what runs, unanswered, closes every agent once, and may be repeated."""
    started, cancelled = threading.Event(), threading.Event()

    async def answer(_request: AgentRequest) -> AgentAnswer:
        started.set()
        try:
            await asyncio.sleep(600)
        finally:
            cancelled.set()
        raise AssertionError

    agent = Made(answer)
    made = room(agent)
    made.invoke(call())
    assert started.wait(10)
    made.runner.close()
    made.runner.close()
    assert cancelled.is_set()
    assert agent.closed == 1
    made.invoke(call(task_id=2))
    made.revoke(call())
    assert made.envelopes == []


def test_close_with_an_agent_that_fails_to(room: MakeRoom) -> None:
    """An agent that raises while it closes does not keep the others from closing."""

    class Bad(EchoAgent):
        async def close(self) -> None:
            raise OSError("stuck")

    async def answer(_request: AgentRequest) -> AgentAnswer:
        return AgentAnswer(value=1)

    good = Made(answer, "good")
    room(Bad("bad"), good).runner.close()
    assert good.closed == 1
