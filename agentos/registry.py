"""Adapters by URL scheme, through entry points: how a third package adds one.

A package that declares `redis = "their.module:RedisTransport"` in the entry-point group
`agentos.transports` makes `redis://…` a URL that Agent OS listens on and connects to; the group
`agentos.storage` does the same for databases. (Python Packaging User Guide, "Entry points
specification".)
"""

from __future__ import annotations

import threading
from importlib.metadata import entry_points
from typing import Any

from agentos.core.errors import ConfigError, LocalProtocolError
from agentos.core.limits import Limits
from agentos.core.loop import Loop, Looping
from agentos.core.ports import Codec, Database, StorageFactory, Transport, TransportFactory

TRANSPORTS, STORAGE = "agentos.transports", "agentos.storage"


def _load(group: str, url: str) -> Any:
    scheme, separator, _ = url.partition("://")
    found = [point for point in entry_points(group=group) if point.name == scheme]
    if not separator or not found:
        known = sorted({point.name + "://" for point in entry_points(group=group)})
        raise LocalProtocolError(f"{url!r} is not a URL of {group}; installed: {', '.join(known)}")
    try:
        return found[0].load()
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// needs {found[0].value}, which cannot be imported: {error}"
        ) from error


def open_database(url: str) -> Database:
    """Open the database of this URL, like `sqlite:///agentos.db`.

    Raises:
        LocalProtocolError: no installed adapter serves the scheme.
        ConfigError: the adapter cannot be imported.
        StorageError: the adapter cannot open it.
    """
    factory: StorageFactory = _load(STORAGE, url)
    return factory(url)


class Transports:
    """The transports of one process: one instance of each kind, made when first needed.

    Args:
        codec: for transports that carry bytes.
        limits: bounds of sockets and frames.
    """

    def __init__(self, codec: Codec, limits: Limits) -> None:
        self._codec = codec
        self._limits = limits
        self._lock = threading.Lock()
        self._made: dict[TransportFactory, Transport] = {}
        self._closed = False

    def of(self, url: str) -> Transport:
        """The transport that serves this URL.

        Raises:
            LocalProtocolError: no installed adapter serves the scheme, or these are closed.
            ConfigError: the adapter cannot be imported.
        """
        factory: TransportFactory = _load(TRANSPORTS, url)
        with self._lock:
            if self._closed:
                raise LocalProtocolError(f"{url}: the transports of this process are closed")
            if factory not in self._made:
                self._made[factory] = factory(self._codec, self._limits)
            return self._made[factory]

    def loops(self) -> list[Loop]:
        """The loops of the transports made so far, of those that have one."""
        with self._lock:
            return [made.loop for made in self._made.values() if isinstance(made, Looping)]

    def close(self) -> None:
        """Close every transport that was made. Idempotent."""
        with self._lock:
            self._closed = True
            made, self._made = list(self._made.values()), {}
        for transport in made:
            transport.close()
