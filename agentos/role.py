"""One role in a process of its own: `python -m agentos.role`, and the role commands of the CLI.

A supervised role (`agentos up` starts those) reads its `RoleSpec` from standard input as one line
of JSON, when its parents are known; prints one line of JSON when it is ready, or why it cannot be;
and ends when standard input does, so that it never outlives its supervisor, however that ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import IO, TYPE_CHECKING, NoReturn

import msgspec

from agentos import logs
from agentos.config import AgentConfig, make_agents, needs_local_model
from agentos.core.errors import (
    AddressTaken,
    AgentOSError,
    ConfigError,
    LocalProtocolError,
    StorageError,
)
from agentos.core.limits import Limits

if TYPE_CHECKING:
    from agentos.host import Host

REFUSED_FACTOR = 2.0
"""A name that another process has is asked for this many times as long as a dead process keeps it."""
SWITCH_S = 0.0002
"""How long a thread computes before another has its turn."""
COLLECT_AFTER = 100_000
"""Objects that are made, and not freed, before the collector looks for cycles among them (700 by
default): nearly all are messages that wait, and it spent a tenth of the time on going through them."""
SILENT_S = 3.0
"""When a role that no parent answers says so."""
WRONG = 2
"""Exit status: what was asked for cannot be, and trying again will not change it."""
ORPHAN_S = 10.0
"""How long the orderly stop of a role may take whose supervisor is gone."""
STOPPED, FAILED = "stopped", "failed"


class RoleSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one role needs to start.

    Args:
        role: its address: `gateway/NAME`, `store`, `region/NAME` or `proxy/REGION/NAME`.
        listen: where it listens; "" if it does not.
        parents: the URLs above it: of stores, gateways or regions.
        shortcuts: the URLs of gateways to which a proxy may write what is for the store, past its
            region.
        door: where a gateway's store listens for such shortcuts itself; "" if it does not.
        database: its database's URL, if it has one.
        data: the folder that it locks; "" if somebody else has locked it.
        agents: what a proxy offers.
        local_url: where the local model answers; a proxy that needs one starts it if there is none.
        limits: the cluster's.
        log_level: the least that is logged.
        log_json: whether a supervised role logs JSON lines.
    """

    role: str
    listen: str = ""
    parents: tuple[str, ...] = ()
    shortcuts: tuple[str, ...] = ()
    door: str = ""
    database: str = ""
    data: str = ""
    agents: dict[str, AgentConfig] = {}
    local_url: str = ""
    limits: Limits = Limits()
    log_level: str = "info"
    log_json: bool = False


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """What a role says of itself: that it is ready, or the error that keeps it from it."""

    role: str
    pid: int
    url: str = ""
    door: str = ""
    error: str = ""


