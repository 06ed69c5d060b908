"""The servers that peers need, fresh in a folder of their own, on free ports of loopback.

Each yields what the peer is told in its environment. Their settings are the defaults but for what
is said here.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from benchmarks.peers.environments import NotThere, find

Server = Callable[[Path, Path], AbstractContextManager[dict[str, str]]]
"""Starts it in a folder, with a peer's environment; yields variables."""
START_S = 60.0


@contextmanager
def nothing(_folder: Path, _environment: Path) -> Iterator[dict[str, str]]:
    """No server."""
    yield {}


@contextmanager
def postgresql(folder: Path, _environment: Path) -> Iterator[dict[str, str]]:
    """A PostgreSQL cluster with the defaults of `initdb` (fsync on)."""
    versions = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    places = versions[::-1]
    initdb, postgres = find("initdb", *places), find("postgres", *places)
    data = folder / "postgresql"
    data.mkdir()
    user = None
    if os.geteuid() == 0:  # it refuses to run as root
        user = "postgres"
        folder.chmod(0o711)
        try:
            shutil.chown(data, user)
        except LookupError:
            raise NotThere(
                "PostgreSQL does not run as root, and there is no user postgres"
            ) from None
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    made = [initdb, "-D", str(data), "--auth", "trust", "--username", "bench"]
    subprocess.run(made, check=True, user=user, **quiet)  # type: ignore[call-overload]
    port = free_port()
    command = [postgres, "-D", str(data), "-p", str(port), "-k", str(data), "-h", "127.0.0.1"]
    with _running(subprocess.Popen(command, user=user, **quiet), port):  # type: ignore[call-overload]
        createdb = [find("createdb", *places), "-h", "127.0.0.1", "-p", str(port), "-U", "bench"]
        _until_done([*createdb, "bench"])
        yield {"BENCH_URL": f"postgresql+psycopg://bench@127.0.0.1:{port}/bench"}


def redis(sync: str) -> Server:
    """A Redis with an append-only file that is synced `everysec` or `always`."""

    @contextmanager
    def start(folder: Path, _environment: Path) -> Iterator[dict[str, str]]:
        port = free_port()
        command = [
            *(find("redis-server"), "--port", str(port), "--bind", "127.0.0.1"),
            *("--dir", str(folder), "--appendonly", "yes", "--appendfsync", sync, "--save", ""),
        ]
        with _running(subprocess.Popen(command, stdout=subprocess.DEVNULL), port):
            yield {"BENCH_URL": f"redis://127.0.0.1:{port}/0"}

    return start


RESTATE = """cluster-name = "bench"
node-name = "n1"
base-dir = "{folder}/restate"
bind-address = "127.0.0.1:{node}"
advertised-address = "http://127.0.0.1:{node}/"
disable-telemetry = true
log-filter = "error"
[ingress]
bind-address = "127.0.0.1:{ingress}"
[admin]
bind-address = "127.0.0.1:{admin}"
"""


@contextmanager
def restate(folder: Path, environment: Path) -> Iterator[dict[str, str]]:
    """Restate's server, one node, its log on disk."""
    binaries = "server/node_modules/@restatedev/restate-server-*/bin/restate-server"
    binary = next(iter(environment.glob(binaries)), None)
    if binary is None:
        raise NotThere("npm has brought no restate-server for this machine")
    ports = {name: free_port() for name in ("node", "ingress", "admin")}
    file = folder / "restate.toml"
    file.write_text(RESTATE.format(folder=folder, **ports))
    command = [str(binary), "--config-file", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with _running(process, ports["admin"]):
        yield {
            "BENCH_URL": f"http://127.0.0.1:{ports['ingress']}",
            "BENCH_ADMIN": f"http://127.0.0.1:{ports['admin']}",
            "BENCH_VERSION": json.loads((binary.parents[1] / "package.json").read_text())[
                "version"
            ],
        }


@contextmanager
def temporal(folder: Path, environment: Path) -> Iterator[dict[str, str]]:
    """Temporal's development server, with a database file."""
    port = free_port()
    command = [
        *(find("temporal", str(environment / "bin")), "server", "start-dev", "--headless"),
        *("--ip", "127.0.0.1", "--port", str(port), "--log-level", "error"),
        *("--db-filename", str(folder / "temporal.db")),
    ]
    quiet = subprocess.DEVNULL
    with _running(subprocess.Popen(command, stdout=quiet, stderr=quiet), port):
        yield {"BENCH_URL": f"127.0.0.1:{port}"}


def free_port() -> int:
    """A port that nobody listens on now."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


@contextmanager
def _running(process: subprocess.Popen[bytes], port: int) -> Iterator[None]:
    """Wait until it accepts connections; end it when the block does."""
    try:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        else:
            raise NotThere(f"{process.args[0]} has not started")  # type: ignore[index]
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_done(command: Sequence[str]) -> None:
    """Repeat a command until it succeeds."""
    deadline = time.monotonic() + START_S
    while subprocess.run(command, capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            raise NotThere(f"{command[0]} does not succeed")
        time.sleep(0.2)
