"""The half of a proxy that runs calls: a waiting line and the slots of its agents."""

from __future__ import annotations

from collections.abc import Mapping

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
        policy: the name of a scheduling policy.
    """

    def __init__(
        self, address: str, agents: str, slots: Mapping[str, int], max_waiting: int, policy: str
    ) -> None:
        self._address = address
        self._agents = agents
        self._free = dict(slots)
        self._max_waiting = max_waiting
        self._waiting: dict[str, Policy[m.Call]] = {name: make_policy(policy) for name in slots}
        self._queued: dict[CallKey, m.Call] = {}
        self._running: dict[CallKey, m.Call] = {}

    def __len__(self) -> int:
        return len(self._queued) + len(self._running)

    def has_room(self, agent: str) -> bool:
        """Whether a call to this agent would start at once."""
        return self._free.get(agent, 0) > 0

    def start(self, call: m.Call) -> list[m.Send] | None:
        """Take a call only if it starts at once; `None`, and nothing changed, if it would wait."""
        return self.submit(call) if self.has_room(call.agent) else None

    def submit(self, call: m.Call) -> list[m.Send]:
        """Start a call, let it wait, or refuse it.

        The same attempt again changes nothing; a newer attempt, or one under a newer epoch,
        replaces the older one, whose owner no longer wants it.
        """
        key = (call.task_id, call.row)
        known = self._running.get(key) or self._queued.get(key)
        if known is not None and (known.epoch, known.attempt) >= (call.epoch, call.attempt):
            return []
        out = self._drop(key)
        if call.agent not in self._free:
            return [*out, self._refuse(call, f"{self._address} does not offer {call.agent!r}")]
        if not self.has_room(call.agent) and len(self._queued) >= self._max_waiting:
            return [*out, self._refuse(call, f"{self._address} has {len(self._queued)} waiting")]
        self._queued[key] = call
        self._waiting[call.agent].push(_name(key), call, call.priority)
        return out + self._fill(call.agent)

    def finished(self, result: m.CallResult) -> tuple[m.Call | None, list[m.Send]]:
        """The runner answered. Returns the call that this was, and what starts in its place."""
        key = (result.task_id, result.row)
        call = self._running.get(key)
        if call is None or (call.epoch, call.attempt) != (result.epoch, result.attempt):
            return None, []
        del self._running[key]
        self._free[call.agent] += 1
        return call, self._fill(call.agent)

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
            self._running[key] = call
            self._free[agent] -= 1
            out.append(m.Send(self._agents, m.Invoke(call=call)))
        return out

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


def _name(key: CallKey) -> str:
    return f"{key[0]}/{key[1]}"
