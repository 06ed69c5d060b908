"""The tables as Peewee models: the specification's columns, and ours, which have defaults.

SQL that was written against the specification keeps working, because every column of ours can be
left out of an INSERT. The classes here are declarations without a database; `bind` makes the
classes that one database uses, so that two databases in one process never meet.

`task_description` is declared last: it may be long, and SQLite reads a row from its start, so
that what a fence or a claim looks at stands before it.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any, TypeVar

import peewee

from agentos.core.epoch import EPOCH_MAX

SCHEMA_VERSION = 3
"""Raised whenever a table changes; a file of another version is refused, never guessed at."""

UNFINISHED = "state IN ('accepted', 'running')"
"""Written into queries exactly as it stands in the indexes: SQLite uses a partial index only for a
query whose WHERE repeats the index's (sqlite.org/partialindex.html, section 3)."""


class Serial(peewee.BigAutoField):
    """A 64-bit key that is never given twice, not even after its row was deleted."""

    def ddl(self, ctx: Any) -> Any:
        """SQLite reuses the highest key of a table unless told not to; sequences don't."""
        definition = super().ddl(ctx)
        if isinstance(self.model._meta.database, peewee.SqliteDatabase):
            return peewee.NodeList((definition, peewee.SQL("AUTOINCREMENT")))
        return definition


def _default(sql: str, *constraints: str) -> list[peewee.Node]:
    """Constraints of a column that an INSERT may leave out."""
    return [peewee.SQL(f"DEFAULT {sql}"), *map(peewee.SQL, constraints)]


def _epoch(column: str) -> list[peewee.Node]:
    return _default("0", f"CHECK ({column} BETWEEN 0 AND {EPOCH_MAX})")


class Documents(peewee.Model):
    """Texts that are kept as they came: requests and responses of tasks, and a user's own."""

    doc_id = Serial()
    doc_type = peewee.TextField()
    doc_content = peewee.TextField()


class Tasks(peewee.Model):
    """One task in one row: what it is, who owns it under which epoch, and how it ended."""

    task_id = Serial()
    user_id = peewee.BigIntegerField()
    task_type = peewee.TextField()
    global_epoch = peewee.BigIntegerField(constraints=_epoch("global_epoch"))
    regional_epoch = peewee.BigIntegerField(constraints=_epoch("regional_epoch"))
    state = peewee.TextField(
        constraints=_default(
            "'accepted'",
            # Not IN: SQLite builds a list of more than two anew for each statement, for 2 µs.
            "CHECK (state = 'accepted' OR state = 'running' OR state = 'succeeded' "
            "OR state = 'failed' OR state = 'cancelled')",
        )
    )
    region = peewee.TextField(constraints=_default("''"))
    owner = peewee.TextField(constraints=_default("''"))
    claimant = peewee.TextField(constraints=_default("''"))
    task_key = peewee.TextField(null=True, constraints=_default("NULL"))
    agents = peewee.TextField(constraints=_default("'[]'"))
    priority = peewee.BigIntegerField(constraints=_default("0"))
    attempts = peewee.BigIntegerField(constraints=_default("0"))
    lost = peewee.TextField(constraints=_default("''"))
    error = peewee.TextField(constraints=_default("''"))
    request_doc_id = peewee.BigIntegerField(null=True, constraints=_default("NULL"))
    response_doc_id = peewee.BigIntegerField(null=True, constraints=_default("NULL"))
    created_at = peewee.DoubleField(constraints=_default("0"))
    updated_at = peewee.DoubleField(constraints=_default("0"))
    task_description = peewee.TextField()

    class Meta:
        """Unfinished tasks have indexes of their own: those that ended cost the sweeper nothing."""

        constraints = (
            peewee.SQL("FOREIGN KEY (request_doc_id) REFERENCES Documents (doc_id)"),
            peewee.SQL("FOREIGN KEY (response_doc_id) REFERENCES Documents (doc_id)"),
        )
        indexes = (
            peewee.SQL(
                "CREATE UNIQUE INDEX tasks_by_key ON Tasks (user_id, task_key) "
                "WHERE task_key IS NOT NULL"
            ),
            peewee.SQL("CREATE INDEX tasks_by_user ON Tasks (user_id, task_id)"),
            peewee.SQL("CREATE INDEX tasks_by_state ON Tasks (state, task_id)"),
            peewee.SQL(
                "CREATE INDEX tasks_unfinished_by_agents ON Tasks "
                f"(region, agents, priority DESC, task_id) WHERE {UNFINISHED}"
            ),
            peewee.SQL(
                f"CREATE INDEX tasks_unfinished_by_id ON Tasks (region, task_id) WHERE {UNFINISHED}"
            ),
            peewee.SQL("CREATE INDEX tasks_by_request ON Tasks (request_doc_id)"),
            peewee.SQL(
                "CREATE INDEX tasks_by_response ON Tasks (response_doc_id) "
                "WHERE response_doc_id IS NOT NULL"
            ),
        )


