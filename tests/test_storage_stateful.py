"""SQLite against the in-memory model: every outcome and the whole observable state, step by step.

Two gateways, two regions and their proxies claim, save, end and cancel in any order, with the
epochs that they hold, held once, or made up; groups of steps share a transaction, which may be
rolled back. What must never happen is checked after every step, on what SQLite holds.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import AgentOSError
from agentos.storage import Database
from agentos.storage.database import SQLiteDatabase
from agentos.storage.memory import MemoryDatabase
from agentos.testing.storage_steps import claim_regional

GATEWAYS = st.sampled_from(["gateway", "gateway/2"])
REGIONS = st.sampled_from(["region/a", "region/a", "region/a", "region/b", ""])
OWNERS = st.sampled_from(["proxy/a/1", "proxy/b/1"])
WRITERS = st.sampled_from(["", "proxy/a/1", "proxy/a/1", "proxy/b/1"])
TEXTS = st.sampled_from(["{}", "{}", "{}", "[1]", "ä漢", "x" * 100, "a\0"])
AGENTS = st.sampled_from([(), ("a",), ("a", "b")])
NODES = st.sampled_from(["a", "b", "c", "c/0/s0"])
ROWS = st.lists(st.builds(m.Row, NODES, TEXTS), max_size=3)
ENDS = st.none() | st.builds(m.End, st.sampled_from(["succeeded", "failed"]), TEXTS)


class Rollback(Exception):
    """Leaves a transaction without committing it."""


class TwoDatabases(RuleBasedStateMachine):
    """Each step on both; they must never differ, and never break a promise."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.directory = Path(tempfile.mkdtemp())
        self.real = SQLiteDatabase(self.url, clock=lambda: self.now)
        self.model = MemoryDatabase(clock=lambda: self.now)
        self.open: list[Any] = []
        self.seen: dict[int, m.TaskInfo] = {}
        self.issued: dict[tuple[int, Epoch], tuple[str, str, str]] = {}
        self.marks: list[tuple[dict[int, m.TaskInfo], dict[Any, Any]]] = []

    @property
    def url(self) -> str:
        return f"sqlite:///{self.directory}/tasks.db"

    def teardown(self) -> None:
        while self.open:
            self.leave_transaction(commit=True)
        self.real.close()
        self.model.close()
        shutil.rmtree(self.directory)

    def both(self, step: Callable[[Database], Any]) -> Any:
        """Do a step on both; return the outcome, or the class of the error, that both had."""
        self.now += 1
        outcomes = []
        for database in (self.real, self.model):
            try:
                outcomes.append(step(database))
            except AgentOSError as error:
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]
        return outcomes[0]

    def pick(self, data: st.DataObject) -> tuple[int, Epoch]:
        """A task, rarely one that is not there, and an epoch: held, old, or made up."""
        tasks = sorted(self.seen) or [1]
        task_id = data.draw(st.sampled_from([*tasks, tasks[-1] + 1]), "task")
        current = self.seen[task_id].epoch if task_id in self.seen else Epoch()
        g, r = current.global_epoch, current.regional_epoch
        near = [current] * 8 + [
            Epoch(g, max(r - 1, 0)), Epoch(max(g - 1, 0), r + 3), Epoch(g, r + 1), Epoch(g + 1, 0),
        ]  # fmt: skip
        return task_id, data.draw(st.sampled_from(near), "epoch")

    # -- the steps ---------------------------------------------------------------------------------

    @initialize(agents=AGENTS)
    def first_task(self, agents: tuple[str, ...]) -> None:
        self.both(lambda db: db.create_task(0, "graph", "{}", agents=agents, region="region/a"))
        self.both(lambda db: claim_regional(db, 1, Epoch(1, 0)))

    @rule(
        user_id=st.integers(0, 1),
        text=TEXTS,
        key=st.none() | st.sampled_from(["k", "l"]),
        agents=AGENTS,
        priority=st.integers(-1, 1),
        region=REGIONS,
        owner=st.just("") | OWNERS,
        gateway=GATEWAYS,
    )
    def create(self, user_id: int, text: str, gateway: str, **options: Any) -> None:
        self.both(lambda db: db.create_task(user_id, "graph", text, claimant=gateway, **options))

    @rule(data=st.data(), gateway=GATEWAYS, region=REGIONS)
    def claim_global(self, data: st.DataObject, gateway: str, region: str) -> None:
        self.claim(data, scope="global", claimant=gateway, region=region)

    @rule(data=st.data(), region=REGIONS, owner=OWNERS)
    def claim_regional(self, data: st.DataObject, region: str, owner: str) -> None:
        self.claim(data, scope="regional", claimant=region, region=region, owner=owner)

    def claim(self, data: st.DataObject, **options: Any) -> None:
        task_id, expected = self.pick(data)
        lost = data.draw(st.booleans())
        claim = m.Claim(task_id=task_id, expected=expected, lost=lost, **options)
        claimed = self.both(lambda db: db.claim(claim))
        if isinstance(claimed, m.Claimed) and claimed.granted:
            assert claimed.epoch > expected
            holder = (claim.claimant, claimed.region, claimed.owner)
            assert self.issued.setdefault((task_id, claimed.epoch), holder) == holder
            assert self.both(lambda db: db.claim(claim)) == claimed

    @rule(data=st.data(), rows=ROWS, end=ENDS, writer=WRITERS)
    def record(
        self, data: st.DataObject, rows: list[m.Row], end: m.End | None, writer: str
    ) -> None:
        task_id, epoch = self.pick(data)
        before = self.real.get_progress_list(task_id)
        task = self.seen.get(task_id)
        done = self.both(lambda db: db.record(task_id, epoch, rows, end, writer=writer))
        outcome = getattr(done, "outcome", "error")
        if outcome == "applied":
            assert task is not None
            assert task.epoch == epoch
            assert task.state not in m.TERMINAL
            again = self.both(lambda db: db.record(task_id, epoch, rows, end, writer=writer))
            assert again.outcome == "duplicate"
        else:
            assert self.real.get_progress_list(task_id) == before

    @precondition(lambda self: self.running())
    @rule(data=st.data(), rows=st.lists(NODES, min_size=1, max_size=4))
    def owner_records(self, data: st.DataObject, rows: list[str]) -> None:
        task = data.draw(st.sampled_from(self.running()), "task")
        new = [m.Row(node, f"{i}") for i, node in enumerate(rows)]
        done = self.both(lambda db: db.record(task.task_id, task.epoch, new, writer=task.owner))
        assert done.outcome != "stale"

    def running(self) -> list[m.TaskInfo]:
        return [task for task in self.seen.values() if task.state == "running"]

    @rule(data=st.data(), text=TEXTS, deletes=st.booleans())
    def change_progress(self, data: st.DataObject, text: str, deletes: bool) -> None:
        task_id, epoch = self.pick(data)
        if deletes:
            self.both(lambda db: db.delete_progress(task_id, "a"))
        else:
            self.both(lambda db: db.save_progress(
                task_id, "a", epoch.global_epoch, epoch.regional_epoch, text
            ))  # fmt: skip

    @rule(data=st.data(), text=TEXTS)
    def update(self, data: st.DataObject, text: str) -> None:
        task_id, epoch = self.pick(data)
        self.both(lambda db: db.update_task_type(task_id, text))
        self.both(lambda db: db.update_task_description(
            task_id, epoch.global_epoch, epoch.regional_epoch, text
        ))  # fmt: skip

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task_id, _ = self.pick(data)
        self.both(lambda db: db.cancel_task(task_id))

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        task_id, _ = self.pick(data)
        if self.both(lambda db: db.delete_task(task_id)) is True:
            assert self.seen.pop(task_id).state in m.TERMINAL

    @rule(data=st.data(), text=TEXTS)
    def documents(self, data: st.DataObject, text: str) -> None:
        stored = self.both(lambda db: db.store_document("note", text))
        last = stored if isinstance(stored, int) else 3
        doc_id = data.draw(st.integers(1, last), "document")
        self.both(lambda db: db.delete_document(doc_id))

    @rule(
        region=REGIONS,
        agents=st.none() | AGENTS,
        user_id=st.none() | st.integers(0, 1),
        state=st.sampled_from([None, "accepted", "running", "succeeded", "failed", "cancelled"]),
        after=st.integers(0, 3),
        limit=st.integers(1, 4),
    )
    def query(self, region: str, agents: Any, user_id: Any, state: Any, **page: int) -> None:
        after, limit = page["after"], page["limit"]
        self.both(lambda db: db.count_unfinished())
        self.both(lambda db: db.find_tasks(region, agents=agents, limit=limit))
        self.both(lambda db: db.find_tasks(region, agents=agents, after=after, limit=limit))
        self.both(lambda db: db.list_tasks(user_id=user_id, state=state, before=after, limit=limit))

    # -- transactions, and a restart ---------------------------------------------------------------

    @precondition(lambda self: len(self.open) < 2)
    @rule()
    def enter_transaction(self) -> None:
        pair = (self.real.transaction(), self.model.transaction())
        for transaction in pair:
            transaction.__enter__()
        self.open.append(pair)
        self.marks.append((dict(self.seen), dict(self.issued)))

    @precondition(lambda self: self.open)
    @rule(commit=st.booleans())
    def leave_transaction(self, commit: bool) -> None:
        mark = self.marks.pop()
        for transaction in self.open.pop():
            if commit:
                transaction.__exit__(None, None, None)
            else:
                assert not transaction.__exit__(Rollback, Rollback(), None), "it was swallowed"
        if not commit:
            self.seen, self.issued = mark

    @precondition(lambda self: not self.open)
    @rule()
    def reopen(self) -> None:
        self.real.close()
        self.real = SQLiteDatabase(self.url, clock=lambda: self.now)

    # -- what must hold after every step -----------------------------------------------------------

    @invariant()
    def nothing_differs(self) -> None:
        tasks = self.both(lambda db: db.list_tasks())
        self.both(lambda db: db.count_unfinished())
        for task in tasks:
            self.both(lambda db, i=task.task_id: db.get_task(i))
            self.both(lambda db, i=task.task_id: db.get_task_description(i))
            self.both(lambda db, i=task.task_id: db.get_progress_list(i))
        self.both(lambda db: [db.get_document(i) for i in range(1, 3 * len(tasks) + 4)])
        self.promises_are_kept(tasks)

    def promises_are_kept(self, tasks: list[m.TaskInfo]) -> None:
        for task in tasks:
            before = self.seen.get(task.task_id, task)
            assert task.epoch >= before.epoch, "the epoch of a task went back"
            if before.state in m.TERMINAL:
                assert task == before, "a task that had ended was changed"
            for row in self.real.get_progress_list(task.task_id):
                assert row.epoch <= task.epoch, "a row was written under a made-up epoch"
            self.seen[task.task_id] = task


TwoDatabases.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.timeout(400)  # a failure is made small first, which may take five minutes
class TestTwoDatabases(TwoDatabases.TestCase):
    """Whatever happens, in whatever order, SQLite does what the model does."""
