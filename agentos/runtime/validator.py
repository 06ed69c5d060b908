"""Holds answers against schemas by way of a process that may be lost to one; see `agentos.schemas`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from typing import Any

import msgspec
import structlog

from agentos import answers
from agentos.core import jsontext
from agentos.core.errors import AgentError, UnusableAnswer
from agentos.schemas import CPU_S, Question, Verdict

log = structlog.get_logger()

_ESCAPED = 6
"""Bytes that JSON takes for one of a text, at most: `\\u0000`."""
LONGEST_S = 30.0
"""How long the process is kept without work, as it takes 40 MB; and how long it may be silent over
one answer, by the clock, on a machine that has no CPU to spare."""


class _Waiting:
    """A question that has no verdict yet; `since` when, by the loop's clock."""

    __slots__ = ("line", "since", "verdict")

    def __init__(self, line: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.line = line
        self.since = loop.time()
        self.verdict: asyncio.Future[Verdict] = loop.create_future()


class Validator:
    """One process, started when it is wanted, and again when it was lost. Of one event loop.

    Args:
        max_bytes: the largest text that is read as JSON.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: deque[_Waiting] = deque()
        """In the order in which they are answered: if the process dies, the first was at work."""
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def meet(self, value: Any, schema: str, **about: object) -> Any:
        """The value of an answer that must meet a schema, whichever agent gave it.

        A text is read as JSON, and what was read is the value if that meets the schema; if not, the
        text itself may. What is no text is held against the schema as it is.

        Args:
            value: what the agent answered.
            schema: a JSON Schema, as JSON.
            about: what the log is to say of it, should the process be lost to it.

        Raises:
            UnusableAnswer: it does not meet the schema.
            AgentError: it is no JSON value, or the schema cannot be used or takes too long (not
                retryable); or the process was lost to something else (retryable).
        """
        most = self._max_bytes
        if isinstance(value, str):
            answers.check(value, max_bytes=most)
            most *= _ESCAPED  # what is read of it may be shorter by its quotation marks
        text = answers.encode(value, max_bytes=most).encode()
        question = Question(schema, msgspec.Raw(text), self._max_bytes)
        try:
            verdict = await self._ask(msgspec.json.encode(question) + b"\n")
        except AgentError as error:
            log.warning("schema_process_lost", error=error.reason, **about)
            raise
        if verdict.error:
            if verdict.retryable:
                raise UnusableAnswer(verdict.error)
            raise AgentError(verdict.error, retryable=False)
        return jsontext.parse(value, max_bytes=self._max_bytes) if verdict.read else value

    async def close(self) -> None:
        """End the process; what still waits is not answered. Idempotent."""
        self._closed = True
        if self._process is not None:
            _kill(self._process)
        if self._task is not None:
            await self._task

    async def _ask(self, line: bytes) -> Verdict:
        waiting = _Waiting(line)
        self._waiting.append(waiting)
        if self._process is not None:
            self._write(self._process, waiting)
        elif self._task is None:
            self._task = asyncio.create_task(self._keep())
        return await waiting.verdict

    @staticmethod
    def _write(process: asyncio.subprocess.Process, waiting: _Waiting) -> None:
        assert process.stdin is not None
        process.stdin.write(waiting.line)

    async def _keep(self) -> None:
        """Run the process for as long as there is work, and a little longer."""
        try:
            while self._waiting and not self._closed:
                try:
                    status = await self._run()
                except OSError as error:
                    self._blame(AgentError(f"no process for schemas: {error}", retryable=True))
                else:
                    if status and self._waiting and not self._closed:
                        self._blame(_lost(status))
        finally:
            self._task = None

    async def _run(self) -> int:
        """Start the process, and pass on what it says until it ends; returns its exit status."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "agentos.schemas"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us; it ends when we close its input
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            for waiting in self._waiting:
                self._write(process, waiting)
            self._process = process
            if self._closed:
                _kill(process)
            while line := await self._line(process):
                verdict = self._waiting.popleft().verdict
                if not verdict.done():  # nobody may want it any more
                    verdict.set_result(msgspec.json.decode(line, type=Verdict))
            return await process.wait()
        finally:
            self._process = None
            if process.returncode is None:  # we are cancelled
                _kill(process)
                await process.wait()

    async def _line(self, process: asyncio.subprocess.Process) -> bytes:
        """What it says next; b"" at its end, which is brought about if it is idle or stuck."""
        assert process.stdin is not None
        assert process.stdout is not None
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_S):
                    return await process.stdout.readline()
            if not self._waiting:
                self._process = None  # the next question is for another one
                process.stdin.close()
            elif loop.time() - self._waiting[0].since >= LONGEST_S:
                _kill(process)

    def _blame(self, error: AgentError) -> None:
        """The question that the process was at is answered by an error."""
        verdict = self._waiting.popleft().verdict
        if not verdict.done():
            verdict.set_exception(error)


def _kill(process: asyncio.subprocess.Process) -> None:
    """End it, if it lives; of one that has died it takes the status away (`Popen.poll`)."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _lost(status: int) -> AgentError:
    if status == -signal.SIGVTALRM:
        reason = (
            f"the node's schema takes more than {CPU_S:g} s to hold this answer against: "
            "simplify its patterns and references"
        )
        return AgentError(reason, retryable=False)
    return AgentError(f"the process for schemas ended with status {status}", retryable=True)
