"""SQLite: the embedded default, and the store of one machine.

Durable by default: WAL with `synchronous=FULL` syncs the log at every commit, so that what was
acknowledged survives a power cut (sqlite.org/pragma.html#pragma_synchronous). There is one writing
connection in a file's one store, which also checkpoints: SQLite before 3.51.3 can reset the log
under two of them (sqlite.org/wal.html, "the WAL-reset bug").
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peewee
import structlog

from agentos.core.errors import IncompatibleDatabase, LocalProtocolError, StorageError
from agentos.storage.models import SCHEMA_VERSION
from agentos.storage.statements import Statements
from agentos.storage.transactions import Transactional
from agentos.storage.writing import PeeweeDatabase

APPLICATION_ID = 0x41674F53
"""`AgOS`: marks the file's header as ours (sqlite.org/fileformat.html, offset 68)."""

MINIMUM_SQLITE = (3, 37, 0)
"""STRICT tables came with it; RETURNING with 3.35."""

_MAGIC = b"SQLite format 3\0"
_SCHEME = "sqlite:///"
_NEW_FILE = "choose another file, or move this one away to start afresh"

_PRAGMAS: Mapping[str, str | int] = {
    "synchronous": "FULL",
    "foreign_keys": "ON",
    # Fewer, larger checkpoints: the p99 of a batch falls from 4.2 ms to 0.8.
    "wal_autocheckpoint": 4000,
    # KiB: the upper pages of every tree of a million tasks, so that a search reads one page at most.
    "cache_size": -32_768,
}

_WAYS_OUT: Mapping[str, str] = {
    "SQLITE_BUSY": "another process is using it; stop that one, or choose another file",
    "SQLITE_CANTOPEN": "check that the path is right and that this user may open it",
    "SQLITE_CORRUPT": "the file is damaged; restore it from a copy",
    "SQLITE_FULL": "free some space",
    "SQLITE_NOTADB": _NEW_FILE,
    "SQLITE_READONLY": "give this user the right to write the file and its directory",
}


class SQLiteDatabase(PeeweeDatabase):
    """The database port on one SQLite file, created if it is new or empty.

    The connection may be used by another thread than the one that opened it, by one at a time.

    Args:
        url: `sqlite:///relative.db` or `sqlite:////absolute.db`.
        clock: Unix seconds for `created_at` and `updated_at`, which only people look at.
        busy_timeout_s: seconds to wait for another process that holds the file's lock.

    Raises:
        LocalProtocolError: the URL does not name a file.
        IncompatibleDatabase: the file is not ours, or of another version; it was not changed.
        StorageError: it cannot be opened or written; the message says why.
    """

    driver_errors = (*Transactional.driver_errors, sqlite3.Error)

    def __init__(
        self, url: str, *, clock: Callable[[], float] = time.time, busy_timeout_s: float = 5.0
    ) -> None:
        if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
            raise StorageError(
                f"SQLite {sqlite3.sqlite_version} is too old; Agent OS needs "
                f"{'.'.join(map(str, MINIMUM_SQLITE))} or newer"
            )
        path = _path_of(url)
        _check_header(path)
        connection = _Connection(
            str(path),
            lock_type="IMMEDIATE",
            timeout=busy_timeout_s,
            autoconnect=False,
            thread_safe=False,
            check_same_thread=False,
            cached_statements=256,
        )
        super().__init__(connection, str(path), Statements(), clock)
        try:
            self._open(connection)
        except self.driver_errors as error:
            connection.close()
            raise self._failure(error) from error
        except BaseException:
            connection.close()
            raise
        structlog.get_logger().info("database_opened", file=str(path), schema=SCHEMA_VERSION)

    def _open(self, connection: peewee.SqliteDatabase) -> None:
        """Create the schema or check it; only then touch any setting that the file would keep."""
        self._connect()
        for name, value in _PRAGMAS.items():
            connection.pragma(name, value)
        with connection.atomic():
            [(objects,)] = self._rows("SELECT count(*) FROM sqlite_master", ())
            if objects or connection.pragma("application_id"):
                self._check_version(connection)
            else:
                self._models.create_tables()
                connection.pragma("application_id", APPLICATION_ID)
            # Written even if it is so already: a file that cannot be written is refused now.
            connection.pragma("user_version", SCHEMA_VERSION)
        mode = connection.pragma("journal_mode", "WAL")
        if mode != "wal":
            raise StorageError(
                f"{self._name}: SQLite cannot keep a write-ahead log here (journal_mode {mode}); "
                "choose a local disk"
            )

    def _check_version(self, connection: peewee.SqliteDatabase) -> None:
        """Refuse what another version wrote, or what only looks like ours."""
        version = connection.pragma("user_version")
        if connection.pragma("application_id") != APPLICATION_ID:
            raise _not_ours(self._name)
        if version != SCHEMA_VERSION:
            age = "an older" if version < SCHEMA_VERSION else "a newer"
            raise IncompatibleDatabase(
                f"{self._name}: made by {age} version of Agent OS (schema {version}; this one "
                f"needs {SCHEMA_VERSION}); use that version, or {_NEW_FILE}"
            )

    def _insert(self, sql: str, parameters: tuple[Any, ...]) -> int:
        """Run an INSERT of one row; the id that it was given."""
        return int(self._execute(sql, parameters).lastrowid)

    def _describe(self, error: Exception) -> str:
        cause = getattr(error, "orig", None) or error  # Peewee's errors carry the driver's own
        name = getattr(cause, "sqlite_errorname", "")
        # Extended codes refine a basic one: SQLITE_READONLY_DIRECTORY, SQLITE_IOERR_WRITE.
        way_out = next((way for code, way in _WAYS_OUT.items() if name.startswith(code)), "")
        if name == "SQLITE_CANTOPEN" and not Path(self._name).parent.is_dir():
            way_out = "its directory does not exist; create it first"
        return f"{cause}; {way_out}" if way_out else str(cause)


class _Connection(peewee.SqliteDatabase):
    """Peewee's, but for what SQLite does by itself when a disk is full."""

    def rollback(self) -> None:
        """Roll back, unless SQLite has done so (sqlite.org/lang_transaction.html, section 3)."""
        if self.connection().in_transaction:  # type: ignore[no-untyped-call]
            super().rollback()


def _path_of(url: str) -> Path:
    """The file that a URL names."""
    name = url.removeprefix(_SCHEME)
    if name == url or not name or name.endswith("/") or "\0" in name:
        raise LocalProtocolError(
            f"{url!r} does not name an SQLite file; write sqlite:///relative.db or "
            "sqlite:////absolute/path.db"
        )
    if name.startswith(":memory:"):
        raise LocalProtocolError(f"{url!r}: use memory:// for a database that is not kept")
    return Path(name).absolute()


def _check_header(path: Path) -> None:
    """Refuse a file that is not ours by its first bytes, before SQLite could touch it."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    if not header:
        return
    if not header.startswith(_MAGIC):
        raise IncompatibleDatabase(f"{path}: not an SQLite database; {_NEW_FILE}")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise _not_ours(str(path))


def _not_ours(name: str) -> IncompatibleDatabase:
    return IncompatibleDatabase(f"{name}: an SQLite database, but not of Agent OS; {_NEW_FILE}")
