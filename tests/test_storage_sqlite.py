"""What only SQLite promises: durability, files that are not ours, other processes, full disks."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentos.core import messages as m
from agentos.core.errors import IncompatibleDatabase, StorageError
from agentos.storage.database import APPLICATION_ID, SQLiteDatabase
from agentos.storage.models import SCHEMA_VERSION
from agentos.testing.storage_steps import create, info, run

DEADLINE_S = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def database(path: Path) -> Iterator[SQLiteDatabase]:
    database = opened(path)
    yield database
    database.close()


def opened(path: Path) -> SQLiteDatabase:
    """The database in this file; it does not wait long for a lock."""
    return SQLiteDatabase(f"sqlite:///{path}", busy_timeout_s=0.1)


@pytest.fixture
def raw(database: SQLiteDatabase, path: Path) -> Iterator[sqlite3.Connection]:
    """The same file through Python's own module, as somebody with the specification would use it."""
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


def pragma(database: SQLiteDatabase, name: str) -> object:
    """What a setting of the database's own connection really is."""
    [(value,)] = database._rows(f"PRAGMA {name}", ())
    return value


# -- durability ------------------------------------------------------------------------------------


def test_durable_settings_are_on(database: SQLiteDatabase) -> None:
    """A commit is synced to the disk before it is acknowledged (synchronous FULL is 2)."""
    settings = ("journal_mode", "synchronous", "foreign_keys", "wal_autocheckpoint")
    assert [pragma(database, name) for name in settings] == ["wal", 2, 1, 4000]


def test_transactions_take_the_write_lock_at_once(database: SQLiteDatabase, path: Path) -> None:
    """A transaction that reads first cannot fail later because somebody wrote in between."""
    other = opened(path)
    with database.transaction():
        database.get_task(1)
        with pytest.raises(StorageError, match="locked"):
            other.store_document("note", "")
        database.store_document("note", "")
    other.store_document("note", "")
    other.close()


def test_killed_writer_loses_nothing_acknowledged(path: Path) -> None:
    """After kill -9 in the middle of writing, everything that was acknowledged is there."""
    program = """
import sys
from agentos.storage.database import SQLiteDatabase
database = SQLiteDatabase(sys.argv[1])
for batch in range(1_000_000):
    with database.transaction():
        ids = [database.create_task(0, "graph", "{}", key=f"{batch}/{i}").task_id for i in range(5)]
    print(ids[-1], flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, f"sqlite:///{path}"], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        lines = iter(writer.stdout.readline, "")
        acknowledged = 0
        deadline = time.monotonic() + DEADLINE_S
        while acknowledged < 200 and time.monotonic() < deadline:
            line = next(lines)
            acknowledged = int(line) if line.strip().isdigit() else acknowledged
        writer.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in lines if line.endswith("\n"))])
    assert writer.returncode == -signal.SIGKILL
    database = opened(path)
    newest = database.list_tasks(limit=1)[0].task_id
    assert newest >= acknowledged >= 200
    assert newest % 5 == 0, "a transaction was committed in part"
    [(tasks, keys)] = database._rows("SELECT count(*), count(DISTINCT task_key) FROM Tasks", ())
    assert tasks == keys == newest
    assert pragma(database, "integrity_check") == "ok"
    database.close()


def test_group_commit_is_invisible_until_it_is_whole(
    database: SQLiteDatabase, raw: sqlite3.Connection
) -> None:
    """Nobody else sees a part of a transaction, however many calls it has."""
    count = "SELECT (SELECT count(*) FROM Tasks), (SELECT count(*) FROM Progress)"
    with database.transaction():
        for _ in range(100):
            task_id, epoch = run(database)
            database.record(task_id, epoch, [m.Row("a", "1"), m.Row("b", "1")])
            assert raw.execute(count).fetchone() == (0, 0)
    assert raw.execute(count).fetchone() == (100, 200)


def test_another_thread_may_use_it(database: SQLiteDatabase) -> None:
    """The thread that opened it may hand it to another, transactions included."""
    ids: list[int] = []

    def work() -> None:
        with database.transaction():
            ids.append(create(database))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(DEADLINE_S)
    assert info(database, ids[0]).task_id == ids[0]


# -- files -----------------------------------------------------------------------------------------


def foreign_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE Tasks (task_id INTEGER PRIMARY KEY, title TEXT)")
    connection.commit()
    connection.close()


def other_version(version: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        opened(path).close()
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA user_version = {version}")
        connection.close()

    return make


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("name,age\n"), "not an SQLite database"),
        (lambda path: path.write_bytes(b"\0" * 8192), "not an SQLite database"),
        (foreign_database, "not of Agent OS"),
        (other_version(SCHEMA_VERSION - 1), "an older version"),
        (other_version(SCHEMA_VERSION + 1), "a newer version"),
    ],
)
def test_incompatible_file_is_refused_unchanged(
    path: Path, make: Callable[[Path], None], reason: str
) -> None:
    """A file that is not ours, or of another version, is refused with a way out and left alone."""
    make(path)
    before = path.read_bytes()
    with pytest.raises(IncompatibleDatabase, match=reason) as refusal:
        opened(path)
    assert "another file" in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["tasks.db"]


def test_empty_file_is_a_new_database(path: Path) -> None:
    """An empty file, like a killed first start may leave, becomes a database."""
    path.touch()
    database = opened(path)
    assert create(database) == 1
    database.close()


def test_relative_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes name a file relative to where the process was when it opened it."""
    monkeypatch.chdir(tmp_path)
    database = SQLiteDatabase("sqlite:///näme with ?#%20.db")
    monkeypatch.chdir("/")
    create(database)
    database.close()
    assert (tmp_path / "näme with ?#%20.db").stat().st_size > 0


