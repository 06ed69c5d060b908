"""The seeded hand: what it does to the cluster, and when. The same seed does the same.

What it finds is chance (a role that is being started again cannot be killed; that is noted as
missed), what it does is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import psutil

from tests.chaos.watch import Watch

KINDS = {"kill": 60, "term": 8, "stop": 10, "freeze": 6, "cut": 12, "lock": 2, "fill": 2}
"""What it does, and how often. `stop`: SIGSTOP for less than the lease; `freeze`: for longer."""
ROLES = {"proxy": 6, "region": 3, "gateway": 2, "store": 1}

EVERYTHING = "everything"


class Act(NamedTuple):
    """One deed: `after` so many seconds, for so many seconds."""

    after: float
    what: str
    target: str
    seconds: float = 0.0
    how: str = ""


class Done(NamedTuple):
    """What became of a deed. `tasks`: the unfinished ones of the owner that it hit, with epochs."""

    at: float
    until: float
    act: Act
    pid: int
    tasks: dict[int, tuple[int, int]]


def schedule(seed: int, roles: Sequence[str], gap_s: float, longest_s: float) -> Iterator[Act]:
    """What the hand of this seed does, for ever.

    Args:
        seed: of all its choices.
        roles: every role of the cluster.
        gap_s: seconds between two deeds, on average.
        longest_s: seconds that a process may stand still.
    """
    random = Random(seed)
    links = [
        (child, parent)
        for child in roles
        for parent in roles
        if (child.partition("/")[0], parent.partition("/")[0])
        in {("gateway", "store"), ("region", "gateway"), ("proxy", "gateway")}
        or (child.startswith("proxy/") and parent == f"region/{child.split('/')[1]}")
    ]
    kinds = {
        kind: often
        for kind, often in ROLES.items()
        if any(name.partition("/")[0] == kind for name in roles)
    }
    while True:
        after = min(3 * gap_s, max(0.2 * gap_s, random.expovariate(1 / gap_s)))
        what = random.choices([*KINDS], [*KINDS.values()])[0]
        role = random.choices([*kinds], [*kinds.values()])[0]
        target = random.choice([name for name in roles if name.partition("/")[0] == role])
        link = ">".join(random.choice(links))
        how = random.choice(("silent", "down"))
        share = random.random()
        match what:
            case "stop":
                yield Act(after, what, target, 0.2 + 0.8 * share)
            case "freeze":
                most = longest_s if random.random() < 0.1 else min(6.0, longest_s)
                yield Act(after, what, target, 2.0 + (most - 2.0) * share)
            case "cut":
                yield Act(after, what, link, 0.3 + 6.0 * share, how)
            case "lock" | "fill":
                yield Act(after, what, "database", 0.5 + 4.0 * share)
            case _:
                yield Act(after, what, target)


class Hand:
    """Does what the schedule says to a cluster of processes.

    Args:
        up: the supervisor's process, with a pipe to its standard input.
        watch: knows who owns what.
        data: the data folder.
        room: the size of the file system that the data folder is on, in bytes; 0 if it is not one
            of ours, and a limit on the store's file sizes (RLIMIT_FSIZE) stands in for a full disk.
    """

    def __init__(self, up: subprocess.Popen[str], watch: Watch, data: Path, room: int) -> None:
        self.done: list[Done] = []
        self.missed = 0
        self.up = up
        self._watch = watch
        self._data = data
        self._room = room
        self._threads: list[threading.Thread] = []
        self._database = threading.Lock()

    def pids(self) -> dict[str, int]:
        """The living roles."""
        found = {}
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.up.pid).children():
                with contextlib.suppress(psutil.Error):
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found[process.cmdline()[-1]] = process.pid
        return found

    def do(self, act: Act) -> None:
        """Do it; what takes time is left to a thread."""
        if act.what in {"lock", "fill"}:
            self._later(act, 0, self._lock if act.what == "lock" else self._fill)
            return
        if act.what == "cut":
            assert self.up.stdin is not None
            order = {"link": act.target, "how": act.how, "seconds": act.seconds}
            self.up.stdin.write(json.dumps(order) + "\n")
            self.up.stdin.flush()
            self._note(act, 0)
            return
        pid = self.pids().get(act.target)
        if pid is None:
            self.missed += 1
            return
        if act.what in {"stop", "freeze"}:
            self._later(act, pid, lambda: self._still(pid, act.seconds))
            return
        tasks = self._hit(act.target)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if act.what == "kill" else signal.SIGTERM)
        self._note(act, pid, tasks)

    def note_all(self) -> None:
        """Note that somebody else kills everything now."""
        self._note(Act(0.0, "kill", EVERYTHING), 0)

    def finish(self) -> None:
        """Wait until nothing is stopped, locked or full any more."""
        for thread in self._threads:
            thread.join()

    def _hit(self, target: str) -> dict[int, tuple[int, int]]:
        role, _, name = target.partition("/")
        if role == "proxy":
            return self._watch.owned(target)
        return self._watch.of_region(name) if role == "region" else {}

    def _note(self, act: Act, pid: int, tasks: dict[int, tuple[int, int]] | None = None) -> None:
        now = time.monotonic()
        self.done.append(Done(now, now + act.seconds, act, pid, tasks or {}))
        with (self._data.parent / "hand.log").open("a") as log:
            log.write(f"{now:.3f} {time.strftime('%T', time.gmtime())} {pid} {act}\n")

    def _later(self, act: Act, pid: int, work: object) -> None:
        self._note(act, pid, self._hit(act.target))
        assert callable(work)
        args = () if pid else (act.seconds,)
        thread = threading.Thread(target=work, args=args, name=act.what, daemon=True)
        self._threads.append(thread)
        thread.start()

    @staticmethod
    def _still(pid: int, seconds: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)

    def _lock(self, seconds: float) -> None:
        """Somebody else writes to our database for a long time."""
        with (
            self._database,
            contextlib.suppress(sqlite3.OperationalError),
            contextlib.closing(sqlite3.connect(self._data / "agentos.db", timeout=10)) as db,
        ):
            db.isolation_level = None
            db.execute("BEGIN EXCLUSIVE")
            time.sleep(seconds)
            db.execute("ROLLBACK")

    def _fill(self, seconds: float) -> None:
        """No byte more fits on the disk."""
        with self._database:
            if self._room:
                filler = self._data / "filler"
                for size in (1 << 20, 1 << 12, 1):
                    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
                        while file.write(bytes(size)) == size:
                            pass
                time.sleep(seconds)
                filler.unlink(missing_ok=True)
                return
            with contextlib.suppress(psutil.Error, KeyError):
                pids = self.pids()
                store = psutil.Process(pids.get("store") or pids["gateway/main"])
                before = store.rlimit(psutil.RLIMIT_FSIZE)
                store.rlimit(psutil.RLIMIT_FSIZE, (1, before[1]))
                time.sleep(seconds)
                store.rlimit(psutil.RLIMIT_FSIZE, before)
