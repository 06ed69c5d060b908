"""The part of the storage contract that safety rests on: who may write, and who owns what."""

from __future__ import annotations

from typing import Any

import pytest

from agentos.core import messages as m
from agentos.core.epoch import EPOCH_MAX, Epoch
from agentos.core.errors import AgentOSError, NotTheOwner, TaskNotFound, UnissuedEpoch
from agentos.core.ports import Database, SaveOutcome
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


class FenceContract(Fixture):
    """Who may write: the exact epoch of the task's row, and nobody else."""

    def test_save_progress(self, database: Database) -> None:
        """The owner's result is recorded once; saying it again is a duplicate and changes nothing."""
        task_id, epoch = run(database)
        first = database.save_progress(task_id, "a", 1, 1, '{"value": 1}')
        again = database.save_progress(task_id, "a", 1, 1, '{"value": 2}')
        assert (first, again) == (
            SaveOutcome("applied", epoch, "running"),
            SaveOutcome("duplicate", epoch, "running"),
        )
        assert database.get_progress(task_id, "a") == m.SavedRow("a", epoch, '{"value": 1}')
        assert database.get_progress(task_id, "b") is None

    def test_deposed_owner_is_stale(self, database: Database) -> None:
        """Once a newer owner has claimed the task, the old one can write nothing, not even an end."""
        task_id, old = run(database)
        database.save_progress(task_id, "a", 1, 1, "1")
        new = claim_regional(database, task_id, old, owner="proxy/a/2").epoch
        for attempt in (
            database.save_progress(task_id, "a", 1, 1, "2"),
            database.save_progress(task_id, "b", 1, 1, "2"),
            end(database, task_id, old),
        ):
            assert attempt == SaveOutcome("stale", new, "running")
            assert not attempt
        assert database.get_progress_list(task_id) == [m.SavedRow("a", old, "1")]
        assert database.save_progress(task_id, "a", 1, 2, "2").outcome == "applied"
        assert database.get_progress(task_id, "a") == m.SavedRow("a", new, "2")

    def test_gateway_claim_deposes_every_regional_epoch(self, database: Database) -> None:
        """After a region failover (g+1, 0) the old region's highest epoch is stale."""
        task_id, epoch = run(database)
        for _ in range(5):
            epoch = claim_regional(database, task_id, epoch).epoch
        assert claim_global(database, task_id, epoch, region=OTHER_REGION).epoch == Epoch(2, 0)
        assert database.save_progress(task_id, "a", 1, 6, "1").outcome == "stale"
        assert not claim_regional(database, task_id, Epoch(2, 0)).granted

    @pytest.mark.parametrize("forged", [Epoch(1, 2), Epoch(2, 0), Epoch(EPOCH_MAX, EPOCH_MAX)])
    def test_unissued_epoch(self, database: Database, forged: Epoch) -> None:
        """An epoch that no claim has issued writes nothing, neither before the end nor after."""
        task_id, epoch = run(database)
        for _ in range(2):
            with pytest.raises(UnissuedEpoch, match=f"task {task_id}"):
                database.record(task_id, forged, [m.Row("a", "1")], m.End("failed", "1"))
            end(database, task_id, epoch)
        assert database.get_progress_list(task_id) == []

    def test_record_is_all_or_nothing(self, database: Database) -> None:
        """Rows and the end of one record stand together, with what was there under older epochs."""
        task_id, old = run(database)
        database.record(task_id, old, [m.Row("a", "1"), m.Row("b", "1")])
        new = claim_regional(database, task_id, old).epoch
        rows = [m.Row("b", "2"), m.Row("c", "2"), m.Row("c", "3")]
        done = database.record(task_id, new, rows, m.End("failed", '"r"', "b: broke"))
        assert done == SaveOutcome("applied", new, "failed")
        assert database.get_progress_list(task_id) == [
            m.SavedRow("a", old, "1"),
            m.SavedRow("b", new, "2"),
            m.SavedRow("c", new, "2"),
        ]
        task = info(database, task_id)
        assert (task.state, task.error, task.response) == ("failed", "b: broke", '"r"')

    @pytest.mark.parametrize("nodes", ["ab", "ba", "bcabc"])
    def test_partly_known_record_is_applied(self, database: Database, nodes: str) -> None:
        """A record of which a part was saved before adds the rest and keeps what stood."""
        task_id, epoch = run(database)
        database.save_progress(task_id, "a", 1, 1, "1")
        rows = [m.Row(node, str(i + 2)) for i, node in enumerate(nodes)]
        expected = {"a": "1"}
        for row in rows:
            expected.setdefault(row.node_id, row.result)
        assert database.record(task_id, epoch, rows).outcome == "applied"
        assert database.record(task_id, epoch, rows).outcome == "duplicate"
        saved = database.get_progress_list(task_id)
        assert {row.node_id: row.result for row in saved} == expected

    def test_foreign_writer(self, database: Database) -> None:
        """Who knows the epoch of a task without being its owner writes nothing."""
        task_id, epoch = run(database)
        rows = [m.Row("a", "1")]
        with pytest.raises(NotTheOwner, match=OWNER):
            database.record(task_id, epoch, rows, writer="proxy/a/2")
        assert database.get_progress_list(task_id) == []
        assert database.record(task_id, epoch, rows, writer=OWNER).outcome == "applied"
        claim_regional(database, task_id, epoch, owner="proxy/a/2")
        assert database.record(task_id, epoch, [m.Row("b", "1")], writer=OWNER).outcome == "stale"
        assert [row.node_id for row in database.get_progress_list(task_id)] == ["a"]

    def test_record_all(self, database: Database) -> None:
        """Records given together are judged one by one: none takes part in what befalls another."""
        tasks = [run(database)[0] for _ in range(6)]
        epoch = Epoch(1, 1)
        database.save_progress(tasks[1], "a", 1, 1, "0")
        claim_regional(database, tasks[2], epoch, owner="proxy/a/2")
        end(database, tasks[5], epoch)

        def all_of(*ids: int) -> list[Any]:
            rows = (m.Row("a", "1"), m.Row("b", "1"))
            q = [m.Record(task_id=i, epoch=epoch, rows=rows, end=report) for i in ids]
            writers = [OWNER if i != tasks[3] else "proxy/a/2" for i in ids]
            answers = database.record_all(list(zip(writers, q, strict=True)))
            return [getattr(answer, "outcome", type(answer)) for answer in answers]

        report = None
        assert database.record_all([]) == []
        assert all_of(tasks[0], tasks[4]) == ["applied", "applied"]
        applied = ["duplicate", "applied", "stale", NotTheOwner, "duplicate", "stale"]
        assert all_of(*tasks) == applied
        report = m.End("succeeded", '"r"')
        ended = ["applied", "applied", "stale", NotTheOwner, "applied", "stale"]
        assert all_of(*tasks) == ended
        assert all_of(tasks[0], tasks[0], NO_TASK) == ["duplicate", "duplicate", TaskNotFound]
        saved = [{r.node_id: r.result for r in database.get_progress_list(i)} for i in tasks]
        both = {"a": "1", "b": "1"}
        assert saved == [both, {"a": "0", "b": "1"}, {}, {}, both, {}]
        assert [info(database, i).response for i in tasks[:3]] == ['"r"', '"r"', None]

    def test_many_rows_in_one_record(self, database: Database) -> None:
        """A record may carry as many rows as a graph may have nodes."""
        task_id, epoch = run(database)
        rows = [m.Row(f"n{i:05}", str(i)) for i in range(10_000)]
        assert database.record(task_id, epoch, rows[:5_000]).outcome == "applied"
        assert database.record(task_id, epoch, rows).outcome == "applied"
        assert database.record(task_id, epoch, rows).outcome == "duplicate"
        assert [row.node_id for row in database.get_progress_list(task_id)] == [
            row.node_id for row in rows
        ]

    def test_end_is_absorbing(self, database: Database) -> None:
        """A task ends once: the same report again is a duplicate, everything else comes too late."""
        task_id, epoch = run(database)
        report = ([m.Row("a", "1")], m.End("succeeded", '"first"'))
        assert database.record(task_id, epoch, *report) == SaveOutcome(
            "applied", epoch, "succeeded"
        )
        ended = info(database, task_id)
        assert database.record(task_id, epoch, *report).outcome == "duplicate"
        assert database.save_progress(task_id, "a", 1, 1, "1").outcome == "duplicate"
        assert database.save_progress(task_id, "b", 1, 1, "1").outcome == "stale"
        assert database.record(task_id, epoch, [], m.End("failed", "1")).outcome == "stale"
        assert not claim_global(database, task_id, epoch).granted
        assert not claim_regional(database, task_id, Epoch(1, 0)).granted
        assert database.cancel_task(task_id).state == "succeeded"
        assert info(database, task_id) == ended

    def test_delete_progress(self, database: Database) -> None:
        """A deleted row can be written again under the same epoch."""
        task_id, _ = run(database)
        database.save_progress(task_id, "a", 1, 1, "1")
        assert database.delete_progress(task_id, "a") is True
        assert database.delete_progress(task_id, "a") is False
        assert database.save_progress(task_id, "a", 1, 1, "2").outcome == "applied"

    def test_progress_in_pages(self, database: Database) -> None:
        """Rows come by code point, in pages of a number of bytes, and every page moves on."""
        task_id, epoch = run(database)
        nodes = ["Z", "a", "a/0/s0", "a/1/s0", "b", "ä", "\uffff", "\U0001f71a"]
        database.record(task_id, epoch, [m.Row(node, "ä" * 50) for node in reversed(nodes)])
        assert [row.node_id for row in database.get_progress_list(task_id)] == nodes
        for size, rows_in_page in ((1, 1), (100, 1), (199, 1), (200, 2), (10_000, 8)):
            seen: list[str] = []
            while page := database.get_progress_list(
                task_id, after=seen[-1] if seen else "", max_bytes=size
            ):
                assert len(page) == min(rows_in_page, len(nodes) - len(seen))
                seen += [row.node_id for row in page]
            assert seen == nodes