def test_what_was_stored_is_there_after_reopening(path: Path) -> None:
    """Closing and opening changes nothing, and marks stay in the file's header."""
    database = opened(path)
    task_id, epoch = run(database, key="k")
    database.record(task_id, epoch, [m.Row("a", "1")], m.End("succeeded", '"r"'))
    before = info(database, task_id)
    database.close()
    database = opened(path)
    assert info(database, task_id) == before
    assert pragma(database, "application_id") == APPLICATION_ID
    database.close()


def test_unusable_paths_are_explained(tmp_path: Path, path: Path) -> None:
    """A directory that is missing, a parent that is a file, a directory as file: each is named."""
    path.write_text("")
    for bad, reason in (
        (tmp_path / "missing" / "tasks.db", "does not exist"),
        (path / "tasks.db", "Not a directory"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(StorageError, match=reason) as refusal:
            opened(bad)
        assert str(bad) in str(refusal.value)


def test_locked_by_another_process(database: SQLiteDatabase, raw: sqlite3.Connection) -> None:
    """A lock that somebody else holds too long is named as such, and later calls work again."""
    raw.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match=r"tasks\.db: .*locked; another process"):
        create(database)
    raw.execute("ROLLBACK")
    assert create(database) == 1


def test_read_only_file(path: Path) -> None:
    """A database that cannot be written is refused when it is opened, not at the first task."""
    opened(path).close()
    path.chmod(0o444)
    if os.access(path, os.W_OK):
        pytest.skip("file modes do not bind this user")
    with pytest.raises(StorageError, match="readonly database; give this user the right"):
        opened(path)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
def test_directory_where_nothing_can_be_created() -> None:
    """A directory that takes no file is named when the database is opened."""
    with pytest.raises(StorageError, match=r"/proc/tasks\.db: unable to open .*; check"):
        opened(Path("/proc/tasks.db"))


def test_full_disk_breaks_the_transaction_but_not_the_database(database: SQLiteDatabase) -> None:
    """When the disk is full nothing of the transaction stands, later calls in it included."""
    kept = create(database)
    database._rows(f"PRAGMA max_page_count = {pragma(database, 'page_count')}", ())
    with pytest.raises(StorageError, match="full"), database.transaction():  # noqa: PT012
        create(database)
        with pytest.raises(StorageError, match="full; free some space"):
            database.store_document("note", "x" * 1_000_000)
        with pytest.raises(StorageError, match="full"):
            create(database)
        with pytest.raises(StorageError, match="full"):
            database.get_task(kept)
    assert [task.task_id for task in database.list_tasks()] == [kept]
    database._rows("PRAGMA max_page_count = 1000000", ())
    assert create(database) == kept + 1


def test_transaction_that_sqlite_ended_by_itself(database: SQLiteDatabase) -> None:
    """When SQLite has rolled back already, the reason is reported, not the missing transaction."""
    with pytest.raises(ZeroDivisionError), database.transaction():  # noqa: PT012
        create(database)
        database._execute("ROLLBACK", ())
        raise ZeroDivisionError
    assert database.list_tasks() == []


def test_damaged_file_is_named(path: Path) -> None:
    """A page that was overwritten is a StorageError that says what to do, not a crash."""
    database = opened(path)
    with database.transaction():
        for _ in range(200):
            database.store_document("note", "x" * 2_000)
    database.close()
    content = bytearray(path.read_bytes())
    content[4096 * 3 :] = b"\xff" * (len(content) - 4096 * 3)
    path.write_bytes(content)
    with pytest.raises(StorageError, match="malformed; the file is damaged"):  # noqa: PT012
        database = opened(path)
        try:
            for doc_id in range(1, 201):
                database.get_document(doc_id)
        finally:
            database.close()


def test_ids_are_never_used_again(path: Path) -> None:
    """The id of a deleted task or document is not given to another, not even after a restart."""
    database = opened(path)
    task_id = create(database)
    doc_id = database.store_document("note", "")
    database.cancel_task(task_id)
    database.delete_task(task_id)
    database.delete_document(doc_id)
    database.close()
    database = opened(path)
    assert create(database) > task_id
    assert database.store_document("note", "") > doc_id
    database.close()
