"""The switch: delivers an envelope to a local actor, down to a child, or up to the parent.

Every process has one. What is neither local nor known below goes up, so proxies and clients
only ever dial out. A forwarder reads the header and never opens the body.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pykka
import structlog

from agentos.core import messages as m
from agentos.core.errors import (
    AddressTaken,
    AgentOSError,
    HostilePeerError,
    LocalProtocolError,
    Overloaded,
    RemoteProtocolError,
)
from agentos.core.limits import Limits
from agentos.core.ports import Connection, Listener
from agentos.core.routes import KINDS, Permits
from agentos.registry import Transports
from agentos.runtime.links import Links
from agentos.runtime.peers import Peers
from agentos.runtime.refs import NO_SUCH_ACTOR, Asker, Ref, attach_actor
from agentos.runtime.uplink import Uplink, hello_first
from agentos.runtime.wire import is_refusal, open_sealed

Deliver = Callable[[list[m.Envelope]], None]
"""Puts a batch into an actor's mailbox. Raises `Overloaded` when that is full."""

ASKED = frozenset({"submit", "get_task", "get_progress", "list_tasks", "get_cluster"})
"""Questions that are not asked any more when who asked has gone: nothing was promised yet."""

log = structlog.get_logger()


class Switch:
    """One process's (or one role's) delivery point.

    Args:
        transports: the transports of the process.
        limits: bounds and intervals.
        name: for log lines.
    """

    def __init__(self, transports: Transports, limits: Limits, name: str = "") -> None:
        self.limits = limits
        self.counters: Counter[str] = Counter()
        self.session = secrets.token_hex(16)
        self._transports = transports
        self._log = log.bind(switch=name)
        self._lock = threading.Lock()
        self._local: dict[str, Deliver] = {}
        self._announced: dict[str, None] = {}
        """In the order in which they came: the first says what this process is."""
        self._peers, self._permits = Peers(limits), Permits()
        self._listeners: list[Listener] = []
        self._up = Links(transports, self, limits, self._log)
        self._asker: Asker | None = None
        self._asker_lock = threading.Lock()
        self._closed = threading.Event()
        self._sweeper: threading.Thread | None = None

    # -- actors --------------------------------------------------------------------------------

    def attach(
        self, address: str, deliver: Deliver, *, announce: bool = True, sealed: bool = False
    ) -> None:
        """Let a local actor be reached under a name, here and from every switch above.

        Args:
            address: its name.
            deliver: takes batches for it; from any thread, without blocking.
            announce: whether switches above learn the name, or only this one and those below.
            sealed: it opens what it is given itself, with `open`, when its turn has come.

        Raises:
            AddressTaken: the name is in use on this switch.
            LocalProtocolError: it cannot be an address.
        """
        if not m.is_address(address):
            raise LocalProtocolError(f"{address!r} cannot be an address: use letters, digits, '/'")
        with self._lock:
            if address in self._local:
                raise AddressTaken(f"{address!r} is attached to this switch already")
            if self._peers.route(address) is not None:
                raise AddressTaken(f"{address!r} is the name of a child of this switch")
            self._local[address] = deliver if sealed else self._opened(deliver)
            if announce:
                self._announced[address] = None
        if announce:
            self._up.announce(address, self.session)

    def detach(self, address: str) -> None:
        """Forget a local actor."""
        with self._lock:
            self._local.pop(address, None)
            announced = address in self._announced
            self._announced.pop(address, None)
        if announced:
            self._up.withdraw(address)

    def attach_actor(self, address: str, actor: pykka.ActorRef[Any]) -> None:
        """Put a Pykka actor of your own on the switch, reachable from every process.

        It receives the values that others `tell` and `ask`, in `on_receive`; what it returns is
        the answer. Raises what `attach` raises.
        """
        attach_actor(self, address, actor)

    def ref(self, address: str) -> Ref:
        """A handle on any actor, local or remote, with Pykka's `tell`, `ask` and futures."""
        with self._asker_lock:
            if self._asker is None:
                self._asker = Asker(self)
            return Ref(address, self._asker)

    # -- links ---------------------------------------------------------------------------------

    def listen(self, url: str, transports: Transports | None = None) -> str:
        """Accept children at `url`, once you have an actor here; returns where they can reach it.

        `transports` other than its own have loops of their own.

        Raises:
            AddressTaken: somebody else listens there.
            LocalProtocolError: the URL cannot be listened on.
        """
        listener = (transports or self._transports).of(url).listen(url, self)
        with self._lock:
            self._listeners.append(listener)
            if self._sweeper is None:
                self._sweeper = threading.Thread(
                    target=self._sweep, name="agentos-switch", daemon=True
                )
                self._sweeper.start()
        return listener.url

    def connect(self, urls: Sequence[str], shortcuts: Sequence[str] = ()) -> Uplink:
        """Have a parent: the first of `urls` that answers, and the next when it falls silent.

        Args:
            urls: where parents listen.
            shortcuts: where gateways do, to which what is for the store may go straight.

        Raises:
            LocalProtocolError: no adapter serves one of the URLs, or there is an uplink already.
        """
        with self._lock:
            known = dict.fromkeys(self._announced, self.session) | self._peers.sessions()
            uplink = self._up.make(urls, shortcuts)
        self._up.start(known)
        return uplink

    def close(self) -> None:
        """Drop every link and actor; questions that are open fail. Idempotent."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        if self._asker is not None:
            self._asker.close()
        self._local.clear()
        self._up.close()
        for listener in self._listeners:
            listener.close()
        if self._sweeper is not None:
            self._sweeper.join(self.limits.stop_grace_s)

    # -- sending -------------------------------------------------------------------------------

    def send(self, envelopes: Sequence[m.Envelope]) -> None:
        """Deliver envelopes of local actors, in order for each destination. Never blocks.

        What cannot be delivered is dropped and counted; whoever expects an answer (`ref`) is
        sent a `Refused` in its place.
        """
        self._send(envelopes, upwards=True)

    def _send(self, envelopes: Sequence[m.Envelope], *, upwards: bool) -> None:
        batches: dict[object, tuple[Deliver, list[m.Envelope]]] = {}
        for envelope in envelopes:
            key, deliver = self._way(envelope.to, envelope.sender, upwards)
            batches.setdefault(key, (deliver, []))[1].append(envelope)
        for deliver, batch in batches.values():
            self._try(deliver, batch)

    def _way(self, to: str, sender: str, upwards: bool) -> tuple[object, Deliver]:
        local = self._local.get(to)
        if local is not None:
            return (to, sender), local  # one sender's bound must not be another's refusal
        connection = self._peers.route(to)
        if connection is not None:
            return connection, connection.send
        link = self._up.towards(to) if upwards else None
        if link is not None:
            return link, link.send
        return None, self._undeliverable

    def _try(self, deliver: Deliver, batch: list[m.Envelope]) -> None:
        try:
            deliver(batch)
        except Overloaded as error:
            self._give_back(batch, error, error.retry_after_s)
        except pykka.ActorDeadError as error:
            self._give_back(batch, error, code=NO_SUCH_ACTOR)
        except LocalProtocolError as error:
            if len(batch) == 1:
                self._log.error("message_cannot_be_sent", to=batch[0].to, error=str(error))
                self._give_back(batch, error)
                return
            for one in batch:  # one of them cannot be written; the others must not suffer
                self._try(deliver, [one])

    def _opened(self, deliver: Deliver) -> Deliver:
        def opened(batch: list[m.Envelope]) -> None:
            messages = [e for e in (self.open(envelope) for envelope in batch) if e is not None]
            if messages:
                deliver(messages)

        return opened

    def open(self, envelope: m.Envelope) -> m.Envelope | None:
        """Decode a message; None when it cannot be: that is counted, and answered, here."""
        if not isinstance(envelope.message, m.Sealed):
            return envelope
        if envelope.ref and envelope.message.kind in ASKED and not self._reaches(envelope.sender):
            self.counters["asker_gone"] += 1
            return None
        try:
            message = open_sealed(envelope.message, self.limits)
        except RemoteProtocolError as error:
            self._protocol_error(self._peers.author(envelope.sender), error)
            self._give_back([envelope], error)
            return None
        return m.Envelope(envelope.to, envelope.sender, message, envelope.ref)

    def _reaches(self, address: str) -> bool:
        above = self._up.uplink is not None
        return above or address in self._local or self._peers.route(address) is not None

    def _undeliverable(self, batch: list[m.Envelope]) -> None:
        for envelope in batch:
            error = AgentOSError(f"nobody has the address {envelope.to!r}")
            self._give_back([envelope], error, code=NO_SUCH_ACTOR)

    def _give_back(
        self,
        batch: Sequence[m.Envelope],
        error: Exception,
        retry_after_s: float | None = None,
        code: str = "",
    ) -> None:
        """Count what was not delivered, and tell those who wait for an answer."""
        code = code or getattr(error, "code", AgentOSError.code)
        self.counters[f"undelivered.{code}"] += len(batch)
        refused = m.Refused(code=code, reason=str(error)[:500], retry_after_s=retry_after_s)
        answers = [
            m.Envelope(e.sender, e.to, refused, e.ref)
            for e in batch
            if e.ref and e.sender != e.to and not is_refusal(e)
        ]
        if answers:
            self.send(answers)

    # -- receiving: the transport's threads call these -----------------------------------------

    def received(self, connection: Connection, envelopes: Sequence[m.Envelope]) -> None:
        """Envelopes came over a link: check each against what that peer may say, and pass it on."""
        link = self._up.of(connection)
        if link is not None:
            link.heard(envelopes)
            # What the parent sends down and nobody here has must not go back up.
            down = [e for e in envelopes if e.to != m.NEIGHBOUR and self._permitted(e)]
            self._send(down, upwards=False)
            return
        self._peers.heard(connection, time.monotonic())
        onward = []
        for envelope in envelopes:
            if not self._peers.has(connection):
                break  # it was disconnected for what came before
            if envelope.to == m.NEIGHBOUR:
                self._link_message(connection, envelope)
            elif self._may(connection, envelope):
                onward.append(envelope)
        self.send(onward)

    def failed(self, connection: Connection, error: Exception) -> None:
        """Something came that is no envelope, or from a peer that is one too many."""
        if isinstance(error, Overloaded):
            self.counters["connections_refused"] += 1
        else:
            self._protocol_error(connection, error)

    def closed(self, connection: Connection) -> None:
        """The peer is gone for certain."""
        link = self._up.of(connection)
        if link is not None:
            link.lost()
            return
        self._withdraw(self._peers.gone(connection))

    def _withdraw(self, addresses: Sequence[str]) -> None:
        for address in addresses:
            self._log.info("child_gone", address=address)
            self._up.withdraw(address)

    def _sweep(self) -> None:
        """Free the names of silent children, and make the transport look whether they are gone."""
        while not self._closed.wait(self.limits.link_ping_s * self.limits.suspect_after):
            silent, names = self._peers.silent(time.monotonic())
            self._withdraw(names)
            for connection in silent:
                self._try(connection.send, [m.Envelope(m.NEIGHBOUR, m.NEIGHBOUR, m.Pong())])

    def _link_message(self, connection: Connection, envelope: m.Envelope) -> None:
        opened = self.open(envelope)
        if opened is None:
            return
        if isinstance(opened.message, m.Ping):
            known = self._peers.knows(connection)
            self._answer(connection, envelope, m.Pong() if known else hello_first())
        elif isinstance(opened.message, m.Hello):
            self._answer(connection, envelope, self._hello(connection, opened.message))
        elif isinstance(opened.message, m.Bye):
            if self._peers.unregister(connection, opened.message.address):
                self._withdraw([opened.message.address])
        else:
            error = RemoteProtocolError(f"{type(opened.message).__name__} is not a child's to send")
            self._protocol_error(connection, error)

    def _hello(self, connection: Connection, hello: m.Hello) -> m.Message:
        try:
            if hello.address in self._local:
                raise AddressTaken(f"{hello.address!r} is here already")
            if not self._peers.register(connection, hello, time.monotonic(), list(self._local)):
                return hello_first()  # a greeting that belongs before this one went elsewhere
        except AgentOSError as error:
            self._log.warning("hello_refused", address=hello.address, error=str(error))
            self.counters[f"hello_refused.{error.code}"] += 1
            if isinstance(error, RemoteProtocolError):
                self._protocol_error(connection, error)
            if holder := self._peers.route(hello.address):  # is it gone, or does it answer?
                self._try(holder.send, [m.Envelope(m.NEIGHBOUR, m.NEIGHBOUR, m.Ping())])
            return m.Refused(code=error.code, reason=str(error))
        self._log.info("child_came", address=hello.address, beside=hello.beside)
        if not hello.beside:
            self._up.announce(hello.address, hello.session)
        return m.Welcome(address=hello.address)

    def _may(self, connection: Connection, envelope: m.Envelope) -> bool:
        if self._peers.speaks_for(connection, envelope.sender):
            return self._permitted(envelope, connection)
        known = self._peers.knows(connection)
        self.counters["spoke_as_another" if known else "spoke_before_hello"] += 1
        # Also to whom we know: it may have lost a name to a greeting of its own that came late.
        self._answer(connection, envelope, hello_first())
        why = "which it is not" if known else "before it said hello"
        error = RemoteProtocolError(f"a peer spoke as {envelope.sender!r}, {why}")
        self._protocol_error(None if self._peers.forwards(connection) else connection, error)
        return False

    def _permitted(self, envelope: m.Envelope, connection: Connection | None = None) -> bool:
        message = envelope.message
        kind = KINDS[message.kind] if isinstance(message, m.Sealed) else type(message)
        if self._permits.allow(kind, envelope.sender, envelope.to):
            return True
        reason = f"{envelope.sender!r} may not send {kind.__name__} to {envelope.to!r}"
        error = RemoteProtocolError(reason)
        self.counters["not_permitted"] += 1
        self._protocol_error(connection, error)
        self._give_back([envelope], error)
        return False

    def _protocol_error(self, connection: Connection | None, error: Exception) -> None:
        self.counters["protocol_errors"] += 1
        peer = connection.peer if connection else ""
        self._log.warning("protocol_error", peer=peer, error=str(error))
        if connection is None or self._up.of(connection) is not None:
            return
        errors = self._peers.erred(connection, time.monotonic())
        if errors > self.limits.max_peer_errors or isinstance(error, HostilePeerError):
            self._log.warning("peer_disconnected", peer=connection.peer)
            self.counters["peers_disconnected"] += 1
            connection.close()
            self.closed(connection)

    def _answer(self, connection: Connection, question: m.Envelope, message: m.Message) -> None:
        self._try(connection.send, [m.Envelope(m.NEIGHBOUR, m.NEIGHBOUR, message, question.ref)])
