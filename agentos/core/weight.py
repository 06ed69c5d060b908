"""What a message counts as while it waits somewhere."""

from __future__ import annotations

from agentos.core import messages as m
from agentos.core.messages.base import MESSAGE_BYTES


def weight(message: m.Message | m.Sealed) -> int:
    """What a message counts as while it waits, in bytes, against `limits.peer_bytes`."""
    if isinstance(message, m.Sealed):
        return MESSAGE_BYTES + len(message.body)
    return MESSAGE_BYTES + len(getattr(message, "task_description", ""))
