"""The one link up: greets the parent, probes it, and moves on to the next when it is silent."""

from __future__ import annotations

import itertools
import math
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
from agentos.runtime.peers import HOSTS
from agentos.runtime.wire import open_sealed

ALONG = 0.75
"""A probe goes along with a message when the last one is this many `limits.link_ping_s` ago."""
SELDOM = 2.0
"""A link over which nothing was sent for this many `limits.link_ping_s` is quiet, and is probed by the
thread; on any other the thread does so only when no probe has gone along for as long."""
MOMENT_S = 0.001
MOST_S = 0.2
"""How long a link waits for the one that it is beside, before it looks whether it is closed."""
HELLO_FIRST = "hello_first"
"""The code of a refusal: the parent does not know this connection."""


def hello_first() -> m.Refused:
    """What a parent answers to a connection that has no name."""
    return m.Refused(code=HELLO_FIRST, reason="say hello first: this connection has no name yet")


def _rests(envelopes: Sequence[m.Envelope]) -> bool:
    """Whether this is nothing but the heartbeats of proxies that hold nothing."""
    beats = (envelope.message for envelope in envelopes)
    return all(isinstance(b, m.ProxyBeat) and not (b.claims or b.calls) for b in beats)


class Uplink:
    """A connection to one of several parents, and a thread that keeps it.

    While no parent answers, messages wait, up to `limits.high_water_mark`: they are hints that
    their senders repeat, so that it is enough to bound them.

    Args:
        urls: where parents listen, in order of preference.
        receiver: the switch.
        beside: the link to which this one is a second, shorter way: it waits until that one is up,
            is used while it is up itself, and lets nothing wait for it.
    """

    def __init__(
        self,
        urls: Sequence[str],
        transports: Transports,
        receiver: Receiver,
        limits: Limits,
        log: Any,
        beside: Uplink | None = None,
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
        self._beside = beside
        self._names: dict[str, str] = {}
        """Addresses with their sessions. The first is what this process is: greeted alone."""
        self._first = ""
        self._welcomed: set[str] = set()
        """The names that the parent of this connection knows."""
        self._waiting: deque[m.Envelope] = deque()
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._heard_at = 0.0
        self._sent_at = self._probed_at = -math.inf
        self._asked_at = -math.inf
        """When the first probe left that has not been answered, if it is later than `_heard_at`."""
        self._up = threading.Event()
        self._wake = threading.Event()
        self._broken = False
        self._closed = False
        self._worker = threading.Thread(target=self._run, name="agentos-uplink", daemon=True)

    # -- any thread ----------------------------------------------------------------------------

    def start(self, names: Mapping[str, str]) -> None:
        """Begin to connect, greeting as these names (with their sessions)."""
        self._names.update(names)
        self._first = next(iter(self._names), "")
        self._worker.start()

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
            self._first = self._first or address
            self._welcomed.discard(address)
            may = self._is_known() or self._first == address
            connection = self._connection if may else None
        if connection is not None:
            self._say(connection, address, self._hello(address, session))

    def withdraw(self, address: str) -> None:
        """Greet as this name no more, and let the parent forget it."""
        with self._lock:
            known = self._names.pop(address, None) is not None
            self._first = next(iter(self._names), "")
            connection = self._connection if known else None
            self._welcomed.discard(address)
        if connection is not None:
            self._say(connection, address, m.Bye(address=address))

    def send(self, envelopes: Sequence[m.Envelope]) -> None:
        """Send these up, or let them wait for a parent (beside another link: give them to that).

        Raises:
            Overloaded: too many wait already, or the parent does not take them fast enough.
        """
        with self._lock:
            connection = self._connection if self._up.is_set() else None
            if connection is None and self._beside is None:
                self._hold_back(envelopes)
        # Not under the lock: with `inproc://` the parent's answers come back in this call.
        if connection is not None:
            along = not _rests(envelopes) and self._may_probe()
            probe = [m.Envelope(m.NEIGHBOUR, m.NEIGHBOUR, m.Ping())] if along else []
            connection.send([*envelopes, *probe] if probe else envelopes)
        elif self._beside is not None:
            self._beside.send(envelopes)

    def _may_probe(self) -> bool:
        """Whether a probe is nearly due: in the company of a heartbeat it costs no wake-up.

        If the link was quiet, the thread is woken all the same, to look for the answer in time.
        """
        ping_s, now = self._limits.link_ping_s, time.monotonic()
        was_quiet, self._sent_at = now - self._sent_at > SELDOM * ping_s, now
        may = now - self._probed_at >= ALONG * ping_s and self._all_welcomed()
        if may:
            self._note_probe(now)
        if was_quiet:
            self._wake.set()
        return may

    def _note_probe(self, now: float) -> None:
        self._probed_at = now
        if self._asked_at <= self._heard_at:
            self._asked_at = now

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
        if self._worker.is_alive() and threading.current_thread() is not self._worker:
            self._worker.join(self._limits.stop_grace_s)

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        for url in itertools.cycle(self._urls):
            while (
                self._beside is not None and not self._closed and not self._beside.wait_up(MOST_S)
            ):
                pass
            if self._closed:
                return
            try:
                failures = 0 if self._hold(url) else failures + 1
            except AgentOSError as error:
                self._log.error("uplink_failed", url=url, error=str(error))
                self.refusal = str(error)
                failures += 1
            self._pause(failures)

    def _pause(self, failures: int) -> None:
        """Exponential back-off with full jitter (AWS Architecture Blog, 2015)."""
        low, high = self._limits.reconnect_min_s, self._limits.reconnect_max_s
        most = min(high, low * 2.0 ** min(failures, 16))
        deadline = time.monotonic() + low / 2 + random.random() * most  # noqa: S311 - jitter
        while not self._closed and (left := deadline - time.monotonic()) > 0:
            self._wake.wait(left)
            self._wake.clear()

    def _hold(self, url: str) -> bool:
        """Connect, greet, and stay while the parent is heard; returns whether it welcomed us."""
        with self._lock:
            self._broken = False
            self._welcomed.clear()
            self._heard_at = time.monotonic()
            connection = self._transports.of(url).connect(url, self._receiver)
            self._connection = connection
        try:
            was_up = self._watch(connection, url)
        finally:
            with self._lock:
                self._up.clear()
                known = list(self._welcomed)
            if self._closed:  # an orderly stop: whoever comes next need not wait for the names
                for address in known:
                    self._say(connection, address, m.Bye(address=address))
            connection.close()
            with self._lock:
                self._connection = None  # only now: what it still brought was its parent's
        if was_up and not self._closed:
            self._log.warning("uplink_lost", url=url)
        return was_up

    def _watch(self, connection: Connection, url: str) -> bool:
        """Probe and greet, while the parent is heard; returns whether it welcomed us."""
        self._probed_at = -math.inf
        was_up = False
        while True:
            self._wake.clear()  # first: what comes during this turn brings another one
            now = time.monotonic()
            if self._closed or self._broken or now > self._lost_at():
                break
            if now >= self._probe_due():
                # Whatever else is said: a child that only listens must not seem dead. A hello
                # that was lost or refused is repeated with it.
                self._note_probe(now)
                self._greet(connection)
                self._say(connection, m.NEIGHBOUR, m.Ping())
            if self._is_known() and not self._up.is_set():
                self._greet(connection)
                self._flush(connection)
                self._log.info("uplink_up", url=url)
                was_up = True
                if self._beside is None:
                    self._rouse(connection)
            until = min(self._probe_due(), self._lost_at())
            self._wake.wait(max(MOMENT_S, until - time.monotonic()))
        return was_up

    def _probe_due(self) -> float:
        """When the thread probes by itself; later where what is sent takes the probes along.

        A proxy that is quiet rests, and takes as long over its parent as its region over it.
        Others may be waiting for an answer: they find out soon that nobody is there to give it.
        """
        ping_s = self._limits.link_ping_s
        if not self._all_welcomed():
            return self._probed_at + ping_s
        if self._sent_at > time.monotonic() - SELDOM * ping_s:
            return self._probed_at + SELDOM * ping_s
        if m.role_of(self._first) == "proxy" and self._asked_at <= self._heard_at:
            return self._probed_at + self._limits.idle_beat_s * self._limits.suspect_after
        return self._probed_at + ping_s

    def _lost_at(self) -> float:
        """When the parent's silence will have been too long; never, if it owes no answer.

        It counts from the last word, or where nothing was asked for long, from the first probe.
        """
        ping_s, heard_at, asked_at = self._limits.link_ping_s, self._heard_at, self._asked_at
        if asked_at <= heard_at:
            return math.inf
        seldom = asked_at - heard_at > (SELDOM + 1) * ping_s
        return (asked_at if seldom else heard_at) + ping_s * self._limits.suspect_after

    def _rouse(self, connection: Connection) -> None:
        """The parent may be a new one, to whom proxies that rest are unknown: they say so now."""
        proxies = [name for name in list(self._names) if m.role_of(name) == "proxy"]
        roused = [m.Envelope(name, m.NEIGHBOUR, m.Rouse()) for name in proxies]
        self._receiver.received(connection, roused)

    def _all_welcomed(self) -> bool:
        return len(self._welcomed) == len(self._names)

    def _is_known(self) -> bool:
        """Whether the parent knows what this process is, so that its other names may follow."""
        return self._first in self._welcomed

    def _greet(self, connection: Connection) -> None:
        with self._lock:
            names = [n for n in self._names.items() if n[0] not in self._welcomed]
            if not self._is_known():
                del names[1:]
        for address, session in names:
            self._say(connection, address, self._hello(address, session))

    def _hello(self, address: str, session: str) -> m.Hello:
        host = self._first if address != self._first else None
        beside = self._beside is not None
        is_role = host is None and m.role_of(address) in HOSTS
        limits = self._limits.fingerprint() if is_role else ""
        return m.Hello(address=address, session=session, host=host, beside=beside, limits=limits)

    def _hold_back(self, envelopes: Sequence[m.Envelope]) -> None:
        waiting = len(self._waiting)
        if waiting + len(envelopes) > self._limits.high_water_mark:
            raise Overloaded(
                f"no parent answers at {', '.join(self._urls)}, and {waiting} messages wait",
                self._limits.reconnect_max_s,
            )
        self._waiting.extend(envelopes)

    def _flush(self, connection: Connection) -> None:
        """Send what waits, before anything newer; then the link is up."""
        while True:
            with self._lock:
                if not self._waiting:
                    if self._is_known():
                        self._up.set()
                    return
                envelope = self._waiting.popleft()
            try:
                connection.send([envelope])
            except AgentOSError as error:
                # Hints, all of them: their senders repeat what still matters.
                self._log.warning("waiting_message_dropped", to=envelope.to, error=str(error))

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
            self._is_welcome(message.address)
        elif isinstance(message, m.Refused):
            self._is_refused(message)
        elif isinstance(message, m.Ping):  # somebody else wants a name of ours: we are alive
            self._probed_at = -math.inf
            self._wake.set()

    def _is_welcome(self, address: str) -> None:
        with self._lock:
            if address in self._names:
                self._welcomed.add(address)
        self.refusal = ""
        self._wake.set()

    def _is_refused(self, refused: m.Refused) -> None:
        if refused.code == HELLO_FIRST:  # the parent restarted, or took us for dead
            with self._lock:
                self._welcomed.clear()
                self._up.clear()
            # Beside another link: that may lead to another of the parents by now.
            self._broken = self._beside is not None and len(self._urls) > 1
            self._wake.set()
        elif refused.reason != self.refusal:
            self.refusal = refused.reason
            self._wake.set()  # the hello is to be repeated in time
            self._log.warning("refused_by_parent", reason=refused.reason)
