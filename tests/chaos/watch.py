"""What the database says while the campaign runs, read by a connection of the campaign's own.

Nothing that was recorded may change: epochs only grow, rows stay as they were first seen, an end
is the end. It also learns when a task changes hands, and when a row is first there.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from pathlib import Path
from typing import NamedTuple

ENDED = frozenset({"succeeded", "failed", "cancelled"})
LOOK_S = 0.05
"""How often it looks: the precision of every time that is learnt here."""


class Row(NamedTuple):
    """A task's row."""

    owner: str
    epoch: tuple[int, int]
    state: str


class Change(NamedTuple):
    """A task's row changed its epoch; it was seen at `at`, and not yet `LOOK_S` before."""

    at: float
    row: Row


class Watch(threading.Thread):
    """Looks at the database until it is told to stop.

    Args:
        file: the SQLite file.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(name="watch", daemon=True)
        self.faults: list[str] = []
        self.changes: dict[int, list[Change]] = {}
        """By task: every epoch that was seen, with its owner."""
        self.saved: dict[tuple[int, str], float] = {}
        """By task and row: when it was first seen."""
        self._file = file
        self._results: dict[tuple[int, str], int] = {}
        self._rows: dict[int, Row] = {}
        self._low = 0
        self._lock = threading.Lock()
        self._halt = threading.Event()

    def owned(self, owner: str) -> dict[int, tuple[int, int]]:
        """The unfinished tasks of a proxy, with their epochs."""
        with self._lock:
            return {
                task_id: row.epoch
                for task_id, row in self._rows.items()
                if row.owner == owner and row.state not in ENDED
            }

    def of_region(self, region: str) -> dict[int, tuple[int, int]]:
        """The unfinished tasks of a region's proxies, with their epochs."""
        with self._lock:
            return {
                task_id: row.epoch
                for task_id, row in self._rows.items()
                if row.owner.startswith(f"proxy/{region}/") and row.state not in ENDED
            }

    def stop(self) -> None:
        """Look once more, and end."""
        self._halt.set()
        self.join(30)

    def run(self) -> None:
        """Look, until `stop`."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self._file}?mode=ro", uri=True, timeout=30)
        ) as db:
            last = False
            while not last:
                last = self._halt.wait(LOOK_S)
                with contextlib.suppress(sqlite3.OperationalError):
                    self._look(db)

    def _look(self, db: sqlite3.Connection) -> None:
        tasks = db.execute(
            "SELECT task_id, owner, global_epoch, regional_epoch, state FROM Tasks "
            "WHERE task_id > ? ORDER BY task_id",
            (self._low,),
        ).fetchall()
        saved = db.execute(
            "SELECT task_id, node_id, result FROM Progress WHERE task_id > ?", (self._low,)
        ).fetchall()
        now = time.monotonic()
        for task_id, node_id, result in saved:
            key = (task_id, node_id)
            self.saved.setdefault(key, now)
            if self._results.setdefault(key, hash(result)) != hash(result):
                self.faults.append(f"row {node_id} of task {task_id} was recorded twice")
        with self._lock:
            for task_id, owner, global_, regional, state in tasks:
                self._see(task_id, Row(owner, (global_, regional), state), now)
        for task_id, *_, state in tasks:
            if state not in ENDED:
                break
            self._low = task_id

    def _see(self, task_id: int, row: Row, now: float) -> None:
        before = self._rows.get(task_id)
        self._rows[task_id] = row
        if before is None or before.epoch != row.epoch:
            self.changes.setdefault(task_id, []).append(Change(now, row))
        if before is None:
            return
        if row.epoch < before.epoch:
            self.faults.append(f"task {task_id} went back from {before.epoch} to {row.epoch}")
        if before.state in ENDED and row != before:
            self.faults.append(f"task {task_id} was {before}, is {row}")
