"""The account of one task's life: CPU microseconds by process and thread, and by message and step."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import clusters, job
from benchmarks.clusters import Topology
from benchmarks.life import ledger

SOCKETS, ZEROMQ = "sockets", "ZeroMQ"
"""The I/O thread, which is ours; and the threads of libzmq."""
HOOK = Path(__file__).parent / "hook"
ROOT = Path(__file__).parent.parent.parent
WRITTEN_S = 10.0

BUDGET_US: Mapping[tuple[str, str], float] = {
    ("client", "main"): 105,
    ("client", SOCKETS): 25,
    ("client", ZEROMQ): 10,
    ("gateway", "gateway"): 50,
    ("gateway", "store"): 120,
    ("gateway", SOCKETS): 50,
    ("gateway", ZEROMQ): 20,
    ("region", "region"): 35,
    ("region", SOCKETS): 20,
    ("region", ZEROMQ): 10,
    ("proxy", "proxy"): 75,
    ("proxy", "agents"): 45,
    ("proxy", SOCKETS): 25,
    ("proxy", ZEROMQ): 10,
}
"""What each thread may take of a task: 600 µs in all, which is 3,000 tasks/s on two cores."""
STEP_BUDGET_US: Mapping[str, float] = {
    "read": 40,
    "route": 45,
    "mailbox": 30,
    "open": 55,
    "handle": 185,
    "commit": 20,
    "agents": 5,
    "write": 45,
    ZEROMQ: 50,
    "rest": 125,
}
"""The same 600 µs by what is done."""
MESSAGE_BUDGET_US: Mapping[str, float] = {
    "submit": 40,
    "create_task": 35,
    "task_created": 4,
    "submitted": 4,
    "assign": 9,
    "run": 48,
    "call_result": 30,
    "record": 60,
    "recorded": 43,
    "ended": 12,
}
"""What opening, deciding and writing may take of it, by message."""


@dataclass
class Account:
    """CPU of one task, in microseconds; counts for each task."""

    tasks_s: float
    threads: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By process (`client`, `gateway`, `region`, `proxy`) and thread; undisturbed by measuring."""
    steps: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By process, step and kind of message."""
    handled: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often, by the role that handles it and the kind of message."""

    @property
    def total_us(self) -> float:
        return sum(self.threads.values())

    def process_us(self, process: str) -> float:
        return sum(us for (where, _), us in self.threads.items() if where == process)

    def by_step(self, process: str) -> dict[str, float]:
        """What a process does; `sockets` are its I/O threads, `rest` is what no step covers."""
        steps: Counter[str] = Counter()
        for (where, step, _), us in self.steps.items():
            if where == process:
                steps[step] += us
        background = self.threads[process, ZEROMQ]
        rest = self.process_us(process) - background - sum(steps.values())
        return {**steps, ZEROMQ: background, "rest": max(0.0, rest)}


def take(topology: Topology, tasks: int) -> Account:
    """Run the job twice: once with nothing but the kernel's account, once with the steps."""
    plain = _run(topology, tasks, steps=False)
    split = _run(topology, tasks, steps=True)
    return Account(plain.tasks_s, plain.threads, split.steps, split.handled)


def _run(topology: Topology, tasks: int, *, steps: bool) -> Account:
    with tempfile.TemporaryDirectory(prefix="agentos-life-") as folder:
        env = {
            ledger.FOLDER: folder,
            ledger.STEPS: "1" if steps else "",
            "PYTHONPATH": os.pathsep.join([str(HOOK), str(ROOT)]),
        }
        with clusters.processes(topology, env=env) as up:
            own = ledger.Ledger()
            # Only in a process of its own (see __main__): wrapping is for the process's life.
            missing = own.install() if steps else []
            if missing:
                # Its time is then in that of its caller, or in the rest.
                print(f"not a step, because it is not there: {', '.join(missing)}")
            return asyncio.run(_measure(up, topology, tasks, Path(folder), own))


async def _measure(
    up: clusters.Up, topology: Topology, tasks: int, folder: Path, own: ledger.Ledger
) -> Account:
    async with up.client() as client:
        await job.until_ready(client, topology.total)
        await job.throughput(client, 300)
        before = _snapshots(up, folder, own, 0)
        rate = await job.throughput(client, tasks)
        after = _snapshots(up, folder, own, 1)
    account = Account(rate)
    for role, then in after.items():
        process = clusters.kind(role)
        _add(account, process, before[role], then, tasks)
    return account


def _snapshots(up: clusters.Up, folder: Path, own: ledger.Ledger, number: int) -> dict[str, Any]:
    """The ledgers of all roles, and of the client, which is here."""
    found = {"client": own.snapshot()}
    for pid in up.roles.values():
        os.kill(pid, signal.Signals(ledger.SNAPSHOT))
    for role, pid in up.roles.items():
        file = folder / f"{pid}.{number}.json"
        deadline = time.monotonic() + WRITTEN_S
        while not file.exists():
            if time.monotonic() > deadline:
                raise job.WrongCount(f"{role} has not written its ledger")
            time.sleep(0.01)
        found[role] = json.loads(file.read_text())
    return found


def _add(account: Account, process: str, before: Any, after: Any, tasks: int) -> None:
    for name, ns in after["threads"].items():
        used = (ns - before["threads"].get(name, 0)) / 1000 / tasks
        account.threads[process, _thread(name)] += used
    earlier = {(step, kind): (calls, ns) for step, kind, calls, ns in before["steps"]}
    for named, kind, calls, ns in after["steps"]:
        calls_before, ns_before = earlier.get((named, kind), (0, 0))
        step, _, role = named.partition("@")
        account.steps[process, step, kind] += (ns - ns_before) / 1000 / tasks
        if role:
            account.handled[role, kind] += (calls - calls_before) / tasks


def _thread(name: str) -> str:
    """What a thread is for, by its name."""
    for part, what in (
        ("GatewayActor", "gateway"),
        ("StoreActor", "store"),
        ("RegionActor", "region"),
        ("ProxyActor", "proxy"),
        ("agents", "agents"),
        ("agentos-zeromq", SOCKETS),
        ("ZMQbg", ZEROMQ),
        ("MainThread", "main"),
    ):
        if name.startswith(part):
            return what
    return "other"
