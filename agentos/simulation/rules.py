"""The rules about what is committed: each a function of one change, and of what stood before it.

Numbers are those of docs/guarantees.md ("The rules"). A rule raises `Violation`, or returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import msgspec

from agentos.core import messages as m
from agentos.simulation.ledger import Change, Entry, Violation

Rule = Callable[[Change, Entry], None]
"""Looks at a change to a task that is known, with the task as it was before."""


def epochs_go_forward(change: Change, entry: Entry) -> None:
    """Rule 1: a task row's epoch never goes back, and only a claim or a cancel moves it."""
    before, after = entry.task.epoch, _task(change).epoch
    if after < before:
        _broken(epochs_go_forward, change, f"from {before} back to {after}")
    if after != before and not isinstance(change.question, m.Claim | m.CancelTask):
        _broken(epochs_go_forward, change, f"{_kind(change)} moved it from {before} to {after}")
    if after not in {before, before.next_global(), before.next_regional()}:
        _broken(epochs_go_forward, change, f"it jumped from {before} to {after}")


def epochs_are_issued_once(change: Change, entry: Entry) -> None:
    """Rule 3: no epoch is ever issued to two claimants, regions or owners."""
    answer = change.answer
    if not isinstance(change.question, m.Claim) or not isinstance(answer, m.Claimed):
        return
    if answer.granted:
        holder = (change.question.claimant, change.question.region, change.question.owner)
        known = entry.issued.get(answer.epoch, holder)
        if known != holder:
            text = f"{answer.epoch} was given to {known}, and now to {holder}"
            _broken(epochs_are_issued_once, change, text)


def claims_compare_and_set(change: Change, entry: Entry) -> None:
    """Rule 3: a claim is granted from the epoch that it expects, or again to who holds it."""
    question, answer = change.question, change.answer
    if not isinstance(question, m.Claim) or not isinstance(answer, m.Claimed):
        return
    before, after = entry.task, _task(change)
    if answer.granted and before.epoch not in {question.expected, answer.epoch}:
        text = f"it expected {question.expected} and got {answer.epoch}; the row was {before.epoch}"
        _broken(claims_compare_and_set, change, text)
    if answer.granted and before.state in m.TERMINAL:
        _broken(claims_compare_and_set, change, f"granted, though it is {before.state}")
    holder = (question.claimant, question.region, question.owner)
    next_ = question.expected.next_global()
    next_ = question.expected.next_regional() if question.scope == "regional" else next_
    holds = before.epoch == next_ and entry.issued.get(next_) == holder
    if not answer.granted and holds and before.state not in m.TERMINAL:
        _broken(claims_compare_and_set, change, f"{holder[0]} is refused {next_}, which it holds")
    if not answer.granted and (after.epoch, after.owner) != (before.epoch, before.owner):
        _broken(claims_compare_and_set, change, "refused, and yet it changed the row")


def writes_are_fenced(change: Change, entry: Entry) -> None:
    """Rule 4: what is accepted carries the epoch that the task row has at that instant."""
    question, answer = change.question, change.answer
    if not isinstance(question, m.Record) or not isinstance(answer, m.Recorded):
        return
    before, after = entry.task, _task(change)
    if answer.outcome == "applied":
        if question.epoch != before.epoch:
            text = f"{change.sender} wrote under {question.epoch}; the row's was {before.epoch}"
            _broken(writes_are_fenced, change, text)
        if before.state in m.TERMINAL:
            _broken(writes_are_fenced, change, f"{change.sender} wrote after it {before.state}")
        owner = entry.issued[question.epoch][2]
        if owner != change.sender:
            _broken(writes_are_fenced, change, f"{change.sender} wrote; {owner!r} is the owner")
        for row, saved in zip(question.rows, change.rows, strict=True):
            if saved is None:
                _broken(writes_are_fenced, change, f"applied, but {row.node_id} is not there")
    elif (after.state, after.epoch) != (before.state, before.epoch):
        _broken(writes_are_fenced, change, f"{answer.outcome}, and yet it changed the row")
    else:
        for row, saved in zip(question.rows, change.rows, strict=True):
            if saved != entry.rows.get(row.node_id):
                _broken(
                    writes_are_fenced, change, f"{answer.outcome}, and yet {row.node_id} changed"
                )


def outcomes_are_true(change: Change, entry: Entry) -> None:
    """Rule 4: duplicate means recorded by this owner; stale, that somebody else came after it."""
    question, answer = change.question, change.answer
    if not isinstance(question, m.Record) or not isinstance(answer, m.Recorded):
        return
    before = entry.task
    there = all(saved is not None and saved.epoch == question.epoch for saved in change.rows) and (
        question.end is None or before.state == question.end.state
    )
    if answer.outcome == "duplicate" and not there:
        _broken(outcomes_are_true, change, "a duplicate of what is not recorded")
    if answer.outcome == "stale" and before.epoch == question.epoch:
        if before.state not in m.TERMINAL:
            text = f"{change.sender} was refused, though {question.epoch} is the row's epoch"
            _broken(outcomes_are_true, change, text)
        if there and before.state != "cancelled":
            text = f"{change.sender} was refused what it had recorded itself"
            _broken(outcomes_are_true, change, text)


