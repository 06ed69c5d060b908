"""What every transport must do, as tests: subclass `TransportContract` and give it an adapter.

    class TestCarrierPigeon(TransportContract):
        @pytest.fixture
        def make_transport(self):
            return lambda limits: PigeonTransport(JsonCodec(limits), limits)

        @pytest.fixture
        def url(self):
            return "pigeon://loft"

Needs pytest. Nothing in it waits for a fixed time: it waits for what must happen, up to
`transport_recorder.DEADLINE_S`.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import pytest

from agentos.core import messages as m
from agentos.core.errors import AddressTaken, LocalProtocolError, Overloaded
from agentos.core.limits import Limits
from agentos.core.ports import Connection, Transport
from agentos.testing.transport_recorder import DEADLINE_S, Recorder, eventually, note


class TransportContract:
    """The suite. `server` listens and `client` connects; by default they are one transport."""

    @pytest.fixture
    @abstractmethod
    def make_transport(self) -> Callable[[Limits], Transport]:
        """Builds the transport under test."""
        raise NotImplementedError

    @pytest.fixture
    @abstractmethod
    def url(self) -> str:
        """Where to listen: an address that is free and can be used again."""
        raise NotImplementedError

    @pytest.fixture
    def limits(self) -> Limits:
        """Small bounds, so that tests reach them."""
        return Limits(
            high_water_mark=500, link_ping_s=0.2, reconnect_min_s=0.01, reconnect_max_s=0.1
        )

    @pytest.fixture
    def server(
        self, make_transport: Callable[[Limits], Transport], limits: Limits
    ) -> Iterator[Transport]:
        """The transport that listens."""
        transport = make_transport(limits)
        yield transport
        transport.close()

    @pytest.fixture
    def client(self, server: Transport) -> Iterator[Transport]:
        """The transport that connects."""
        yield server  # noqa: PT022 - another fixture in its place may have something to tear down

    # -- carrying ----------------------------------------------------------------------------------

    def test_carries_in_order(self, server: Transport, client: Transport, url: str) -> None:
        """Envelopes of one connection arrive whole, once each, and in the order of sending."""
        inbox = Recorder()
        connection = client.connect(server.listen(url, inbox).url, Recorder())
        sent = [note(number, "grüße") for number in range(2_000)]
        for start in range(0, len(sent), 100):
            _send(connection, sent[start : start + 100])
        inbox.wait_for(len(sent))
        assert inbox.refs() == [envelope.ref for envelope in sent]
        assert len(inbox.connections()) == 1
        first = inbox.batches[0][1][0]
        assert (first.to, first.sender) == ("inbox", "outbox")

    def test_answers_go_back(self, server: Transport, client: Transport, url: str) -> None:
        """A receiver may answer, on the connection that it was called with, while it is called."""
        inbox = Recorder(lambda connection, envelopes: connection.send(envelopes))
        answers = Recorder()
        connection = client.connect(server.listen(url, inbox).url, answers)
        for number in range(200):
            _send(connection, [note(number)])
        answers.wait_for(200)
        assert answers.refs() == [str(number) for number in range(200)]
        assert answers.connections() == [connection]

    def test_carries_big_envelopes(self, server: Transport, client: Transport, url: str) -> None:
        """An envelope as large as a frame may be arrives, and small ones beside it."""
        inbox = Recorder()
        connection = client.connect(server.listen(url, inbox).url, Recorder())
        connection.send([note("small"), note("big", "x" * 8_000_000), note("after")])
        inbox.wait_for(3)
        assert inbox.refs() == ["small", "big", "after"]

    def test_many_peers_are_told_apart(
        self, server: Transport, client: Transport, url: str
    ) -> None:
        """Every peer is one connection, always the same, and gets what is sent to it alone."""
        inbox = Recorder()
        where = server.listen(url, inbox).url
        outboxes = [Recorder() for _ in range(30)]
        connections = [client.connect(where, outbox) for outbox in outboxes]
        for turn in range(3):
            for name, connection in enumerate(connections):
                connection.send([note(f"{name}.{turn}")])
        inbox.wait_for(90)
        children = inbox.connections()
        assert len(children) == 30
        for child in children:
            owner = inbox.refs(child)[0].partition(".")[0]
            assert inbox.refs(child) == [f"{owner}.{turn}" for turn in range(3)]
            child.send([note(f"to.{owner}")])
        for name, outbox in enumerate(outboxes):
            outbox.wait_for(1)
            assert outbox.refs() == [f"to.{name}"]

    def test_a_transport_has_many_listeners(
        self, server: Transport, client: Transport, url: str
    ) -> None:
        """One transport can listen at several addresses; each has its receiver."""
        inboxes = [Recorder(), Recorder()]
        listeners = [
            server.listen(address, inbox)
            for address, inbox in zip((url, self.another(url)), inboxes, strict=True)
        ]
        for number, listener in enumerate(listeners):
            client.connect(listener.url, Recorder()).send([note(number)])
        for number, inbox in enumerate(inboxes):
            inbox.wait_for(1)
            assert inbox.refs() == [str(number)]

    def test_threads_may_share_a_connection(
        self, server: Transport, client: Transport, url: str
    ) -> None:
        """Several threads send on one connection: nothing is lost, each one's order is kept."""
        inbox = Recorder()
        connection = client.connect(server.listen(url, inbox).url, Recorder())

        def send_all(name: int) -> None:
            for number in range(500):
                _send(connection, [note(f"{name}.{number}")])

        threads = [threading.Thread(target=send_all, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        inbox.wait_for(2_000)
        for name in range(4):
            mine = [ref for ref in inbox.refs() if ref.startswith(f"{name}.")]
            assert mine == [f"{name}.{number}" for number in range(500)]

    # -- coming and going --------------------------------------------------------------------------

    def test_a_late_listener_hears_what_waited(
        self, server: Transport, client: Transport, url: str
    ) -> None:
        """A connection may be made and used before anybody listens."""
        early = Recorder()
        connection = client.connect(url, early)
        connection.send([note(number) for number in range(100)])
        inbox = Recorder(lambda child, envelopes: child.send(envelopes))
        server.listen(url, inbox)
        early.wait_for(100)
        assert inbox.refs() == [str(number) for number in range(100)]

    def test_a_listener_can_come_back(self, server: Transport, client: Transport, url: str) -> None:
        """After a listener is closed its address is free, and peers that connect anew are heard."""
        outbox, old, new = Recorder(), Recorder(), Recorder()
        listener = server.listen(url, old)
        connection = client.connect(url, outbox)
        connection.send([note("before")])
        old.wait_for(1)
        listener.close()
        server.listen(url, new)

        def arrives() -> bool:
            nonlocal connection
            if connection in outbox.ended:
                connection = client.connect(url, outbox)
            connection.send([note("after")])
            return "after" in new.refs()

        eventually(arrives)
        assert old.refs() == ["before"]

    def test_a_listener_that_closes_is_missed(
        self, server: Transport, client: Transport, url: str
    ) -> None:
        """Who is connected to a listener that closes learns it, after all that was sent before."""
        inbox = Recorder(lambda child, envelopes: child.send(envelopes))
        outbox = Recorder()
        listener = server.listen(url, inbox)
        connection = client.connect(listener.url, outbox)
        connection.send([note(number) for number in range(50)])
        inbox.wait_for(50)
        listener.close()
        outbox.wait_until(lambda: connection in outbox.ended)
        assert outbox.refs() == [str(number) for number in range(50)]
        assert outbox.ended == [connection]
        assert inbox.ended == []

    def test_a_child_that_closes_is_missed(
        self, server: Transport, client: Transport, url: str
    ) -> None:
        """A listener learns that a peer has gone, at the latest when it goes on sending to it."""
        inbox, outbox = Recorder(), Recorder()
        connection = client.connect(server.listen(url, inbox).url, outbox)
        connection.send([note("hello")])
        inbox.wait_for(1)
        (child,) = inbox.connections()
        connection.close()

        def is_missed() -> bool:
            child.send([note("still-there")])
            return child in inbox.ended

        eventually(is_missed)
        assert outbox.ended == []

    def test_last_words_arrive(self, server: Transport, client: Transport, url: str) -> None:
        """What was sent before `close` arrives, where the peer takes it."""
        inbox = Recorder(lambda child, envelopes: child.send(envelopes))
        outbox = Recorder()
        connection = client.connect(server.listen(url, inbox).url, outbox)
        connection.send([note("hello")])
        outbox.wait_for(1)
        connection.send([note(number) for number in range(100)])
        connection.close()
        inbox.wait_for(101)
        assert inbox.refs()[1:] == [str(number) for number in range(100)]

    def test_a_closed_child_is_not_heard(
        self, server: Transport, client: Transport, url: str
    ) -> None:
        """After a listener's side closes a connection nothing comes from it; others go on."""
        inbox = Recorder()
        where = server.listen(url, inbox).url
        banned = client.connect(where, Recorder())
        banned.send([note("once")])
        inbox.wait_for(1)
        (child,) = inbox.connections()
        child.close()
        child.send([note("dropped")])
        banned.send([note("twice")])
        client.connect(where, Recorder()).send([note("other")])
        inbox.wait_for(2)
        banned.send([note("again")])
        client.connect(where, Recorder()).send([note("last")])
        inbox.wait_for(3)
        assert inbox.refs() == ["once", "other", "last"]
        assert inbox.ended == []

    def test_close_is_idempotent_and_final(
        self, server: Transport, client: Transport, url: str
    ) -> None:
        """Everything may be closed twice and in any order; a closed transport refuses work."""
        listener = server.listen(url, Recorder())
        connection = client.connect(listener.url, Recorder())
        for _ in range(2):
            server.close()
            client.close()
            connection.close()
            listener.close()
        connection.send([note("dropped")])
        for use in (server.listen, client.connect):
            with pytest.raises(LocalProtocolError, match="closed"):
                use(url, Recorder())

    # -- bounds and faults -------------------------------------------------------------------------

    def test_a_taken_address_is_refused(
        self, server: Transport, client: Transport, url: str
    ) -> None:
        """A second listener is refused with the address named, and the first one goes on."""
        inbox = Recorder()
        where = server.listen(url, inbox).url
        for transport in (server, client):
            with pytest.raises(AddressTaken) as refusal:
                transport.listen(where, Recorder())
            assert where in str(refusal.value)
        client.connect(where, Recorder()).send([note("still-here")])
        inbox.wait_for(1)

    def test_urls_of_no_use_are_refused(self, server: Transport) -> None:
        """A URL that the transport cannot use is the caller's error, at once."""
        for use in (server.listen, server.connect):
            for bad in ("", "nonsense", "no-such-scheme://x"):
                with pytest.raises(LocalProtocolError):
                    use(bad, Recorder())

    def test_a_missing_peer_costs_bounded_memory(
        self, client: Transport, url: str, limits: Limits
    ) -> None:
        """With nobody there, envelopes wait up to the high-water mark; then sending is refused."""
        connection = client.connect(url, Recorder())
        sent = _send_until_overloaded(connection, limits)
        assert limits.high_water_mark <= sent
        with pytest.raises(Overloaded):
            connection.send([note(number) for number in range(limits.high_water_mark + 1)])

    def test_a_stuck_peer_costs_bounded_memory(
        self, server: Transport, client: Transport, url: str, limits: Limits
    ) -> None:
        """A peer that takes nothing makes sending refuse; when it goes on, all accepted arrives."""
        go_on = threading.Event()
        inbox = Recorder(lambda *_: go_on.wait(DEADLINE_S))
        connection = client.connect(server.listen(url, inbox).url, Recorder())
        first = threading.Thread(target=connection.send, args=([note("first")],))
        first.start()  # where the sender runs the receiver, this thread is stuck in it
        try:
            sent = _send_until_overloaded(connection, limits)
        finally:
            go_on.set()
        first.join()
        inbox.wait_for(sent + 1)
        assert inbox.refs()[-1] == str(sent - 1)
        _send(connection, [note("after")])
        inbox.wait_for(sent + 2)

    def test_a_receiver_that_raises_is_survived(
        self, server: Transport, client: Transport, url: str
    ) -> None:
        """An exception in a receiver loses what it was called with, and nothing else."""

        def fail_once(_: Connection, envelopes: Sequence[m.Envelope]) -> None:
            if any(envelope.ref == "bad" for envelope in envelopes):
                raise RuntimeError("a fault in the receiver")

        inbox = Recorder(fail_once)
        where = server.listen(url, inbox).url
        connection = client.connect(where, Recorder())
        connection.send([note("good")])
        inbox.wait_for(1)
        connection.send([note("bad")])
        other = client.connect(where, Recorder())
        other.send([note("other")])
        inbox.wait_for(2)

        def goes_on() -> bool:
            connection.send([note("on")])
            return "on" in inbox.refs(inbox.connections()[0])

        eventually(goes_on)
        assert inbox.errors == []

    def another(self, url: str) -> str:
        """A second address like `url`."""
        return f"{url}-2"


def _send(connection: Connection, envelopes: Sequence[m.Envelope]) -> None:
    """Send, and try again while the connection is over its bound."""

    def is_sent() -> bool:
        try:
            connection.send(envelopes)
        except Overloaded:
            return False
        return True

    eventually(is_sent)


def _send_until_overloaded(connection: Connection, limits: Limits) -> int:
    """Send until it is refused; how many were accepted, which must be a bounded number."""
    bound = 100 * limits.high_water_mark
    for number in range(bound):
        try:
            connection.send([note(number, "x" * 10_000)])
        except Overloaded:
            return number
    raise AssertionError(f"{bound} envelopes were accepted that nobody takes")
