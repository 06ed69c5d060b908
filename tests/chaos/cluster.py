"""The cluster under attack: its folder, its configuration, its processes, and its load."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.chaos.agents import LOG, SLOWEST
from tests.chaos.hand import Hand
from tests.chaos.load import Load
from tests.chaos.watch import Watch

ROOM = 512 << 20
END_S = 120.0


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What is started, and how much it has to do."""

    gateways: int = 2
    regions: int = 3
    proxies: int = 3
    workers: int = 16
    slowest_s: float = 0.5
    limits: dict[str, float] = {}

    @property
    def apart(self) -> bool:
        """Whether the store is a process of its own: else it is in the only gateway's, with a door."""
        return self.gateways > 1

    @property
    def roles(self) -> list[str]:
        """Every role by name."""
        regions = [f"r{i}" for i in range(1, self.regions + 1)]
        gateways = ["main", *map(str, range(2, self.gateways + 1))]
        return [
            *(["store"] if self.apart else []),
            *(f"gateway/{name}" for name in gateways),
            *(f"region/{name}" for name in regions),
            *(f"proxy/{name}/{i}" for name in regions for i in range(1, self.proxies + 1)),
        ]


class Attacked:
    """A running cluster with its load, its watch and the hand that attacks it."""

    def __init__(self, folder: Path, shape: Shape, room: int) -> None:
        self.shape = shape
        self.data = folder / "data"
        self.calls = folder / "calls.log"
        self.log = folder / "up.log"
        self._folder = folder
        self._room = room
        (folder / "agentos.toml").write_text(self._config())
        self.calls.touch()
        self.up, self.urls = self.start()
        self.watch = Watch(self.data / "agentos.db")
        self.watch.start()
        self.load = Load(self.urls, shape.workers)
        self.load.start()
        self.hand = Hand(self.up, self.watch, self.data, room)

    def start(self) -> tuple[subprocess.Popen[str], list[str]]:
        """Start the processes, and wait until they are ready."""
        environment = os.environ | {LOG: str(self.calls), SLOWEST: str(self.shape.slowest_s)}
        with self.log.open("a") as log:
            up = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.up", str(self._folder / "agentos.toml")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,
            )
        assert up.stdout is not None
        line = up.stdout.readline()
        if not line:
            self.up = up
            self.ended()
        assert line, f"the cluster did not start: {self.log.read_text()[-2000:]}"
        return up, json.loads(line)

    def settle(self, within_s: float = END_S) -> bool:
        """Submit nothing more, and wait for everything that was accepted."""
        self.hand.finish()
        self.load.stop()
        self.load.join(within_s)
        return not self.load.is_alive()

    def stop(self) -> int:
        """Stop the processes in order; returns the exit status."""
        self.watch.stop()
        self.up.send_signal(signal.SIGTERM)
        return self.ended(60)

    def ended(self, within_s: float | None = None) -> int:
        """Wait for the supervisor's end, and let its pipes go; returns its exit status."""
        status = self.up.wait(within_s)
        for pipe in (self.up.stdin, self.up.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return status

    def kill_everything(self) -> None:
        """SIGKILL to each process of the cluster, the supervisor first."""
        self.hand.note_all()
        pids = self.hand.pids().values()
        self.up.kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.ended()

    def start_again(self) -> None:
        """Start what was killed, at the same addresses."""
        deadline = time.monotonic() + 30
        while True:
            try:
                self.up, urls = self.start()
                break
            except AssertionError:  # the kernel has not let go of a port or of the folder yet
                if time.monotonic() > deadline:
                    raise
        assert urls == self.urls, f"{urls} are not {self.urls}"
        self.hand.up = self.up

    def _config(self) -> str:
        shape = self.shape
        # Innocent tasks lose more owners here than any would in a hundred years.
        limits = {"max_attempts": 1_000} | shape.limits
        return f"""
[cluster]
gateways = {shape.gateways}
regions = {shape.regions}
proxies = {shape.proxies}
store = {str(shape.apart).lower()}
data = "{self.data}"
listen = "tcp://127.0.0.1:{_free_ports(shape.gateways)}"
max_restarts = 1000000
[limits]
{"".join(f"{name} = {value}{os.linesep}" for name, value in limits.items())}
[agents.work]
type = "function"
path = "tests.chaos.agents:work"
[agents.vote]
type = "function"
path = "tests.chaos.agents:vote"
"""


def _free_ports(count: int) -> int:
    """The first of so many neighbouring ports that are free now, below the ephemeral ones."""
    import socket

    for first in range(21_000 + os.getpid() % 5_000, 32_000, count):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise OSError("no ports are free")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[int]:
    """A file system of `ROOM` bytes on `folder`, where we may mount one; yields its size, or 0."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "chaos", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield ROOM if mounted else 0
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)
