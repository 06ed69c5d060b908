"""Simulated agents: what `agentos.runtime.agents.AgentRunner` does with a call, without the agent.

What becomes of a call is decided by the seed, the task's key, the row and how often that was asked,
and by nothing else, so that it stays the same while a failing run is shrunk.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.jsontext import dump
from agentos.simulation.faults import Faults
from agentos.simulation.links import Process
from agentos.simulation.port import World

Answer = Callable[[m.Call], Any]
"""Makes an agent's answer to a call, as a JSON value."""


class Key(NamedTuple):
    """One attempt of one call, in the proxy that runs it."""

    proxy: str
    task_id: int
    epoch: Epoch
    row: str
    attempt: int


class Agents:
    """The agents of all proxies.

    Args:
        world: the simulation.
        seed: of what they do.
        faults: the shares of calls that go wrong.
        job_of: the key of a task, and whether it is poison.
        answer: makes answers; the built-in ones if None.
    """

    def __init__(
        self,
        world: World,
        seed: int,
        faults: Faults,
        job_of: Callable[[int], tuple[str, bool]],
        answer: Answer | None = None,
    ) -> None:
        self.running: dict[str, dict[Key, m.Call]] = {}
        self.faulty = True
        self._world = world
        self._seed = seed
        self._faults = faults
        self._job_of = job_of
        self._answer = answer or default_answer
        self._asked: Counter[tuple[str, str]] = Counter()

    def take(self, process: Process, message: m.Message) -> None:
        """An `Invoke` or a `Revoke` of this process's proxy."""
        running = self.running.setdefault(process.address, {})
        if isinstance(message, m.Revoke):
            q = message
            running.pop(Key(process.address, q.task_id, q.epoch, q.row, q.attempt), None)
        elif isinstance(message, m.Invoke):
            call = message.call
            key = Key(process.address, call.task_id, call.epoch, call.row, call.attempt)
            if key not in running:
                running[key] = call
                self._start(process, key, call)

    def crashed(self, proxy: str) -> None:
        """A process is gone, and with it the calls that it was making."""
        self.running.pop(proxy, None)

    def _start(self, process: Process, key: Key, call: m.Call) -> None:
        job, poison = self._job_of(call.task_id)
        self._asked[job, call.row] += 1
        draw = zlib.crc32(f"{self._seed}/{job}/{call.row}/{self._asked[job, call.row]}".encode())
        chance, speed = draw % 9973 / 9973, draw // 9973 % 997 / 997
        after_s = 0.03 + 0.3 * speed
        if poison:
            self._world.at(self._world.now + after_s, self._poisoned, process, (key, call))
            return
        value, error, retryable, late_s = self._outcome(call, chance if self.faulty else 1.0)
        after_s += late_s
        if after_s > call.timeout_s:
            after_s, value, retryable = call.timeout_s, None, True
            error = f"agent {call.agent!r} did not answer within {call.timeout_s:g} s"
        result = m.CallResult(
            task_id=call.task_id,
            epoch=call.epoch,
            row=call.row,
            attempt=call.attempt,
            proxy=process.address,
            value=value,
            error=error,
            retryable=retryable,
            usage=m.Usage(1, 0, 3, 5),
            seconds=round(after_s, 6),
        )
        self._world.at(self._world.now + after_s, self._done, process, (key, call, result))

    def _outcome(self, call: m.Call, chance: float) -> tuple[str | None, str, bool, float]:
        """Value, error, whether that may be repeated, and how much later than usual."""
        faults, where = self._faults, f"{call.task_id}/{call.row} at {call.owner}"
        for kind in ("agent_late", "agent_never", "agent_error", "agent_unusable", "agent_broken"):
            chance -= getattr(faults, kind)
            if chance < 0.0:
                self._world.hit(kind, where)
                break
        else:
            return dump(self._answer(call)), "", False, 0.0
        match kind:
            case "agent_late":
                return dump(self._answer(call)), "", False, call.timeout_s * 0.8
            case "agent_never":
                return None, "", True, call.timeout_s * 2
            case "agent_error":
                return None, "the endpoint answered 503", True, 0.0
            case "agent_broken":
                return None, "the endpoint answered 401", False, 0.0
        odd = ('{"choice": ', "", "NaN", "[1,]")
        return odd[len(call.row) % len(odd)], "", False, 0.0

    def _done(self, process: Process, done: tuple[Key, m.Call, m.CallResult]) -> None:
        key, call, result = done
        if not self._runs(key, call):
            return  # revoked, or its process has died
        if process.paused:
            process.held.append((self._done, process, done))
            return
        del self.running[key.proxy][key]
        self._world.deliver(process, m.Envelope(process.address, m.AGENTS, result))

    def _runs(self, key: Key, call: m.Call) -> bool:
        return self.running.get(key.proxy, {}).get(key) is call

    def _poisoned(self, process: Process, started: tuple[Key, m.Call]) -> None:
        key, call = started
        if not self._runs(key, call):
            return
        if process.paused:
            process.held.append((self._poisoned, process, started))
            return
        self._world.hit("poison", f"{process.address} dies of task {call.task_id}")
        self._world.kill(process, 0.5)


def default_answer(call: m.Call) -> Any:
    """An answer that is decided by the task and the row alone; samples often agree."""
    draw = zlib.crc32(f"{call.task_id}/{call.row}".encode())
    if call.schema is not None:
        return _instance(_schema(call.schema), draw)
    node = call.row.partition("/")[0]
    return (f"{node} says yes", f"{node} says no", {"text": node}, 7)[draw % 4]


@lru_cache(maxsize=256)
def _schema(text: str) -> Any:
    return msgspec.json.decode(text)


def _instance(schema: Any, draw: int) -> Any:
    """A value that meets a simple JSON Schema."""
    if not isinstance(schema, dict):
        return draw % 10
    if schema.get("enum"):
        return schema["enum"][draw % len(schema["enum"])]
    kind = schema.get("type")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties", {})
            names = [*properties, *(n for n in schema.get("required", ()) if n not in properties)]
            return {name: _instance(properties.get(name, {}), draw) for name in names}
        case "array":
            return [_instance(schema.get("items", {}), draw + i) for i in range(2)]
        case "integer" | "number":
            return draw % 10
        case "boolean":
            return draw % 2 == 0
        case "null":
            return None
    return f"text {draw % 10}"
