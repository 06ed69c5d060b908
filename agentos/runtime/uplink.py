"""The one link up: greets the parent, probes it, and moves on to the next when it is silent."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from agentos.core import messages as m
from agentos.core.errors import AgentOSError, LocalProtocolError, Overloaded, RemoteProtocolError
from agentos.core.limits import Limits
from agentos.core.ports import Connection, Receiver
from agentos.registry import Transports
from agentos.runtime.wire import open_sealed


class Uplink:
    """A connection to one of several parents, and a thread that keeps it.

    While no parent answers, messages wait, up to `limits.high_water_mark`: they are hints that
    their senders repeat, so that it is enough to bound them.

    Args:
        urls: where parents listen, in order of preference.
        receiver: the switch.
    """

    def __init__(
        self,
        urls: Sequence[str],
        transports: Transports,
        receiver: Receiver,
        limits: Limits,
        log: Any,
    ) -> None:
        if not urls:
            raise LocalProtocolError("an uplink needs at least one URL")
        self.refusal = ""
        """Why the parent refused our name, if it did."""
        self._urls = list(urls)
        self._transports = transports
        self._receiver = receiver
        self._limits = limits
        self._log = log
        self._names: dict[str, str] = {}
        self._waiting: deque[m.Envelope] = deque()
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._heard_at = 0.0
        self._up = threading.Event()
        self._welcomed = False
        self._wake = threading.Event()
        self._broken = False
        self._closed = False
        self._greet = False
        self._thread = threading.Thread(target=self._run, name="agentos-uplink", daemon=True)

    # -- any thread ----------------------------------------------------------------------------

    def start(self, names: Mapping[str, str]) -> None:
        """Begin to connect, greeting as these names (with their sessions)."""
        self._names.update(names)
        self._thread.start()

    def wait_up(self, timeout_s: float) -> bool:
        """Wait until a parent has welcomed us; returns whether one has."""
        return self._up.wait(timeout_s)

    @property
    def up(self) -> bool:
        """Whether a parent has welcomed us and has not fallen silent since."""
        return self._up.is_set()

    def announce(self, address: str, session: str) -> None:
        """Greet as one more name, now and on every new connection."""
        with self._lock:
            self._names[address] = session
            connection = self._connection
        if connection is not None:
            self._say(connection, address, m.Hello(address=address, session=session))

    def withdraw(self, address: str) -> None:
        """Greet as this name no more."""
        with self._lock:
            self._names.pop(address, None)

    def send(self, envelopes: Sequence[m.Envelope]) -> None:
        """Send these up, or let them wait for a parent.

        Raises:
            Overloaded: too many wait already, or the parent does not take them fast enough.
        """
        with self._lock:
            if self._connection is not None and self._up.is_set():
                self._connection.send(envelopes)
                return
            if len(self._waiting) + len(envelopes) > self._limits.high_water_mark:
                raise Overloaded(
                    f"no parent answers at {', '.join(self._urls)}, "
                    f"and {len(self._waiting)} messages wait",
                    self._limits.reconnect_max_s,
                )
            self._waiting.extend(envelopes)

    def owns(self, connection: Connection) -> bool:
        """Whether this is the link's current connection."""
        return connection is self._connection

    def heard(self, envelopes: Sequence[m.Envelope]) -> None:
        """The parent said something: it is alive, and may have welcomed or refused us."""
        self._heard_at = time.monotonic()
        for envelope in envelopes:
            if envelope.to == m.NEIGHBOUR:
                self._link_message(envelope)

    def lost(self) -> None:
        """The transport is certain that the parent is gone."""
        self._broken = True
        self._wake.set()

    def close(self) -> None:
        """Give the link up. Idempotent."""
        self._closed = True
        self._wake.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(self._limits.stop_grace_s)

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        attempt = 0
        while not self._closed:
            url = self._urls[attempt % len(self._urls)]
            try:
                was_up = self._hold(url)
            except AgentOSError as error:
                self._log.error("uplink_failed", url=url, error=str(error))
                was_up = False
            attempt = 0 if was_up and len(self._urls) == 1 else attempt + 1
            if not self._closed:
                self._pause(attempt)

    def _pause(self, attempt: int) -> None:
        """Exponential back-off with full jitter (AWS Architecture Blog, 2015)."""
        low, high = self._limits.reconnect_min_s, self._limits.reconnect_max_s
        most = min(high, low * 2.0 ** min(attempt, 16))
        deadline = time.monotonic() + low / 2 + random.random() * most  # noqa: S311 - jitter
        while not self._closed and (left := deadline - time.monotonic()) > 0:
            self._wake.wait(left)
            self._wake.clear()

    def _hold(self, url: str) -> bool:
        """Connect, greet, and stay while the parent is heard; returns whether it welcomed us."""
        with self._lock:
            self._broken = self._welcomed = False
            self._heard_at = time.monotonic()
            connection = self._transports.of(url).connect(url, self._receiver)
            self._connection = connection
        self._greet_all(connection)
        try:
            self._watch(connection, url)
        finally:
            was_up = self._up.is_set()
            with self._lock:
                self._up.clear()
                self._connection = None
            connection.close()
        if was_up and not self._closed:
            self._log.warning("uplink_lost", url=url)
        return was_up

    def _watch(self, connection: Connection, url: str) -> None:
        ping_s = self._limits.link_ping_s
        patience_s = ping_s * self._limits.suspect_after
        while not self._closed and not self._broken:
            now = time.monotonic()
            if self._welcomed and not self._up.is_set():
                self._flush(connection, url)
            if self._greet:
                self._greet = False
                self._greet_all(connection)
            silent_s = now - self._heard_at
            if silent_s > patience_s:
                return
            if silent_s >= ping_s and self._names:
                self._say(connection, next(iter(self._names)), m.Ping())
            self._wake.wait(ping_s if self._up.is_set() else min(ping_s, 0.2))
            self._wake.clear()

    def _flush(self, connection: Connection, url: str) -> None:
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
            self._up.set()
            try:
                connection.send(waiting)
            except AgentOSError as error:
                # Hints, all of them: their senders repeat what still matters.
                self._log.warning("waiting_messages_dropped", count=len(waiting), error=str(error))
        self._log.info("uplink_up", url=url, waited=len(waiting))

    def _greet_all(self, connection: Connection) -> None:
        with self._lock:
            names = dict(self._names)
        for address, session in names.items():
            self._say(connection, address, m.Hello(address=address, session=session))

    def _say(self, connection: Connection, sender: str, message: m.Message) -> None:
        try:
            connection.send([m.Envelope(m.NEIGHBOUR, sender, message)])
        except AgentOSError as error:
            self._log.warning("link_message_dropped", error=str(error))

    def _link_message(self, envelope: m.Envelope) -> None:
        message = envelope.message
        try:
            if isinstance(message, m.Sealed):
                message = open_sealed(message, self._limits)
        except RemoteProtocolError as error:
            self._log.warning("protocol_error", error=str(error))
            return
        if isinstance(message, m.Welcome):
            self._welcomed = True
            self.refusal = ""
            self._wake.set()
        elif isinstance(message, m.Refused):
            if message.code == "hello_first":
                self._greet = True  # the parent restarted, or took us for dead
                self._wake.set()
            else:
                self.refusal = message.reason
                self._log.warning("refused_by_parent", reason=message.reason)
