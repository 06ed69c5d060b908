"""What every storage must do, as tests: subclass `StorageContract` and give it an adapter.

    class TestStoneTablets(StorageContract):
        @pytest.fixture
        def database(self):
            database = StoneTablets("stone:///sinai")
            yield database
            database.close()

Needs pytest. Each test gets an empty database. What only a durable storage can promise (crashes,
foreign files, two processes) is the adapter's own to test.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import (
    AgentOSError,
    KeyConflict,
    LocalProtocolError,
    StorageError,
    TaskNotFound,
    UnissuedEpoch,
)
from agentos.core.ports import Database, SaveOutcome
from agentos.testing.storage_fence_contract import ClaimContract, FenceContract, QueryContract
from agentos.testing.storage_steps import (
    NO_TASK,
    OTHER_REGION,
    OWNER,
    REGION,
    Fixture,
    claim_global,
    claim_regional,
    create,
    end,
    info,
    run,
)

EVERY_CHARACTER = '{"text": "\u0001 \\u0000 \\ud800 ä 漢 🜚 \u2028 \' \\" ; --"}'


class DocumentContract(Fixture):
    """Documents are texts that come back as they went in."""

    @pytest.mark.parametrize("content", ["", "plain", EVERY_CHARACTER, "x" * 1_000_000])
    def test_document_comes_back(self, database: Database, content: str) -> None:
        """A document comes back as it was stored, character by character."""
        doc_id = database.store_document("note", content)
        document = database.get_document(doc_id)
        assert document is not None
        assert (document.doc_id, document.doc_type, document.doc_content) == (
            doc_id,
            "note",
            content,
        )

    def test_delete_document(self, database: Database) -> None:
        """A deleted document is gone, a second deletion says so, and its id is not used again."""
        doc_id = database.store_document("note", "text")
        assert database.delete_document(doc_id) is True
        assert database.get_document(doc_id) is None
        assert database.delete_document(doc_id) is False
        assert database.store_document("note", "text") > doc_id

    def test_document_of_a_task_stays(self, database: Database) -> None:
        """A task's request and response cannot be taken away from under it."""
        before = database.store_document("note", "before")
        task_id, epoch = run(database)
        end(database, task_id, epoch)
        after = database.store_document("note", "after")
        of_task = range(before + 1, after)
        assert [database.get_document(i).doc_type for i in of_task] == ["request", "response"]  # type: ignore[union-attr]
        for doc_id in of_task:
            with pytest.raises(LocalProtocolError, match=f"task {task_id}"):
                database.delete_document(doc_id)
        assert info(database, task_id).response == '"done"'

    @pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
    def test_unstorable_text_changes_nothing(self, database: Database, text: str) -> None:
        """A NUL or a lone surrogate is refused before anything is written, in every text."""
        task_id, epoch = run(database)
        before = info(database, task_id)
        attempts: list[Callable[[], object]] = [
            lambda: database.store_document("note", text),
            lambda: database.create_task(0, text, "{}"),
            lambda: database.create_task(0, "graph", text),
            lambda: database.create_task(0, "graph", "{}", key=text),
            lambda: database.create_task(0, "graph", "{}", agents=["ok", text]),
            lambda: database.update_task_type(task_id, text),
            lambda: database.update_task_description(task_id, 1, 1, text),
            lambda: database.save_progress(task_id, "node", 1, 1, text),
            lambda: database.save_progress(task_id, text, 1, 1, "{}"),
            lambda: database.record(task_id, epoch, [m.Row("a", "1"), m.Row("b", text)]),
            lambda: database.record(task_id, epoch, [m.Row("a", "1")], m.End("failed", text)),
            lambda: database.record(task_id, epoch, [], m.End("failed", "{}", text)),
            lambda: claim_regional(database, task_id, epoch, owner=text),
        ]
        with database.transaction():
            for attempt in attempts:
                with pytest.raises(AgentOSError, match="at position"):
                    attempt()
        assert info(database, task_id) == before
        assert database.get_progress_list(task_id) == []
        assert database.list_tasks() == [before]


