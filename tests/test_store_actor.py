"""The store's shell: group commit, and whom a failure concerns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pykka
import pytest
from structlog.testing import capture_logs

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import StorageError
from agentos.registry import open_database
from agentos.runtime import actors
from agentos.runtime.actors import StoreActor
from agentos.runtime.mailbox import Batch
from agentos.runtime.switch import Switch
from agentos.testing.transport_recorder import eventually
from tests.switches import net

GRAPH = '{"nodes": {"a": {"agent": "echo", "prompt": "x"}}}'


class Watched:
    """A real database that writes down when its transactions begin and end, and may fail."""

    def __init__(self, path: Path, log: list[str]) -> None:
        self._database = open_database(f"sqlite:///{path}/store.db")
        self._log = log
        self.entered = threading.Event()
        self.proceed = threading.Event()
        self.proceed.set()
        self.fail: Callable[[m.Claim], Exception | None] = lambda claim: None
        self.depth = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.entered.set()
        assert self.proceed.wait(10)
        try:
            with self._database.transaction():
                self._log.append("begin")
                yield
        except BaseException:
            self._log.append("rollback")
            raise
        self._log.append("commit")

    def close(self) -> None:
        self._database.close()
        self._log.append("close")

    def claim(self, claim: m.Claim) -> m.Claimed:
        self._log.append(f"claim {claim.task_id}")
        if (error := self.fail(claim)) is not None:
            raise error
        return self._database.claim(claim)


@pytest.fixture(autouse=True)
def long_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits together is handled together, however slow the machine is."""
    monkeypatch.setattr(actors, "TURN_S", 60.0)


@pytest.fixture
def switch() -> Iterator[Switch]:
    with net() as made:
        yield made.switch("actors")
        pykka.ActorRegistry.stop_all(timeout=5)


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def database(tmp_path: Path, log: list[str]) -> Watched:
    return Watched(tmp_path, log)


@pytest.fixture
def store(switch: Switch, database: Watched, log: list[str]) -> pykka.ActorRef[StoreActor]:
    for _ in range(6):
        database.create_task(1, "graph", GRAPH, agents=["echo"])
    actor = StoreActor.start(database, switch)
    switch.attach(m.STORE, actor.actor_inbox.deliver)  # type: ignore[attr-defined]

    def answered(batch: Batch) -> None:
        for e in batch:
            what = e.message.code if isinstance(e.message, m.Refused) else type(e.message).__name__
            log.append(f"answer {e.ref} {what}")

    switch.attach("gateway/a", answered)
    return actor


def claims(*tasks: int) -> Batch:
    return [
        m.Envelope(
            m.STORE,
            "gateway/a",
            m.Claim(
                task_id=task,
                expected=Epoch(0, 0),
                scope="global",
                claimant="gateway/a",
                region="region/eu",
            ),
            str(task),
        )
        for task in tasks
    ]


def answers(log: list[str]) -> list[str]:
    return [line.removeprefix("answer ") for line in log if line.startswith("answer")]


def test_what_waits_is_one_commit(
    store: Any, switch: Switch, database: Watched, log: list[str]
) -> None:
    """Messages that wait together are one transaction, and no answer leaves before its commit."""
    database.proceed.clear()
    switch.send(claims(1))
    assert database.entered.wait(10)  # the store is busy with the first; the others pile up
    for task in (2, 3, 4, 5):
        switch.send(claims(task))
    database.proceed.set()
    eventually(lambda: len(answers(log)) == 5)
    assert log == [
        "begin", "claim 1", "commit", "answer 1 Claimed",
        "begin", "claim 2", "claim 3", "claim 4", "claim 5", "commit",
        "answer 2 Claimed", "answer 3 Claimed", "answer 4 Claimed", "answer 5 Claimed",
    ]  # fmt: skip


