"""The tables that SQLite holds: the specification's SQL works, and every query has its index."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import UnissuedEpoch
from agentos.storage.database import SQLiteDatabase
from agentos.testing.storage_steps import OWNER, REGION, claim_regional, create, run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def database(path: Path) -> Iterator[SQLiteDatabase]:
    database = SQLiteDatabase(f"sqlite:///{path}")
    yield database
    database.close()


@pytest.fixture
def raw(database: SQLiteDatabase, path: Path) -> Iterator[sqlite3.Connection]:
    """The same file through Python's own module, as somebody with the specification would use it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    yield connection
    connection.close()


def traced(database: SQLiteDatabase, work: Callable[[], object]) -> list[str]:
    """The statements that some work consists of; one that fires a trigger is traced again for it."""
    statements: list[str] = []
    connection = database._connection.connection()
    connection.set_trace_callback(statements.append)
    work()
    connection.set_trace_callback(None)
    return [statement for statement, _ in itertools.groupby(statements)]


# -- the specification's SQL -----------------------------------------------------------------------


def test_specified_columns(raw: sqlite3.Connection) -> None:
    """The tables have the specification's columns with its types and keys."""
    specified = {
        "Documents": [("doc_id", "INTEGER", 1), ("doc_type", "TEXT", 0), ("doc_content", "TEXT", 0)],
        "Tasks": [
            ("task_id", "INTEGER", 1), ("user_id", "INTEGER", 0), ("task_type", "TEXT", 0),
            ("global_epoch", "INTEGER", 0), ("regional_epoch", "INTEGER", 0),
            ("task_description", "TEXT", 0),
        ],
        "Progress": [
            ("task_id", "INTEGER", 1), ("node_id", "TEXT", 2), ("global_epoch", "INTEGER", 0),
            ("regional_epoch", "INTEGER", 0), ("result", "TEXT", 0),
        ],
    }  # fmt: skip
    for table, columns in specified.items():
        there = [(c[1], c[2], c[5]) for c in raw.execute(f"PRAGMA table_info({table})")]
        assert set(columns) <= set(there)
    [foreign_key] = raw.execute("PRAGMA foreign_key_list(Progress)")
    assert foreign_key[2:5] == ("Tasks", "task_id", "task_id")


def test_specified_sql_works(database: SQLiteDatabase, raw: sqlite3.Connection) -> None:
    """SQL that knows only the specification's columns works, and we work on what it wrote."""
    raw.execute("INSERT INTO Documents(doc_type, doc_content) VALUES ('request', '{}')")
    raw.execute(
        "INSERT INTO Tasks(user_id, task_type, global_epoch, regional_epoch, task_description) "
        "VALUES (1, 'graph', 1, 2, '{}')"
    )
    upsert = (
        "INSERT INTO Progress(task_id, node_id, global_epoch, regional_epoch, result) "
        "VALUES (1, 'n1', ?, ?, ?) ON CONFLICT(task_id, node_id) DO UPDATE SET "
        "global_epoch = excluded.global_epoch, regional_epoch = excluded.regional_epoch, "
        "result = excluded.result"
    )
    raw.execute(upsert, (1, 0, "1"))
    raw.execute(upsert, (1, 1, "2"))
    assert database.get_progress(1, "n1") == m.SavedRow("n1", Epoch(1, 1), "2")
    assert [task.task_id for task in database.find_tasks("")] == [1]
    assert database.save_progress(1, "n1", 1, 2, "3").outcome == "applied"
    assert database.cancel_task(1).epoch == Epoch(2, 0)
    assert raw.execute("SELECT result FROM Progress WHERE task_id = 1").fetchall() == [("3",)]


def test_unknown_task_has_no_progress(raw: sqlite3.Connection) -> None:
    """The database itself refuses progress of a task that is not there, and a wrong type."""
    for task_id, epoch in ((1, 0), ("one", 0), (1, "new"), (1, -1)):
        with pytest.raises(sqlite3.IntegrityError):
            raw.execute("INSERT INTO Progress VALUES (?, 'n', ?, 0, '{}')", (task_id, epoch))


