"""One Peewee connection: its transactions, and the one place where a driver's errors become ours."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar, cast

import msgspec
import peewee

from agentos.core.errors import LocalProtocolError, StorageError

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Self = TypeVar("_Self", bound="Transactional")


class Transactional:
    """A connection that one thread uses at a time, and the transaction that is open on it.

    Args:
        connection: a Peewee database; not shared with anybody.
        name: the file or server, for messages.
    """

    driver_errors: ClassVar[tuple[type[Exception], ...]] = (
        peewee.PeeweeException,
        OverflowError,
        UnicodeError,
        msgspec.DecodeError,
    )
    """What reading, writing and converting values may raise below this class."""

    _execute: Callable[[str, tuple[Any, ...]], Any]
    """Runs a statement on the open connection; returns the driver's cursor."""

    def __init__(self, connection: peewee.Database, name: str) -> None:
        self._connection = connection
        self._name = name
        self._broken: StorageError | None = None

    def _connect(self) -> None:
        """Open the connection; statements go straight to the driver, which has them prepared."""
        self._connection.connect()
        self._execute = self._connection.connection().execute  # type: ignore[no-untyped-call]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything inside together, durably; roll all of it back on an exception.

        Methods that are called inside join it. Inside another one it is a savepoint. When the
        driver itself fails inside (disk full, connection lost), the transaction can only be given
        up: every later call in it, and its commit, raise that failure again, since some drivers
        have rolled back by then and would commit what follows statement by statement.

        Raises:
            StorageError: nothing inside was committed.
        """
        outermost = not self._connection.in_transaction()
        try:
            with self._connection.atomic():
                yield
                self._check_unbroken()
        except self.driver_errors as error:
            raise self._failure(error) from error
        finally:
            if outermost:
                self._broken = None

    def close(self) -> None:
        """Release the database. Idempotent.

        Raises:
            LocalProtocolError: a transaction is open; nothing was closed.
        """
        if self._connection.in_transaction():
            raise LocalProtocolError(f"{self._name}: close() inside a transaction; leave it first")
        self._connection.close()

    def _check_unbroken(self) -> None:
        if self._broken is not None:
            raise StorageError(f"{self._broken} (transaction given up)") from self._broken

    def _failure(self, error: Exception) -> StorageError:
        """The driver's error as ours; the transaction that it happened in is broken from here on."""
        if self._broken is not None:
            return self._broken
        failure = StorageError(f"{self._name}: {self._describe(error)}")
        if self._connection.in_transaction():
            self._broken = failure
        return failure

    def _describe(self, error: Exception) -> str:
        """The reason of a failure, and the way out where one is known."""
        return str(error)

    def _rows(self, sql: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Run a statement to its end and return all its rows."""
        rows: list[tuple[Any, ...]] = self._execute(sql, parameters).fetchall()
        return rows

    def _row(self, sql: str, parameters: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Run a statement that yields at most one row."""
        rows = self._rows(sql, parameters)
        return rows[0] if rows else None

    def _change(self, sql: str, parameters: tuple[Any, ...]) -> int:
        """Run a statement that writes; the number of rows that it really changed."""
        return int(self._execute(sql, parameters).rowcount)

    def _select(self, query: peewee.ModelSelect[Any]) -> list[tuple[Any, ...]]:
        """Run a query of Peewee's builder and return its rows as tuples, not as models."""
        return list(cast("Iterable[tuple[Any, ...]]", query.tuples()))


def reads(
    method: Callable[Concatenate[_Self, _P], _R],
) -> Callable[Concatenate[_Self, _P], _R]:
    """A method that reads: alone, or in the transaction that is open."""

    @functools.wraps(method)
    def read(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        self._check_unbroken()
        try:
            return method(self, *args, **kwargs)
        except self.driver_errors as error:
            raise self._failure(error) from error

    return read


def writes(
    method: Callable[Concatenate[_Self, _P], _R],
) -> Callable[Concatenate[_Self, _P], _R]:
    """A method that writes: in a transaction of its own, or in the one that is open.

    It must find every reason of ours to refuse before its first write, so that a refusal leaves
    nothing of it behind in a transaction that goes on.
    """

    @functools.wraps(method)
    def write(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not self._connection.in_transaction():
            with self.transaction():
                return method(self, *args, **kwargs)
        if self._broken is not None:
            self._check_unbroken()
        try:
            return method(self, *args, **kwargs)
        except self.driver_errors as error:
            raise self._failure(error) from error

    return write
