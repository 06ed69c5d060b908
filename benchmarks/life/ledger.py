"""A ledger of CPU time: by thread, and by step within a thread, exclusive of the steps inside it.

A thread's total is the kernel's own account (`/proc/self/task/*/schedstat`, in ns), which costs
nothing to keep. Steps are measured by wrapping a few functions of the product from outside, with
two readings of the thread's CPU clock for each call; what that costs is calibrated and taken off.
Totals are taken from a run without the wrapping, so that measuring does not count as work.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

SNAPSHOT = signal.SIGUSR1
FOLDER, STEPS = "BENCH_LIFE", "BENCH_LIFE_STEPS"
"""Where snapshots go; and whether steps are measured, or threads only."""

HANDLE = "handle"
WRAPPED: Mapping[str, tuple[str, ...]] = {
    HANDLE: (
        "agentos.core.gateway:GatewayMachine.handle",
        "agentos.core.store:StoreMachine.handle",
        "agentos.core.store:StoreMachine._record_all",  # many at once
        "agentos.core.region:RegionMachine.handle",
        "agentos.core.proxy:ProxyMachine.handle",
    ),
    "open": ("agentos.runtime.switch:Switch.open",),
    "write": (
        "agentos.runtime.wire:JsonCodec.encode",
        "agentos.runtime.wire:JsonCodec.encode_all",
        "agentos.runtime.wire:JsonCodec._write",  # of one message: the others take batches
    ),
    "read": ("agentos.runtime.wire:JsonCodec.decode",),
    "route": ("agentos.runtime.switch:Switch.send", "agentos.runtime.switch:Switch.received"),
    "mailbox": (
        "agentos.runtime.mailbox:Mailbox.deliver",
        "agentos.runtime.mailbox:Mailbox.get",
    ),
    "agents": ("agentos.runtime.agents:AgentRunner.handle",),
}
COMMIT = "agentos.storage.transactions:Transactional.transaction"


class Ledger:
    """What the threads of this process have used for what."""

    def __init__(self) -> None:
        self.steps: dict[tuple[str, str], list[int]] = {}
        """Calls and nanoseconds by step and kind of message."""
        self._inside = threading.local()
        self._inner_ns = self._outer_ns = 0

    def install(self) -> list[str]:
        """Wrap what there is; returns what was not found, since the product goes on changing."""
        self._calibrate()
        missing = []
        for step, paths in WRAPPED.items():
            for path in paths:
                owner, name = _owner(path)
                if owner is None:
                    missing.append(path)
                else:
                    setattr(owner, name, self._wrap(getattr(owner, name), step))
        owner, name = _owner(COMMIT)
        if owner is None:
            missing.append(COMMIT)
        else:
            begin = getattr(owner, name)
            setattr(owner, name, lambda *args: _Commit(begin(*args), self))
        return missing

    def measure(self, step: str, kind: str, call: Callable[[], Any], count: int = 1) -> Any:
        """Call, and note the CPU time that was used outside of measured calls inside.

        Args:
            step: what is done.
            kind: of message; "" if it is none, or several.
            call: does it.
            count: how many messages it is done to.
        """
        inside = self._inside
        above = getattr(inside, "ns", 0)
        inside.ns = 0
        start = time.thread_time_ns()
        try:
            return call()
        finally:
            whole = time.thread_time_ns() - start
            entry = self.steps.setdefault((step, kind), [0, 0])
            entry[0] += count
            entry[1] += whole - inside.ns - self._inner_ns
            inside.ns = above + whole + self._outer_ns

    def _wrap(self, function: Callable[..., Any], step: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def measured(*args: Any, **named: Any) -> Any:
            given = args[1] if len(args) > 1 else None
            where, count = step, 1
            if step == HANDLE:
                where = f"{step}@{_role(args[0])}"
                if isinstance(given, list):  # of one kind
                    given, count = (given[0] if given else None), len(given)
            return self.measure(where, _kind(given), lambda: function(*args, **named), count)

        return measured

    def _calibrate(self, calls: int = 20_000) -> None:
        """What measuring a call costs, within the time that is noted and beside it."""
        empty = self._wrap(lambda _self, _message: None, "nothing")
        start = time.thread_time_ns()
        for _ in range(calls):
            empty(None, None)
        whole = (time.thread_time_ns() - start) // calls
        self._inner_ns = self.steps.pop(("nothing", ""))[1] // calls
        self._outer_ns = whole - self._inner_ns
        self._inside.ns = 0

    def snapshot(self) -> dict[str, Any]:
        """The state of now."""
        steps = [[step, kind, *entry] for (step, kind), entry in list(self.steps.items())]
        return {"steps": steps, "threads": thread_ns()}


class _Commit:
    """A transaction whose end is a step of its own."""

    def __init__(self, transaction: Any, ledger: Ledger) -> None:
        self._transaction = transaction
        self._ledger = ledger

    def __enter__(self) -> Any:
        return self._ledger.measure("commit", "", self._transaction.__enter__)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Any:
        end = self._transaction.__exit__
        return self._ledger.measure("commit", "", lambda: end(kind, error, trace))


def thread_ns() -> dict[str, int]:
    """CPU nanoseconds by thread: Python's names, or the kernel's for threads that it has not made."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found: dict[str, int] = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            ns = int((task / "schedstat").read_text().split()[0])
            name = names.get(int(task.name)) or (task / "comm").read_text().strip()
        except OSError:  # it has ended
            continue
        found[name] = found.get(name, 0) + ns
    return found


def from_environment() -> None:
    """Keep a ledger in this process, and write it to the folder of `BENCH_LIFE` on SIGUSR1."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    ledger = Ledger()
    if os.environ.get(STEPS):
        ledger.install()
    written = iter(range(1_000_000))

    def write(_number: int, _frame: Any) -> None:
        file = Path(folder) / f"{os.getpid()}.{next(written)}.json"
        part = file.with_suffix(".part")
        part.write_text(json.dumps(ledger.snapshot()))
        part.rename(file)

    signal.signal(SNAPSHOT, write)


def _owner(path: str) -> tuple[Any, str]:
    module, _, attribute = path.partition(":")
    holder, _, name = attribute.partition(".")
    try:
        owner = getattr(importlib.import_module(module), holder)
    except (ImportError, AttributeError):
        return None, name
    return (owner if hasattr(owner, name) else None), name


def _kind(given: Any) -> str:
    """The kind of message in an envelope, by its name on the wire."""
    message = getattr(given, "message", None)
    if message is None:
        return ""
    kind = getattr(message, "kind", None)  # it is sealed still
    return kind if isinstance(kind, str) else _snake(type(message).__name__)


def _role(machine: Any) -> str:
    """`gateway` of a machine whose address is `gateway/main`."""
    return str(machine.address).partition("/")[0]


@functools.cache
def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