class ClaimContract(Fixture):
    """Claims are compare-and-set, and idempotent."""

    def test_regional_claim(self, database: Database) -> None:
        """A region's claim starts the task: it is running, and the claim carries what it needs."""
        task_id = create(database, claimant="gateway", region=REGION)
        claimed = claim_regional(database, task_id, Epoch(1, 0))
        expected = m.Claimed(
            task_id=task_id, granted=True, epoch=Epoch(1, 1), region=REGION, owner=OWNER,
            state="running", attempts=0, saved=0, task_description="{}",
        )  # fmt: skip
        assert claimed == expected
        database.save_progress(task_id, "a", 1, 1, "1")
        again = claim_regional(database, task_id, Epoch(1, 0))
        assert (again.granted, again.attempts, again.saved) == (True, 0, 1)
        assert again.task_description == "{}"

    def test_claim_is_compare_and_set(self, database: Database) -> None:
        """Of two who claim the same epoch one wins; the other learns who."""
        task_id, epoch = run(database)
        winner = claim_regional(database, task_id, epoch, owner="proxy/a/2")
        loser = claim_regional(database, task_id, epoch, owner="proxy/a/3")
        assert (winner.granted, loser.granted) == (True, False)
        assert (loser.epoch, loser.owner, loser.attempts) == (Epoch(1, 2), "proxy/a/2", 0)
        assert loser.task_description == ""

    def test_lost_owners_are_counted(self, database: Database) -> None:
        """Owners that died in a row are counted and named, in every answer, once for each claim."""
        task_id, epoch = run(database)
        claimed = claim_regional(database, task_id, epoch, owner="proxy/a/2", lost=True)
        history = f"{OWNER} at 1.1; "
        assert (claimed.attempts, claimed.lost) == (1, history)
        again = claim_regional(database, task_id, epoch, owner="proxy/a/2", lost=True)
        assert (again.granted, again.attempts, again.lost) == (True, 1, history)
        moved = claim_global(database, task_id, claimed.epoch, region=OTHER_REGION, lost=True)
        history += "proxy/a/2 at 1.2; "
        assert (moved.attempts, moved.lost) == (2, history)
        handed_back = claim_global(database, task_id, moved.epoch, lost=True)  # nobody had it
        assert (handed_back.attempts, handed_back.lost) == (2, history)
        assert claim_regional(database, task_id, Epoch(1, 0)).attempts == 2  # refused, and told
        assert info(database, task_id).attempts == 2

    def test_a_saved_row_starts_the_count_anew(self, database: Database) -> None:
        """Owners that got on do not count, whether they died or handed the task back."""
        task_id, epoch = run(database)
        epoch = claim_regional(database, task_id, epoch, lost=True).epoch
        database.record(task_id, epoch, [m.Row("a", "1")])
        claimed = claim_regional(database, task_id, epoch, owner="proxy/a/2", lost=True)
        assert (claimed.attempts, claimed.lost) == (1, f"{OWNER} at 1.2; ")
        database.record(task_id, claimed.epoch, [m.Row("b", "1")])
        handed_on = claim_global(database, task_id, claimed.epoch)
        assert (handed_on.attempts, handed_on.lost) == (0, "")

    @pytest.mark.parametrize("claimant", ["", OTHER_REGION])
    def test_regional_claim_needs_the_region(self, database: Database, claimant: str) -> None:
        """Only the region that the gateway chose may hand a task out."""
        for task_id in (create(database), create(database, claimant="gateway", region=REGION)):
            before = info(database, task_id)
            claimed = claim_regional(database, task_id, before.epoch, claimant=claimant)
            assert (claimed.granted, claimed.epoch) == (False, before.epoch)
            assert info(database, task_id) == before

    def test_global_claim_moves_a_running_task(self, database: Database) -> None:
        """A gateway's claim takes the task from its owner; with no region it waits for one."""
        task_id, epoch = run(database)
        claimed = claim_global(database, task_id, epoch, region="")
        assert (claimed.granted, claimed.epoch) == (True, Epoch(2, 0))
        assert (claimed.region, claimed.owner, claimed.task_description) == ("", "", "")
        assert [task.task_id for task in database.find_tasks("")] == [task_id]
        assert claim_global(database, task_id, epoch, region="").granted
        assert not claim_global(database, task_id, epoch, region=REGION).granted
        assert claim_global(database, task_id, Epoch(2, 0)).epoch == Epoch(3, 0)

    def test_claims_of_old_and_forged_epochs(self, database: Database) -> None:
        """A claim that expects any other epoch than the row's changes nothing."""
        task_id, epoch = run(database)
        before = info(database, task_id)
        for expected in (Epoch(0, 0), Epoch(1, 2), Epoch(2, 0), Epoch(EPOCH_MAX - 1, 0)):
            assert not claim_global(database, task_id, expected, claimant="gateway/2").granted
            assert not claim_regional(database, task_id, expected, owner="x").granted
        with pytest.raises(AgentOSError, match="epoch"):
            claim_global(database, task_id, Epoch(EPOCH_MAX, 0))
        assert info(database, task_id) == before
        assert before.epoch == epoch

    def test_cancel(self, database: Database) -> None:
        """Cancelling takes the task from its owner at the next global epoch, once."""
        task_id, epoch = run(database)
        expected = m.Cancelled(
            task_id=task_id, state="cancelled", epoch=Epoch(2, 0), region=REGION, owner=OWNER
        )
        assert database.cancel_task(task_id) == expected
        assert database.cancel_task(task_id) == expected
        assert end(database, task_id, epoch) == SaveOutcome("stale", Epoch(2, 0), "cancelled")
        assert database.record(task_id, Epoch(2, 0), []).outcome == "stale"
        assert not claim_global(database, task_id, Epoch(1, 1), claimant="", region="").granted
        assert info(database, task_id).response is None


