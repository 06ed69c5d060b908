"""Fresh clusters to measure: in this process, or a process for each role."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from agentos import AsyncClient, Cluster, EchoAgent
from agentos.core.ports import Agent
from benchmarks import children
from benchmarks.job import WrongCount

CLIENT_S = 120.0
"""How long a request may take, the waits that a full cluster asks for included."""


@dataclass(frozen=True)
class Topology:
    """How many regions, and proxies in each."""

    regions: int = 1
    proxies: int = 2

    @property
    def total(self) -> int:
        return self.regions * self.proxies

    def __str__(self) -> str:
        regions = "1 region" if self.regions == 1 else f"{self.regions} regions"
        return f"{regions} x {self.proxies} {'proxy' if self.proxies == 1 else 'proxies'}"

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Read `REGIONSxPROXIES`."""
        regions, _, proxies = text.partition("x")
        return cls(int(regions), int(proxies))


@dataclass(frozen=True)
class Up:
    """A running `agentos up`."""

    url: str
    data: Path
    supervisor: int

    def client(self) -> AsyncClient:
        """A client that is not connected yet."""
        return AsyncClient(self.url, timeout_s=CLIENT_S)

    @property
    def roles(self) -> dict[str, int]:
        """The process ids by role, as `cluster.json` has them."""
        roles = json.loads((self.data / "cluster.json").read_text())["roles"]
        return {role["name"]: role["pid"] for role in roles}

    def cpu_s(self, *kinds: str) -> float:
        """CPU seconds that the roles have used so far: those of these kinds, or all and `up`."""
        roles = {name: pid for name, pid in self.roles.items() if not kinds or kind(name) in kinds}
        return cpu_s(*roles.values(), *([] if kinds else [self.supervisor]))

    def memory_mb(self) -> dict[str, float]:
        """Resident megabytes by role."""
        return {name: memory_mb(pid) for name, pid in self.roles.items()}


def kind(role: str) -> str:
    """`proxy` of `proxy/r1/2`."""
    return role.partition("/")[0]


def cpu_s(*pids: int) -> float:
    """CPU seconds that these processes have used so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(t.user + t.system for t in times))


def all_cpu_s(up: Up | None) -> float:
    """CPU seconds of this process, the client's, and of a cluster's processes if it has any."""
    return time.process_time() + (up.cpu_s() if up is not None else 0.0)


def memory_mb(pid: int) -> float:
    """Resident megabytes of a process."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


@contextmanager
def embedded(
    topology: Topology, agent: Agent | None = None, data: Path | None = None
) -> Iterator[AsyncClient]:
    """A cluster in this process; yields a client that is not connected yet."""
    cluster = Cluster(
        [agent or EchoAgent()], regions=topology.regions, proxies=topology.proxies, data=data
    )
    with cluster:
        yield cluster.async_client(timeout_s=CLIENT_S)


@contextmanager
def processes(
    topology: Topology,
    config: str = "",
    data: Path | None = None,
    env: dict[str, str] | None = None,
) -> Iterator[Up]:
    """`agentos up`, a process for each role.

    Args:
        topology: how many of them.
        config: the text of its `agentos.toml`; none if empty.
        data: a folder to use, and to leave behind; a fresh one if None.
        env: variables for its environment.
    """
    with ExitStack() as stack:
        if data is None:
            folder = tempfile.TemporaryDirectory(prefix="agentos-bench-")
            data = Path(stack.enter_context(folder))
        yield stack.enter_context(_up(topology, config, data, env or {}))


@contextmanager
def _up(topology: Topology, config: str, data: Path, env: dict[str, str]) -> Iterator[Up]:
    file = data / "agentos.toml"
    file.write_text(config or '[agents.echo]\ntype = "echo"\n')
    command = [
        *(sys.executable, "-m", "agentos", "up", "--data", str(data), "--config", str(file)),
        *("--listen", "tcp://127.0.0.1:*", "--log-level", "error", "--json"),
        *("--regions", str(topology.regions), "--proxies", str(topology.proxies)),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | env
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise WrongCount("`agentos up` has not started")
            yield Up(json.loads(line)["url"], data, process.pid)
        finally:
            children.end(process)
