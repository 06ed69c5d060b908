"""The protocol as a table: every message has its route, and every route its message."""

from __future__ import annotations

import importlib
import pkgutil

import agentos.core.messages
from agentos.core import routes
from agentos.core.messages import Message

LOCAL_MESSAGES = frozenset({"Tick", "Drain", "Invoke", "Revoke"})
"""Messages that never leave their process (agentos/core/routes.py)."""


def message_classes() -> set[type[Message]]:
    """Every message that agentos/core/messages defines."""
    package = agentos.core.messages
    names = [info.name for info in pkgutil.iter_modules(package.__path__, package.__name__ + ".")]
    modules = [package, *map(importlib.import_module, names)]
    return {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
    }


def test_every_message_has_a_route() -> None:
    """Each message is in the table of who may send it to whom, or never leaves its process."""
    unrouted = {kind.__name__ for kind in message_classes() if kind not in routes.ROUTES}
    assert unrouted == LOCAL_MESSAGES


def test_every_route_has_a_message_and_two_ends() -> None:
    """The table has no message that is not defined, no empty row, and no two of the same name."""
    assert set(routes.ROUTES) <= message_classes()
    assert all(routes.ROUTES.values())
    assert len(routes.KINDS) == len(routes.ROUTES)