def test_row_of_a_made_up_epoch_is_not_overwritten(
    database: SQLiteDatabase, raw: sqlite3.Connection
) -> None:
    """A row that foreign SQL wrote under a newer epoch makes the owner's record stale, whole."""
    task_id, epoch = run(database)
    raw.execute("INSERT INTO Progress VALUES (?, 'b', 9, 9, '9')", (task_id,))
    done = database.record(task_id, epoch, [m.Row("a", "1"), m.Row("b", "1")])
    assert done.outcome == "stale"
    assert [row.node_id for row in database.get_progress_list(task_id)] == ["b"]
    with pytest.raises(UnissuedEpoch):
        database.record(task_id, Epoch(9, 9), [m.Row("b", "1")])


# -- cost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (lambda db: db.find_tasks("r"), "tasks_unfinished_by_agents"),
        (lambda db: db.find_tasks("r", agents=["a"]), "tasks_unfinished_by_agents"),
        (lambda db: db.find_tasks("r", after=5), "tasks_unfinished_by_id"),
        (lambda db: db.find_tasks("r", agents=["a"], after=5), "tasks_unfinished_by_id"),
        (lambda db: db.count_unfinished(), "Unfinished"),
        (lambda db: db.list_tasks(state="failed"), "tasks_by_state"),
        (lambda db: db.list_tasks(state="running"), "tasks_by_state"),
        (lambda db: db.list_tasks(user_id=1), "tasks_by_user"),
        (lambda db: db.create_task(0, "graph", "{}", key="k"), "tasks_by_key"),
        (lambda db: db.delete_document(9), "tasks_by_re"),
    ],
)
def test_no_query_reads_what_it_does_not_need(
    database: SQLiteDatabase, query: Callable[[SQLiteDatabase], object], index: str
) -> None:
    """A million tasks, finished or not, cost nobody anything: each query has its index."""
    create(database, region="r", agents=["a"])
    plan = [
        row[3]
        for statement in traced(database, lambda: query(database))
        if statement.startswith("SELECT")
        for row in database._rows(f"EXPLAIN QUERY PLAN {statement}", ())
    ]
    assert any(index in step for step in plan), plan
    assert not any("SCAN" in step and "Unfinished" not in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


def test_few_statements(database: SQLiteDatabase) -> None:
    """A claim is two statements, the rows of a fenced write one, and its end two more."""

    def life() -> None:
        task_id = create(database, region=REGION, claimant="gateway")
        claim_regional(database, task_id, Epoch(1, 0))
        rows = [m.Row("a", "1"), m.Row("b", "1")]
        database.record(task_id, Epoch(1, 1), rows, m.End("succeeded", "1"), writer=OWNER)

    with database.transaction():
        statements = traced(database, life)
    assert [" ".join(s.split()[:3]) for s in statements] == [
        "INSERT INTO Documents", "INSERT INTO Tasks",
        "UPDATE Tasks SET", "SELECT global_epoch, regional_epoch,",
        "SAVEPOINT added", "INSERT INTO Progress", "RELEASE added",
        "INSERT INTO Documents", "UPDATE Tasks SET",
    ]  # fmt: skip


# -- counts ----------------------------------------------------------------------------------------


def test_counts_follow_the_sql_of_others(database: SQLiteDatabase, raw: sqlite3.Connection) -> None:
    """Tasks that others insert, change or delete by SQL of their own are counted as well."""

    def counted() -> list[tuple[str, tuple[str, ...], int]]:
        return [(c.region, c.agents, c.count) for c in database.count_unfinished()]

    insert = "INSERT INTO Tasks (user_id, task_type, task_description) VALUES (1, 'graph', '{}')"
    for _ in range(3):
        raw.execute(insert)
    assert counted() == [("", (), 3)]
    raw.execute("UPDATE Tasks SET region = 'r', agents = '[\"a\"]' WHERE task_id > 1")
    assert counted() == [("", (), 1), ("r", ("a",), 2)]
    raw.execute("UPDATE Tasks SET state = 'failed', region = '' WHERE task_id < 3")
    assert counted() == [("r", ("a",), 1)]
    raw.execute("UPDATE Tasks SET state = 'running' WHERE task_id = 2")
    assert counted() == [("", ("a",), 1), ("r", ("a",), 1)]
    raw.execute("DELETE FROM Tasks")
    assert counted() == []
    assert raw.execute("SELECT count(*) FROM Unfinished").fetchone() == (0,)
