"""The way up from a switch: the link to its parent, and perhaps a shortcut beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentos.core import messages as m
from agentos.core.errors import LocalProtocolError
from agentos.core.limits import Limits
from agentos.core.ports import Connection, Receiver
from agentos.registry import Transports
from agentos.runtime.uplink import Uplink


class Links:
    """None at first; then an uplink, and perhaps a link straight to one of the gateways.

    A result that is saved past its region, which would only pass it on, is saved two hops sooner,
    and so is its answer back. The shortcut is only ever a shorter way: names are announced, and
    processes known to be alive, by the uplink; while the shortcut is not up, all goes there.

    Args:
        receiver: the switch.
    """

    def __init__(
        self, transports: Transports, receiver: Receiver, limits: Limits, log: Any
    ) -> None:
        self.uplink: Uplink | None = None
        self._shortcut: Uplink | None = None
        self._all: tuple[Uplink, ...] = ()
        self._transports = transports
        self._receiver = receiver
        self._limits = limits
        self._log = log

    def make(self, urls: Sequence[str], shortcuts: Sequence[str]) -> Uplink:
        """Have an uplink, which is to be started.

        Args:
            urls: where parents listen, in order of preference.
            shortcuts: where gateways do, any of which may be our parent's parent.

        Raises:
            LocalProtocolError: no adapter serves one of the URLs, or there is an uplink already.
        """
        if self.uplink is not None:
            raise LocalProtocolError("a switch has one uplink; give it several URLs instead")
        for url in (*urls, *shortcuts):
            self._transports.of(url)
        uplink = self._link(urls, self._log, None)
        if shortcuts:
            self._shortcut = self._link(shortcuts, self._log.bind(shortcut=True), uplink)
        self.uplink = uplink
        self._all = (uplink, self._shortcut) if self._shortcut else (uplink,)
        return uplink

    def _link(self, urls: Sequence[str], log: Any, beside: Uplink | None) -> Uplink:
        return Uplink(urls, self._transports, self._receiver, self._limits, log, beside)

    def start(self, names: Mapping[str, str]) -> None:
        """Begin to connect, greeting as these names (with their sessions)."""
        for link in self._all:
            link.start(names)

    def announce(self, address: str, session: str) -> None:
        """Greet as one more name."""
        for link in self._all:
            link.announce(address, session)

    def withdraw(self, address: str) -> None:
        """Greet as this name no more."""
        for link in self._all:
            link.withdraw(address)

    def towards(self, address: str) -> Uplink | None:
        """The link that what is for this address takes now."""
        shortcut = self._shortcut
        return shortcut if shortcut and address == m.STORE and shortcut.up else self.uplink

    def of(self, connection: Connection) -> Uplink | None:
        """The link whose current connection this is."""
        return next((link for link in self._all if link.owns(connection)), None)

    def close(self) -> None:
        """Give the links up, the shortcut first. Idempotent."""
        for link in reversed(self._all):
            link.close()
