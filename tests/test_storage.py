"""Every storage adapter keeps the same contract: agentos.testing.storage_contract."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentos.core.errors import LocalProtocolError
from agentos.storage import Database
from agentos.storage.database import SQLiteDatabase
from agentos.storage.memory import MemoryDatabase
from agentos.testing.storage_contract import StorageContract


class TestSQLite(StorageContract):
    """SQLite through Peewee."""

    @pytest.fixture
    def database(self, tmp_path: Path) -> Iterator[Database]:
        database = SQLiteDatabase(f"sqlite:///{tmp_path}/tasks.db")
        yield database
        database.close()


class TestMemory(StorageContract):
    """The in-memory model."""

    @pytest.fixture
    def database(self) -> Iterator[Database]:
        database = MemoryDatabase("memory://")
        yield database
        database.close()


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///", "sqlite://x.db", "sqlite:///dir/", "sqlite:///:memory:", "x.db"],
)
def test_url_that_names_no_file(url: str) -> None:
    """A URL without a file is refused with an example of one that has."""
    with pytest.raises(LocalProtocolError, match=r"sqlite:///relative|memory://"):
        SQLiteDatabase(url)


def test_memory_refuses_other_schemes() -> None:
    """The in-memory storage is never taken for a durable one by mistake."""
    with pytest.raises(LocalProtocolError, match="memory://"):
        MemoryDatabase("sqlite:///tasks.db")


def test_both_adapters_are_databases(tmp_path: Path) -> None:
    """Both adapters offer every method of the port."""
    with_file = SQLiteDatabase(f"sqlite:///{tmp_path}/tasks.db")
    assert isinstance(with_file, Database)
    assert isinstance(MemoryDatabase(), Database)
    with_file.close()
