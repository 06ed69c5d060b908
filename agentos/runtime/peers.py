"""The children of a switch: which connection leads to which names, and who may speak as whom."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Final, NamedTuple

from agentos.core import messages as m
from agentos.core.errors import AddressTaken, Overloaded, RemoteProtocolError
from agentos.core.limits import Limits
from agentos.core.ports import Connection

NAMES_PER_CHILD = 4_096

MAY_HOST: Final[Mapping[str, frozenset[str]]] = {
    "gateway": frozenset({"gateway", "region", "proxy", "client", "actor"}),
    "region": frozenset({"region", "proxy", "client", "actor"}),
    "proxy": frozenset({"proxy", "client", "actor"}),
    "client": frozenset({"client", "actor"}),
    "actor": frozenset({"client", "actor"}),
}
"""By the role of a connection's first name: the roles of the names that may be behind it."""


class Route(NamedTuple):
    """The way to one name, and the secret of the process that has it."""

    connection: Connection
    session: str


class Peer:
    """One connection: the names behind it, when it was last heard, and what it did wrong."""

    __slots__ = ("errors", "heard_at", "names")

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self.errors = 0
        self.names: list[str] = []


class Peers:
    """All connections of a switch's listeners. Thread-safe; look-ups take no lock.

    Args:
        limits: for how long a silent connection keeps its names.
    """

    def __init__(self, limits: Limits) -> None:
        self._patience_s = limits.link_ping_s * limits.suspect_after
        self._max = limits.max_children
        self._lock = threading.Lock()
        self._peers: dict[Connection, Peer] = {}
        self._routes: dict[str, Route] = {}

    def heard(self, connection: Connection, now: float) -> None:
        """Something came over this connection."""
        peer = self._peers.get(connection)
        if peer is not None:
            peer.heard_at = now

    def knows(self, connection: Connection) -> bool:
        """Whether it has said hello."""
        peer = self._peers.get(connection)
        return peer is not None and bool(peer.names)

    def route(self, address: str) -> Connection | None:
        """The connection that leads to a name."""
        route = self._routes.get(address)
        return route.connection if route is not None else None

    def speaks_for(self, connection: Connection, address: str) -> bool:
        """Whether a name is behind this connection."""
        route = self._routes.get(address)
        return route is not None and route.connection is connection

    def sessions(self) -> dict[str, str]:
        """Every name known, with its session."""
        with self._lock:
            return {address: route.session for address, route in self._routes.items()}

    def register(self, connection: Connection, hello: m.Hello, now: float) -> None:
        """Note that a name is behind a connection.

        Raises:
            AddressTaken: another process has the name, and is alive.
            RemoteProtocolError: a peer of this role cannot host that one.
            Overloaded: too many connections, or names behind this one.
        """
        with self._lock:
            peer = self._peers.get(connection)
            self._check(peer, hello)
            route = self._routes.get(hello.address)
            if route is not None and route.connection is not connection:
                holder = self._peers.get(route.connection)
                fresh = holder is not None and now - holder.heard_at < self._patience_s
                if fresh and route.session != hello.session:
                    raise AddressTaken(
                        f"{hello.address!r} is the name of another process, which is alive"
                    )
                if holder is not None:
                    holder.names.remove(hello.address)
                    if not holder.names:
                        del self._peers[route.connection]
            if peer is None:
                peer = self._peers[connection] = Peer(now)
            if hello.address not in peer.names:
                peer.names.append(hello.address)
            peer.heard_at = now
            self._routes[hello.address] = Route(connection, hello.session)

    def _check(self, peer: Peer | None, hello: m.Hello) -> None:
        role = m.role_of(hello.address)
        first = peer.names[0] if peer is not None and peer.names else hello.address
        hosts = MAY_HOST.get(m.role_of(first), frozenset())
        foreign = role == "region" and first != hello.address and m.role_of(first) == "region"
        if m.role_of(first) == "region" and role == "proxy":
            foreign = m.region_of(hello.address) != first
        if role not in hosts or foreign:
            raise RemoteProtocolError(f"{first!r} cannot host {hello.address!r}")
        if peer is None and len(self._peers) >= self._max:
            raise Overloaded(f"this listener has {self._max} children")
        if peer is not None and len(peer.names) >= NAMES_PER_CHILD:
            raise Overloaded(f"{first!r} hosts {NAMES_PER_CHILD} names")

    def erred(self, connection: Connection) -> int:
        """Count a protocol error; returns how many there were on this connection."""
        peer = self._peers.get(connection)
        if peer is None:
            return 0
        peer.errors += 1
        return peer.errors

    def gone(self, connection: Connection) -> list[str]:
        """Forget a connection; returns the names that were behind it."""
        with self._lock:
            peer = self._peers.pop(connection, None)
            names = peer.names if peer is not None else []
            for name in names:
                if self._routes[name].connection is connection:
                    del self._routes[name]
            return names

    def silent(self, now: float) -> list[Connection]:
        """Connections that have not been heard for ten times the patience: their names are free."""
        limit = 10 * self._patience_s
        with self._lock:
            return [c for c, peer in self._peers.items() if now - peer.heard_at > limit]