class QueryContract(Fixture):
    """What the sweeper and people ask."""

    def test_find_by_priority(self, database: Database) -> None:
        """Unfinished tasks of a region come by priority, high first, then by age."""
        ids = [create(database, priority=p, region=REGION, claimant="g") for p in (0, 5, -1, 5, 0)]
        create(database)
        database.cancel_task(ids[4])
        claim_regional(database, ids[0], Epoch(1, 0))
        found = database.find_tasks(REGION)
        assert [task.task_id for task in found] == [ids[1], ids[3], ids[0], ids[2]]
        assert found[2] == m.TaskBrief(ids[0], Epoch(1, 1), REGION, OWNER, (), 0, 0)
        assert database.find_tasks(REGION, limit=2) == found[:2]
        assert database.find_tasks("region/none") == []

    def test_find_by_id(self, database: Database) -> None:
        """With `after` the same tasks come by id, so that a sweep passes each of them once."""
        ids = [create(database, priority=p) for p in (0, 5, -1)]
        assert [task.task_id for task in database.find_tasks("", after=0)] == ids
        assert [task.task_id for task in database.find_tasks("", after=ids[0], limit=1)] == [ids[1]]
        assert database.find_tasks("", after=ids[2]) == []

    def test_find_and_count_by_agents(self, database: Database) -> None:
        """Tasks can be found and counted by exactly the agents that they need."""
        ids = [create(database, agents=agents) for agents in (("b",), ("a", "b"), ("b",), ())]
        region = create(database, agents=("b",), region=REGION, claimant="g")
        database.cancel_task(ids[2])
        for agents, found in ((("b",), ids[:1]), (("a", "b"), ids[1:2]), ((), ids[3:])):
            for after in (None, 0):
                tasks = database.find_tasks("", agents=agents, after=after)
                assert [task.task_id for task in tasks] == found
                assert all(task.agents == agents for task in tasks)
        assert database.count_unfinished() == [
            m.TaskCount("", (), 1),
            m.TaskCount("", ("a", "b"), 1),
            m.TaskCount("", ("b",), 1),
            m.TaskCount(REGION, ("b",), 1),
        ]
        database.cancel_task(region)
        assert [group.region for group in database.count_unfinished()] == ["", "", ""]

    def test_list_tasks(self, database: Database) -> None:
        """Tasks are listed newest first, by user and state, in pages, without their responses."""
        ids = [database.create_task(i % 2, "graph", "{}").task_id for i in range(6)]
        for i in (1, 2):
            claim_global(database, ids[i], Epoch(0, 0))
            end(database, ids[i], claim_regional(database, ids[i], Epoch(1, 0)).epoch)

        def listed(**options: Any) -> list[int]:
            return [task.task_id for task in database.list_tasks(**options)]

        assert listed() == ids[::-1]
        assert listed(user_id=1) == ids[5::-2]
        assert listed(state="accepted") == [ids[5], ids[4], ids[3], ids[0]]
        assert listed(state="succeeded") == [ids[2], ids[1]]
        assert listed(state="succeeded", user_id=1) == [ids[1]]
        assert listed(before=ids[3], limit=2) == [ids[2], ids[1]]
        assert listed(state="failed") == []
        assert all(task.response is None for task in database.list_tasks())
