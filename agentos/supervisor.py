"""What `agentos up` does: a process for each role, watched, started again, stopped in order.

All processes start at once, and each is told its parents as soon as they are known, so that
starting a cluster takes as long as starting one role. A role that dies is started again after a
back-off, within a budget: the policy of an OTP supervisor (`one_for_one`, with a restart
intensity), which needs no more, because the roles find each other again by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

from agentos.agents.local_model import LocalModelServer
from agentos.config import Config, needs_local_model
from agentos.core.errors import AgentOSError, ConfigError
from agentos.datadir import ClusterRecord, DataFolder, RoleProcess
from agentos.role import WRONG, Ready, RoleSpec

MAX_RESTARTS = 5
RESTART_WINDOW_S = 60.0
"""More deaths of one role within this time, and something is wrong that restarts do not cure."""
BACKOFF_S = (0.1, 5.0)
START_S = 60.0
"""How long the cluster may take to be ready, the local model included."""
KILL_AFTER_S = 2.0
"""How much longer than its own grace a role may take to stop."""
ANY_PORT = "tcp://127.0.0.1:*"

log = structlog.get_logger()


class Child:
    """One role and the process that runs it now.

    Args:
        spec: the role; its parents are filled in when they are known.
        parent: the role above it.
    """

    def __init__(self, spec: RoleSpec, parent: Child | None) -> None:
        self.spec = spec
        self.name = spec.role
        self.parent = parent
        self.process: asyncio.subprocess.Process | None = None
        self.record: RoleProcess | None = None
        self.url = ""
        self.error = ""
        self.ready = asyncio.Event()
        self.deaths: deque[float] = deque(maxlen=MAX_RESTARTS + 1)

    @property
    def pid(self) -> int:
        """Its process id; 0 before the first start."""
        return self.process.pid if self.process else 0

    def hear(self, line: bytes) -> None:
        """The first line that the process printed: it is ready, or says why not."""
        report = msgspec.json.decode(line, type=Ready)
        self.error = report.error
        if not report.error:
            self.url = report.url
            # Those below know this address: the next process of the role takes it again.
            self.spec = msgspec.structs.replace(self.spec, listen=report.url or self.spec.listen)
            self.ready.set()


class Supervisor:
    """Runs a cluster on this machine until SIGTERM, SIGINT or SIGHUP.

    A second signal does not wait for the roles to stop by themselves.

    Args:
        config: what to run.
        log_level: the roles'.
        log_json: whether the roles log JSON lines.
        on_ready: told once, when every role is connected.
    """

    def __init__(
        self,
        config: Config,
        *,
        log_level: str,
        on_ready: Callable[[ClusterRecord], None],
        log_json: bool = False,
    ) -> None:
        self._config = config.check_offers()
        self._log_level = log_level
        self._log_json = log_json
        self._on_ready = on_ready
        self._model = LocalModelServer()
        self._gateway = self._child("gateway/main", config.cluster.listen, None)
        regions = config.cluster.region_names
        self._regions = [self._child(f"region/{name}", ANY_PORT, self._gateway) for name in regions]
        self._proxies = [
            self._child(f"proxy/{name}", "", self._regions[regions.index(name.rpartition("/")[0])])
            for name in config.cluster.proxy_names
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
            for task in (told, ready, *keepers):
                task.cancel()
            await asyncio.gather(told, ready, *keepers, return_exceptions=True)
            await self._stop()
            await self._stop_model(model)
            self._folder.forget()

    @property
    def _children(self) -> list[Child]:
        return [self._gateway, *self._regions, *self._proxies]

    def _child(self, role: str, listen: str, parent: Child | None) -> Child:
        cluster = self._config.cluster
        database = cluster.database or f"sqlite:///{os.path.abspath(cluster.data)}/agentos.db"  # noqa: PTH100
        kind, _, name = role.partition("/")
        spec = RoleSpec(
            role=role,
            listen=listen,
            database=database if kind == "gateway" else "",
            agents=self._config.offered_by(name) if kind == "proxy" else {},
            limits=self._config.limits,
            log_level=self._log_level,
            log_json=self._log_json,
        )
        return Child(spec, parent)

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
        """Run a role, and run it again when it dies, for as long as the budget lasts."""
        while True:
            process = await self._spawn(child)
            if needs_local_model(child.spec.agents.values()):
                await asyncio.shield(model)
            await self._live(child, process)
            status = await process.wait()
            self._count_death(child, status)
            low, high = BACKOFF_S
            most = min(high, low * 2.0 ** len(child.deaths))
            await asyncio.sleep(low + random.random() * most)  # noqa: S311 - jitter

    async def _spawn(self, child: Child) -> asyncio.subprocess.Process:
        child.error = ""
        child.process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentos.role", child.name),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C reaches a terminal's whole process group; the roles stop in order instead.
            start_new_session=True,
            # The gateway has the database open: the folder is taken for as long as it lives.
            pass_fds=(self._folder.lock,) if child is self._gateway else (),
        )
        child.record = RoleProcess.of(child.name, process.pid, child.url)
        return process

    async def _live(self, child: Child, process: asyncio.subprocess.Process) -> None:
        """Tell a process what it is, and hear what it says, until it closes its output."""
        assert process.stdin is not None
        assert process.stdout is not None
        spec = child.spec
        if child.parent is not None:
            await child.parent.ready.wait()
            spec = msgspec.structs.replace(
                spec, parents=(_dialled(child.parent.url),), local_url=self._model.url
            )
        process.stdin.write(msgspec.json.encode(spec) + b"\n")
        with contextlib.suppress(ConnectionError):  # it has died: its status says why
            await process.stdin.drain()
        again = child.ready.is_set()
        if line := await process.stdout.readline():
            child.hear(line)
            child.record = RoleProcess.of(child.name, process.pid, child.url)
            if again and not child.error:
                log.warning("role_restarted", role=child.name, pid=process.pid, url=child.url)
                self._write_record()
        await process.stdout.read()

    def _count_death(self, child: Child, status: int) -> None:
        """Note that a role died.

        Raises:
            ConfigError: the cluster was not up yet, and what was asked of the role cannot be.
            AgentOSError: the cluster was not up yet, or the budget is spent.
        """
        what = f"{child.name} (process {child.pid}) {_ended(status)}"
        if not child.ready.is_set():
            kind = ConfigError if status == WRONG else AgentOSError
            raise kind(f"{child.name}: {child.error}" if child.error else what)
        now = time.monotonic()
        child.deaths.append(now)
        log.error(
            "role_died", role=child.name, pid=child.pid, status=_ended(status), reason=child.error
        )
        if len(child.deaths) > MAX_RESTARTS and now - child.deaths[0] < RESTART_WINDOW_S:
            reason = f": {child.error}" if child.error else ""
            raise AgentOSError(
                f"{what}{reason}; it was restarted {MAX_RESTARTS} times within "
                f"{RESTART_WINDOW_S:g} s, so the cluster is stopped"
            )

    # -- the end ---------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Proxies, then regions, then the gateway: whoever is above hears how calls ended."""
        for group in (self._proxies, self._regions, [self._gateway]):
            processes = [child.process for child in group if child.process is not None]
            await self._end([p for p in processes if p.returncode is None])

    async def _end(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        gone = asyncio.create_task(_all(process.wait() for process in processes))
        impatient = asyncio.create_task(self._signals.get())
        grace_s = self._config.limits.stop_grace_s + KILL_AFTER_S
        await asyncio.wait([gone, impatient], timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        impatient.cancel()
        for process in processes:
            if process.returncode is None:
                log.error("role_killed", pid=process.pid, after_s=grace_s)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        await gone

    def _write_record(self) -> ClusterRecord:
        supervisor = RoleProcess.of("up", os.getpid(), self._gateway.url)
        assert supervisor is not None
        records = (child.record for child in self._children)
        record = ClusterRecord(
            url=self._gateway.url,
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


def _ended(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"exited with status {status}"


def _dialled(url: str) -> str:
    """Where a process of this machine dials: `tcp://0.0.0.0:7170` is no address to connect to."""
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    return f"{scheme}://127.0.0.1:{port}" if host in {"0.0.0.0", "*"} else url  # noqa: S104
