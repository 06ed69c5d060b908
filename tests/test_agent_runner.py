"""The room that runs agents: one result for each call, whatever an agent does."""

import asyncio
import gc
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentos import answers
from agentos.agents.echo import EchoAgent
from agentos.agents.function import FunctionAgent
from agentos.agents.openai import OpenAIAgent
from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import AgentError, ConfigError
from agentos.core.jsontext import parse
from agentos.core.limits import Limits
from agentos.core.ports import Agent, AgentAnswer, AgentRequest
from agentos.runtime.agents import AgentRunner
from agentos.testing.transport_recorder import eventually

PROXY = "proxy/eu/1"
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


class Room:
    """A runner, and what it delivered."""

    def __init__(self, *agents: Agent, limits: Limits | None = None) -> None:
        self.lists: list[list[m.Envelope]] = []
        self._arrived = threading.Condition()
        self.runner = AgentRunner(agents, self._deliver, limits=limits)

    def _deliver(self, envelopes: list[m.Envelope]) -> None:
        with self._arrived:
            self.lists.append(envelopes)
            self._arrived.notify_all()

    @property
    def envelopes(self) -> list[m.Envelope]:
        return [envelope for found in self.lists for envelope in found]

    def results(self, count: int) -> list[m.CallResult]:
        """The results so far, once there are `count`."""
        with self._arrived:
            enough = self._arrived.wait_for(lambda: len(self.envelopes) >= count, timeout=5)
        assert enough, self.envelopes
        return [envelope.message for envelope in self.envelopes]  # type: ignore[misc]

    def invoke(self, *calls: m.Call, sender: str = PROXY) -> None:
        self.runner.handle([m.Envelope("agents", sender, m.Invoke(call=call)) for call in calls])

    def revoke(self, *calls: m.Call, sender: str = PROXY) -> None:
        revokes = [
            m.Revoke(task_id=c.task_id, epoch=c.epoch, row=c.row, attempt=c.attempt) for c in calls
        ]
        self.runner.handle([m.Envelope("agents", sender, revoke) for revoke in revokes])

    def ask(self, agent: str = "made", **fields: Any) -> m.CallResult:
        """One call, and its result."""
        count = len(self.envelopes) + 1
        self.invoke(call(agent, **fields))
        return self.results(count)[-1]


class Made:
    """An agent whose call is any coroutine function."""

    def __init__(
        self, answer: Callable[[AgentRequest], Any], name: str = "made", max_concurrency: int = 8
    ) -> None:
        self.name = name
        self.max_concurrency = max_concurrency
        self.closed = 0
        self._answer = answer

    async def call(self, request: AgentRequest) -> AgentAnswer:
        return await self._answer(request)  # type: ignore[no-any-return]

    async def close(self) -> None:
        self.closed += 1


def call(agent: str = "made", task_id: int = 1, **fields: Any) -> m.Call:
    fields = {"prompt": "hello", "timeout_s": 30.0, "row": "a/0/s0"} | fields
    return m.Call(task_id=task_id, epoch=Epoch(1, 2), owner="proxy/us/9", agent=agent, **fields)


@pytest.fixture
def room() -> Iterator[Callable[..., Room]]:
    """Makes rooms, and closes them; no thread of theirs may be left."""
    before = set(threading.enumerate())
    rooms: list[Room] = []

    def make(*agents: Agent, limits: Limits | None = None) -> Room:
        rooms.append(Room(*agents, limits=limits))
        return rooms[-1]

    yield make
    for made in rooms:
        made.runner.close()
    deadline = time.monotonic() + 10
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not left
    gc.collect()


MakeRoom = Callable[..., Room]


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


def test_max_concurrency(room: MakeRoom) -> None:
    """No more than `max_concurrency` calls of one agent run at a time; the others take their turn."""
    running = most = 0

    async def answer(_request: AgentRequest) -> AgentAnswer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return AgentAnswer(value=1)

    made = room(Made(answer, max_concurrency=3))
    made.invoke(*(call(task_id=n) for n in range(1, 13)))
    made.results(12)
    assert most == 3


def test_time_begins_with_the_place(room: MakeRoom) -> None:
    """A call that has waited for its place has all of its time from then on, and no more."""

    async def answer(request: AgentRequest) -> AgentAnswer:
        await asyncio.sleep(0.3 if request.prompt == "slow" else 0)
        if request.prompt == "stuck":
            await asyncio.sleep(600)
        return AgentAnswer(value=request.prompt)

    made = room(Made(answer, max_concurrency=1))
    made.invoke(
        call(task_id=1, prompt="slow"),
        call(task_id=2, prompt="next", timeout_s=0.2),
        call(task_id=3, prompt="stuck", timeout_s=0.05),
        call(task_id=4, prompt="last"),
    )
    results = {result.task_id: result for result in made.results(4)}
    assert [results[n].value for n in (1, 2, 3, 4)] == ['"slow"', '"next"', None, '"last"']
    assert "did not answer within 0.05 s" in results[3].error
    assert results[2].seconds < 0.2