class Progress(peewee.Model):
    """What a task's nodes have yielded, each row with the epoch of the owner that wrote it."""

    task_id = peewee.BigIntegerField()
    node_id = peewee.TextField()
    global_epoch = peewee.BigIntegerField(constraints=_epoch("global_epoch"))
    regional_epoch = peewee.BigIntegerField(constraints=_epoch("regional_epoch"))
    result = peewee.TextField()

    class Meta:
        """The key and the reference of the specification."""

        primary_key = peewee.CompositeKey("task_id", "node_id")
        constraints = (peewee.SQL("FOREIGN KEY (task_id) REFERENCES Tasks (task_id)"),)


class Unfinished(peewee.Model):
    """How many tasks of a region need the same agents and have not ended; no row where none has.

    Triggers keep it, so that SQL of others counts too, a rollback takes back what it counted, and
    nobody ever reads a backlog of a million tasks to learn that it is one.
    """

    region = peewee.TextField()
    agents = peewee.TextField()
    tasks = peewee.BigIntegerField()

    class Meta:
        """One row for each group."""

        primary_key = peewee.CompositeKey("region", "agents")


_COUNT = f"""
    INSERT INTO Unfinished (region, agents, tasks)
    SELECT new.region, new.agents, 1 WHERE new.{UNFINISHED}
    ON CONFLICT (region, agents) DO UPDATE SET tasks = tasks + 1;
"""
_UNCOUNT = f"""
    UPDATE Unfinished SET tasks = tasks - 1
    WHERE old.{UNFINISHED} AND region = old.region AND agents = old.agents;
    DELETE FROM Unfinished WHERE region = old.region AND agents = old.agents AND tasks = 0;
"""  # noqa: S608 - nothing in it comes from outside
"""The group of a row as it is, and as it was: one task more, one less; no group without a task."""

_SQLITE_TRIGGERS = (
    f"CREATE TRIGGER count_new AFTER INSERT ON Tasks BEGIN {_COUNT} END",
    f"CREATE TRIGGER count_gone AFTER DELETE ON Tasks BEGIN {_UNCOUNT} END",
    f"""
    CREATE TRIGGER count_changed AFTER UPDATE OF state, region, agents ON Tasks
    WHEN (old.{UNFINISHED}) <> (new.{UNFINISHED})
        OR old.region <> new.region OR old.agents <> new.agents
    BEGIN {_UNCOUNT} {_COUNT} END
    """,
)


@dataclass(frozen=True)
class Models:
    """The models of one database."""

    documents: type[Documents]
    tasks: type[Tasks]
    progress: type[Progress]
    unfinished: type[Unfinished]

    def create_tables(self) -> None:
        """Create every table, index and trigger; the caller holds the transaction."""
        for model in (self.documents, self.tasks, self.progress, self.unfinished):
            model.create_table(safe=False)
        database = self.tasks._meta.database
        if isinstance(database, peewee.SqliteDatabase):
            for trigger in _SQLITE_TRIGGERS:
                database.execute_sql(trigger)  # type: ignore[no-untyped-call]


_ModelType = TypeVar("_ModelType", bound=peewee.Model)


def bind(database: peewee.Database) -> Models:
    """The models bound to `database`, which need not be open yet."""
    sqlite = isinstance(database, peewee.SqliteDatabase)

    def bound(model: type[_ModelType]) -> type[_ModelType]:
        meta = {
            "database": database,
            "table_name": model.__name__,
            # Without STRICT, SQLite would store a text where a number belongs.
            "strict_tables": sqlite,
            "without_rowid": sqlite and model is Unfinished,
        }
        inner = type("Meta", (), meta)
        return types.new_class(
            model.__name__, (model,), exec_body=lambda body: body.update(Meta=inner)
        )

    return Models(bound(Documents), bound(Tasks), bound(Progress), bound(Unfinished))
