"""The tables of the in-memory storage, with an undo log instead of copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import msgspec

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import LocalProtocolError, StorageError
from agentos.core.ports import Document


class TaskRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of Tasks."""

    task_id: int
    user_id: int
    task_type: str
    task_description: str
    epoch: Epoch
    state: m.State = "accepted"
    region: str = ""
    owner: str = ""
    claimant: str = ""
    key: str | None = None
    agents: tuple[str, ...] = ()
    priority: int = 0
    attempts: int = 0
    lost: str = ""
    error: str = ""
    request_doc_id: int
    response_doc_id: int | None = None
    created_at: float
    updated_at: float

    @property
    def ended(self) -> bool:
        """Whether its state is terminal: nothing of it changes any more."""
        return self.state in m.TERMINAL


class Tables:
    """Dictionaries of immutable rows.

    Every change notes what was there before; a rollback puts the notes back, newest first, so that
    a transaction costs what it touches.
    """

    def __init__(self) -> None:
        self.documents: dict[int, Document] = {}
        self.tasks: dict[int, TaskRow] = {}
        self.progress: dict[int, dict[str, m.SavedRow]] = {}
        self.keys: dict[tuple[int, str], int] = {}
        self._last_ids: dict[str, int] = {"document": 0, "task": 0}
        self._undo: list[tuple[dict[Any, Any], Any, Any]] = []
        self._depth = 0
        self._closed = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep everything inside together; undo all of it on an exception. May be nested."""
        self.check_open()
        mark = len(self._undo)
        self._depth += 1
        try:
            yield
        except BaseException:
            self._roll_back(mark)
            raise
        finally:
            self._depth -= 1
            if not self._depth:
                self._undo.clear()

    def _roll_back(self, mark: int) -> None:
        while len(self._undo) > mark:
            table, key, before = self._undo.pop()
            if before is None:
                table.pop(key, None)
            else:
                table[key] = before

    def put(self, table: dict[Any, Any], key: Any, row: Any) -> None:
        """Set a row, or with None remove it; inside a transaction, so that it can be undone."""
        self._undo.append((table, key, table.get(key)))
        if row is None:
            del table[key]
        else:
            table[key] = row

    def next_id(self, kind: Literal["document", "task"]) -> int:
        """An id that no committed row has had."""
        self.put(self._last_ids, kind, self._last_ids[kind] + 1)
        return self._last_ids[kind]

    def close(self) -> None:
        """Refuse everything from now on. Idempotent.

        Raises:
            LocalProtocolError: a transaction is open; nothing was closed.
        """
        if self._depth:
            raise LocalProtocolError("memory://: close() inside a transaction; leave it first")
        self._closed = True

    def check_open(self) -> None:
        """Raise if the database was closed.

        Raises:
            StorageError: it was.
        """
        if self._closed:
            raise StorageError("memory://: the database is closed")
