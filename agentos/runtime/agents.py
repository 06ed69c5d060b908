"""Runs agents: the only room that knows how. One event loop in one thread, for all of them.

A proxy's machine decides which call starts when; what it decides arrives here as `Invoke`, and
each is answered with one `CallResult`. Whatever an agent does, nothing but that comes out.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson
import structlog

from agentos import answers
from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import AgentError, ConfigError
from agentos.core.limits import MAX_INT, Limits
from agentos.core.ports import Agent, AgentAnswer, AgentRequest

log = structlog.get_logger()

CANCEL_S = 2.0
"""How long cancelled calls, and then closing agents, have to let go."""
MAX_RETRY_AFTER_S = 86_400.0
ERROR_CHARACTERS = 1_000


class _Key(NamedTuple):
    """One attempt of one call, for the proxy that asked."""

    proxy: str
    task_id: int
    epoch: Epoch
    row: str
    attempt: int


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
        self._agents = {agent.name: agent for agent in agents}
        if len(self._agents) < len(agents):
            names = [agent.name for agent in agents]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ConfigError(f"agents must have different names; given twice: {', '.join(twice)}")
        self._deliver = deliver
        self._max_bytes = (limits or Limits()).max_result_bytes
        self._slots = {agent.name: asyncio.Semaphore(agent.max_concurrency) for agent in agents}
        self._running: dict[_Key, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox: list[m.Envelope] = []
        self._closing = threading.Event()
        self._stop = asyncio.Event()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._serve, name=address, daemon=True)
        self._thread.start()

    def handle(self, envelopes: Sequence[m.Envelope]) -> None:
        """Take `Invoke` and `Revoke` messages from proxies, in order. Callable from any thread."""
        try:
            # One wake-up for the whole batch.
            self._loop.call_soon_threadsafe(self._take, list(envelopes))
        except RuntimeError:  # the loop is closed
            log.debug("messages for a closed agent runner", runner=self.address)

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
            stuck = sorted({f"{key.task_id}/{key.row}" for key in self._running})
            log.warning("agents did not let go", runner=self.address, calls=stuck)

    # -- everything below runs in the loop's thread -----------------------------------------------

    def _serve(self) -> None:
        with self._runner as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        await self._stop.wait()
        self._running.clear()  # nobody waits for these any more
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCEL_S)
        self._flush()
        await asyncio.gather(*map(self._close_agent, self._agents.values()))

    async def _close_agent(self, agent: Agent) -> None:
        try:
            async with asyncio.timeout(CANCEL_S):
                await agent.close()
        except Exception as error:  # noqa: BLE001 (the others are to be closed all the same)
            log.warning("agent failed to close", agent=agent.name, exception=_traceback(error))

    def _take(self, envelopes: list[m.Envelope]) -> None:
        for envelope in envelopes:
            match envelope.message:
                case m.Invoke(call=call):
                    self._start(envelope, call)
                case m.Revoke(task_id=task_id, epoch=epoch, row=row, attempt=attempt):
                    key = _Key(envelope.sender, task_id, epoch, row, attempt)
                    task = self._running.pop(key, None)
                    if task is not None:
                        task.cancel()
                case other:
                    kind = type(other).__name__
                    log.warning("not for an agent runner", kind=kind, sender=envelope.sender)

    def _start(self, envelope: m.Envelope, call: m.Call) -> None:
        key = _Key(envelope.sender, call.task_id, call.epoch, call.row, call.attempt)
        if key in self._running or self._closing.is_set():
            log.info("call not started", task_id=call.task_id, row=call.row)
            return
        task = self._loop.create_task(self._run(key, call, envelope.ref))
        self._running[key] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, key: _Key, call: m.Call, ref: str) -> None:
        result = await self._result(key, call)
        if self._running.get(key) is not asyncio.current_task():
            return  # revoked
        del self._running[key]
        if not self._outbox:
            # What else ends in this iteration of the loop goes in the same list.
            self._loop.call_soon(self._flush)
        self._outbox.append(m.Envelope(key.proxy, self.address, result, ref))

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        if not outbox:
            return
        try:
            self._deliver(outbox)
        except Exception as error:  # noqa: BLE001 (later results are to be delivered all the same)
            log.warning("results could not be delivered", exception=_traceback(error))

    async def _result(self, key: _Key, call: m.Call) -> m.CallResult:
        usage, value, failure = m.Usage(calls=1), None, None
        begun = time.monotonic()
        try:
            agent = self._find(call.agent)
            request = _request(call)
            async with self._slots[call.agent]:
                begun = time.monotonic()
                answer = await _ask(agent, call, request)
            usage = _usage(answer)
            said = answer.value
            if request.schema is not None:
                said = answers.meet(said, request.schema, max_bytes=self._max_bytes)
            value = answers.encode(said, max_bytes=self._max_bytes)
        except AgentError as error:
            failure = error
            if error.__cause__ is not None:
                text = _traceback(error.__cause__)
                log.debug("agent raised", task_id=call.task_id, row=call.row, exception=text)
        except Exception as error:  # noqa: BLE001 (a call without a result would wait for ever)
            reason = f"agent {call.agent!r} answered what cannot be read: {answers.describe(error)}"
            failure = AgentError(reason, retryable=False)
            text = _traceback(error)
            log.warning("unreadable", task_id=call.task_id, row=call.row, exception=text)
        return m.CallResult(
            task_id=call.task_id,
            epoch=call.epoch,
            row=call.row,
            attempt=call.attempt,
            proxy=key.proxy,
            value=value,
            error="" if failure is None else answers.quote(failure.reason, ERROR_CHARACTERS),
            retryable=failure is not None and failure.retryable,
            retry_after_s=None if failure is None else failure.retry_after_s,
            usage=usage,
            seconds=time.monotonic() - begun,
        )

    def _find(self, name: str) -> Agent:
        agent = self._agents.get(name)
        if agent is None:
            offered = ", ".join(sorted(self._agents)) or "none"
            raise AgentError(
                f"there is no agent {name!r} here; there are: {offered}", retryable=False
            )
        return agent


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


async def _ask(agent: Agent, call: m.Call, request: AgentRequest) -> AgentAnswer:
    """Call the agent; anything that it does wrong is an `AgentError`."""
    deadline = asyncio.timeout(call.timeout_s)
    try:
        async with deadline:
            answer: object = await agent.call(request)
    except AgentError as error:
        raise _plain(error) from error.__cause__
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise AgentError(f"agent {agent.name!r} cancelled its own call", retryable=True) from None
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if deadline.expired() and isinstance(error, TimeoutError):
            reason = f"agent {agent.name!r} did not answer within {call.timeout_s:g} s"
            raise AgentError(reason, retryable=True) from None
        reason = f"agent {agent.name!r} raised {answers.describe(error)}"
        log.warning("agent failed", task_id=call.task_id, row=call.row, error=type(error).__name__)
        raise AgentError(reason, retryable=True) from error
    if not isinstance(answer, AgentAnswer):
        reason = f"agent {agent.name!r} returned a {type(answer).__name__}, not an AgentAnswer"
        raise AgentError(reason, retryable=False)
    return answer


def _usage(answer: AgentAnswer) -> m.Usage:
    """The tokens of an answer, as far as they are counts: an agent's slip must not stop a result."""
    return m.Usage(1, 0, _count(answer.prompt_tokens), _count(answer.completion_tokens))


def _count(number: object) -> int:
    return min(max(number, 0), MAX_INT) if isinstance(number, int) else 0


def _plain(error: AgentError) -> AgentError:
    """The same error, of the types that it should have: an agent may have put in anything."""
    return AgentError(
        str(error.reason),
        retryable=bool(error.retryable),
        retry_after_s=_retry_after_s(error.retry_after_s),
    )


def _retry_after_s(seconds: object) -> float | None:
    if not isinstance(seconds, int | float) or (isinstance(seconds, float) and math.isnan(seconds)):
        return None
    return float(min(max(seconds, 0), MAX_RETRY_AFTER_S))


def _traceback(error: BaseException) -> str:
    """The plain traceback: a richer one might show local variables, and so prompts and keys."""
    return "".join(traceback.format_exception(error))
