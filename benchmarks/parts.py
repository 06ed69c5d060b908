"""What single parts do: one switch, and the fenced writes of the database."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.limits import Limits
from agentos.registry import Transports, open_database
from agentos.runtime.switch import Switch
from agentos.runtime.wire import JsonCodec
from benchmarks.figures import Figure
from benchmarks.job import WrongCount
from benchmarks.settings import Settings

BODY = "x" * 200
BATCH, WINDOW = 100, 5_000
"""Messages handed over at once, and on their way at most: below the link's high-water mark."""


def measure(settings: Settings) -> list[Figure]:
    """Messages through a switch, and fenced writes: to see which part has become slower."""
    messages, writes = settings.size((20_000, 5_000), (200_000, 50_000))
    rates: list[list[float]] = [[], [], []]
    for _ in settings.each_run("single parts"):
        rates[0].append(switch_messages_per_s(messages))
        rates[1].append(fenced_writes_per_s(writes // 20, 1))
        rates[2].append(fenced_writes_per_s(writes, 100))
    return [
        Figure("parts", "messages of 200 bytes through two switches, tcp", "messages/s", rates[0]),
        Figure("parts", "fenced writes on SQLite, 1 in a transaction", "writes/s", rates[1]),
        Figure("parts", "fenced writes on SQLite, 100 in a transaction", "writes/s", rates[2]),
    ]


def switch_messages_per_s(count: int, url: str = "tcp://127.0.0.1:*") -> float:
    """Messages per second from one switch through a parent's to an actor there, over a socket."""
    limits = Limits()
    transports = Transports(JsonCodec(limits), limits)
    parent, child = Switch(transports, limits, "parent"), Switch(transports, limits, "child")
    window = threading.Semaphore(WINDOW // BATCH)
    done = threading.Event()
    got = 0

    def deliver(batch: list[m.Envelope]) -> None:
        nonlocal got
        before, got = got, got + len(batch)
        if news := got // BATCH - before // BATCH:
            window.release(news)
        if got >= count:
            done.set()

    try:
        parent.attach("sink", deliver)
        address = parent.listen(url)
        child.attach("source", lambda _: None)
        if not child.connect([address]).wait_up(10):
            raise WrongCount("the link has not come up within 10 s")
        start = time.perf_counter()
        for first in range(0, count, BATCH):
            window.acquire()
            say = m.Say(value={"n": first, "body": BODY})
            child.send([m.Envelope("sink", "source", say) for _ in range(BATCH)])
        if not done.wait(60):
            raise WrongCount(f"{count - got} of {count} messages were lost")
        return count / (time.perf_counter() - start)
    finally:
        child.close()
        parent.close()
        transports.close()


def fenced_writes_per_s(count: int, batch: int) -> float:
    """Fenced writes per second on SQLite, `batch` of them in one transaction, fsync included."""
    with tempfile.TemporaryDirectory(prefix="agentos-bench-") as folder:
        database = open_database(f"sqlite:///{Path(folder) / 'bench.db'}")
        try:
            with database.transaction():
                tasks = [
                    database.create_task(0, "bench", "{}", region="region/r1").task_id
                    for _ in range(count // 5)
                ]
            epoch, row = Epoch(1, 0), '{"value": "' + BODY + '"}'
            writes = [(task, f"n{i}") for task in tasks for i in range(5)]
            start = time.perf_counter()
            for first in range(0, len(writes), batch):
                with database.transaction():
                    for task, node in writes[first : first + batch]:
                        database.record(task, epoch, [m.Row(node, row)])
            return len(writes) / (time.perf_counter() - start)
        finally:
            database.close()
