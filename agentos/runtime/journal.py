"""What a machine sends, in an operator's log: who is taken for dead, whose task goes where, and why.

Machines do not log; but every decision of theirs that an operator may ask about later is a message.
Only rare ones are looked at. What is about processes is a warning, what is about one task is
information, and no prompt, result or error of an agent is in either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentos.core import messages as m


class Journal:
    """Notes what leaves one actor.

    Args:
        log: a logger of structlog's, bound to the actor's role.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._said: m.Message | None = None
        """What was noted last: the same word to many is one line."""
        self._looks: Mapping[type, Callable[[Any, str], None]] = {
            m.PeerDown: self._peer_down,
            m.Claim: self._claim,
            m.Dropped: self._dropped,
            m.Declined: self._declined,
            m.Stop: self._stop,
            m.Record: self._record,
            m.Recorded: self._recorded,
        }

    def note(self, out: Sequence[m.Envelope]) -> None:
        """Log what is worth it."""
        for envelope in out:
            look = self._looks.get(type(envelope.message))
            if look is not None:
                look(envelope.message, envelope.to)

    def _is_new(self, message: m.Message) -> bool:
        before, self._said = self._said, message
        return before is not message

    def _peer_down(self, q: m.PeerDown, to: str) -> None:  # noqa: ARG002
        if self._is_new(q):
            self._log.warning("proxies_suspected", proxies=list(q.proxies))

    def _claim(self, q: m.Claim, to: str) -> None:  # noqa: ARG002
        if q.lost:  # its owner is taken for dead; `owner` and `region` are who gets it
            about = {"task_id": q.task_id, "epoch": str(q.expected), "scope": q.scope}
            self._log.info("task_taken_over", **about, region=q.region, owner=q.owner)

    def _dropped(self, q: m.Dropped, to: str) -> None:  # noqa: ARG002
        self._log.info("task_dropped", task_id=q.task_id, epoch=str(q.epoch), reason=q.reason)

    def _declined(self, q: m.Declined, to: str) -> None:  # noqa: ARG002
        self._log.info("task_declined", task_id=q.task_id, epoch=str(q.epoch), reason=q.reason)

    def _stop(self, q: m.Stop, to: str) -> None:  # noqa: ARG002
        if self._is_new(q):
            self._log.info("task_stopped", task_id=q.task_id, below=str(q.epoch))

    def _record(self, q: m.Record, to: str) -> None:  # noqa: ARG002
        if q.end is not None and q.end.state == "failed":
            self._log.info("task_failed", task_id=q.task_id, epoch=str(q.epoch))

    def _recorded(self, q: m.Recorded, to: str) -> None:
        if q.outcome == "stale":
            about = {"task_id": q.task_id, "epoch": str(q.epoch), "current": str(q.current)}
            self._log.info("write_refused", **about, state=q.state, writer=to)
