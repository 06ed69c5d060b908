"""The composition root: a whole cluster, for tests, notebooks and applications that embed it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec
import pykka
import structlog

from agentos.core import messages as m
from agentos.core.errors import ConfigError, LocalProtocolError
from agentos.core.limits import Limits
from agentos.core.ports import Agent
from agentos.host import Host
from agentos.registry import Transports
from agentos.topology import ClusterConfig, database_in

if TYPE_CHECKING:
    from agentos.blocking import Client
    from agentos.client import AsyncClient

log = structlog.get_logger()

READY_S = 10.0
"""How long a start waits for every proxy's first heartbeat; the cluster works without."""


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
        AddressTaken: a living cluster uses the data folder, or `listen`.
        AgentOSError: whatever else keeps a part of it from starting; nothing is left running.
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
        shape = {
            "regions": regions if isinstance(regions, int | str) else tuple(regions),
            "proxies": proxies,
        }
        try:
            self._shape = msgspec.convert(shape, ClusterConfig)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"Cluster({regions=}, {proxies=}): regions are a number from 1, or a list of names "
                "(letters, digits, . _ -); proxies are a number from 1, in each region"
            ) from error
        self._listen = listen
        self._limits = limits
        self._offers = dict(offers or {})
        names = self._shape.proxy_names
        if unknown := sorted(set(self._offers) - set(names)):
            raise ConfigError(f"offers of {unknown}, but the proxies are {names}")
        self._stack: contextlib.ExitStack | None = None
        self.url = ""
        """Where the gateway listens, once started."""

    def start(self) -> Self:
        """Start every role: the store and the gateway, then the regions, then the proxies."""
        if self._stack is not None:
            raise LocalProtocolError("this cluster is running; stop it first")
        from agentos.datadir import DataFolder  # which loads psutil: when a cluster starts

        with contextlib.ExitStack() as stack:
            data = self._data
            if data is None:
                import tempfile

                data = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentos-"))
            folder = stack.enter_context(DataFolder(data))
            self.host = stack.enter_context(Host(self._limits, self._agents))
            database = database_in(data)
            self.url = self.host.gateway(self._listen or "inproc://gateway", database=database)
            for region in self._shape.region_names:
                url = self.host.region(region, self._below(region), [self.url])
                for i in range(1, self._shape.proxies + 1):
                    offers = self._offers.get(f"{region}/{i}")
                    self.host.proxy(region, str(i), [url], offers)
            folder.tell(self.url)
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
        expected = (len(self._shape.region_names), len(self._shape.proxy_names))
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
