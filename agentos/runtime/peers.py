"""The children of a switch: which connection leads to which names, and who may speak as whom."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping
from typing import Final

import structlog

from agentos.core import messages as m
from agentos.core.errors import AddressTaken, Overloaded, RemoteProtocolError
from agentos.core.limits import Limits
from agentos.core.ports import Connection

log = structlog.get_logger()

NAMES_PER_CHILD: Final = 65_536
"""A gateway below a store brings the names of all its clients, regions and proxies."""
FORGET_AFTER: Final = 10
"""A child's names are free when it has been silent for this many times the silence that is a reason
to doubt it (`link_ping_s * suspect_after`), and for as long as a child that rests may be."""

MAY_HOST: Final[Mapping[str, frozenset[str]]] = {
    "gateway": frozenset({"region", "proxy", "client", "actor"}),
    "region": frozenset({"proxy", "client", "actor"}),
    "proxy": frozenset({"client", "actor"}),
    "client": frozenset({"client", "actor"}),
    "actor": frozenset({"client", "actor"}),
}
"""By the role of a process's first name: the roles of the other names in it and below it."""
_PARTS: Final[Mapping[str, int]] = {"gateway": 2, "region": 2, "proxy": 3, "client": 2}
"""How many parts a role's name has: what takes a name apart relies on it."""

HOSTS: Final = frozenset({"gateway", "region", "proxy"})
"""Roles that say what a process is."""


def may_greet(address: str) -> bool:
    """Whether a child may say hello under this name at all: `region/eu` is one, `store` is not."""
    role = m.role_of(address)
    return role == "actor" or address.count("/") + 1 == _PARTS.get(role)


def _check_parent(address: str, above: Collection[str]) -> None:
    """Refuse a proxy that has dialled somebody else than its region: nobody would give it anything."""
    roles = [name for name in above if m.role_of(name) in HOSTS]
    if m.role_of(address) == "proxy" and roles and m.region_of(address) not in above:
        reason = f"{address!r} is a child of {m.region_of(address)!r}, not of {roles[0]!r}"
        raise RemoteProtocolError(reason)


def may_host(host: str, address: str) -> bool:
    """Whether the process whose first name is `host` may have `address` in it or below it."""
    if address == host:
        return True
    role, host_role = m.role_of(address), m.role_of(host)
    if (host_role, role) == ("region", "proxy"):
        return m.region_of(address) == host
    return role in MAY_HOST.get(host_role, frozenset())


class Route:
    """The ways to one name, and the secret of the process that has it.

    Attributes:
        connection: where it was announced.
        beside: a second connection, straight to its process, if there is one.
        latest: the one of the two over which it spoke last: what is for it goes there.
    """

    __slots__ = ("beside", "connection", "latest", "session")

    def __init__(self, connection: Connection, session: str) -> None:
        self.connection = self.latest = connection
        self.beside: Connection | None = None
        self.session = session


class Peer:
    """One connection: the names behind it, when it was last heard, and what it did wrong."""

    __slots__ = ("contested_at", "errors", "first", "heard_at", "names")

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self.contested_at = -math.inf
        """When somebody else first wanted a name of its, if that is later than `heard_at`."""
        self.errors = 0
        self.first = ""
        """What the process is; it says what the names behind it may be. Stays when that name goes."""
        self.names: set[str] = set()