def test_a_call_that_follows_one_answered_at_once_has_its_time(room: MakeRoom) -> None:
    """Whoever gets a place in the turn in which another was answered is not forgotten."""

    async def answer(request: AgentRequest) -> AgentAnswer:
        if request.prompt == "stuck":
            await asyncio.sleep(600)
        return AgentAnswer(value=1)

    made = room(Made(answer, max_concurrency=1))
    made.invoke(*(call(task_id=n, prompt="at once") for n in (1, 2)))
    made.invoke(
        call(task_id=3, prompt="at once"),
        *(call(task_id=n, prompt="stuck", timeout_s=0.05) for n in (4, 5)),
    )
    late = [result.task_id for result in made.results(5) if "did not answer" in result.error]
    assert late == [4, 5]


def test_revoked_calls_give_their_places_back(room: MakeRoom) -> None:
    """Revoked before its first step, while it waits or while it runs: the place is free again."""
    running = 0

    async def answer(request: AgentRequest) -> AgentAnswer:
        nonlocal running
        running += 1
        if request.prompt == "stuck":
            await asyncio.sleep(600)
        return AgentAnswer(value=request.prompt)

    made = room(Made(answer, max_concurrency=1))
    for first in range(1, 40, 2):
        calls = [call(task_id=n, prompt="stuck") for n in (first, first + 1)]
        before = running
        invokes = [m.Invoke(call=c) for c in calls]
        revokes = [m.Revoke(task_id=c.task_id, epoch=c.epoch, row=c.row, attempt=0) for c in calls]
        if first % 4 == 1:  # in one batch: neither gets as far as its agent
            made.runner.handle([m.Envelope("agents", PROXY, x) for x in (*invokes, *revokes)])
        else:
            made.invoke(*calls)
            eventually(lambda before=before: running > before)
            made.revoke(*reversed(calls))
    assert made.ask(task_id=99).value == '"hello"'
    assert [envelope.message.task_id for envelope in made.envelopes] == [99]  # type: ignore[union-attr]


def test_revoke(room: MakeRoom) -> None:
    """A revoked call is cancelled and answers nothing; the others go on."""
    cancelled: list[str] = []
    release, started, stopped = threading.Event(), threading.Event(), threading.Event()

    async def answer(request: AgentRequest) -> AgentAnswer:
        if request.key == "2/a/0/s0":
            started.set()
        try:
            while not release.is_set():
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            cancelled.append(request.key)
            if request.key == "2/a/0/s0":
                stopped.set()
            raise
        return AgentAnswer(value=request.key)

    made = room(Made(answer))
    kept, dropped, early = call(task_id=1), call(task_id=2), call(task_id=3)
    made.invoke(kept, dropped)
    assert started.wait(10)
    made.invoke(early)
    made.revoke(early)
    made.revoke(dropped)
    made.revoke(dropped, call(task_id=99), call(task_id=1, attempt=1))
    made.revoke(kept, sender="proxy/eu/2")
    # A call that ends while its revocation is on the way may answer: let it be cancelled first.
    assert stopped.wait(10)
    release.set()
    assert [result.task_id for result in made.results(1)] == [1]
    made.invoke(call(task_id=4))
    assert [result.task_id for result in made.results(2)] == [1, 4]
    assert "2/a/0/s0" in cancelled
    assert set(cancelled) <= {"2/a/0/s0", "3/a/0/s0"}


def test_revoke_in_the_same_batch(room: MakeRoom) -> None:
    """A call that is revoked before it could start never reaches its agent."""
    seen: list[str] = []

    async def answer(request: AgentRequest) -> AgentAnswer:
        seen.append(request.key)
        return AgentAnswer(value=1)

    made = room(Made(answer))
    dropped = call(task_id=1)
    revoke = m.Revoke(task_id=1, epoch=dropped.epoch, row=dropped.row, attempt=0)
    again = m.Invoke(call=call(task_id=2))
    made.runner.handle(
        [m.Envelope("agents", PROXY, k) for k in (m.Invoke(call=dropped), revoke, again)]
    )
    assert [result.task_id for result in made.results(1)] == [2]
    assert seen == ["2/a/0/s0"]


def test_revoke_and_invoke_again(room: MakeRoom) -> None:
    """After a revocation the same call can be started anew, even while the old one unwinds."""
    ran: list[int] = []
    late = threading.Event()

    async def answer(_request: AgentRequest) -> AgentAnswer:
        ran.append(1)
        if len(ran) > 1:
            while not late.is_set():
                await asyncio.sleep(0)
            for _ in range(20):  # what the old one returned has had its chance to be taken
                await asyncio.sleep(0)
            return AgentAnswer(value="second")
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            while len(ran) < 2:
                await asyncio.sleep(0)
        late.set()
        return AgentAnswer(value="first, too late")

    made = room(Made(answer))
    made.invoke(call())
    while not ran:
        time.sleep(0.001)
    made.revoke(call())
    made.invoke(call())
    assert [result.value for result in made.results(1)] == ['"second"']
    made.runner.close()
    assert len(made.envelopes) == 1


def test_revoke_aborts_the_http_request(room: MakeRoom) -> None:
    """Revoking a call to a model closes its connection: the server can stop computing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        made = room(OpenAIAgent("made", model="small", base_url=url))
        made.invoke(call())
        server.settimeout(10)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            assert b"POST /v1/chat/completions" in connection.recv(100)
            made.revoke(call())
            while connection.recv(65_536):
                pass  # the rest of the request, and then the end of the connection
    assert made.envelopes == []


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
