"""Rooms that run agents, calls for them, and agents made of any function."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.limits import Limits
from agentos.core.ports import Agent, AgentAnswer, AgentRequest
from agentos.runtime.agents import AgentRunner

PROXY = "proxy/eu/1"


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


MakeRoom = Callable[..., Room]


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


@contextmanager
def rooms() -> Iterator[MakeRoom]:
    """Makes rooms, and closes them; no thread of theirs may be left."""
    before = set(threading.enumerate())
    opened: list[Room] = []

    def make(*agents: Agent, limits: Limits | None = None) -> Room:
        opened.append(Room(*agents, limits=limits))
        return opened[-1]

    yield make
    for made in opened:
        made.runner.close()
    deadline = time.monotonic() + 10
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not left
    gc.collect()
