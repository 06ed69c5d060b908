"""The data folder: who has it now, and which processes a cluster consists of.

`lock` is held (flock) by whoever has the folder's database open; the kernel lets it go when the
last of them ends, however it ends. `cluster.json` lists the processes of `agentos up`.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import psutil

from agentos.core.errors import AddressTaken, AgentOSError, ConfigError
from agentos.core.fields import hint

END_S = 5.0
LOOK_S = 0.05
START_TOLERANCE_S = 0.5
"""A pid is not used again so soon; and the kernel says when it booted to the second."""


class RoleProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a cluster, with what it takes to know it again.

    Args:
        name: the role's address, or `up` for the supervisor.
        pid: its process id.
        started: when it started, in seconds after the boot, which no setting of the clock changes.
        boot: the kernel's own name of that boot, "" where it has none.
        command: its command line.
        address: where it listens; "" if it does not.
    """

    name: str
    pid: int
    started: float
    command: tuple[str, ...]
    address: str = ""
    boot: str = ""

    @classmethod
    def of(cls, name: str, pid: int, address: str = "") -> RoleProcess | None:
        """The record of a living process; None if it has ended."""
        try:
            process = psutil.Process(pid)
            command = tuple(process.cmdline())
            return cls(
                name=name,
                pid=pid,
                started=process.create_time() - psutil.boot_time(),
                command=command,
                address=address,
                boot=_boot(),
            )
        except psutil.Error:
            return None

    def find(self) -> psutil.Process | None:
        """The process, if it lives and is still this one: pids are used again."""
        now = RoleProcess.of(self.name, self.pid)
        if now is None or (now.command, now.boot) != (self.command, self.boot):
            return None
        if abs(now.started - self.started) > START_TOLERANCE_S:
            return None
        try:
            process = psutil.Process(self.pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else process
        except psutil.Error:
            return None


class ClusterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`cluster.json`: the gateways' URLs (the first one, and all), the supervisor, every role."""

    url: str
    supervisor: RoleProcess
    roles: tuple[RoleProcess, ...]
    urls: tuple[str, ...] = ()


class _Holder(msgspec.Struct):
    pid: int
    url: str = ""

    def __str__(self) -> str:
        if not psutil.pid_exists(self.pid):
            return "what a crash left behind: `agentos cleanup` ends that"
        where = f", a cluster at {self.url}" if self.url else ""
        return f"process {self.pid}{where}: stop that one, or choose another folder with --data"


class DataFolder:
    """A data folder that is ours until it is closed. A context manager.

    Args:
        path: the folder; made if it does not exist.

    Raises:
        ConfigError: it cannot be made or written.
        AddressTaken: a living cluster uses it; the message names its process and URL.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise unusable(self.path, error) from error
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder()
            os.close(self.lock)
            raise AddressTaken(f"the data folder {self.path} is in use by {holder}") from None

    def tell(self, url: str) -> None:
        """Note who has the folder, for the next one who asks.

        Raises:
            ConfigError: the folder cannot be written.
        """
        note = msgspec.json.encode(_Holder(pid=os.getpid(), url=url))
        try:
            os.ftruncate(self.lock, 0)
            os.pwrite(self.lock, note, 0)
        except OSError as error:
            raise unusable(self.path, error) from error

    def write(self, record: ClusterRecord) -> None:
        """Replace `cluster.json` at once, so that nobody reads half of it.

        Raises:
            ConfigError: the folder cannot be written.
        """
        new = self.path / "cluster.json.new"
        try:
            new.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
            new.replace(self.path / "cluster.json")
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            raise unusable(self.path, error) from error

    def forget(self) -> None:
        """Remove `cluster.json`: none of its processes is left."""
        (self.path / "cluster.json").unlink(missing_ok=True)

    def close(self) -> None:
        """Let the folder go. Idempotent."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _holder(self) -> _Holder:
        try:
            return msgspec.json.decode(os.pread(self.lock, 4096, 0), type=_Holder)
        except msgspec.DecodeError:
            return _Holder(pid=0)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def unusable(path: Path, error: OSError) -> ConfigError:
    """What to say when a data folder cannot be used."""
    return ConfigError(f"cannot use {path} as data folder: {error.strerror or error}")


def read_record(path: str | Path) -> ClusterRecord | None:
    """The `cluster.json` of a data folder; None if there is none.

    Raises:
        ConfigError: it cannot be read.
    """
    file = Path(path) / "cluster.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=ClusterRecord)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file}: is not a list of a cluster's processes: {error}") from error