class Peers:
    """All connections of a switch's listeners. Thread-safe; look-ups take no lock.

    Args:
        limits: for how long a silent connection keeps its names, and how many there may be.
    """

    def __init__(self, limits: Limits) -> None:
        self._patience_s = limits.link_ping_s * limits.suspect_after
        rests_s = limits.idle_beat_s * limits.suspect_after
        self._forget_s = FORGET_AFTER * self._patience_s + rests_s
        self._max = limits.max_children
        self._limits = limits.fingerprint()
        self._lock = threading.Lock()
        self._peers: dict[Connection, Peer] = {}
        self._routes: dict[str, Route] = {}

    def heard(self, connection: Connection, now: float) -> None:
        """Something came over this connection."""
        self._peer(connection, now).heard_at = now

    def has(self, connection: Connection) -> bool:
        """Whether it has been heard, and has not gone since."""
        return connection in self._peers

    def knows(self, connection: Connection) -> bool:
        """Whether it has said hello."""
        peer = self._peers.get(connection)
        return peer is not None and bool(peer.names)

    def route(self, address: str) -> Connection | None:
        """The connection that leads to a name."""
        route = self._routes.get(address)
        return route.latest if route is not None else None

    def speaks_for(self, connection: Connection, address: str) -> bool:
        """Whether a name is behind this connection; if so, what is for it goes the same way."""
        route = self._routes.get(address)
        if route is None or not (route.connection is connection or route.beside is connection):
            return False
        route.latest = connection
        return True

    def author(self, address: str) -> Connection | None:
        """The connection of the process that is `address`, if it is a child and not behind one.

        A forwarder does not open bodies, and is not to blame for what is in them.
        """
        connection = self.route(address)
        peer = self._peers.get(connection) if connection is not None else None
        return connection if peer is not None and peer.first == address else None

    def forwards(self, connection: Connection) -> bool:
        """Whether others speak through it, so that it is not to blame for what they say."""
        peer = self._peers.get(connection)
        return peer is not None and m.role_of(peer.first) in {"gateway", "region"}

    def sessions(self) -> dict[str, str]:
        """Every name known, with its session."""
        with self._lock:
            return {address: route.session for address, route in self._routes.items()}

    def register(
        self, connection: Connection, hello: m.Hello, now: float, above: Collection[str] = ()
    ) -> bool:
        """Note that a name is behind a connection, or is `beside` the way that is known.

        Args:
            connection: where the greeting came from.
            hello: the greeting.
            now: seconds on a monotonic clock.
            above: the names of the process that was greeted.

        Returns:
            whether it is: nothing is beside a name that is not known, or is another process's, and
            a process is known here by its first name before any other.

        Raises:
            AddressTaken: another process has the name, and is alive.
            RemoteProtocolError: a peer of this role, or this process, cannot host that one.
            Overloaded: too many connections, or names behind this one.
        """
        with self._lock:
            peer = self._peer(connection, now)
            if hello.host is not None and hello.host not in peer.names:
                return False
            self._check(peer, hello.address, above)
            if not (hello.beside or peer.names):
                _check_parent(hello.address, above)
            route = self._routes.get(hello.address)
            if hello.beside:
                if route is None or route.session != hello.session:
                    return False
                self._drop_beside(hello.address, route)
                route.beside = route.latest = connection
            elif route is None or (route.connection, route.session) != (connection, hello.session):
                if route is not None:
                    self._take_over(route, connection, hello, now)
                self._routes[hello.address] = Route(connection, hello.session)
            if hello.limits not in {"", self._limits}:
                log.warning("limits_differ", address=hello.address)  # it may be taken for dead
            if not peer.names:
                peer.first = hello.address
            peer.names.add(hello.address)
            peer.heard_at = now
            return True

    def unregister(self, connection: Connection, address: str) -> bool:
        """A child gives a name up; whether nobody else leads to it."""
        with self._lock:
            if not self.speaks_for(connection, address):
                return False
            self._peers[connection].names.remove(address)
            return self._leads_no_more(connection, address)

    def erred(self, connection: Connection, now: float) -> int:
        """Count a protocol error; returns how many there were on this connection."""
        peer = self._peer(connection, now)
        peer.errors += 1
        return peer.errors

    def gone(self, connection: Connection) -> list[str]:
        """Forget a connection; returns the names that were behind it."""
        with self._lock:
            peer = self._peers.pop(connection, None)
            return self._free(connection, peer) if peer is not None else []

    def silent(self, now: float) -> tuple[list[Connection], list[str]]:
        """Free the names of connections that have been silent for `FORGET_AFTER` patiences.

        Returns:
            these connections, as long as nobody has said that they are gone, and the names.
        """
        last = now - self._forget_s
        with self._lock:
            silent = {c: peer for c, peer in self._peers.items() if peer.heard_at < last}
            return list(silent), [n for c, peer in silent.items() for n in self._free(c, peer)]

    def _peer(self, connection: Connection, now: float) -> Peer:
        peer = self._peers.get(connection)
        return peer if peer is not None else self._peers.setdefault(connection, Peer(now))

    def _take_over(self, route: Route, connection: Connection, hello: m.Hello, now: float) -> None:
        """Let a name change hands: its process says so, or has not answered since it was asked.

        One that rests is silent for longer than any patience: the switch asks it (`Ping`).
        """
        if route.connection is not connection:
            holder, name = self._peers[route.connection], hello.address
            if route.session != hello.session:
                if holder.contested_at <= holder.heard_at:
                    holder.contested_at = now
                if now - holder.contested_at < self._patience_s:
                    raise AddressTaken(f"{name!r} is the name of another process, which is alive")
            holder.names.remove(name)
        self._drop_beside(hello.address, route)

    def _drop_beside(self, address: str, route: Route) -> None:
        """The second way to a name is gone, or nothing is to go there any more."""
        peer = self._peers.get(route.beside) if route.beside is not None else None
        if peer is not None and route.beside is not route.connection:
            peer.names.discard(address)
        route.beside, route.latest = None, route.connection

    def _leads_no_more(self, connection: Connection, address: str) -> bool:
        """A connection has lost a name; whether that is nobody's now."""
        route = self._routes[address]
        gone = route.connection is connection
        self._drop_beside(address, route)
        if gone:
            del self._routes[address]
        return gone

    def _free(self, connection: Connection, peer: Peer) -> list[str]:
        names = sorted(peer.names)
        peer.names.clear()
        return [name for name in names if self._leads_no_more(connection, name)]

    def _check(self, peer: Peer, address: str, above: Collection[str]) -> None:
        if not may_greet(address):
            raise RemoteProtocolError(f"{address!r} is not a name that a child can have")
        first = peer.first if peer.names else address
        # A client's or an actor's name in the greeted process restricts nobody below it.
        hosts = [first, *(name for name in above if m.role_of(name) in HOSTS)]
        for host in hosts:
            if not may_host(host, address):
                raise RemoteProtocolError(f"{host!r} cannot host {address!r}")
        if not peer.names and len(self._peers) > self._max:
            raise Overloaded(f"this switch has {self._max} children")
        if len(peer.names) >= NAMES_PER_CHILD and address not in peer.names:
            raise Overloaded(f"{first!r} hosts {NAMES_PER_CHILD} names")
