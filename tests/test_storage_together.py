"""Records that are written together: for less than one by one, and with nothing else changed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import AgentOSError
from agentos.core.limits import Limits
from agentos.core.store import StoreMachine
from agentos.storage import Database, values
from agentos.storage.database import SQLiteDatabase
from agentos.storage.memory import MemoryDatabase
from agentos.testing.storage_steps import OWNER, REGION, claim_regional, create, run
from tests.test_storage_sqlite_schema import traced

together = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

OTHER = "proxy/a/2"
TASKS = 8
"""Of `world`; two ids more are nobody's."""
EPOCHS = st.sampled_from([Epoch(1, 1)] * 12 + [Epoch(1, 2), Epoch(1, 0), Epoch(9, 9)])
WRITERS = st.sampled_from([OWNER] * 12 + [OTHER, ""])
NODES = st.sampled_from(["a", "b", "c", "d", "e"] * 3 + ["old", "newer", ""])
ROWS = st.lists(st.builds(m.Row, NODES, st.sampled_from(["1", "2", "2", "x\0"])), max_size=3)
ENDS = st.sampled_from([None, None, m.End("succeeded", '"r"'), m.End("failed", '"r"', "why")])
RECORDS = st.builds(
    lambda task_id, epoch, rows, end: m.Record(
        task_id=task_id, epoch=epoch, rows=tuple(rows), end=end
    ),
    st.integers(1, TASKS + 1), EPOCHS, ROWS, ENDS,
)  # fmt: skip
FRESH = st.builds(
    lambda task_id, node, end: m.Record(
        task_id=task_id, epoch=Epoch(1, 1), rows=(m.Row(node, "1"), m.Row("z", "1")), end=end
    ),
    st.integers(1, 5), st.sampled_from("abc"), ENDS,
)  # fmt: skip


def batches(record: st.SearchStrategy[m.Record]) -> st.SearchStrategy[list[tuple[str, m.Record]]]:
    """Batches of writers' records, mostly of a task each."""
    pairs = st.tuples(WRITERS, record)
    different = st.lists(pairs, max_size=6, unique_by=lambda pair: pair[1].task_id)
    return different | st.lists(pairs, max_size=6)


BATCHES = st.lists(batches(RECORDS) | batches(FRESH), min_size=1, max_size=3)


def world(database: Database) -> None:
    """Tasks: five that run, two of them with rows; one taken over, one ended, one nobody's."""
    for _ in range(TASKS - 1):
        run(database)
    create(database, region=REGION, claimant="gateway")
    database.save_progress(2, "a", 1, 1, "1")
    database.save_progress(3, "old", 1, 1, "1")
    database.save_progress(6, "a", 1, 1, "1")
    claim_regional(database, 6, Epoch(1, 1), owner=OTHER)
    database.record(7, Epoch(1, 1), [m.Row("a", "1")], m.End("succeeded", '"r"'))


@contextmanager
def sqlite() -> Iterator[SQLiteDatabase]:
    """A database with that world, and rows that foreign SQL wrote under older and newer epochs."""
    with tempfile.TemporaryDirectory() as directory:
        database = SQLiteDatabase(f"sqlite:///{directory}/tasks.db", clock=lambda: 0.0)
        database._execute("PRAGMA synchronous = OFF", ())  # no power is cut here
        with database.transaction():
            world(database)
        for node, epoch in (("old", 0), ("newer", 9)):
            row = (4, node, epoch, epoch, "1")
            database._rows("INSERT INTO Progress VALUES (?, ?, ?, ?, ?)", row)
        yield database
        database.close()


def told(answers: list[Any]) -> list[Any]:
    """Answers as they can be compared: errors by class and words."""
    return [(type(a), str(a)) if isinstance(a, AgentOSError) else a for a in answers]


def everything(database: SQLiteDatabase) -> list[list[tuple[Any, ...]]]:
    """Every row of every table."""
    tables = ("Documents", "Tasks", "Progress", "Unfinished")
    return [database._rows(f"SELECT * FROM {table} ORDER BY 1, 2", ()) for table in tables]


@together
@given(batches=BATCHES, in_one=st.booleans())
def test_together_is_as_one_by_one(batches: list[list[tuple[str, m.Record]]], in_one: bool) -> None:
    """Fresh, repeated, stale, foreign, ended, broken: the same answers, and the same rows."""
    careful = patch.object(SQLiteDatabase, "_add", return_value=False)  # judges step by step
    with sqlite() as one, sqlite() as other:
        for records in batches:
            if in_one:
                with one.transaction():
                    answers = one.record_all(records)
            else:
                answers = one.record_all(records)
            with careful:
                expected = values.one_by_one(other.record, records)
            assert told(answers) == told(expected)
            assert everything(one) == everything(other)


