"""One process: the roles in it, each on a switch of its own, started and stopped in order.

The command line runs one host per role, and connects them by URL; `agentos.cluster` puts a whole
cluster on one. Nothing else differs.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pykka
import structlog

from agentos.core import messages as m
from agentos.core.errors import ConfigError, LocalProtocolError, Overloaded
from agentos.core.limits import Limits
from agentos.core.ports import Agent
from agentos.logs import quiet_unless_configured
from agentos.registry import Transports, open_database
from agentos.runtime.actors import (
    GatewayActor,
    MachineActor,
    ProxyActor,
    RegionActor,
    StoreActor,
)
from agentos.runtime.peers import may_greet
from agentos.runtime.switch import Switch
from agentos.runtime.uplink import Uplink
from agentos.runtime.wire import JsonCodec

if TYPE_CHECKING:
    from agentos.runtime.agents import AgentRunner

log = structlog.get_logger()

ABORT_S = 0.5
"""How long a role may take to hand back what it was told to abort."""


class Host:
    """The roles of one process. Start them with the methods below; `close` stops them all.

    Args:
        limits: the cluster's bounds and intervals.
        agents: what proxies on this host can run.
        on_give_up: called with a role's address when it has failed too often to go on.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        agents: Iterable[Agent] = (),
        on_give_up: Callable[[str], None] | None = None,
    ) -> None:
        quiet_unless_configured()
        self.limits = (limits or Limits()).check()
        agents = list(agents)
        self.agents = {agent.name: agent for agent in agents}
        if len(self.agents) < len(agents):
            names = [agent.name for agent in agents]
            raise ConfigError(f"agents must have different names; these are {sorted(names)}")
        self.transports = Transports(JsonCodec(self.limits), self.limits)
        self._doors: Transports | None = None
        self._on_give_up = on_give_up
        self._actors: dict[str, pykka.ActorRef[MachineActor]] = {}
        self._drained: dict[str, threading.Event] = {}
        self._switches: dict[str, Switch] = {}
        self._uplinks: dict[str, Uplink] = {}
        self._runner: AgentRunner | None = None
        self._closed = False

    def store(self, database: str, listen: str | None = None) -> str:
        """Start a store of its own, for several gateways on one SQLite file.

        Returns:
            where it listens, if it does.
        """
        switch = self._switch(m.STORE)
        self._start_store(switch, database)
        return switch.listen(listen) if listen else ""

    def gateway(
        self,
        listen: str,
        *,
        name: str = "main",
        database: str | None = None,
        store: Sequence[str] = (),
    ) -> str:
        """Start a gateway with a store in it (`database`), or below one elsewhere (`store`).

        Returns:
            where it listens, with the port that was really taken.
        """
        if (database is None) == (not store):
            raise LocalProtocolError("a gateway needs a database, or the URLs of a store")
        address = f"gateway/{name}"
        switch = self._switch(address)
        if database is not None:
            self._start_store(switch, database)
        if store:
            self._uplinks[address] = switch.connect(store)
        actor = self._start(GatewayActor, address, switch)
        # Whoever sends to `gateway` means the one above it, whatever that is called.
        switch.attach(m.GATEWAY, actor, announce=False, sealed=True)
        return switch.listen(listen)

    def region(self, name: str, listen: str, gateways: Sequence[str]) -> str:
        """Start a region below the first gateway that answers.

        Returns:
            where it listens.
        """
        address = f"region/{name}"
        switch = self._switch(address)
        # The link first: the actor's first heartbeat waits in it, and is not lost. Listening last:
        # a child that has been waiting must not be what the parent hears of first.
        self._uplinks[address] = switch.connect(gateways)
        self._start(RegionActor, address, switch)
        return switch.listen(listen)

    def proxy(
        self,
        region: str,
        name: str,
        regions: Sequence[str],
        offers: Iterable[str] | None = None,
        shortcuts: Sequence[str] = (),
    ) -> str:
        """Start a proxy of a region, offering all of the host's agents, or some.

        Args:
            region: the region's name.
            name: its own name within the region.
            regions: where the region listens.
            offers: names of agents; all if None.
            shortcuts: where gateways listen, if the proxy may write to them past its region.

        Returns:
            its address.
        """
        address = f"proxy/{region}/{name}"
        names = list(self.agents) if offers is None else list(offers)
        if unknown := [name for name in names if name not in self.agents]:
            raise ConfigError(f"{address} offers {unknown}, but there are only {[*self.agents]}")
        switch = self._switch(address)
        slots = {name: self.agents[name].max_concurrency for name in names}
        switch.attach(m.AGENTS, self._agent_runner().handle, announce=False)
        self._uplinks[address] = switch.connect(regions, shortcuts)
        self._start(ProxyActor, address, switch, slots)
        return address

    def attend_links(self, address: str) -> None:
        """Let a role's actor wait at the process's sockets, if it is alone there.

        Whatever comes is then handled by the thread that has read it. Not a store: its links must
        be answered while its disk is slow.
        """
        if address != m.STORE:
            self._attend(address, self.transports)

    def store_door(self, address: str, listen: str) -> str:
        """Let what is for a gateway's store come straight to it, past its gateway's actor.

        The store's actor waits at the sockets of this door itself. While its disk is slow nobody
        answers there, and those who use it (`shortcuts`) go by their regions; what the store
        answers then may be lost on its way through the door, and is asked for again.

        Returns:
            where it listens.
        """
        self._doors = Transports(JsonCodec(self.limits), self.limits)
        url = self._switches[address].listen(listen, self._doors)
        self._attend(m.STORE, self._doors)
        return url

    def _attend(self, address: str, transports: Transports) -> None:
        loops = transports.loops()
        if len(loops) == 1:
            inbox: Any = self._actors[address].actor_inbox
            inbox.attend(loops[0])

    def switch(self, address: str) -> Switch:
        """The switch of a role on this host: the place to put actors of your own."""
        return self._switches[address]

    def uplink(self, address: str) -> Uplink:
        """The link up of a role on this host: whether its parent has welcomed or refused it."""
        return self._uplinks[address]

    def close(self) -> None:
        """Stop everything, the newest first. Idempotent.

        Claims are handed back, and no new call starts. Calls in flight have `limits.stop_grace_s`
        to end and to be recorded; those that have not ended by then are aborted, and run again
        where the task goes on.
        """
        if self._closed:
            return
        self._closed = True
        self._drain(time.monotonic() + self.limits.stop_grace_s)
        if self._runner is not None:
            self._runner.close()
        for actor in reversed(self._actors.values()):
            with contextlib.suppress(pykka.ActorDeadError, pykka.Timeout):
                actor.stop(timeout=self.limits.stop_grace_s)
        for switch in reversed(self._switches.values()):
            switch.close()
        self.transports.close()
        if self._doors is not None:
            self._doors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _drain(self, until: float) -> None:
        """Let proxies, then regions, then gateways hand back what they hold; abort what is late."""
        for role in ("proxy", "region", "gateway"):
            addresses = [address for address in self._actors if m.role_of(address) == role]
            for drain, end in ((m.Drain(), until), (m.Drain(abort=True), until + ABORT_S)):
                late = [a for a in addresses if not self._drained[a].is_set()]
                for address in late:
                    inbox: Any = self._actors[address].actor_inbox
                    with contextlib.suppress(pykka.ActorDeadError, Overloaded):
                        inbox.deliver([m.Envelope(address, address, drain)])
                for address in late:
                    self._drained[address].wait(max(0.0, end - time.monotonic()))

    def _switch(self, address: str) -> Switch:
        if address != m.STORE and not (m.is_address(address) and may_greet(address)):
            raise ConfigError(f"{address!r}: a name has letters, digits, and . _ - only")
        if address in self._switches:
            raise LocalProtocolError(f"{address} is on this host already")
        switch = self._switches[address] = Switch(self.transports, self.limits, address)
        return switch

    def _start_store(self, switch: Switch, database: str) -> None:
        self._start(StoreActor, open_database(database), switch)

    def _start(self, kind: type[MachineActor], *args: Any) -> Callable[[list[m.Envelope]], None]:
        drained = threading.Event()
        actor = kind.start(*args, on_give_up=self._on_give_up, drained=drained)
        switch = next(arg for arg in args if isinstance(arg, Switch))
        inbox: Any = actor.actor_inbox
        address = args[0] if isinstance(args[0], str) else m.STORE
        self._actors[address], self._drained[address] = actor, drained
        switch.attach(address, inbox.deliver, sealed=True)
        log.info("role_started", role=address)
        deliver: Callable[[list[m.Envelope]], None] = inbox.deliver
        return deliver

    def _agent_runner(self) -> AgentRunner:
        # Imported when wanted: a role starts faster without what it does not run.
        from agentos.runtime.agents import AgentRunner

        if self._runner is None:
            self._runner = AgentRunner(
                list(self.agents.values()), self._deliver, limits=self.limits
            )
        return self._runner

    def _deliver(self, envelopes: list[m.Envelope]) -> None:
        """Answers of the shared runner, each to the switch of the proxy that asked."""
        for address, batch in itertools.groupby(envelopes, key=lambda e: e.to):
            self._switches[address].send(list(batch))
