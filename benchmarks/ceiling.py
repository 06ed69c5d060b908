"""The same job on bare parts: what this machine could do if nothing could ever fail.

One coordinating process (ZeroMQ in an I/O thread, SQLite in another, the graph in a third) and one
worker process; every node's result is committed before its dependents start, as in Agent OS. There
are no actors, leases, epochs, bounds, checks, several proxies, or clients: nothing to recover with.

`python -m benchmarks.ceiling TASKS [IN_FLIGHT]` prints one line of JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import zmq

from benchmarks import children

NEXT = {"n1": ("a", "b", "c"), "a": ("z",), "b": ("z",), "c": ("z",), "z": ()}
NEEDS = {"a": 1, "b": 1, "c": 1, "z": 3}
BATCH = 256
PADDING = "p" * 200
"""What a node answers: as long as a short answer of a model."""

SCHEMA = """CREATE TABLE Progress (task_id INTEGER, node_id TEXT, global_epoch INTEGER,
    regional_epoch INTEGER, result TEXT, PRIMARY KEY (task_id, node_id)) WITHOUT ROWID"""
SAVE = """INSERT INTO Progress VALUES (?, ?, 1, 1, ?) ON CONFLICT (task_id, node_id) DO UPDATE
    SET global_epoch = excluded.global_epoch, result = excluded.result
    WHERE (excluded.global_epoch, excluded.regional_epoch) > (Progress.global_epoch, Progress.regional_epoch)"""


class Row(NamedTuple):
    """One write: of a task's beginning (`accepted`), a node, or its end (`done`)."""

    task: int
    what: str
    value: bytes


