"""How this package was built."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES

from agentos.core import proxy


def is_compiled() -> bool:
    """Whether the roles' machines are machine code (the wheel of `make wheel`), not Python."""
    return proxy.__file__.endswith(tuple(EXTENSION_SUFFIXES))
