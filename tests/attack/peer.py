"""What an attacker speaks: envelopes over a bare DEALER, and ZMTP by hand over TCP."""

from __future__ import annotations

import contextlib
import secrets
import socket
from typing import Any

import orjson
import zmq

SESSION = "0123456789abcdef"
GRAPH = {"nodes": {"a": {"agent": "echo", "prompt": "well"}}, "output": "a"}


class Peer:
    """A raw DEALER: sends whatever it is told, and hears what comes back."""

    def __init__(self, context: zmq.Context[Any], url: str, **options: int) -> None:
        self.address = f"client/{secrets.token_hex(6)}"
        self.socket = context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        for name, value in options.items():
            self.socket.set(getattr(zmq, name), value)
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.connect(url)

    def close(self) -> None:
        """Leave without a word."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=0)

    def raw(self, *frames: bytes) -> bool:
        """Send a message; whether there was room for it within a moment."""
        if not self.socket.poll(100, zmq.POLLOUT):
            return False
        with contextlib.suppress(zmq.Again):
            self.socket.send_multipart(frames, zmq.DONTWAIT)
            return True
        return False

    def say(
        self, to: str, kind: str, body: Any = None, *, sender: str = "", ref: str = "r"
    ) -> bool:
        """Send an envelope, as whoever we say we are."""
        data = body if isinstance(body, bytes) else orjson.dumps(body or {})
        header = (to, sender or self.address, ref, kind)
        return self.raw(b"AOS1", *(part.encode() for part in header), data)

    def hear(self, timeout_s: float = 10.0) -> tuple[str, dict[str, Any]]:
        """The next message's kind and body."""
        assert self.socket.poll(int(timeout_s * 1000)), "nothing came"
        frames = self.socket.recv_multipart()
        return frames[4].decode(), orjson.loads(frames[5])

    def listen(self) -> list[str]:
        """Read all that has come; the kinds, or the codes of refusals."""
        heard = []
        with contextlib.suppress(zmq.Again):
            while True:
                frames = self.socket.recv_multipart(zmq.DONTWAIT)
                kind = frames[4].decode()
                heard.append(orjson.loads(frames[5])["code"] if kind == "refused" else kind)
        return heard

    def hello(self, address: str = "", session: str = SESSION) -> tuple[str, dict[str, Any]]:
        """Greet, and hear what the switch makes of it."""
        self.address = address or self.address
        self.say("", "hello", {"address": self.address, "session": session})
        return self.hear()

    def disconnections(self) -> int:
        """How often the other end has ended the connection since the last call."""
        count = 0
        while self.monitor.poll(0):
            self.monitor.recv_multipart()
            count += 1
        return count


def tcp(url: str) -> socket.socket:
    """A bare TCP connection to a listener."""
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def handshake(connection: socket.socket) -> None:
    """Be a DEALER as far as ZMTP 3.0 can tell (RFC 23): greeting, and the NULL mechanism's READY."""
    greeting = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    connection.sendall(greeting)
    missing = 64
    while missing:
        missing -= len(connection.recv(missing))
    ready = b"\x05READY" + b"\x0bSocket-Type" + b"\0\0\0\x06DEALER"
    connection.sendall(b"\x04" + bytes([len(ready)]) + ready)


def frame(body: bytes, *, more: bool) -> bytes:
    """One short ZMTP frame."""
    return bytes([int(more), len(body)]) + body
