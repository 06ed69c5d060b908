"""An agent's places: how many calls run, whose turn it is, and that a revoked call gives its back."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from agentos.agents.openai import OpenAIAgent
from agentos.core import messages as m
from agentos.core.ports import AgentAnswer, AgentRequest
from agentos.testing.transport_recorder import eventually
from tests.rooms import PROXY, Made, MakeRoom, call, rooms


@pytest.fixture
def room() -> Iterator[MakeRoom]:
    """Makes rooms, and closes them; no thread of theirs may be left."""
    with rooms() as make:
        yield make


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


def test_an_agent_that_does_not_let_go(room: MakeRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call is answered for when its time is over; its place is taken until it is at its end."""
    monkeypatch.setattr("agentos.runtime.agents.CANCEL_S", 0.1)
    release = threading.Event()

    async def answer(request: AgentRequest) -> AgentAnswer:
        while request.prompt == "stubborn" and not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return AgentAnswer(value="done")

    made = room(Made(answer, max_concurrency=1))
    made.invoke(call(prompt="stubborn", timeout_s=0.05), call(task_id=2))
    (late,) = made.results(1)
    assert late.error == "agent 'made' did not answer within 0.05 s"
    assert late.retryable
    release.set()
    assert [(r.task_id, r.value) for r in made.results(2)] == [(1, None), (2, '"done"')]


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