def test_one_that_fails_does_not_spoil_the_others(
    store: Any, switch: Switch, database: Watched, log: list[str]
) -> None:
    """When the transaction fails, each message is tried alone, and only the bad one is refused."""
    database.fail = lambda claim: StorageError("bad block") if claim.task_id == 2 else None
    switch.send(claims(1, 2, 3))
    eventually(lambda: len(answers(log)) == 3)
    assert answers(log) == ["1 Claimed", "2 storage", "3 Claimed"]
    assert log[:4] == ["begin", "claim 1", "claim 2", "rollback"]
    assert log.count("commit") == 2
    assert [database.get_task(task).epoch.global_epoch for task in (1, 2, 3)] == [1, 0, 1]
    assert switch.counters["storage_failures"] == 1


def test_a_batch_that_fails_as_a_whole_is_told_of(
    store: Any, switch: Switch, database: Watched, log: list[str]
) -> None:
    """A fault that only many messages together show costs no answer, but is in the log."""
    seen: set[int] = set()

    def fail_once(claim: m.Claim) -> Exception | None:
        again = claim.task_id in seen
        seen.add(claim.task_id)
        return ZeroDivisionError("together") if claim.task_id == 2 and not again else None

    database.fail = fail_once
    with capture_logs() as logs:
        switch.send(claims(1, 2, 3))
        eventually(lambda: len(answers(log)) == 3)
    assert answers(log) == ["1 Claimed", "2 Claimed", "3 Claimed"]
    (told,) = [entry for entry in logs if entry["event"] == "batch_failed"]
    assert (told["messages"], told["error"], told["exc_info"]) == (2, "together", True)
    assert switch.counters["batch_failures"] == 1


def test_a_refusal_says_when_to_try_again(store: Any, switch: Switch, database: Watched) -> None:
    """Whoever asks a store that cannot write hears why, and after which time to ask again."""
    database.fail = lambda claim: StorageError("disk full")
    refused: list[m.Envelope] = []
    switch.attach("gateway/b", refused.extend)
    (mine,) = claims(1)
    claim = msgspec.structs.replace(mine.message, claimant="gateway/b")  # type: ignore[type-var]
    switch.send([m.Envelope(m.STORE, "gateway/b", claim, "7")])
    eventually(lambda: len(refused) == 1)
    assert refused[0].ref == "7"
    assert refused[0].message == m.Refused(code="storage", reason="disk full", retry_after_s=1.0)
    database.fail = lambda claim: None
    switch.send([m.Envelope(m.STORE, "gateway/b", claim, "8")])
    eventually(lambda: len(refused) == 2)
    assert isinstance(refused[1].message, m.Claimed)


def test_a_request_that_breaks_the_store_is_refused(
    store: pykka.ActorRef[StoreActor], switch: Switch, database: Watched, log: list[str]
) -> None:
    """A fault in the code behind one request is that request's; the store serves on."""
    database.fail = lambda claim: ZeroDivisionError() if claim.task_id == 2 else None
    switch.send(claims(1, 2, 3))
    eventually(lambda: len(answers(log)) == 3)
    assert answers(log) == ["1 Claimed", "2 storage", "3 Claimed"]
    assert store.is_alive()
    assert switch.counters["machine_failures"] == 1


def test_a_domain_error_keeps_the_transaction(
    store: Any, switch: Switch, database: Watched, log: list[str]
) -> None:
    """A request that is refused by the rules (no such task) does not undo its neighbours."""
    switch.send(
        [*claims(1), m.Envelope(m.STORE, "gateway/a", m.GetTask(task_id=99), "99"), *claims(2)]
    )
    eventually(lambda: len(answers(log)) == 3)
    assert answers(log) == ["1 Claimed", "99 task_not_found", "2 Claimed"]
    assert log.count("commit") == 1


def test_stopping_releases_the_database(
    store: pykka.ActorRef[StoreActor], log: list[str], tmp_path: Path
) -> None:
    """After a stop the file is closed, with everything that was committed in it."""
    store.stop(timeout=10)
    assert log[-1] == "close"
    again = open_database(f"sqlite:///{tmp_path}/store.db")
    assert len(again.list_tasks()) == 6
    again.close()
