"""One role of `agentos up` and the process that runs it now: started, told, heard, counted."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

import msgspec

from agentos.core.errors import AgentOSError, ConfigError
from agentos.datadir import RoleProcess
from agentos.role import WRONG, Ready, RoleSpec
from agentos.topology import ClusterConfig, from_here

BACKOFF_S = (0.1, 5.0)
Dialled = Callable[[str, str, str], str]
"""Child's name, parent's name, the URL at which the parent listens: the URL that the child dials."""
STEADY_S = 5.0
"""A role that has lived for so long is started again as soon as after its first death."""


class Child:
    """One role and the process that runs it now.

    Args:
        spec: the role; its parents are filled in when they are known.
        parents: the roles above it, in the order in which it tries them.
        shortcuts: gateways, to which it may write past its region.
        cluster: how many deaths are repaired.
        dialled: where it dials to reach a parent.
    """

    def __init__(
        self,
        spec: RoleSpec,
        parents: Sequence[Child],
        cluster: ClusterConfig,
        dialled: Dialled,
        shortcuts: Sequence[Child] = (),
    ) -> None:
        self.spec = spec
        self.name = spec.role
        self.parents, self.shortcuts = parents, shortcuts
        self._dialled = dialled
        self.process: asyncio.subprocess.Process | None = None
        self.record: RoleProcess | None = None
        self.url = ""
        self.door = ""
        """Where its store listens itself, if it is a gateway with one."""
        self.error = ""
        self.ready = asyncio.Event()
        """Set when the first of its processes is ready, and from then on."""
        self._ready_at: float | None = None
        self._max_restarts, self._window_s = cluster.max_restarts, cluster.restart_window_s
        self._deaths: deque[float] = deque(maxlen=cluster.max_restarts + 1)
        self._in_a_row = 0

    @property
    def pid(self) -> int:
        """Its process id; 0 before the first start."""
        return self.process.pid if self.process else 0

    async def spawn(self, pass_fds: Collection[int]) -> None:
        """Start a process for it, which waits to be told what it is."""
        self.error = ""
        self._ready_at = None
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentos.role", self.name),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C reaches a terminal's whole process group; the roles stop in order instead.
            start_new_session=True,
            pass_fds=pass_fds,
        )
        self.record = RoleProcess.of(self.name, self.pid, self.url)

    async def begin(self, local_url: str) -> bool:
        """Tell the process what it is, once its parents are known, and hear whether it is ready.

        Args:
            local_url: where the local model answers, if there is one.
        """
        process = self.process
        assert process is not None, f"{self.name} was not spawned"
        assert process.stdin is not None
        assert process.stdout is not None
        urls = await self._dial(self.parents, lambda parent: parent.url)
        shortcuts = await self._dial(self.shortcuts, lambda gateway: gateway.door or gateway.url)
        spec = msgspec.structs.replace(
            self.spec, parents=urls, shortcuts=shortcuts, local_url=local_url
        )
        process.stdin.write(msgspec.json.encode(spec) + b"\n")
        with contextlib.suppress(ConnectionError):  # it has died: its status says why
            await process.stdin.drain()
        if line := await process.stdout.readline():
            self._hear(line)
        return self._ready_at is not None

    async def _dial(self, above: Sequence[Child], where: Callable[[Child], str]) -> tuple[str, ...]:
        for parent in above:
            await parent.ready.wait()
        return tuple(self._dialled(self.name, p.name, where(p)) for p in above)

    async def end(self) -> int:
        """Wait until the process closes its output and ends; returns its exit status."""
        assert self.process is not None
        assert self.process.stdout is not None
        await self.process.stdout.read()
        return await self.process.wait()

    def left(self, status: int) -> bool:
        """Whether a process that ended was ready and then stopped in order: no death to count."""
        return status == 0 and self._ready_at is not None

    def count_death(self, status: int) -> None:
        """Note that the process died.

        Raises:
            ConfigError: it never was ready, and what was asked of the role cannot be.
            AgentOSError: it never was ready, or the budget is spent.
        """
        what = f"{self.name} (process {self.pid}) {ended(status)}"
        if not self.ready.is_set():
            kind = ConfigError if status == WRONG else AgentOSError
            raise kind(f"{self.name}: {self.error}" if self.error else what)
        now = time.monotonic()
        steady = self._ready_at is not None and now - self._ready_at > STEADY_S
        self._in_a_row = 0 if steady else self._in_a_row + 1
        self._deaths.append(now)
        if len(self._deaths) > self._max_restarts and now - self._deaths[0] < self._window_s:
            reason = f": {self.error}" if self.error else ""
            raise AgentOSError(
                f"{what}{reason}; it was restarted {self._max_restarts} times within "
                f"{self._window_s:g} s, so the cluster is stopped"
            )

    async def back_off(self) -> None:
        """Wait before the next start: longer after each death that followed quickly."""
        low, high = BACKOFF_S
        most = min(high, low * 2.0 ** min(self._in_a_row, 16))
        await asyncio.sleep(low + random.random() * most)  # noqa: S311 - jitter

    def _hear(self, line: bytes) -> None:
        """The first line that the process printed: it is ready, or says why not."""
        report = msgspec.json.decode(line, type=Ready)
        self.error = report.error
        if not report.error:
            self.url, self.door = report.url, report.door
            # Those below know this address: the next process of the role takes it again.
            self.spec = msgspec.structs.replace(
                self.spec,
                listen=report.url or self.spec.listen,
                door=report.door or self.spec.door,
            )
            self.record = RoleProcess.of(self.name, self.pid, self.url)
            self._ready_at = time.monotonic()
            self.ready.set()


def ended(status: int) -> str:
    """In words: how a process with this exit status ended."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"exited with status {status}"


def direct(_child: str, _parent: str, url: str) -> str:
    """Where a process of this machine dials, whoever it is."""
    return from_here(url)
