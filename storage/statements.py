"""The statements of the hot paths, as plain SQL: Peewee's models would cost ten times as much.

Portable between SQLite (3.35 and later) and PostgreSQL. `?` stands for a parameter and `{lock}` for
what locks the selected task row until the end of the transaction (nothing on SQLite, where the
whole transaction holds the write lock; FOR UPDATE on PostgreSQL, where under READ COMMITTED a check
without it could commit after a concurrent claim).
"""

from __future__ import annotations

from agentos.storage.models import UNFINISHED

INFO = (
    "task_id, user_id, task_type, state, global_epoch, regional_epoch, task_key, region, owner, "
    "attempts, agents, error, created_at, updated_at"
)
"""What of a task's row a `TaskInfo` is made of, in the order that `reading` expects."""

_SAVED = "(SELECT count(*) FROM Progress WHERE Progress.task_id = Tasks.task_id)"
_ADVANCED = """EXISTS (SELECT 1 FROM Progress WHERE Progress.task_id = Tasks.task_id
    AND Progress.global_epoch = Tasks.global_epoch
    AND Progress.regional_epoch = Tasks.regional_epoch)"""
"""Whether the owner that a claim replaces has saved anything. SET sees the row as it was before."""
_HISTORY = """
    attempts = CASE WHEN attempts > 0 AND {advanced} THEN 0 ELSE attempts END
        + CASE WHEN ? = 1 AND owner <> '' THEN 1 ELSE 0 END,
    lost = CASE WHEN attempts > 0 AND {advanced} THEN '' ELSE lost END
        || CASE WHEN ? = 1 AND owner <> ''
            THEN owner || ' at ' || global_epoch || '.' || regional_epoch || '; ' ELSE '' END
"""
"""How many owners were lost in a row without a saved row between, and which; see `Claim.lost`."""


