"""What single parts do: one switch, and the fenced writes of the database."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.limits import Limits
from agentos.core.ports import Database
from agentos.registry import Transports, open_database
from agentos.runtime.switch import Switch
from agentos.runtime.wire import JsonCodec
from benchmarks.figures import Figure
from benchmarks.job import WrongCount
from benchmarks.settings import Settings

BODY = "x" * 200
REGION, OWNER = "region/r1", "proxy/r1/1"
BATCH, WINDOW = 100, 5_000
"""Messages handed over at once, and on their way at most: below the link's high-water mark."""


def measure(settings: Settings) -> list[Figure]:
    """Messages through a switch, and fenced writes: to see which part has become slower."""
    messages, writes = settings.size((20_000, 5_000), (200_000, 50_000))
    titles = {
        "messages of 200 bytes through two switches, tcp": "messages/s",
        "fenced writes on SQLite, 1 in a transaction": "writes/s",
        "fenced writes on SQLite, 100 in a transaction": "writes/s",
    }

    def once() -> dict[str, float]:
        rates = (
            switch_messages_per_s(messages),
            fenced_writes_per_s(writes // 20, 1),
            fenced_writes_per_s(writes, 100),
        )
        return dict(zip(titles, rates, strict=True))

    found = settings.repeat("single parts", once)
    return [Figure("parts", title, unit, found[title]) for title, unit in titles.items()]


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
                tasks = [_claimed(database) for _ in range(count // 5)]
            epoch, row = Epoch(1, 1), '{"value": "' + BODY + '"}'
            writes = [(task, f"n{i}") for task in tasks for i in range(5)]
            start = time.perf_counter()
            for first in range(0, len(writes), batch):
                with database.transaction():
                    for task, node in writes[first : first + batch]:
                        saved = database.record(task, epoch, [m.Row(node, row)], writer=OWNER)
                        if saved.outcome != "applied":
                            raise WrongCount(f"a write was {saved.outcome}, not applied")
            return len(writes) / (time.perf_counter() - start)
        finally:
            database.close()


def _claimed(database: Database) -> int:
    """A new task, claimed by its region for a proxy, as one is before anything is written of it."""
    task = database.create_task(0, "bench", "{}", region=REGION).task_id
    claim = m.Claim(
        task_id=task,
        expected=Epoch(1, 0),
        scope="regional",
        claimant=REGION,
        region=REGION,
        owner=OWNER,
    )
    if not database.claim(claim).granted:
        raise WrongCount("a claim was not granted")
    return task