class TaskContract(Fixture):
    """Creation, the keys that make it idempotent, and what can be changed of a task."""

    def test_create_task(self, database: Database) -> None:
        """A new task is accepted at epoch (0, 0) and belongs to nobody."""
        created = database.create_task(7, "graph", '{"a": 1}', agents=["x", "ä"], priority=3)
        assert created == m.TaskCreated(
            task_id=created.task_id,
            created=True,
            state="accepted",
            epoch=Epoch(),
            region="",
            owner="",
        )
        task = info(database, created.task_id)
        assert (task.user_id, task.task_type, task.state) == (7, "graph", "accepted")
        assert (task.epoch, task.region, task.owner) == (Epoch(0, 0), "", "")
        assert (task.agents, task.attempts, task.key) == (("x", "ä"), 0, None)
        assert (task.error, task.response) == ("", None)
        assert 0 < task.created_at == task.updated_at
        assert database.get_task_description(created.task_id) == '{"a": 1}'

    def test_create_with_a_region_is_also_the_first_claim(self, database: Database) -> None:
        """A task created for a region is claimed for it, and asking again for the claim is fine."""
        task_id = create(database, claimant="gateway", region=REGION)
        assert info(database, task_id).epoch == Epoch(1, 0)
        assert claim_global(database, task_id, Epoch(0, 0)).granted
        assert not claim_global(database, task_id, Epoch(0, 0), claimant="gateway/2").granted
        assert info(database, task_id).epoch == Epoch(1, 0)

    def test_create_with_an_owner_is_also_the_first_two_claims(self, database: Database) -> None:
        """A task created for a proxy is its own at once: only it writes, until somebody claims."""
        created = database.create_task(
            0, "graph", "{}", claimant="gateway", region=REGION, owner=OWNER
        )
        task_id, epoch = created.task_id, Epoch(1, 1)
        assert (created.epoch, created.owner, created.state) == (epoch, OWNER, "running")
        task = info(database, task_id)
        assert (task.epoch, task.region, task.owner) == (epoch, REGION, OWNER)
        assert (task.state, task.attempts) == ("running", 0)
        assert (
            database.record(task_id, epoch, [m.Row("a", "1")], None, writer=OWNER).outcome
            == "applied"
        )
        assert not claim_regional(database, task_id, Epoch(1, 0)).granted
        assert claim_regional(database, task_id, epoch, lost=True).epoch == Epoch(1, 2)
        assert (
            database.record(task_id, epoch, [m.Row("b", "1")], None, writer=OWNER).outcome
            == "stale"
        )

    def test_an_owner_needs_a_region(self, database: Database) -> None:
        """A proxy belongs to a region: without one nothing is created."""
        with pytest.raises(LocalProtocolError, match=OWNER):
            database.create_task(0, "graph", "{}", claimant="gateway", owner=OWNER)
        assert database.list_tasks() == []

    def test_description_is_kept_as_text(self, database: Database) -> None:
        """Key order, large integers, duplicate keys and blanks of a description survive."""
        text = '{"b":1, "a": 18446744073709551617,\n "a": 1.0, "s": ' + repr(EVERY_CHARACTER) + "}"
        created = database.create_task(0, "graph", text, key="k")
        assert database.get_task_description(created.task_id) == text
        assert not database.create_task(0, "graph", text, key="k").created

    def test_same_key_is_the_same_task(self, database: Database) -> None:
        """A client that asks again with its key gets the task that it has, as it stands now."""
        task_id, epoch = run(database, key="once")
        end(database, task_id, epoch)
        again = database.create_task(0, "graph", "{}", key="once", region=OTHER_REGION)
        assert again == m.TaskCreated(
            task_id=task_id,
            created=False,
            state="succeeded",
            epoch=epoch,
            region=REGION,
            owner=OWNER,
        )
        assert len(database.list_tasks()) == 1

    def test_keys_belong_to_users(self, database: Database) -> None:
        """Two users may use the same key; without a key every task is a new one."""
        ids = {database.create_task(user, "graph", "{}", key="k").task_id for user in (1, 2)}
        ids |= {create(database), create(database)}
        assert len(ids) == 4

    @pytest.mark.parametrize(("task_type", "text"), [("graph", "[]"), ("other", "{}")])
    def test_key_conflict(self, database: Database, task_type: str, text: str) -> None:
        """A key that stands for another request is refused, even after that task was changed."""
        task_id = create(database, key="k")
        database.update_task_description(task_id, 0, 0, text)
        database.update_task_type(task_id, task_type)
        with pytest.raises(KeyConflict, match=f"task {task_id}"):
            database.create_task(0, task_type, text, key="k")
        assert database.create_task(0, "graph", "{}", key="k").task_id == task_id

    def test_integers_beyond_64_bits(self, database: Database) -> None:
        """A number that no column holds is refused, and leaves no document behind."""
        first = database.store_document("note", "")
        for user_id, priority in ((2**63, 0), (0, -(2**63) - 1)):
            with database.transaction(), pytest.raises(AgentOSError, match="64 bits"):
                database.create_task(user_id, "graph", "{}", priority=priority)
        assert database.store_document("note", "") == first + 1

    def test_update_task_type(self, database: Database) -> None:
        """The type of an unfinished task can be changed; of a finished one it stays."""
        task_id, epoch = run(database)
        assert database.update_task_type(task_id, "other") is True
        end(database, task_id, epoch)
        assert database.update_task_type(task_id, "third") is False
        assert info(database, task_id).task_type == "other"

    def test_update_task_description(self, database: Database) -> None:
        """Only the owner of the moment changes a description, and only of an unfinished task."""
        task_id, epoch = run(database)
        assert database.update_task_description(task_id, 1, 0, "[]").outcome == "stale"
        with pytest.raises(UnissuedEpoch):
            database.update_task_description(task_id, 1, 2, "[]")
        assert database.get_task_description(task_id) == "{}"
        done = database.update_task_description(task_id, 1, 1, "[1]")
        assert done == SaveOutcome("applied", epoch, "running")
        end(database, task_id, epoch)
        assert not database.update_task_description(task_id, 1, 1, "[2]")
        assert database.get_task_description(task_id) == "[1]"

    def test_delete_task(self, database: Database) -> None:
        """A deleted task is gone with all that was its own; its key is free, its id is not."""
        first = database.store_document("note", "")
        task_id, epoch = run(database, key="k")
        with pytest.raises(LocalProtocolError, match="cancel it"):
            database.delete_task(task_id)
        database.record(task_id, epoch, [m.Row("a", "1")], m.End("succeeded", "1"))
        assert database.delete_task(task_id) is True
        assert database.delete_task(task_id) is False
        assert database.get_task(task_id) is None
        assert database.get_progress_list(task_id) == []
        assert [database.get_document(first + i) for i in (1, 2)] == [None, None]
        assert database.create_task(0, "other", "[]", key="k").task_id > task_id

    def test_unknown_task(self, database: Database) -> None:
        """What is not there reads as None or nothing, deletes as false, and is not written to."""
        assert database.get_document(NO_TASK) is None
        assert database.get_task(NO_TASK) is None
        assert database.get_task_description(NO_TASK) is None
        assert database.get_progress(NO_TASK, "a") is None
        assert database.get_progress_list(NO_TASK) == []
        assert database.delete_document(NO_TASK) is False
        assert database.delete_task(NO_TASK) is False
        assert database.delete_progress(NO_TASK, "a") is False
        for write in (
            lambda: database.update_task_type(NO_TASK, "x"),
            lambda: database.update_task_description(NO_TASK, 0, 0, "{}"),
            lambda: database.save_progress(NO_TASK, "a", 0, 0, "{}"),
            lambda: database.record(NO_TASK, Epoch(), []),
            lambda: database.cancel_task(NO_TASK),
            lambda: claim_global(database, NO_TASK, Epoch()),
        ):
            with pytest.raises(TaskNotFound, match=str(NO_TASK)):
                write()


