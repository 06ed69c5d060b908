"""ZeroMQ: `tcp://` and `ipc://`, a ROUTER that listens and a DEALER that connects.

A connection is one session. Before it is established ZeroMQ tries again by itself, with back-off
and jitter, and what is sent waits in bounded queues. When the peer behind a DEALER is lost,
`closed` is reported and the socket given up: left alone, ZeroMQ would reconnect and go on in the
middle of a conversation that the process now at the other end never began.

A ROUTER learns that a peer is gone only when it sends to it (ZMQ_ROUTER_MANDATORY), so send
something to silent children now and then. One that is full gives up the child that has been
silent for the longest time, if that is longer than a link may be.
"""

from __future__ import annotations

import errno
import re
import socket as bsd
import stat
import threading
import time
from pathlib import Path
from typing import Final

import structlog
import zmq

from agentos.core.errors import AddressTaken, LocalProtocolError, Overloaded
from agentos.core.limits import Limits
from agentos.core.ports import Codec, Connection, Listener, Receiver
from agentos.transports.zeromq_io import IOThread, Socket
from agentos.transports.zeromq_links import Shared, Uplink
from agentos.transports.zeromq_listener import RouterListener

log = structlog.get_logger(__name__)

FLUSH_S: Final = 0.3
"""How long an orderly close waits for queued messages, before libzmq lingers over its own."""
SEND_PIPE: Final = 256
RECEIVE_PIPE: Final = 64
"""Messages that libzmq queues for and from one peer, of whatever size: our own queues, which are
bounded in bytes too, are where they are to wait."""
BACKLOG: Final = 1_024
"""Connections that wait to be accepted: a whole cluster may come back at once."""
_TCP_URL: Final = re.compile(r"tcp://[!-~]+:(?P<port>\*|[0-9]{1,5})")
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ZeroMQTransport:
    """Envelopes over ZeroMQ; `agentos.core.ports.Transport`. One context and one I/O thread.

    Args:
        codec: envelopes to frames and back.
        limits: bounds of frames, queues and children; intervals of heartbeats and reconnection.
    """

    def __init__(self, codec: Codec, limits: Limits) -> None:
        self._limits = limits
        self._context: zmq.Context[Socket] = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, self._context.get(zmq.SOCKET_LIMIT))
        self._shared = Shared(codec, limits, IOThread("agentos-zeromq"), set())
        self._lock = threading.Lock()
        self._closed = False

    @property
    def loop(self) -> IOThread:
        """What reads and writes its sockets; `agentos.core.loop.Loop`."""
        return self._shared.io

    def listen(self, url: str, receiver: Receiver) -> Listener:
        """Bind a ROUTER.

        Args:
            url: `tcp://host:port` (port 0 or `*`: any that is free) or `ipc://path`.
            receiver: called from the I/O thread.

        Raises:
            AddressTaken: somebody listens there.
            LocalProtocolError: the URL cannot be listened on, or the transport is closed.
            Overloaded: the process has no more file descriptors.
        """
        with self._lock:
            socket = self._socket(zmq.ROUTER, url)
            try:
                _configure(socket, url, self._limits)
                _check_ipc_file(url)
                listener = RouterListener(self._shared, socket, url, receiver)
            except zmq.ZMQError as error:
                socket.close(linger=0)
                raise _translated("listen on", url, error) from None
            except (AddressTaken, LocalProtocolError):
                socket.close(linger=0)
                raise
            self._shared.io.submit(listener.open)
        return listener

    def connect(self, url: str, receiver: Receiver) -> Connection:
        """Connect a DEALER; nobody needs to listen there yet.

        Args:
            url: `tcp://host:port` or `ipc://path`.
            receiver: called from the I/O thread.

        Raises:
            LocalProtocolError: the URL cannot be connected to, or the transport is closed.
            Overloaded: the process has no more file descriptors.
        """
        with self._lock:
            socket = self._socket(zmq.DEALER, url)
            try:
                _configure(socket, url, self._limits)
                uplink = Uplink(self._shared, socket, url, receiver)
            except zmq.ZMQError as error:
                socket.close(linger=0)
                raise _translated("connect to", url, error) from None
            self._shared.io.submit(uplink.open)
        return uplink

    def close(self) -> None:
        """Send what is queued, for a moment, and close everything. Idempotent; within a second."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        io = self._shared.io
        if not io.stop(self._shut_down, timeout_s=3.0) and not io.is_current():
            log.warning("zeromq_close_timeout", reason="a receiver has not returned")

    def _shut_down(self) -> None:
        endpoints = self._shared.endpoints
        deadline = time.monotonic() + FLUSH_S
        while [endpoint for endpoint in endpoints if not endpoint.drain()]:
            if time.monotonic() > deadline:
                log.info("zeromq_unsent", reason="a peer is too slow, or was never there")
                break
            time.sleep(0.001)
        for endpoint in list(endpoints):
            endpoint.dispose()
        self._context.destroy(linger=0)  # as term(), which would hang over a forgotten socket

    def _socket(self, kind: int, url: str) -> Socket:
        if self._closed:
            raise LocalProtocolError(f"{url}: the transport is closed")
        _check_url(url)
        try:
            socket = self._context.socket(kind)
        except zmq.ZMQError as error:
            raise Overloaded(f"{url}: no more sockets: {error.strerror}") from None
        return socket


def _configure(socket: Socket, url: str, limits: Limits) -> None:
    """Set every option whose default would hang, leak or hide something (zmq_setsockopt(3)).

    Not ZMQ_IMMEDIATE: with it, a peer's disconnection throws away what was received and not yet
    read, and when that cuts a message of several frames in two, libzmq aborts the process
    ("Assertion failed: !_more", libzmq #3663; seen with 4.3.5).

    Not ZMQ_HEARTBEAT_IVL: when its timer strikes after a peer has sent more than ZMQ_RCVHWM and has
    reset the connection, libzmq aborts the process ("Assertion failed: !_io_error", 4.3.5): whoever
    can connect could end us. The switches have heartbeats of their own; TCP's keep-alive finds the
    hosts that are gone.
    """
    silence_s = max(1, round(limits.link_ping_s * limits.suspect_after))
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.MAXMSGSIZE, limits.max_frame_bytes),
        (zmq.SNDHWM, min(SEND_PIPE, limits.high_water_mark)),
        (zmq.RCVHWM, min(RECEIVE_PIPE, limits.high_water_mark)),
        (zmq.HEARTBEAT_IVL, 0),
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, silence_s),
        (zmq.TCP_KEEPALIVE_INTVL, max(1, round(limits.link_ping_s))),
        (zmq.TCP_KEEPALIVE_CNT, limits.suspect_after),
        (zmq.RECONNECT_IVL, _milliseconds(limits.reconnect_min_s)),
        (zmq.RECONNECT_IVL_MAX, _milliseconds(limits.reconnect_max_s)),
        (zmq.BACKLOG, BACKLOG),
        (zmq.IPV6, "[" in url),
    ):
        socket.set(option, int(value))
    if socket.type == zmq.ROUTER:
        socket.set(zmq.ROUTER_MANDATORY, 1)


def _check_url(url: str) -> None:
    """See that a URL has the form that ZeroMQ takes: it reads port 99999 as another one."""
    tcp = _TCP_URL.fullmatch(url)
    if tcp is not None and (tcp["port"] == "*" or int(tcp["port"]) <= 65_535):
        return
    if not url.startswith("ipc://") or not url.isprintable():
        raise LocalProtocolError(f"{url!r} is not a URL like tcp://host:port or ipc://path")


def _check_ipc_file(url: str) -> None:
    """See that nobody listens on an ipc path: libzmq would unlink it without a word."""
    name = url.removeprefix("ipc://")
    if name == url or name.startswith(("@", "*")):
        return
    try:
        if not stat.S_ISSOCK(Path(name).stat().st_mode):
            raise LocalProtocolError(f"cannot listen on {url}: the file is there, and is no socket")
        with bsd.socket(bsd.AF_UNIX, bsd.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(name)
    except (FileNotFoundError, ConnectionRefusedError):
        return  # not there, or left behind by a process that died
    except BlockingIOError:
        pass  # somebody does listen, and has more connections waiting than fit
    except OSError as error:
        raise LocalProtocolError(f"cannot listen on {url}: {error.strerror or error}") from None
    raise AddressTaken(f"{url} is in use: somebody listens there; choose another path")


def _translated(
    action: str, url: str, error: zmq.ZMQError
) -> AddressTaken | LocalProtocolError | Overloaded:
    """What an error of libzmq means to the caller."""
    if error.errno == zmq.EADDRINUSE:
        return AddressTaken(f"{url} is in use: somebody listens there; choose another address")
    if error.errno in _NO_DESCRIPTORS:
        return Overloaded(f"cannot {action} {url}: {error.strerror}")
    return LocalProtocolError(f"cannot {action} {url}: {error.strerror}")


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
