"""Raw sockets that attack a living cluster, and a look at whether anybody suffers from it."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
import zmq

from agentos import Client, Cluster
from agentos.runtime.switch import Switch
from tests.switches import FAST

SESSION = "0123456789abcdef"
GRAPH = {"nodes": {"a": {"agent": "echo", "prompt": "well"}}, "output": "a"}
# Not so impatient that a busy machine takes honest peers for dead; small enough to be reached.
LIMITS = msgspec.structs.replace(
    FAST, heartbeat_s=0.5, link_ping_s=1.0, max_peer_errors=20, high_water_mark=1_000
)


class Attacker:
    """A raw DEALER: sends whatever it is told, and hears what comes back."""

    def __init__(self, context: zmq.Context[Any], url: str) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(url)
        self.address = f"client/{secrets.token_hex(6)}"

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def raw(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def say(
        self, to: str, kind: str, body: Any = None, *, sender: str = "", ref: str = "r"
    ) -> None:
        data = body if isinstance(body, bytes) else orjson.dumps(body or {})
        header = (to, sender or self.address, ref, kind)
        self.raw(b"AOS1", *(part.encode() for part in header), data)

    def hear(self, timeout_s: float = 10.0) -> tuple[str, dict[str, Any]]:
        """The next message's kind and body."""
        assert self._socket.poll(int(timeout_s * 1000)), "nothing came"
        frames = self._socket.recv_multipart()
        return frames[4].decode(), orjson.loads(frames[5])

    def hello(self, address: str = "", session: str = SESSION) -> tuple[str, dict[str, Any]]:
        address = address or self.address
        self.say("", "hello", {"address": address, "session": session}, sender=address)
        return self.hear()

    def is_disconnected(self) -> bool:
        """Whether the other end has ended the connection, within a while."""
        return self._monitor.poll(10_000) > 0


@contextlib.contextmanager
def attackers(url: str) -> Iterator[Callable[..., Attacker]]:
    """Makes attackers, of this URL or of another one; they are closed after."""
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())

        def make(other: str = "") -> Attacker:
            attacker = Attacker(context, other or url)
            stack.callback(attacker.close)
            return attacker

        yield make


def rows(data: Path) -> list[int]:
    """How many rows there are, and the sum of all the epochs: what an attacker might change."""
    with contextlib.closing(sqlite3.connect(data / "agentos.db")) as connection:
        return [
            connection.execute(query).fetchone()[0]
            for query in (
                "SELECT count(*) FROM Tasks",
                "SELECT coalesce(sum(global_epoch * 1000 + regional_epoch), 0) FROM Tasks",
                "SELECT count(*) FROM Progress",
                "SELECT count(*) FROM Documents",
            )
        ]


@contextlib.contextmanager
def nobody_suffers(client: Client, cluster: Cluster, data: Path) -> Iterator[None]:
    """Around an attack: a good client is served, nothing is written by it, no actor failed."""
    assert client.submit(GRAPH).result(30) == "well"
    before = rows(data)
    yield
    assert rows(data) == before
    assert client.submit(GRAPH).result(30) == "well"
    assert all(actor.is_alive() for actor in cluster.host._actors.values())
    for switch in cluster.host._switches.values():
        assert switch.counters["machine_failures"] == 0
        assert switch.counters["storage_failures"] == 0


def errors_of(switch: Switch) -> int:
    return switch.counters["protocol_errors"]
