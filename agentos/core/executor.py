"""The half of a proxy that runs calls: a waiting line and the slots of its agents."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.scheduling import Policy, make_policy

CallKey = tuple[int, str]
"""A task's id and a call's row: one call of one task, whatever its attempt."""

QUEUE_RETRY_S = 0.5


class Executor:
    """Starts calls as slots become free, in the order of a policy.

    Args:
        address: the proxy's own.
        agents: where the calls are run: the address of the agent runner.
        slots: calls at a time, by agent offered.
        max_waiting: calls that wait; above it they are refused.
        max_kept: bytes of answers that are kept for owners who ask again.
        policy: the name of a scheduling policy.
    """

    def __init__(
        self,
        address: str,
        agents: str,
        slots: Mapping[str, int],
        *,
        max_waiting: int,
        max_kept: int,
        policy: str,
    ) -> None:
        self._address = address
        self._agents = agents
        self._free = dict(slots)
        self._max_waiting = max_waiting
        self._waiting: dict[str, Policy[m.Call]] = {name: make_policy(policy) for name in slots}
        self._queued: dict[CallKey, m.Call] = {}
        self._running: dict[CallKey, m.Call] = {}
        self._kept = Kept(max_kept)
        self._draining = False

    def __len__(self) -> int:
        return len(self._queued) + len(self._running)

    def start(self, call: m.Call) -> list[m.Send] | None:
        """Take a call only if it starts at once; `None`, and nothing changed, if it would wait."""
        return self.submit(call) if self._free.get(call.agent, 0) > 0 else None

    def submit(self, call: m.Call) -> list[m.Send]:
        """Start a call, let it wait, or refuse it.

        The same attempt again changes nothing; a newer attempt, or one under a newer epoch,
        replaces the older one, whose owner no longer wants it.
        """
        key = (call.task_id, call.row)
        known = self._running.get(key) or self._queued.get(key)
        if known is not None and (known.epoch, known.attempt) >= (call.epoch, call.attempt):
            return []
        out = self._drop(key) if known is not None else []
        if (answer := self._kept.answer(call)) is not None:
            return [*out, m.Send(call.owner, answer)]
        if self._draining:
            return [*out, self._refuse(call, f"{self._address} is stopping")]
        if call.agent not in self._free:
            return [*out, self._refuse(call, f"{self._address} does not offer {call.agent!r}")]
        if self._free[call.agent] > 0:
            out.append(self._run(key, call))  # where there is room nobody waits
            return out
        if len(self._queued) >= self._max_waiting:
            return [*out, self._refuse(call, f"{self._address} has {len(self._queued)} waiting")]
        self._queued[key] = call
        self._waiting[call.agent].push(_name(key), call, call.priority)
        return out

    def finished(self, result: m.CallResult) -> tuple[m.Call | None, list[m.Send]]:
        """The runner answered. Returns the call that this was, and what starts in its place."""
        key = (result.task_id, result.row)
        call = self._running.get(key)
        if call is None or call.attempt != result.attempt or call.epoch != result.epoch:
            return None, []
        del self._running[key]
        self._free[call.agent] += 1
        if call.owner != self._address:
            self._kept.keep(call, result)  # on its way to another process it may be lost
        return call, self._fill(call.agent) if self._queued else []

    def drain(self, *, abort: bool) -> list[m.Send]:
        """Start nothing more: what waits, and with `abort` what runs, goes back to its owner."""
        self._draining = True
        calls = [*self._queued.values(), *(self._running.values() if abort else ())]
        return self._give_back(calls, f"{self._address} is stopping")

    def put_off(self, owner: str) -> list[m.Send]:
        """Give an owner back the calls of its own that wait: it may have to think again."""
        waiting = [call for call in self._queued.values() if call.owner == owner]
        return self._give_back(waiting, f"{self._address} stood still")

    def _give_back(self, calls: list[m.Call], reason: str) -> list[m.Send]:
        out: list[m.Send] = []
        for call in calls:
            out += [*self._drop((call.task_id, call.row)), self._refuse(call, reason)]
        return out

    def abort(self, task_id: int, below: Epoch, row: str = "", owner: str = "") -> list[m.Send]:
        """Drop the calls of a task under epochs older than `below`, waiting or running.

        Args:
            task_id: the task.
            below: the epoch from which on calls are kept.
            row: only the call of this row.
            owner: only the calls of this owner.
        """
        keys = [
            key
            for key, call in [*self._queued.items(), *self._running.items()]
            if call.task_id == task_id
            and call.epoch < below
            and row in {"", call.row}
            and owner in {"", call.owner}
        ]
        return [send for key in keys for send in self._drop(key)]

    def abort_owner(self, owner: str) -> list[m.Send]:
        """Drop the calls whose owner is gone: nobody would read their answers."""
        keys = [
            key
            for key, call in [*self._queued.items(), *self._running.items()]
            if call.owner == owner
        ]
        return [send for key in keys for send in self._drop(key)]

    def _drop(self, key: CallKey) -> list[m.Send]:
        queued = self._queued.pop(key, None)
        if queued is not None:
            self._waiting[queued.agent].discard(_name(key))
        call = self._running.pop(key, None)
        if call is None:
            return []
        self._free[call.agent] += 1
        revoke = m.Revoke(
            task_id=call.task_id, epoch=call.epoch, row=call.row, attempt=call.attempt
        )
        return [m.Send(self._agents, revoke), *self._fill(call.agent)]

    def _fill(self, agent: str) -> list[m.Send]:
        out = []
        while self._free[agent] > 0:
            call = self._waiting[agent].pop()
            if call is None:
                break
            key = (call.task_id, call.row)
            del self._queued[key]
            out.append(self._run(key, call))
        return out

    def _run(self, key: CallKey, call: m.Call) -> m.Send:
        self._running[key] = call
        self._free[call.agent] -= 1
        return m.Send(self._agents, m.Invoke(call=call))

    @staticmethod
    def _refuse(call: m.Call, reason: str) -> m.Send:
        refused = m.CallRefused(
            task_id=call.task_id,
            epoch=call.epoch,
            row=call.row,
            attempt=call.attempt,
            reason=reason,
            retry_after_s=QUEUE_RETRY_S,
        )
        return m.Send(call.owner, refused)


class Kept:
    """The last answers, so that one that was lost on its way need not be paid for again.

    Args:
        most: bytes that they may take together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._answers: OrderedDict[CallKey, tuple[m.Call, m.CallResult]] = OrderedDict()

    def keep(self, call: m.Call, result: m.CallResult) -> None:
        """Remember an answer, and forget the oldest ones if they become too much."""
        self._forget((call.task_id, call.row))
        self._answers[call.task_id, call.row] = (call, result)
        self._size += _size(call, result)
        while self._size > self._most:
            self._forget(next(iter(self._answers)))

    def answer(self, call: m.Call) -> m.CallResult | None:
        """The answer to this very attempt; or a usable one to the same question of an owner before.

        An owner that died before it could save an answer leaves it to the next one.
        """
        kept = self._answers.get((call.task_id, call.row))
        if kept is None:
            return None
        before, result = kept
        if (before.epoch, before.attempt) == (call.epoch, call.attempt):
            return result
        same = (before.agent, before.prompt, before.schema) == (
            call.agent,
            call.prompt,
            call.schema,
        )
        if before.epoch < call.epoch and same and result.value is not None:
            return msgspec.structs.replace(result, epoch=call.epoch, attempt=call.attempt)
        return None

    def _forget(self, key: CallKey) -> None:
        if (kept := self._answers.pop(key, None)) is not None:
            self._size -= _size(*kept)


def _size(call: m.Call, result: m.CallResult) -> int:
    """About what it takes in memory: the texts, and a fixed part for all the rest."""
    return len(call.prompt) + len(call.schema or "") + len(result.value or result.error) + 1_000


def _name(key: CallKey) -> str:
    return f"{key[0]}/{key[1]}"
