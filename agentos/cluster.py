"""The composition root: builds roles from parts, starts them in order, stops them in order.

`Host` is one process: it may hold any roles, each on a switch of its own. `Cluster` is a whole
cluster on one host, for tests, notebooks and applications that embed it. The command line runs
one host per role, and connects them by URL; nothing else differs.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
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
    from agentos.blocking import Client
    from agentos.client import AsyncClient
    from agentos.runtime.agents import AgentRunner

log = structlog.get_logger()

ABORT_S = 0.5
"""How long a role may take to hand back what it was told to abort."""
READY_S = 10.0
"""How long a start waits for every proxy's first heartbeat; the cluster works without."""


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
        loops = self.transports.loops()
        if len(loops) == 1 and address != m.STORE:
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


class Cluster:
    """A whole cluster in this process, for as long as a `with` block.

    Args:
        agents: agents, or plain functions, which become agents of their names.
        data: a folder for the database; None keeps it in a temporary one.
        regions: names, or how many.
        proxies: proxies in each region.
        listen: where the gateway listens, e.g. `tcp://127.0.0.1:7170`; in memory if None.
        limits: bounds and intervals.
        offers: agents by proxy, like `{"eu/1": ["writer"]}`; a proxy not named offers all.

    Raises:
        AgentOSError: whatever keeps a part of it from starting; nothing is left running.
    """

    def __init__(
        self,
        agents: Iterable[Agent | Callable[..., Any]] = (),
        *,
        data: str | Path | None = None,
        regions: int | Sequence[str] = 1,
        proxies: int = 1,
        listen: str | None = None,
        limits: Limits | None = None,
        offers: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._agents = [_as_agent(agent) for agent in agents]
        self._data = data
        self._regions = (
            [f"r{i}" for i in range(1, regions + 1)] if isinstance(regions, int) else list(regions)
        )
        self._proxies = proxies
        self._listen = listen
        self._limits = limits
        self._offers = dict(offers or {})
        names = {f"{region}/{i}" for region in self._regions for i in range(1, proxies + 1)}
        if unknown := sorted(set(self._offers) - names):
            raise ConfigError(f"offers of {unknown}, but the proxies are {sorted(names)}")
        self._stack: contextlib.ExitStack | None = None
        self.url = ""
        """Where the gateway listens, once started."""

    def start(self) -> Self:
        """Start every role: the store and the gateway, then the regions, then the proxies."""
        if self._stack is not None:
            raise LocalProtocolError("this cluster is running; stop it first")
        with contextlib.ExitStack() as stack:
            data = self._data
            if data is None:
                import tempfile

                data = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentos-"))
            Path(data).mkdir(parents=True, exist_ok=True)
            self.host = stack.enter_context(Host(self._limits, self._agents))
            database = f"sqlite:///{Path(data).resolve() / 'agentos.db'}"
            self.url = self.host.gateway(self._listen or "inproc://gateway", database=database)
            for region in self._regions:
                url = self.host.region(region, self._below(region), [self.url])
                for i in range(1, self._proxies + 1):
                    offers = self._offers.get(f"{region}/{i}")
                    self.host.proxy(region, str(i), [url], offers)
            self._await_heartbeats()
            self._stack = stack.pop_all()
        return self

    def client(self, **options: Any) -> Client:
        """A blocking client of this cluster; options are `Client`'s."""
        from agentos.blocking import Client

        return Client(self.url, limits=self._limits, transports=self._transports(), **options)

    def async_client(self, **options: Any) -> AsyncClient:
        """An asyncio client of this cluster; options are `AsyncClient`'s."""
        from agentos.client import AsyncClient

        return AsyncClient(self.url, limits=self._limits, transports=self._transports(), **options)

    def _transports(self) -> Transports:
        if self._stack is None:
            raise LocalProtocolError("this cluster is not running; start it first")
        return self.host.transports

    def stop(self) -> None:
        """Stop every role, proxies first. Idempotent."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _await_heartbeats(self) -> None:
        """Wait until the gateway knows of every proxy, so that the first task finds them."""
        gateway = self.host.switch("gateway/main").ref(m.GATEWAY)
        expected = (len(self._regions), len(self._regions) * self._proxies)
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            with contextlib.suppress(pykka.Timeout):
                regions = gateway.ask(m.GetCluster(), timeout=1.0).regions
                if (len(regions), sum(len(r.proxies) for r in regions)) >= expected:
                    return
            time.sleep(0.005)
        log.warning("cluster_incomplete", after_s=READY_S)

    def _below(self, region: str) -> str:
        """Where a region listens: like the gateway, on a port or a name of its own."""
        if self._listen is None:
            return f"inproc://{region}"
        scheme, _, rest = self._listen.partition("://")
        return (
            f"tcp://{rest.rpartition(':')[0]}:*" if scheme == "tcp" else f"{self._listen}-{region}"
        )


def _as_agent(agent: Agent | Callable[..., Any]) -> Agent:
    if isinstance(agent, Agent):
        return agent
    if not callable(agent):
        raise ConfigError(f"{agent!r} is neither an agent nor a function")
    from agentos.agents.function import FunctionAgent

    return FunctionAgent(agent)