class Statements:
    """The statements in the dialect of one database.

    Args:
        parameter: how it writes a parameter: `?` or `%s`.
        lock: what ends a SELECT that locks its rows, like ` FOR UPDATE`.
        returning: whether an INSERT must return the id that it gave. SQLite's driver knows it, and
            a RETURNING there takes as long as the INSERT itself.
    """

    def __init__(self, parameter: str = "?", lock: str = "", *, returning: bool = False) -> None:
        parts = {
            "{unfinished}": UNFINISHED,
            "{info}": INFO,
            "{history}": _HISTORY,
            "{advanced}": _ADVANCED,
            "{saved}": _SAVED,
            "{lock}": lock,
            "{lock_tasks}": lock and f"{lock} OF Tasks",
            "{returning_doc_id}": "RETURNING doc_id" if returning else "",
            "{returning_task_id}": "RETURNING task_id" if returning else "",
            "?": parameter,
        }

        def sql(text: str) -> str:
            for name, part in parts.items():
                text = text.replace(name, part)
            return " ".join(text.split())

        self.insert_document = sql(
            "INSERT INTO Documents (doc_type, doc_content) VALUES (?, ?) {returning_doc_id}"
        )
        self.document = sql("SELECT doc_id, doc_type, doc_content FROM Documents WHERE doc_id = ?")
        self.task = sql("""
            SELECT {info}, doc_content FROM Tasks LEFT JOIN Documents ON doc_id = response_doc_id
            WHERE task_id = ?
        """)
        self.task_by_key = sql("""
            SELECT task_id, state, global_epoch, regional_epoch, region, owner, doc_content
            FROM Tasks LEFT JOIN Documents ON doc_id = request_doc_id
            WHERE user_id = ? AND task_key = ?
        """)
        self.insert_task = sql("""
            INSERT INTO Tasks (user_id, task_type, global_epoch, regional_epoch, region, owner,
                claimant, state, task_key, agents, priority, request_doc_id, created_at, updated_at,
                task_description)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) {returning_task_id}
        """)
        self.fence = sql(
            "SELECT global_epoch, regional_epoch, state, owner FROM Tasks WHERE task_id = ?{lock}"
        )
        ownership = """
            SELECT global_epoch, regional_epoch, region, owner, claimant, state, attempts, lost,
                {saved} {description} FROM Tasks WHERE task_id = ?{lock}
        """
        self.ownership = sql(ownership.replace("{description}", ""))
        self.ownership_and_description = sql(
            ownership.replace("{description}", ", task_description")
        )
        self.description = sql("SELECT task_description FROM Tasks WHERE task_id = ?")
        self.claim_global = sql("""
            UPDATE Tasks SET global_epoch = ?, regional_epoch = ?, region = ?, owner = '',
                claimant = ?, updated_at = ?, {history}
            WHERE task_id = ? AND global_epoch = ? AND regional_epoch = ? AND {unfinished}
        """)
        self.claim_regional = sql("""
            UPDATE Tasks SET global_epoch = ?, regional_epoch = ?, owner = ?,
                claimant = ?, updated_at = ?, state = 'running', {history}
            WHERE task_id = ? AND global_epoch = ? AND regional_epoch = ? AND {unfinished}
                AND region = ? AND region <> ''
        """)
        self._add_rows = sql("""
            INSERT INTO Progress (task_id, node_id, global_epoch, regional_epoch, result)
            SELECT task_id, column2, global_epoch, regional_epoch, column5
            FROM (VALUES {rows}) AS new CROSS JOIN Tasks
            WHERE task_id = column1 AND global_epoch = column3 AND regional_epoch = column4
                AND state = 'running' AND (owner = column6 OR column6 = ''){lock_tasks}
            ON CONFLICT (task_id, node_id) DO NOTHING
        """)
        self.save_row = sql("""
            INSERT INTO Progress (task_id, node_id, global_epoch, regional_epoch, result)
            VALUES (?, ?, ?, ?, ?)
            ON CONFLICT (task_id, node_id) DO UPDATE SET global_epoch = excluded.global_epoch,
                regional_epoch = excluded.regional_epoch, result = excluded.result
            WHERE (excluded.global_epoch, excluded.regional_epoch)
                > (Progress.global_epoch, Progress.regional_epoch)
        """)
        self.progress = sql("""
            SELECT node_id, global_epoch, regional_epoch, result FROM Progress
            WHERE task_id = ? AND node_id = ?
        """)
        self.progress_page = sql("""
            SELECT node_id, global_epoch, regional_epoch, result FROM Progress
            WHERE task_id = ? AND node_id > ? ORDER BY node_id
        """)
        briefs = sql("""
            SELECT task_id, global_epoch, regional_epoch, region, owner, agents, priority, attempts
            FROM Tasks WHERE region = ? AND {unfinished}
        """)
        self.find_by_priority = sql(
            briefs + " AND agents = ? ORDER BY priority DESC, task_id LIMIT ?"
        )
        self.find_by_id = sql(briefs + " AND task_id > ? ORDER BY task_id LIMIT ?")
        self.find_by_agents_and_id = sql(
            briefs + " AND task_id > ? AND agents = ? ORDER BY task_id LIMIT ?"
        )
        self.groups = sql("SELECT agents FROM Unfinished WHERE region = ?")
        self.count_unfinished = "SELECT region, agents, tasks FROM Unfinished"
        self.end = sql("""
            UPDATE Tasks SET state = ?, error = ?, response_doc_id = ?, updated_at = ?
            WHERE task_id = ? AND global_epoch = ? AND regional_epoch = ? AND {unfinished}
        """)
        self.cancel = sql("""
            UPDATE Tasks SET state = 'cancelled', global_epoch = ?, regional_epoch = ?,
                claimant = '', updated_at = ?
            WHERE task_id = ? AND {unfinished}
        """)
        self.update_type = sql("""
            UPDATE Tasks SET task_type = ?, updated_at = ? WHERE task_id = ? AND {unfinished}
        """)
        self.update_description = sql("""
            UPDATE Tasks SET task_description = ?, updated_at = ?
            WHERE task_id = ? AND global_epoch = ? AND regional_epoch = ? AND {unfinished}
        """)
        self._parameter = parameter
        self._saved_epochs = sql("""
            SELECT node_id, global_epoch, regional_epoch FROM Progress
            WHERE task_id = ? AND node_id IN ({nodes})
        """)

    def add_rows(self, count: int) -> str:
        """Add `count` rows, each if its task is running at its epoch, and it is new.

        For each row: task, node, both epochs, result, and the owner that the task must have, or "".
        """
        row = "(" + ", ".join([self._parameter] * 6) + ")"
        return self._add_rows.replace("{rows}", ", ".join([row] * count))

    def saved_epochs(self, count: int) -> str:
        """The epochs of `count` rows of one task, of those that are there."""
        return self._saved_epochs.replace("{nodes}", ", ".join([self._parameter] * count))