def results_stay(change: Change, entry: Entry) -> None:
    """Rule 9: the set of finished nodes only grows; a recorded result never changes."""
    if not isinstance(change.question, m.Record):
        return
    for row, saved in zip(change.question.rows, change.rows, strict=True):
        before = entry.rows.get(row.node_id)
        if before is None:
            continue
        if saved is None or saved.result != before.result:
            _broken(results_stay, change, f"the result of {row.node_id} changed after it was saved")
        if saved is not before and saved.epoch == before.epoch:  # the same row, written again
            _broken(results_stay, change, f"{row.node_id} was written twice under {saved.epoch}")


def dependencies_finish_first(change: Change, entry: Entry) -> None:
    """Rule 2: when a node is finished, all that it needs is finished."""
    if not isinstance(change.question, m.Record):
        return
    written = {row.node_id for row, saved in _pairs(change) if saved is not None}
    for name in written & entry.graph.nodes.keys():
        for other in entry.graph.dependencies(name):
            if other not in entry.rows and other not in written:
                _broken(dependencies_finish_first, change, f"{name} is saved, {other} is not")


def results_keep_their_answers(change: Change, entry: Entry) -> None:
    """Rule 2: when the result of several answers is saved, so are these."""
    if not isinstance(change.question, m.Record):
        return
    written = {row.node_id for row, saved in _pairs(change) if saved is not None}
    for name in written & entry.graph.nodes.keys():
        node = entry.graph.nodes[name]
        if node.samples == node.rounds == 1:
            continue  # its result is its answer
        rounds, samples = range(1, node.rounds + 1), range(node.samples)
        for row in (m.call_row(name, r, f"s{s}") for r in rounds for s in samples):
            if row not in entry.rows and row not in written:
                _broken(results_keep_their_answers, change, f"{name} is saved, {row} is not")


def terminal_is_absorbing(change: Change, entry: Entry) -> None:
    """Rule 4: nothing of a task changes after it has ended."""
    before, after = entry.task, _task(change)
    if before.state in m.TERMINAL:
        was = (before.state, before.epoch, before.response, before.error, before.owner)
        now = (after.state, after.epoch, after.response, after.error, after.owner)
        if was != now:
            _broken(terminal_is_absorbing, change, f"it was {was[:2]} and became {now[:2]}")


def ends_have_reasons(change: Change, entry: Entry) -> None:
    """A task succeeds with all of its nodes saved, and with their values; it fails with an error."""
    after = _task(change)
    if entry.task.state in m.TERMINAL or not isinstance(change.question, m.Record):
        return
    if after.state == "succeeded":
        written = {row.node_id: saved for row, saved in _pairs(change) if saved is not None}
        rows = entry.rows | written
        missing = [name for name in entry.graph.nodes if name not in rows]
        if missing:
            _broken(ends_have_reasons, change, f"it succeeded without {', '.join(missing)}")
        values = {name: _value(rows[name].result) for name in entry.graph.nodes}
        if _output(after.response) != entry.graph.result(values):
            _broken(ends_have_reasons, change, "its response is not what its nodes' rows say")
    elif after.state == "failed" and not (after.error and after.response):
        _broken(ends_have_reasons, change, "it failed without saying why")


RULES: Final[Sequence[Rule]] = (
    epochs_go_forward,
    epochs_are_issued_once,
    claims_compare_and_set,
    writes_are_fenced,
    outcomes_are_true,
    results_stay,
    dependencies_finish_first,
    results_keep_their_answers,
    terminal_is_absorbing,
    ends_have_reasons,
)


def _task(change: Change) -> m.TaskInfo:
    assert change.task is not None, "the tasks of a simulation are not deleted"
    return change.task


def _pairs(change: Change) -> Sequence[tuple[m.Row, m.SavedRow | None]]:
    assert isinstance(change.question, m.Record), "only records have rows"
    return list(zip(change.question.rows, change.rows, strict=True))


def _value(result: str) -> object:
    return msgspec.json.decode(result)["value"]


def _output(response: str | None) -> object:
    return None if response is None else msgspec.json.decode(response).get("output")


def _kind(change: Change) -> str:
    return type(change.question).__name__


def _broken(rule: Rule, change: Change, text: str) -> NoReturn:
    task = _task(change)
    raise Violation(rule.__name__, f"task {task.task_id} ({task.key}), {_kind(change)}: {text}")
