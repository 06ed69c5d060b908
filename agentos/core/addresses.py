"""Addresses, which are names: what a role is called, and what its name says of it.

Apart from the messages, which are records and cannot be compiled: nearly every message is looked
at by one of these more than once.
"""

from __future__ import annotations

import re
from typing import Final

_RESERVED: Final = frozenset({"gateway", "store", "region", "proxy", "client", "agents"})
_ADDRESS: Final = re.compile(r"[a-z]+(/[A-Za-z0-9._-]+)*")


def is_address(text: str) -> bool:
    """Whether `text` may name an actor."""
    return len(text) <= 200 and _ADDRESS.fullmatch(text) is not None


def role_of(address: str) -> str:
    """The role that an address plays: its first part, or `actor` for a name of the user's own."""
    if not address:
        return "link"
    head = address.partition("/")[0]
    return head if head in _RESERVED else "actor"


def region_of(proxy: str) -> str:
    """The region that a proxy belongs to: `proxy/eu/3` is of `region/eu`."""
    return "region/" + "".join(proxy.split("/")[1:2])


def call_row(node: str, round_: int, slot: str) -> str:
    """The progress row of one saved answer, and with the task's id its idempotency key."""
    return f"{node}/{round_}/{slot}"
