"""One contract, every transport."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentos.core.errors import Overloaded
from agentos.core.limits import Limits
from agentos.core.ports import Transport
from agentos.runtime.wire import JsonCodec
from agentos.testing.transport_contract import TransportContract
from agentos.testing.transport_recorder import Recorder, note
from agentos.transports.inproc import InprocTransport
from agentos.transports.zeromq import ZeroMQTransport


def free_port() -> int:
    """A port that nobody listens on, and that the system will not give to others for a while."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class TestInproc(TransportContract):
    """`inproc://`, where both ends are in one instance."""

    @pytest.fixture
    def make_transport(self) -> Callable[[Limits], Transport]:
        return lambda limits: InprocTransport(JsonCodec(limits), limits)

    @pytest.fixture
    def url(self) -> str:
        return "inproc://parent"

    def test_connections_to_a_name_are_bounded(self) -> None:
        """Beyond `limits.max_children` connecting is refused; one that closes makes room."""
        limits = Limits(max_children=2)
        transport = InprocTransport(JsonCodec(limits), limits)
        first, _ = (transport.connect("inproc://a", Recorder()) for _ in range(2))
        with pytest.raises(Overloaded, match="inproc://a"):
            transport.connect("inproc://a", Recorder())
        first.close()
        transport.connect("inproc://a", Recorder())
        transport.close()

    def test_a_conversation_does_not_recurse(self) -> None:
        """Receivers that answer each other thousands of times do not run out of stack."""
        limits = Limits()
        transport = InprocTransport(JsonCodec(limits), limits)
        count = itertools.count()

        def answer(connection, envelopes):  # type: ignore[no-untyped-def]
            if next(count) < 20_000:
                connection.send(envelopes)

        left, right = Recorder(answer), Recorder(answer)
        transport.listen("inproc://a", left)
        transport.connect("inproc://a", right).send([note("ball")])
        assert len(left.batches) + len(right.batches) == 20_001
        transport.close()


class ZeroMQContract(TransportContract):
    """What is the same for `tcp://` and `ipc://`."""

    @pytest.fixture
    def make_transport(self) -> Callable[[Limits], Transport]:
        return lambda limits: ZeroMQTransport(JsonCodec(limits), limits)


class TestTcp(ZeroMQContract):
    """`tcp://`, both ends in one transport: one I/O thread serves them all."""

    @pytest.fixture
    def url(self) -> str:
        return f"tcp://127.0.0.1:{free_port()}"

    def another(self, url: str) -> str:
        return "tcp://127.0.0.1:*"


class TestTcpBetweenTransports(TestTcp):
    """`tcp://` between two transports, as between two processes."""

    @pytest.fixture
    def client(
        self, make_transport: Callable[[Limits], Transport], limits: Limits, server: Transport
    ) -> Iterator[Transport]:
        transport = make_transport(limits)
        yield transport
        transport.close()


class TestIpc(ZeroMQContract):
    """`ipc://`: Unix domain sockets."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"ipc://{tmp_path}/socket"
