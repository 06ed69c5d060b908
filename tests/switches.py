"""Switches with short intervals, for tests of links."""

from __future__ import annotations

import queue
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from agentos.core import messages as m
from agentos.core.limits import Limits
from agentos.registry import Transports
from agentos.runtime.switch import Switch
from agentos.runtime.wire import JsonCodec

FAST = Limits(
    heartbeat_s=0.1,
    sweep_s=0.2,
    resend_s=0.5,
    link_ping_s=0.1,
    suspect_after=3,
    reconnect_min_s=0.01,
    reconnect_max_s=0.1,
    stop_grace_s=1.0,
)
"""Detection within a third of a second; for a process that is never busy for longer."""
TCP = "tcp://127.0.0.1:*"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fresh_url(transport: str, folder: object) -> str:
    """An address that nobody listens on yet, and that can be used again and again."""
    return {
        "inproc": "inproc://parent",
        "tcp": f"tcp://127.0.0.1:{free_port()}",
        "ipc": f"ipc://{folder}/socket",
    }[transport]


def taking(switch: Switch, address: str) -> queue.SimpleQueue[m.Envelope]:
    taken: queue.SimpleQueue[m.Envelope] = queue.SimpleQueue()
    switch.attach(address, lambda batch: [taken.put(envelope) for envelope in batch] and None)
    return taken


class Net:
    """Makes switches, each in a process of its own as far as the transport can tell."""

    def __init__(self, limits: Limits, stack: ExitStack) -> None:
        self.limits = limits
        self._stack = stack
        self._shared = self.transports()

    def transports(self, limits: Limits | None = None) -> Transports:
        limits = limits or self.limits
        transports = Transports(JsonCodec(limits), limits)
        self._stack.callback(transports.close)
        return transports

    def switch(
        self, name: str = "", *, alone: bool = False, limits: Limits | None = None
    ) -> Switch:
        """A switch; `alone` gives it transports of its own, as another process has them."""
        transports = self.transports(limits) if alone or limits else self._shared
        switch = Switch(transports, limits or self.limits, name)
        self._stack.callback(switch.close)
        return switch


@contextmanager
def net(limits: Limits = FAST) -> Iterator[Net]:
    """A `Net` whose switches and transports are closed at the end."""
    with ExitStack() as stack:
        yield Net(limits, stack)
