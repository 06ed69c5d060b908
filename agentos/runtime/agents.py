"""Runs agents: the only room that knows how. One event loop in one thread, for all of them.

A proxy's machine decides which call starts when; what it decides arrives here as `Invoke`, and
each is answered with one `CallResult`. Whatever an agent does, nothing but that comes out.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import structlog

from agentos import answers
from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import AgentError, ConfigError
from agentos.core.limits import Limits
from agentos.core.ports import Agent, AgentAnswer, AgentRequest
from agentos.runtime import results
from agentos.runtime.validator import Validator

log = structlog.get_logger()

CANCEL_S = 2.0
"""How long cancelled calls, and then closing agents, have to let go."""


_Key = tuple[str, int, Epoch, str, int]
"""One attempt of one call: the proxy that asked, then task, epoch, row and attempt."""


class _Desk:
    """An agent, its free places, and the calls that wait for one, in order."""

    __slots__ = ("agent", "free", "waiting")

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.free = agent.max_concurrency
        self.waiting: deque[_Run] = deque()


class _Run:
    """One call, from its `Invoke` to its end."""

    __slots__ = ("begun", "call", "desk", "expired", "invoke", "key", "over", "task", "timer")

    def __init__(self, key: _Key, invoke: m.Envelope, call: m.Call, desk: _Desk) -> None:
        self.key = key
        self.invoke = invoke
        self.call = call
        self.desk = desk
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.begun = 0.0
        """When it got its place, in seconds on the monotonic clock."""
        self.expired = False
        self.over = False
        """Whether its agent has let go of it."""

    @property
    def about(self) -> dict[str, object]:
        """What a log says of it."""
        call = self.call
        epoch = str(call.epoch)
        return {"role": self.key[0], "task_id": call.task_id, "epoch": epoch, "row": call.row}

    def end(self) -> None:
        """Its agent has let go of it."""
        self.over = True
        if self.timer is not None:
            self.timer.cancel()


class AgentRunner:
    """Runs the calls of one or more proxies of this process.

    Every `Invoke` is answered with exactly one `CallResult`, unless it is revoked first; the same
    `Invoke` again, while it runs, changes nothing. A call's time starts when its agent has a free
    place, which the proxies see to; where several share an agent, calls may wait here for it.

    Args:
        agents: what can be called, each with a name of its own.
        deliver: is handed the results, those of one moment together, in the runner's thread. It
            must be quick.
        address: the runner's own.
        limits: `max_result_bytes` bounds an answer's JSON text.

    Raises:
        ConfigError: two agents have the same name.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        deliver: Callable[[list[m.Envelope]], None],
        *,
        address: str = m.AGENTS,
        limits: Limits | None = None,
    ) -> None:
        self.address = address
        self._desks = {agent.name: _Desk(agent) for agent in agents}
        if len(self._desks) < len(agents):
            names = [agent.name for agent in agents]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ConfigError(f"agents must have different names; given twice: {', '.join(twice)}")
        self._deliver = deliver
        self._max_bytes = (limits or Limits()).max_result_bytes
        self._validator = Validator(self._max_bytes)
        self._running: dict[_Key, _Run] = {}
        """The calls that somebody waits for."""
        self._begun: list[_Run] = []
        """Those that got their place in this turn of the loop."""
        self._revoked: set[asyncio.Task[None]] = set()
        """Cancelled, and not yet at their end."""
        self._inbox: deque[Sequence[m.Envelope]] = deque()
        self._woken = False
        self._outbox: list[m.Envelope] = []
        self._closing = threading.Event()
        self._stop = asyncio.Event()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._serve, name=address, daemon=True)
        self._thread.start()

    def handle(self, envelopes: Sequence[m.Envelope]) -> None:
        """Take `Invoke` and `Revoke` messages from proxies, in order. Callable from any thread."""
        if self._closing.is_set():
            log.debug("messages_after_close", runner=self.address)
            return
        self._inbox.append(envelopes)
        if self._woken:  # the loop has yet to look: it will find these too
            return
        self._woken = True
        with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
            self._loop.call_soon_threadsafe(self._take)

    def close(self) -> None:
        """Stop: cancel the calls that run, unanswered, and close the agents.

        Idempotent; not to be called from `deliver`. Whoever wants calls to end first drains the
        proxies.
        """
        if not self._closing.is_set():
            self._closing.set()
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(3 * CANCEL_S)
        if self._thread.is_alive():
            stuck = sorted({f"{task_id}/{row}" for _, task_id, _, row, _ in list(self._running)})
            log.warning("agents_did_not_let_go", runner=self.address, calls=stuck)

    # -- everything below runs in the loop's thread -----------------------------------------------

    def _serve(self) -> None:
        with self._runner as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        await self._stop.wait()
        for key in list(self._running):
            self._revoke(key)
        if self._revoked:
            await asyncio.wait(self._revoked, timeout=CANCEL_S)
        self._flush()
        await self._validator.close()
        await asyncio.gather(*(self._close_agent(desk.agent) for desk in self._desks.values()))

    async def _close_agent(self, agent: Agent) -> None:
        try:
            async with asyncio.timeout(CANCEL_S):
                await agent.close()
        except Exception as error:  # noqa: BLE001 (the others are to be closed all the same)
            log.warning("agent_close_failed", agent=agent.name, exception=results.trace(error))

    def _take(self) -> None:
        self._woken = False  # before looking: what comes after that brings another turn
        while self._inbox:
            for envelope in self._inbox.popleft():
                match envelope.message:
                    case m.Invoke(call=call):
                        self._start(envelope, call)
                    case m.Revoke(task_id=task_id, epoch=epoch, row=row, attempt=attempt):
                        self._revoke((envelope.sender, task_id, epoch, row, attempt))
                    case other:
                        kind = type(other).__name__
                        log.warning("message_unexpected", kind=kind, sender=envelope.sender)

    def _start(self, invoke: m.Envelope, call: m.Call) -> None:
        key = (invoke.sender, call.task_id, call.epoch, call.row, call.attempt)
        if key in self._running or self._closing.is_set():
            log.info("call_not_started", role=key[0], task_id=call.task_id, row=call.row)
            return
        desk = self._desks.get(call.agent)
        if desk is None:
            there = ", ".join(sorted(self._desks)) or "none"
            reason = f"there is no agent {call.agent!r} here; there are: {there}"
            failure = AgentError(reason, retryable=False)
            self._answer(invoke, results.result(invoke, call, failure, m.Usage(calls=1), 0.0))
            return
        run = self._running[key] = _Run(key, invoke, call, desk)
        if desk.free:
            self._begin(run)
        else:
            desk.waiting.append(run)

    def _begin(self, run: _Run) -> None:
        run.desk.free -= 1
        run.begun = time.monotonic()
        run.task = self._loop.create_task(self._run(run))
        if not self._begun:
            # Twice: behind the first steps of all that begin in this turn of the loop.
            self._loop.call_soon(self._loop.call_soon, self._set_timers)
        self._begun.append(run)

    def _set_timers(self) -> None:
        """A call that has been answered in its first step needs none."""
        begun, self._begun = self._begun, []
        for run in begun:
            if not run.over:
                run.timer = self._loop.call_later(run.call.timeout_s, self._expire, run)

    def _expire(self, run: _Run) -> None:
        """Its time is over: cancel it, as `asyncio.timeout` does at three times the cost."""
        assert run.task is not None, "it has begun"
        run.expired = True
        run.task.cancel()
        run.timer = self._loop.call_later(CANCEL_S, self._abandon, run)

    def _abandon(self, run: _Run) -> None:
        """Its agent does not let go: it keeps its place, but nobody waits for it any longer."""
        if self._is_revoked(run):
            return
        log.warning("agent_does_not_let_go", agent=run.call.agent, **run.about)
        seconds = time.monotonic() - run.begun
        late = results.result(run.invoke, run.call, _late(run), m.Usage(calls=1), seconds)
        self._answer(run.invoke, late)
        self._revoke(run.key)

    def _free(self, desk: _Desk) -> None:
        """A place has become free: who has waited longest gets it."""
        desk.free += 1
        if desk.waiting:
            self._begin(desk.waiting.popleft())

    def _is_revoked(self, run: _Run) -> bool:
        return self._running.get(run.key) is not run

    def _revoke(self, key: _Key) -> None:
        """Nobody waits for this call any more."""
        run = self._running.pop(key, None)
        if run is None:
            return
        if run.task is None:
            run.desk.waiting.remove(run)
            return

        def ended(task: asyncio.Task[None]) -> None:
            run.end()  # it may not have taken a step
            self._revoked.discard(task)
            self._free(run.desk)

        self._revoked.add(run.task)
        run.task.add_done_callback(ended)
        run.task.cancel()

    async def _run(self, run: _Run) -> None:
        result = await self._result(run)
        if self._is_revoked(run):
            return
        del self._running[run.key]
        self._answer(run.invoke, result)
        self._free(run.desk)

    def _answer(self, invoke: m.Envelope, result: m.CallResult) -> None:
        if not self._outbox:
            # What else ends in this iteration of the loop goes in the same list.
            self._loop.call_soon(self._flush)
        self._outbox.append(m.Envelope(invoke.sender, self.address, result, invoke.ref))

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        if not outbox:
            return
        try:
            self._deliver(outbox)
        except Exception as error:  # noqa: BLE001 (later results are to be delivered all the same)
            log.warning("results_undelivered", exception=results.trace(error))

    async def _result(self, run: _Run) -> m.CallResult:
        call, usage = run.call, m.Usage(calls=1)
        try:
            request = _request(call)
            answer = await self._ask(run, request)
            usage = results.usage_of(answer)
            said = answer.value
            if call.schema is not None:
                said = await self._validator.meet(said, call.schema, **run.about)
            outcome: str | AgentError = answers.encode(said, max_bytes=self._max_bytes)
        except AgentError as error:
            outcome = error
            if error.__cause__ is not None:
                text = results.trace(error.__cause__)
                log.debug("agent_raised", **run.about, exception=text)
        except Exception as error:  # noqa: BLE001 (a call without a result would wait for ever)
            reason = f"agent {call.agent!r} answered what cannot be read: {answers.describe(error)}"
            outcome = AgentError(reason, retryable=False)
            text = results.trace(error)
            log.warning("answer_unreadable", **run.about, exception=text)
        return results.result(run.invoke, call, outcome, usage, time.monotonic() - run.begun)

    async def _ask(self, run: _Run, request: AgentRequest) -> AgentAnswer:
        """Call the agent; anything that it does wrong is an `AgentError`."""
        agent = run.desk.agent
        try:
            answer: object = await agent.call(request)
        except AgentError as error:
            raise results.plain(error) from error.__cause__
        except asyncio.CancelledError:
            if self._is_revoked(run):
                raise
            if run.expired:
                raise _late(run) from None
            reason = f"agent {agent.name!r} cancelled its own call"
            raise AgentError(reason, retryable=True) from None
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if run.expired and isinstance(error, TimeoutError):
                raise _late(run) from None
            log.warning("agent_failed", **run.about, error=type(error).__name__)
            reason = f"agent {agent.name!r} raised {answers.describe(error)}"
            raise AgentError(reason, retryable=True) from error
        finally:
            run.end()
        if not isinstance(answer, AgentAnswer):
            reason = f"agent {agent.name!r} returned a {type(answer).__name__}, not an AgentAnswer"
            raise AgentError(reason, retryable=False)
        return answer


def _request(call: m.Call) -> AgentRequest:
    schema: Any = None
    if call.schema is not None:
        try:
            schema = orjson.loads(call.schema)
        except orjson.JSONDecodeError as error:
            raise AgentError(f"the call's schema is not JSON: {error}", retryable=False) from None
        if not isinstance(schema, dict):
            raise AgentError("the call's schema is not a JSON object", retryable=False)
    return AgentRequest(
        prompt=call.prompt,
        key=f"{call.task_id}/{call.row}",
        timeout_s=call.timeout_s,
        attempt=call.attempt,
        schema=schema,
    )


def _late(run: _Run) -> AgentError:
    reason = f"agent {run.call.agent!r} did not answer within {run.call.timeout_s:g} s"
    return AgentError(reason, retryable=True)