def living_cluster(path: str | Path) -> ClusterRecord | None:
    """The record of a data folder, if the `agentos up` that wrote it is alive.

    Raises:
        ConfigError: it cannot be read.
    """
    record = read_record(path)
    return record if record is not None and record.supervisor.find() is not None else None


def restart(
    path: str | Path, patterns: Sequence[str], timeout_s: float
) -> Iterator[tuple[str, RoleProcess]]:
    """A rolling restart: stop roles of a running `agentos up` in order, one after the other.

    Each is asked with SIGTERM, as anybody may ask it; `up` starts what has stopped again at once,
    and the next role is not touched before this one is back.

    Args:
        path: the data folder.
        patterns: roles by name, or by a shell's pattern like `proxy/eu/*`.
        timeout_s: seconds that one role may take to stop and to come back.

    Yields:
        `("stops", process)` when a role was asked, `("back", process)` when it is ready again.

    Raises:
        ConfigError: there is no running cluster, or no role of such a name.
        AgentOSError: a role did not come back in time, or died before it was asked.
    """
    record = _running(path)
    names = [role.name for role in record.roles]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            known = hint(pattern, names) or f"; there are {', '.join(names)}"
            raise ConfigError(f"the cluster at {record.url} has no role {pattern!r}{known}")
    for name in names:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            old = _role(_running(path), name)
            if old is None:
                raise AgentOSError(
                    f"{name} has just died, and `agentos up` starts it again: "
                    "ask for the restart again when it is back"
                )
            if process := old.find():
                yield "stops", old
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
            yield "back", _await_successor(path, old, timeout_s)


def _await_successor(path: str | Path, old: RoleProcess, timeout_s: float) -> RoleProcess:
    deadline = time.monotonic() + timeout_s
    while True:
        now = _role(_running(path), old.name)
        if now is not None and now.pid != old.pid and now.find() is not None:
            return now
        if time.monotonic() > deadline:
            raise AgentOSError(f"{old.name} (process {old.pid}) is not back within {timeout_s:g} s")
        time.sleep(LOOK_S)


def _running(path: str | Path) -> ClusterRecord:
    record = living_cluster(path)
    if record is None:
        raise ConfigError(f"no `agentos up` runs on the data folder {path}")
    return record


def _role(record: ClusterRecord, name: str) -> RoleProcess | None:
    """The role of this name; None if it had just died when the record was written."""
    return next((role for role in record.roles if role.name == name), None)


def cleanup(path: str | Path, grace_s: float = END_S) -> dict[str, str]:
    """End what a crash left behind: SIGTERM, and SIGKILL after a while.

    Args:
        path: the data folder.
        grace_s: seconds that they have to end by themselves.

    Returns:
        what became of each role of `cluster.json`: `ended`, `killed`, or `gone` before.

    Raises:
        AddressTaken: the supervisor is alive: stop that one.
        ConfigError: `cluster.json` cannot be read.
    """
    record = read_record(path)
    if record is None:
        return {}
    if record.supervisor.find() is not None:
        raise AddressTaken(
            f"the cluster at {record.url} is running: stop its process {record.supervisor.pid} "
            "(Ctrl-C or SIGTERM), which stops the others"
        )
    found = {role.name: role.find() for role in record.roles}
    stubborn = _end([process for process in found.values() if process], grace_s)
    with DataFolder(path) as folder:
        folder.forget()
    return {
        name: "gone" if not process else "killed" if process in stubborn else "ended"
        for name, process in found.items()
    }


def _end(processes: list[psutil.Process], grace_s: float) -> list[psutil.Process]:
    """End these processes; returns the ones that took SIGKILL."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=grace_s)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=grace_s)
    return list(stubborn)