class TransactionContract(Fixture):
    """Group commit: many calls, one commit; a refused call leaves nothing and the rest goes on."""

    def test_rolls_back_everything(self, database: Database) -> None:
        """After an exception in a transaction nothing of it is there, whatever it was."""
        kept, epoch = run(database, key="kept")
        database.save_progress(kept, "a", 1, 1, "1")
        before = info(database, kept), database.get_progress_list(kept)
        with pytest.raises(ZeroDivisionError), database.transaction():  # noqa: PT012
            database.store_document("note", "")
            create(database, key="lost")
            database.delete_progress(kept, "a")
            database.record(kept, epoch, [m.Row("b", "1")], m.End("failed", "1"))
            assert database.delete_task(kept)
            raise ZeroDivisionError
        assert (info(database, kept), database.get_progress_list(kept)) == before
        assert len(database.list_tasks()) == 1
        assert database.create_task(0, "other", "[]", key="lost").created

    def test_refusals_inside_leave_nothing(self, database: Database) -> None:
        """A call that is refused inside a transaction leaves nothing; the others are committed."""
        create(database, key="k")
        with database.transaction():
            task_id, _ = run(database)
            for error, attempt in (
                (KeyConflict, lambda: database.create_task(0, "graph", "[]", key="k")),
                (TaskNotFound, lambda: end(database, NO_TASK, Epoch())),
                (UnissuedEpoch, lambda: end(database, task_id, Epoch(9, 9))),
                (LocalProtocolError, lambda: database.delete_task(task_id)),
                (LocalProtocolError, lambda: database.save_progress(task_id, "", 1, 1, "1")),
            ):
                with pytest.raises(error):
                    attempt()
            assert database.save_progress(task_id, "a", 1, 1, "1").outcome == "applied"
        assert len(database.list_tasks()) == 2
        assert database.get_progress(task_id, "a") is not None

    def test_inner_transaction(self, database: Database) -> None:
        """A transaction inside another rolls back alone, and with the outer one it goes too."""
        with pytest.raises(ZeroDivisionError), database.transaction():  # noqa: PT012
            with database.transaction():
                kept = database.store_document("note", "kept")
            with pytest.raises(KeyError), database.transaction():  # noqa: PT012
                lost = database.store_document("note", "lost")
                raise KeyError
            assert database.get_document(kept) is not None
            assert database.get_document(lost) is None
            raise ZeroDivisionError
        assert database.get_document(kept) is None

    def test_close(self, database: Database) -> None:
        """Closing is idempotent, refused inside a transaction, and final."""
        with database.transaction(), pytest.raises(LocalProtocolError):
            database.close()
        assert database.store_document("note", "") > 0
        database.close()
        database.close()
        for use in (
            lambda: database.get_task(1),
            lambda: database.get_progress_list(1),
            lambda: database.store_document("note", ""),
            database.list_tasks,
        ):
            with pytest.raises(StorageError):
                use()


class StorageContract(
    DocumentContract,
    TaskContract,
    FenceContract,
    ClaimContract,
    QueryContract,
    TransactionContract,
):
    """All of it. A subclass gives the `database` fixture."""