class Network(threading.Thread):
    """Owns the socket: takes from a deque, wakes by an eventfd only when it sleeps."""

    def __init__(self, inbox: queue.SimpleQueue[Any]) -> None:
        super().__init__(daemon=True)
        self._inbox = inbox
        self._out: deque[list[bytes]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._asleep = False
        self._socket = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.set_hwm(0)
        self._socket.linger = 0
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")

    def send(self, frames: list[bytes]) -> None:
        self._out.append(frames)
        if self._asleep:
            self._asleep = False
            os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while True:
            for _ in range(min(len(self._out), BATCH)):
                self._socket.send_multipart(self._out.popleft())
            if came := self._receive():
                self._inbox.put(("came", came))
            if came or self._out:
                continue
            self._asleep = True
            if not self._out:
                for source, _ in poller.poll():
                    if source == self._wake:
                        os.eventfd_read(self._wake)
            self._asleep = False

    def _receive(self) -> list[list[bytes]]:
        came: list[list[bytes]] = []
        try:
            while len(came) < BATCH:
                came.append(self._socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            pass
        return came


class Writer(threading.Thread):
    """Commits whatever waits in one transaction, then says what it was."""

    def __init__(self, path: str, inbox: queue.SimpleQueue[Any]) -> None:
        super().__init__(daemon=True)
        self.rows: queue.SimpleQueue[Row] = queue.SimpleQueue()
        self._inbox = inbox
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("PRAGMA wal_autocheckpoint = 4000")
        self._database.execute(SCHEMA)

    def run(self) -> None:
        while True:
            rows = [self.rows.get()]
            try:
                while len(rows) < 1000:
                    rows.append(self.rows.get_nowait())
            except queue.Empty:
                pass
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany(SAVE, rows)
            self._database.execute("COMMIT")
            self._inbox.put(("saved", rows))

    def count(self) -> int:
        """How many rows there are, once nothing waits."""
        return int(self._database.execute("SELECT count(*) FROM Progress").fetchone()[0])


class Coordinator:
    """Walks the graphs; `seconds` and `latencies` are there after `run`."""

    def __init__(self, folder: str) -> None:
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.network = Network(self._inbox)
        self.writer = Writer(str(Path(folder) / "bare.db"), self._inbox)
        self._arrived: dict[int, dict[str, int]] = {}
        self._began: dict[int, float] = {}
        self._worker = b""
        self.latencies: list[float] = []
        self.seconds = 0.0

    def run(self, tasks: int, in_flight: int) -> None:
        self.network.start()
        self.writer.start()
        self._worker = self._inbox.get()[1][0][0]
        self._tasks = iter(range(tasks))
        start = time.perf_counter()
        for _ in range(min(in_flight, tasks)):
            self._submit()
        while len(self.latencies) < tasks:
            what, items = self._inbox.get()
            (self._came if what == "came" else self._saved)(items)
        self.seconds = time.perf_counter() - start
        self.network.send([self._worker, b"stop"])

    def _submit(self) -> None:
        task = next(self._tasks, None)
        if task is not None:
            self._arrived[task] = {}
            self._began[task] = time.perf_counter()
            self.writer.rows.put(Row(task, "accepted", orjson.dumps(NEXT)))

    def _came(self, messages: list[list[bytes]]) -> None:
        for _, body in messages:
            said = orjson.loads(body)
            task, node = said["task_id"], said["row"]
            self.writer.rows.put(Row(task, node, orjson.dumps(said["value"])))
            if node == "z":
                self.writer.rows.put(Row(task, "done", b""))

    def _saved(self, rows: list[Row]) -> None:
        for task, what, _ in rows:
            if what == "accepted":
                self._start(task, "n1")
            elif what == "done":
                self.latencies.append(time.perf_counter() - self._began.pop(task))
                del self._arrived[task]
                self._submit()
            else:
                self._advance(task, what)

    def _advance(self, task: int, node: str) -> None:
        arrived = self._arrived[task]
        for dependent in NEXT[node]:
            arrived[dependent] = arrived.get(dependent, 0) + 1
            if arrived[dependent] == NEEDS[dependent]:
                self._start(task, dependent)

    def _start(self, task: int, node: str) -> None:
        call = {"task_id": task, "row": node, "epoch": [1, 1], "agent": "echo", "prompt": "x"}
        self.network.send([self._worker, orjson.dumps(call)])


def work(address: str) -> None:
    """The worker process: answers each call."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.set_hwm(0)
    socket.connect(address)
    socket.send(b"hello")
    while (body := socket.recv()) != b"stop":
        call = orjson.loads(body)
        answer = {"task_id": call["task_id"], "row": call["row"], "epoch": call["epoch"]}
        socket.send(orjson.dumps(answer | {"value": {"node": call["row"], "text": PADDING}}))
    socket.close(linger=1000)


def measure(tasks: int, in_flight: int) -> dict[str, float]:
    """Run the job; returns tasks per second, and the median milliseconds of one task."""
    with tempfile.TemporaryDirectory(prefix="agentos-bench-") as folder:
        coordinator = Coordinator(folder)
        address = f"tcp://127.0.0.1:{coordinator.network.port}"
        command = [sys.executable, "-m", "benchmarks.ceiling", "--worker", address]
        with subprocess.Popen(command) as worker:
            coordinator.run(tasks, in_flight)
            worker.wait(10)
        if (rows := coordinator.writer.count()) != 7 * tasks:
            raise SystemExit(f"{rows} rows, not {7 * tasks}")
        p50 = 1000 * statistics.median(coordinator.latencies)
        return {"tasks_s": tasks / coordinator.seconds, "p50_ms": p50}


def measured(tasks: int, in_flight: int | None = None) -> dict[str, float]:
    """The same in a fresh process."""
    arguments = map(str, itertools.chain([tasks], [] if in_flight is None else [in_flight]))
    command = [sys.executable, "-m", "benchmarks.ceiling", *arguments]
    figures: dict[str, float] = json.loads(children.output(command))
    return figures


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        work(sys.argv[2])
    else:
        count = int(sys.argv[1])
        print(json.dumps(measure(count, int(sys.argv[2]) if len(sys.argv) > 2 else count)))