def run(
    spec: RoleSpec, report: Callable[[Ready], None], stop: queue.SimpleQueue[str] | None = None
) -> None:
    """Run a role until SIGTERM, SIGINT, SIGHUP or a word in `stop`; then stop it in order.

    A second SIGINT does not wait for that. SIGTERM may well come twice: a service manager sends it to
    every process of a service, and `agentos up` to its roles.

    Args:
        spec: which.
        report: told once, when the role is ready: it listens, and its parent has welcomed it.
        stop: another way to stop it. (A `SimpleQueue`, because signal handlers may put into it.)

    Raises:
        AddressTaken: the address to listen on, or the name at the parent, belongs to another.
        ConfigError: the agents or the data folder cannot be used.
        AgentOSError: the role failed too often to go on.
    """
    # Imported when wanted: `agentos up` describes roles, and runs none.
    import structlog

    from agentos.datadir import DataFolder
    from agentos.host import Host

    # The thread of the sockets gives the interpreter's lock away at every message; a busy actor
    # gives it back only after this interval (5 ms by default), which would be its message rate.
    sys.setswitchinterval(SWITCH_S)
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
    stop = stop or queue.SimpleQueue()
    words = stop

    def asked(number: int, _frame: object) -> None:
        words.put(STOPPED)
        if number == signal.SIGINT:  # a second Ctrl-C does not wait
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` means it
            signal.signal(number, asked)
    with contextlib.ExitStack() as stack:
        if spec.data:
            stack.enter_context(DataFolder(spec.data)).tell(spec.listen)
        agents = make_agents(spec.agents, _local_url(spec, stack))
        host = Host(spec.limits, agents, on_give_up=lambda _address: words.put(FAILED))
        stack.enter_context(host)
        url = _start(host, spec)
        door = _open_door(host, spec)
        if _joined(host, spec, stop):
            host.attend_links(spec.role)
            gc.freeze()  # what is there now stays: the modules, for the most part
            report(Ready(role=spec.role, pid=os.getpid(), url=url, door=door))
        if stop.get() == FAILED:
            raise AgentOSError(f"{spec.role} failed too often to go on; its log says why")
        structlog.get_logger().info("role_stops", role=spec.role)


def _local_url(spec: RoleSpec, stack: contextlib.ExitStack) -> str:
    if spec.local_url or not needs_local_model(spec.agents.values()):
        return spec.local_url
    from agentos.agents.local_model import LocalModelServer

    return stack.enter_context(LocalModelServer()).url


def _start(host: Host, spec: RoleSpec) -> str:
    kind, _, name = spec.role.partition("/")
    if kind == "gateway":
        database = spec.database or None
        return host.gateway(spec.listen, name=name, database=database, store=spec.parents)
    if kind == "store":
        return host.store(spec.database, spec.listen)
    if kind == "region":
        return host.region(name, spec.listen, spec.parents)
    if kind == "proxy":
        if not spec.agents:
            import structlog

            structlog.get_logger().warning("proxy_offers_nothing", role=spec.role)
        region, _, own = name.partition("/")
        host.proxy(region, own, spec.parents, shortcuts=spec.shortcuts)
        return ""
    raise ConfigError(f"{spec.role!r} is no role")


def _open_door(host: Host, spec: RoleSpec) -> str:
    """Where the store's own listener is; nowhere, if its address is taken: all goes the longer way."""
    import structlog

    if not spec.door:
        return ""
    try:
        return host.store_door(spec.role, spec.door)
    except AddressTaken as error:
        structlog.get_logger().warning("no_door", role=spec.role, reason=str(error))
        return ""


def _joined(host: Host, spec: RoleSpec, stop: queue.SimpleQueue[str]) -> bool:
    """Wait for the parent's welcome; returns False if the role was stopped before.

    Raises:
        AddressTaken: another living process has the name.
    """
    import structlog

    if not spec.parents:
        return True
    begun = time.monotonic()
    silent = False
    uplink = host.uplink(spec.role)
    patience_s = spec.limits.link_ping_s * spec.limits.suspect_after
    while not uplink.wait_up(0.1):
        waited_s = time.monotonic() - begun
        if not stop.empty():
            return False
        if uplink.refusal and waited_s > REFUSED_FACTOR * patience_s:
            raise AddressTaken(f"{spec.role}: refused by the parent: {uplink.refusal}")
        if waited_s > SILENT_S and not silent and not uplink.refusal:
            silent = True
            log = structlog.get_logger()
            log.warning("no_parent_answers", role=spec.role, urls=spec.parents)
    return True


# -- supervised ------------------------------------------------------------------------------------


def main() -> NoReturn:
    """`python -m agentos.role NAME`: the name is for people who look at the process list."""
    # What agents print belongs in the log: standard output is for the supervisor.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare(sys.argv[1].partition("/")[0])
    line = _line(0)
    if not line:
        sys.exit(0)
    spec = msgspec.json.decode(line, type=RoleSpec)
    logs.configure(spec.log_level, as_json=spec.log_json)
    stop: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_leave_with_supervisor, args=(stop,), daemon=True).start()
    try:
        run(spec, lambda ready: _say(out, ready), stop)
    except AgentOSError as error:
        _say(out, Ready(role=spec.role, pid=os.getpid(), error=str(error)))
        wrong = (AddressTaken, ConfigError, LocalProtocolError, StorageError)
        sys.exit(WRONG if isinstance(error, wrong) else 1)
    sys.exit(0)


def prepare(kind: str) -> None:
    """What such a role will need, while its parents start."""
    logs.import_without_rich()
    import_module("agentos.host")
    if kind == "proxy":
        import_module("agentos.runtime.agents")


def _line(fd: int) -> bytes:
    """One line, read without a buffer: a thread that holds a buffer's lock would block the exit."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(fd, 1 << 20)
        if not piece:
            return b""
        line += piece
    return line


def _leave_with_supervisor(stop: queue.SimpleQueue[str]) -> None:
    while os.read(0, 1 << 16):
        pass
    stop.put(STOPPED)
    time.sleep(ORPHAN_S)
    os._exit(1)


def _say(out: IO[str], ready: Ready) -> None:
    # A supervisor that is gone hears nothing; its end of standard input says the rest.
    with contextlib.suppress(OSError):
        out.write(msgspec.json.encode(ready).decode() + "\n")
        out.flush()


if __name__ == "__main__":
    main()