def test_new_rows_of_many_tasks_are_one_statement() -> None:
    """What is all new is written by one INSERT, whatever the number of tasks and rows."""
    with sqlite() as database, database.transaction():
        records = [
            (OWNER, m.Record(task_id=i, epoch=Epoch(1, 1), rows=(m.Row("x", "1"), m.Row("y", "1"))))
            for i in range(1, 6)
        ]
        statements = traced(database, lambda: database.record_all(records))
    assert [s.split("(")[0].strip() for s in statements] == [
        "SAVEPOINT added", "INSERT INTO Progress", "RELEASE added",
    ]  # fmt: skip


GATEWAY, NEWCOMER = "gateway/a", "proxy/a/9"
"""The owner of new tasks writes nothing in the turn that creates them: it has yet to be told."""
SENT = st.one_of(
    st.tuples(WRITERS.filter(bool), RECORDS | FRESH),
    st.tuples(WRITERS.filter(bool), FRESH),
    st.tuples(st.just(GATEWAY), st.builds(
        lambda task_id: m.CancelTask(task_id=task_id), st.integers(1, TASKS)
    )),
    st.tuples(st.just(GATEWAY), st.builds(
        lambda task_id: m.GetTask(task_id=task_id), st.integers(1, TASKS)
    )),
    st.tuples(st.just(REGION), st.builds(
        lambda task_id: m.Claim(task_id=task_id, expected=Epoch(1, 1), scope="regional",
                                claimant=REGION, region=REGION, owner=OTHER),
        st.integers(1, TASKS),
    )),
    st.tuples(st.just(GATEWAY), st.builds(
        lambda key, owner: m.CreateTask(
            user_id=1, task_type="graph", task_description="{}", key=key,
            agents=(), priority=0, claimant=GATEWAY, region=REGION, owner=owner),
        st.sampled_from(["k", "l"]), st.sampled_from(["", NEWCOMER]),
    )),
)  # fmt: skip


@together
@given(sent=st.lists(SENT, max_size=12), real=st.booleans())
def test_a_turn_of_the_store_is_as_one_by_one(
    sent: list[tuple[str, m.Message]], real: bool
) -> None:
    """Whatever comes in one turn is answered as if each had come alone, in the order of arrival.

    But for one thing that nobody can rely on, as two senders' messages have no order: a record of a
    task that does not exist yet is refused in other words once the task was created.
    """
    envelopes = [m.Envelope(m.STORE, sender, q, f"r{i}") for i, (sender, q) in enumerate(sent)]
    known = m.Envelope(m.STORE, GATEWAY, m.CountTasks())
    with sqlite() as one, sqlite() as other:
        pair: tuple[Database, Database] = (one, other)
        if not real:
            pair = MemoryDatabase(clock=lambda: 0.0), MemoryDatabase(clock=lambda: 0.0)
            world(pair[0])
            world(pair[1])
        machines = [StoreMachine(database, Limits()) for database in pair]
        for machine in machines:
            machine.handle(known, 0.0)
        at_once = machines[0].handle_all(iter(envelopes), 0.0)
        apart = [send for e in envelopes for send in machines[1].handle(e, 0.0)]
        for address in (OWNER, OTHER, REGION, GATEWAY):
            mine, theirs = (
                [unborn(s) for s in sends if s.to == address and s.ref]
                for sends in (at_once, apart)
            )
            assert mine == theirs
        assert news(at_once, m.Ended) == news(apart, m.Ended)
        assert news(at_once, m.Run) == news(apart, m.Run)
        for task_id in range(1, TASKS + 3):
            assert pair[0].get_task(task_id) == pair[1].get_task(task_id)
            assert pair[0].get_progress_list(task_id) == pair[1].get_progress_list(task_id)


def unborn(send: m.Send) -> m.Send:
    """The answer; a refusal without its reason, if the task did not exist when the turn began."""
    answer = send.message
    if isinstance(answer, m.Recorded) and answer.task_id > TASKS:
        assert answer.outcome == "stale"
        return m.Send(send.to, m.Refused(code="", reason=""), send.ref)
    if isinstance(answer, m.Refused) and answer.reason.startswith(f"task {TASKS + 1} is held by"):
        assert answer.code == "not_the_owner"
        return m.Send(send.to, m.Refused(code="", reason=""), send.ref)
    return send


def news(sends: list[m.Send], kind: type[m.Message]) -> list[str]:
    """What others are told of what was committed: ends, and whose a task is."""
    return sorted(repr(send) for send in sends if isinstance(send.message, kind))
