"""What a campaign must have reached: a net that was never cast catches nothing.

TigerBeetle's coverage marks (`src/testing/marks.zig`) and FoundationDB's `TEST` macro are the
model: each fault and each state that a campaign says it covers is counted, and a campaign in which
one stayed at zero fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from agentos.core import messages as m
from agentos.simulation.faults import Faults
from agentos.simulation.ledger import Change, Entry

FAULTS: Final[Mapping[str, str]] = {
    "drop": "a message was lost",
    "delay": "a link stood still; what was on it stayed in order",
    "duplicate": "a message arrived twice",
    "reorder": "a message was overtaken",
    "partition": "a link was cut both ways",
    "one_way": "a link was cut in one direction",
    "lost_on_a_broken_link": "a message was on a link when that broke",
    "flap": "a heartbeat was lost, with others",
    "crash_gateway": "a gateway died",
    "crash_region": "a region died",
    "crash_proxy": "a proxy died",
    "crash_store": "the store died",
    "crash_in_step": "a process died after it had decided, before all of it had left",
    "crash_after_commit": "the store died after a commit, before its answers",
    "death": "a process died and was never started again",
    "restart": "a process that had died was started again",
    "pause_gateway": "a gateway was stopped and continued",
    "pause_region": "a region was stopped and continued",
    "pause_proxy": "a proxy was stopped and continued",
    "pause_store": "the store was stopped and continued",
    "drain_gateway": "a gateway was told to stop in order",
    "drain_region": "a region was told to stop in order",
    "drain_proxy": "a proxy was told to stop in order",
    "poison": "a call killed the process that made it",
    "storage_slow": "commits took long",
    "storage_fail": "a transaction was rolled back",
    "answer_lost": "a commit's answers were lost",
    "forge": "a peer sent a write or a claim that was not its to send",
    "agent_late": "an agent took long",
    "agent_never": "an agent never answered",
    "agent_error": "an agent failed",
    "agent_unusable": "an agent answered what cannot be used",
    "agent_broken": "an agent failed for good",
}
"""Faults that must have happened."""

STATES: Final[Mapping[str, str]] = {
    "duplicate_record": "an owner saved again what it had saved",
    "late_save_before_the_successors_first": "a deposed owner saved before its successor had",
    "late_save_after_the_successors_first": "a deposed owner saved after its successor had",
    "claim_answered_again": "a claim whose answer was lost was granted again",
    "claim_refused": "a claim came too late",
    "two_gateways_claimed_one_task": "two gateways claimed a task from the same epoch",
    "takeover_in_region": "another proxy of the region took a task over",
    "takeover_across_regions": "another region took a task over",
    "taken_back": "a gateway took a task back for which no region had room",
    "declined": "a region handed a task back",
    "backlog_wait": "a task waited in the database for a region",
    "cancel_beats_completion": "a task was cancelled while its owner walked it",
    "completion_beats_cancel": "a cancel came after the end",
    "zombie_owner_refused": "a proxy that had been stopped past its lease was refused",
    "zombie_region_refused": "a region that had been stopped past its lease was refused",
    "region_adopted_tasks": "a region that was started again found its tasks in the database",
    "stopped_by_its_region": "an owner was told to stop by its region",
    "resumed_from_saved_rows": "a new owner went on from saved rows",
    "submitted_again": "a client's second submission found the first",
    "storage_refused": "a request was answered with a storage error",
    "call_placed_again": "a call was placed elsewhere when its executor was lost",
    "call_repeated": "a call was repeated after an error",
    "task_failed": "a task failed",
    "poison_task_failed": "a task that killed one process after the other failed",
    "drained": "a process that was stopped in order had handed all back",
    "drain_took_too_long": "a process that was stopped in order was still waiting for calls",
    "found_another_parent": "a process lost its parent and found one again",
    "waited_for_a_parent": "a message waited for a parent",
    "saved_past_its_region": "an owner whose link to its region was cut wrote to the store",
    "nobody_has_the_address": "a message was for an address that nobody had",
    "client_read_the_end": "a client learned of an end by looking for it",
}
"""States that must have been reached."""


def missing(reached: Mapping[str, int], faults: Mapping[str, bool] | None = None) -> list[str]:
    """The marks that were never reached.

    Args:
        reached: how often each mark was.
        faults: by fault, whether the rates in use can cause it; all can, if None.
    """
    wanted = [f for f in FAULTS if faults is None or faults.get(f, True)]
    return [mark for mark in (*wanted, *STATES) if not reached.get(mark)]


def possible(faults: Faults) -> dict[str, bool]:
    """By fault, whether these rates can cause it."""
    can: dict[str, bool] = {}
    deaths = faults.crash + faults.crash_in_step
    for mark in FAULTS:
        if mark.startswith(("pause_", "drain_")):
            can[mark] = getattr(faults, mark.partition("_")[0]) > 0
        elif mark in {"crash_store", "restart"}:
            can[mark] = deaths + faults.crash_after_commit > 0
        elif mark.startswith("crash_") and not hasattr(faults, mark):
            can[mark] = deaths > 0
        elif mark == "lost_on_a_broken_link":
            can[mark] = deaths + faults.partition + faults.one_way > 0
        else:
            can[mark] = getattr(faults, mark) > 0
    return can


def marks(change: Change, entry: Entry) -> Iterator[str]:
    """The states that a change to a task shows, given the task as it was before."""
    question, answer, before = change.question, change.answer, entry.task
    if isinstance(answer, m.Recorded) and isinstance(question, m.Record):
        if answer.outcome == "duplicate":
            yield "duplicate_record"
        elif answer.outcome == "stale" and before.epoch > question.epoch and before.owner:
            first = any(row.epoch == before.epoch for row in entry.rows.values())
            yield f"late_save_{'after' if first else 'before'}_the_successors_first"
        if change.task is not None and change.task.state == "failed" != before.state:
            yield "task_failed"
            if "limits.max_attempts" in change.task.error:
                yield "poison_task_failed"
    elif isinstance(answer, m.Claimed) and isinstance(question, m.Claim):
        if answer.granted and answer.epoch == before.epoch:
            yield "claim_answered_again"
        elif not answer.granted:
            yield "claim_refused"
            issued = entry.issued.get(question.expected.next_global())
            if question.scope == "global" and issued and issued[0] != question.claimant:
                yield "two_gateways_claimed_one_task"
    elif isinstance(answer, m.TaskCreated) and not answer.created:
        yield "submitted_again"
    elif isinstance(answer, m.Cancelled):
        if before.state == "running" and answer.state == "cancelled":
            yield "cancel_beats_completion"
        elif answer.state in {"succeeded", "failed"}:
            yield "completion_beats_cancel"
