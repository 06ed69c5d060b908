"""The asking side of a switch for one event loop: answers are awaited, never polled for.

What one turn of the loop asks leaves together, and what was delivered since the loop last looked
wakes it once. No question has a thread, a task or a queue of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import pykka

from agentos.core import messages as m
from agentos.core.errors import Overloaded
from agentos.runtime.refs import error_of

if TYPE_CHECKING:
    from agentos.runtime.switch import Switch

Batch = list[m.Envelope]
Pushed = m.Event | m.Ended
TOGETHER: Final = 64
"""Messages that leave at once though the turn of the loop goes on: a thousand questions of one turn
would keep the cluster waiting for the last of them."""


class AsyncAsker:
    """`Asker` for asyncio. Made and used in one event loop, but for what the switch delivers.

    Args:
        switch: where questions go out and answers come in.
        on_message: takes what comes unasked (events, ends), in the loop.
    """

    def __init__(self, switch: Switch, on_message: Callable[[m.Message], None]) -> None:
        self.address = f"client/{secrets.token_hex(6)}"
        self._switch = switch
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._open: dict[str, asyncio.Future[m.Message]] = {}
        self._outbox: Batch = []
        self._together = min(TOGETHER, switch.limits.batch)
        self._inbox: deque[Batch] = deque()
        self._woken = False
        self.heard_at = 0.0
        """When something last came, on the monotonic clock."""
        switch.attach(self.address, self._deliver)

    def number(self) -> str:
        """A `ref` for a question."""
        return f"a{next(self._numbers)}"

    async def ask(self, to: str, message: m.Message, timeout_s: float, ref: str = "") -> m.Message:
        """Send a question, and wait for its answer.

        Args:
            to: whom to ask.
            message: what.
            timeout_s: seconds to wait.
            ref: the question's number, if it was asked before: an answer to that is one to this.

        Raises:
            TimeoutError: none came within `timeout_s` seconds.
            Overloaded: too many questions are open, and this is the oldest.
            pykka.ActorDeadError: nobody has this address, or this side was closed.
            AgentOSError: whatever was answered instead.
        """
        ref = ref or self.number()
        future: asyncio.Future[m.Message] = self._loop.create_future()
        if len(self._open) >= self._switch.limits.mailbox:
            oldest = self._open.pop(next(iter(self._open)))
            _fail(oldest, Overloaded("too many questions are open"))
        self._open[ref] = future
        self._post(m.Envelope(to, self.address, message, ref))
        timer = self._loop.call_later(timeout_s, _fail, future, TimeoutError())
        try:
            return await future
        finally:
            timer.cancel()
            self._open.pop(ref, None)

    def tell(self, to: str, message: m.Message) -> None:
        """Send a message and expect nothing."""
        self._post(m.Envelope(to, self.address, message))

    def close(self) -> None:
        """Send what waits, and fail every question that is open."""
        self._flush()
        self._switch.detach(self.address)
        for future in self._open.values():
            _fail(future, pykka.ActorDeadError("closed before the answer came"))

    def _post(self, envelope: m.Envelope) -> None:
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(envelope)
        if len(self._outbox) == self._together:
            self._flush()

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        if outbox:
            self._switch.send(outbox)

    def _deliver(self, batch: Batch) -> None:
        """From any thread. First in, then look whether the loop knows; `_take` does the reverse."""
        self._inbox.append(batch)
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
                self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self._woken = False
        self.heard_at = time.monotonic()
        while self._inbox:
            for envelope in self._inbox.popleft():
                message = envelope.message
                assert isinstance(message, m.Message), "the switch opens what it delivers"
                future = self._open.pop(envelope.ref, None) if envelope.ref else None
                if future is None:
                    self._on_message(message)
                elif isinstance(message, m.Refused):
                    _fail(future, error_of(message))
                elif not future.done():
                    future.set_result(message)


class Waiter:
    """Hears what is pushed about one task. Used in one event loop."""

    __slots__ = ("_closed", "_heard", "_woken")

    def __init__(self) -> None:
        self._heard: deque[Pushed] = deque()
        self._woken: asyncio.Future[None] | None = None
        self._closed = False

    async def next(self, wait_s: float) -> Pushed | None:
        """What was pushed next; None if nothing is within `wait_s` seconds, or when closed."""
        if not self._heard and not self._closed:
            loop = asyncio.get_running_loop()
            self._woken = loop.create_future()
            timer = loop.call_later(wait_s, self._wake)
            try:
                await self._woken
            finally:
                timer.cancel()
        return self._heard.popleft() if self._heard else None

    def push(self, message: Pushed) -> None:
        """Let it be heard."""
        self._heard.append(message)
        self._wake()

    def close(self) -> None:
        """Nothing more will be pushed."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


def _fail(future: asyncio.Future[m.Message], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
