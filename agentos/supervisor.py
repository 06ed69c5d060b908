"""What `agentos up` does: a process for each role, watched, started again, stopped in order.

As many processes start at once as there are cores, whoever is above first, so that the gateway
accepts tasks while the rest still starts. A role that dies is started again after a
back-off, within a budget: the policy of an OTP supervisor (`one_for_one`, with a restart
intensity), which needs no more, because the roles find each other again by themselves. A role
that was asked to stop (`agentos restart` does) and did is started again at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import structlog

from agentos.agents.local_model import LocalModelServer
from agentos.children import Child, Dialled, direct, ended
from agentos.config import Config, needs_local_model
from agentos.core.errors import AgentOSError, ConfigError
from agentos.datadir import ClusterRecord, DataFolder, RoleProcess
from agentos.role import RoleSpec
from agentos.topology import ClusterConfig, database_in

START_S = 60.0
"""How long the cluster may take to be ready, the local model included."""
KILL_AFTER_S = 2.0
"""How much longer than its own grace a role may take to stop."""
RECORD_AGAIN_S = 5.0
"""How long after `cluster.json` could not be written it is tried again."""
ANY_PORT = "tcp://127.0.0.1:*"

log = structlog.get_logger()


class Supervisor:
    """Runs a cluster on this machine until SIGTERM, SIGINT or SIGHUP.

    A second signal does not wait for the roles to stop by themselves.

    Args:
        config: what to run.
        log_level: the roles'.
        log_json: whether the roles log JSON lines.
        on_ready: told once, when every role is connected.
        dialled: where a role dials to reach one above it; a test puts links there that it can cut.
    """

    def __init__(
        self,
        config: Config,
        *,
        log_level: str,
        on_ready: Callable[[ClusterRecord], None],
        log_json: bool = False,
        dialled: Dialled = direct,
    ) -> None:
        self._config = config.check_offers()
        self._log_level = log_level
        self._log_json = log_json
        self._dialled = dialled
        self._on_ready = on_ready
        self._model = LocalModelServer()
        self._starts = asyncio.Semaphore(os.cpu_count() or 1)
        self._stale = asyncio.Event()
        """Whether `cluster.json` is to be written again: a role has another process."""
        """An interpreter's start is all computing: more of them at once make each one late."""
        cluster = config.cluster
        self._store = [self._child("store", ANY_PORT)] if cluster.store_apart else []
        self._gateways = [
            self._child(f"gateway/{name}", url, self._store)
            for name, url in zip(cluster.gateway_names, _gateway_urls(cluster), strict=True)
        ]
        self._regions = [
            self._child(f"region/{name}", ANY_PORT, _turned(self._gateways, i))
            for i, name in enumerate(cluster.region_names)
        ]
        regions = dict(zip(cluster.region_names, self._regions, strict=True))
        self._proxies = [
            self._child(f"proxy/{name}", "", [regions[name.rpartition("/")[0]]], self._gateways)
            for name in cluster.proxy_names
        ]

    async def run(self) -> int:
        """Start, watch and stop the cluster.

        Returns:
            the number of the signal that ended it.

        Raises:
            AddressTaken: the data folder is in use by a living cluster.
            ConfigError: the data folder cannot be used, or what was asked of a role cannot be.
            AgentOSError: a role did not start, or died too often. Nothing is left running.
        """
        self._signals: asyncio.Queue[int] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` means it
            numbers.append(signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        if urlsplit(self._config.cluster.listen).scheme == "inproc":
            raise ConfigError(
                "cluster.listen: inproc:// is inside one process; use tcp:// or ipc://"
            )
        with DataFolder(self._config.cluster.data) as self._folder:
            self._folder.tell(self._config.cluster.listen)
            return await self._supervise()

    async def _supervise(self) -> int:
        children = self._children
        model = asyncio.create_task(self._start_model())
        keepers = [asyncio.create_task(self._keep(child, model)) for child in children]
        recorder = asyncio.create_task(self._keep_record())
        told = asyncio.create_task(self._signals.get())
        ready = asyncio.create_task(_all(child.ready.wait() for child in children))
        try:
            await asyncio.wait(
                [ready, told, *keepers], timeout=START_S, return_when=asyncio.FIRST_COMPLETED
            )
            _raise_first(keepers)
            if not told.done():
                if not ready.done():
                    late = [child.name for child in children if not child.ready.is_set()]
                    raise AgentOSError(f"{', '.join(late)} did not get ready within {START_S:g} s")
                record = self._write_record()
                self._on_ready(record)
                await asyncio.wait([told, *keepers], return_when=asyncio.FIRST_COMPLETED)
                _raise_first(keepers)
            return told.result()
        finally:
            for task in (told, ready, recorder, *keepers):
                task.cancel()
            await asyncio.gather(told, ready, recorder, *keepers, return_exceptions=True)
            await self._stop()
            await self._stop_model(model)
            self._folder.forget()

    @property
    def _children(self) -> list[Child]:
        return [*self._store, *self._gateways, *self._regions, *self._proxies]

    def _child(
        self,
        role: str,
        listen: str,
        parents: Sequence[Child] = (),
        shortcuts: Sequence[Child] = (),
    ) -> Child:
        cluster = self._config.cluster
        database = cluster.database or database_in(cluster.data)
        kind, _, name = role.partition("/")
        has_database = kind == "store" or (kind == "gateway" and not parents)
        spec = RoleSpec(
            role=role,
            listen=listen,
            database=database if has_database else "",
            agents=self._config.offered_by(name) if kind == "proxy" else {},
            limits=self._config.limits,
            log_level=self._log_level,
            log_json=self._log_json,
            door=ANY_PORT if has_database and kind == "gateway" else "",
        )
        return Child(spec, parents, cluster, self._dialled, shortcuts)

    async def _start_model(self) -> None:
        if needs_local_model(self._config.agents.values()):
            await asyncio.to_thread(self._model.start)

    async def _stop_model(self, starting: asyncio.Task[None]) -> None:
        # It may still be loading, in a thread that cannot be interrupted: closing it ends that.
        await asyncio.to_thread(self._model.close)
        await asyncio.gather(starting, return_exceptions=True)
        await asyncio.to_thread(self._model.close)

    # -- one role --------------------------------------------------------------------------------

    async def _keep(self, child: Child, model: asyncio.Task[None]) -> None:
        """Run a role, and run it again when it ends, for as long as the budget lasts."""
        if needs_local_model(child.spec.agents.values()):
            await asyncio.shield(model)
        async with self._starts:  # granted in the order of asking: those above have theirs already
            await self._start(child)
        while True:
            status = await child.end()
            if child.left(status):
                log.warning("role_left", role=child.name, pid=child.pid)
            else:
                if child.ready.is_set():  # else `up` itself ends, with the reason
                    how = ended(status)
                    log.error(
                        "role_died", role=child.name, pid=child.pid, status=how, reason=child.error
                    )
                child.count_death(status)
                await child.back_off()
            if await self._start(child):
                log.warning("role_restarted", role=child.name, pid=child.pid, url=child.url)
                self._stale.set()

    async def _start(self, child: Child) -> bool:
        """Start a process for a role; returns whether it got ready."""
        # Who has the database open holds the folder for as long as it lives.
        await child.spawn((self._folder.lock,) if child.spec.database else ())
        return await child.begin(self._model.url)

    # -- the end ---------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Proxies first, the store last: whoever is above hears how calls ended."""
        for group in (self._proxies, self._regions, self._gateways, self._store):
            processes = {child.name: child.process for child in group if child.process is not None}
            await self._end({n: p for n, p in processes.items() if p.returncode is None})

    async def _end(self, processes: Mapping[str, asyncio.subprocess.Process]) -> None:
        """End these, by the names of their roles."""
        begun = time.monotonic()
        for process in processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        gone = asyncio.create_task(_all(process.wait() for process in processes.values()))
        impatient = asyncio.create_task(self._signals.get())
        grace_s = self._config.limits.stop_grace_s + KILL_AFTER_S
        await asyncio.wait([gone, impatient], timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        impatient.cancel()
        for name, process in processes.items():
            if process.returncode is None:
                after_s = round(time.monotonic() - begun, 1)
                log.error("role_killed", role=name, pid=process.pid, after_s=after_s)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        await gone

    async def _keep_record(self) -> None:
        """Write the record whenever it is stale, and again if that failed: a disk may be full."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                self._write_record()
            except ConfigError as error:  # what still runs goes on
                log.warning("record_not_written", error=str(error), again_s=RECORD_AGAIN_S)
                await asyncio.sleep(RECORD_AGAIN_S)
                self._stale.set()

    def _write_record(self) -> ClusterRecord:
        urls = tuple(gateway.url for gateway in self._gateways)
        supervisor = RoleProcess.of("up", os.getpid(), urls[0])
        assert supervisor is not None
        records = (child.record for child in self._children)
        record = ClusterRecord(
            url=urls[0],
            urls=urls,
            supervisor=supervisor,
            roles=tuple(record for record in records if record is not None),
        )
        self._folder.write(record)
        return record


async def _all(waits: Any) -> None:
    await asyncio.gather(*waits)


def _raise_first(keepers: Sequence[asyncio.Task[None]]) -> None:
    for keeper in keepers:
        if keeper.done():
            keeper.result()


def _turned(children: Sequence[Child], by: int) -> list[Child]:
    """The same in turn: not every region begins with the first gateway."""
    by %= len(children)
    return [*children[by:], *children[:by]]


def _gateway_urls(cluster: ClusterConfig) -> list[str]:
    """Where the gateways listen: as told, then on the next free ports."""
    scheme, _, rest = cluster.listen.partition("://")
    host, _, port = rest.rpartition(":")
    urls = [cluster.listen]
    last = int(port) if scheme == "tcp" and port.isdecimal() else 0
    for name in cluster.gateway_names[1:]:
        if scheme != "tcp":
            urls.append(f"{cluster.listen}-{name}")
        elif not last:
            urls.append(cluster.listen)
        else:
            last = _free_port(host, last + 1)
            urls.append(f"tcp://{host}:{last}")
    return urls


def _free_port(host: str, first: int) -> int:
    """The first port from `first` on that can be listened on now."""
    bare = "" if host == "*" else host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    for port in range(first, 65_536):
        with contextlib.suppress(OSError), socket.create_server((bare, port), family=family):
            return port
    raise ConfigError(f"cluster.listen: no port from {first} on is free at {host}")
