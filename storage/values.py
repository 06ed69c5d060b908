"""Values on their way into and out of a database: what every adapter checks and encodes alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from agentos.core import messages as m
from agentos.core.epoch import EPOCH_MAX, Epoch
from agentos.core.errors import (
    AgentOSError,
    KeyConflict,
    LocalProtocolError,
    NotTheOwner,
    StorageError,
    TaskNotFound,
    UnissuedEpoch,
)
from agentos.core.limits import MAX_INT
from agentos.core.ports import SaveOutcome

_LABELS = msgspec.json.Decoder(tuple[str, ...])


def _plain(text: str) -> bool:
    """Whether `check_texts` has nothing to look for in it: nearly every text is so."""
    return text.isascii() and "\0" not in text


def check_texts(where: str, **texts: str | None) -> None:
    """Refuse, before anything is written, a text that not every database can store and give back.

    PostgreSQL has no NUL in a text, and a lone surrogate has no UTF-8 form (RFC 3629, section 3).

    Args:
        where: what the texts belong to, like `task 7`.
        texts: the texts by the names that a message should call them.

    Raises:
        LocalProtocolError: naming the first such text and the position of the character.
    """
    for name, text in texts.items():
        if text is None or _plain(text):
            continue
        if "\0" in text:
            position = text.index("\0")
            raise LocalProtocolError(f"{where}: {name} has a NUL at position {position}; remove it")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise LocalProtocolError(
                f"{where}: {name} has a lone surrogate at position {error.start}; "
                "replace it, or escape it inside JSON"
            ) from None


def check_integers(where: str, **integers: int) -> None:
    """Refuse a number that does not fit the 64 bits of a column.

    Raises:
        LocalProtocolError: naming it.
    """
    for name, value in integers.items():
        if not -MAX_INT - 1 <= value <= MAX_INT:
            raise LocalProtocolError(f"{where}: {name} {value} does not fit into 64 bits")


def check_new_task(
    user_id: int,
    task_type: str,
    task_description: str,
    key: str | None,
    agents: Sequence[str],
    priority: int,
    claimant: str,
    region: str,
    owner: str,
) -> Epoch:
    """The epoch of a new task, after a look at what `create_task` is given.

    Raises:
        LocalProtocolError: as `check_texts` and `check_integers` do, or an owner has no region.
    """
    check_integers("new task", user_id=user_id, priority=priority)
    short = task_type + (key or "") + "".join(agents) + claimant + region + owner
    if not (_plain(short) and _plain(task_description)):
        check_texts(
            "new task",
            task_type=task_type,
            task_description=task_description,
            key=key,
            agents="".join(agents),
            claimant=claimant,
            region=region,
            owner=owner,
        )
    if owner and not region:
        raise LocalProtocolError(f"new task: its owner {owner!r} needs a region")
    return Epoch(1, int(bool(owner))) if region else Epoch(0, 0)


def check_record(task_id: int, rows: Sequence[m.Row], end: m.End | None) -> None:
    """Check what `record` is given, as `check_texts` does."""
    for row in rows:
        if not (_plain(row.node_id) and _plain(row.result)):
            check_texts(f"task {task_id}", node_id=row.node_id, result=row.result)
        if not row.node_id:
            raise LocalProtocolError(f"task {task_id}: a progress row needs a node_id")
    if end is not None and not (_plain(end.response) and _plain(end.error)):
        check_texts(f"task {task_id}", response=end.response, error=end.error)


def one_by_one(
    record: Callable[..., SaveOutcome], records: Sequence[tuple[str, m.Record]]
) -> list[SaveOutcome | AgentOSError]:
    """What a storage's `record` answers to each; its refusals of one are no concern of the others.

    Raises:
        StorageError: the database itself failed.
    """
    answers: list[SaveOutcome | AgentOSError] = []
    for writer, q in records:
        try:
            answers.append(record(q.task_id, q.epoch, q.rows, q.end, writer=writer))
        except AgentOSError as error:
            if isinstance(error, StorageError) and not isinstance(error, UnissuedEpoch):
                raise
            answers.append(error)
    return answers


def check_claim(claim: m.Claim) -> Epoch:
    """Check what `claim` is given, as `check_texts` does; return the epoch that it asks for."""
    if not _plain(claim.claimant + claim.region + claim.owner):
        check_texts(
            f"task {claim.task_id}", claimant=claim.claimant, region=claim.region, owner=claim.owner
        )
    expected = claim.expected
    following = expected.next_global() if claim.scope == "global" else expected.next_regional()
    return issuable(claim.task_id, following)


def issuable(task_id: int, epoch: Epoch) -> Epoch:
    """`epoch`, if a claim may issue it.

    Raises:
        LocalProtocolError: one of its components is beyond what every JSON reader can hold.
    """
    if epoch.global_epoch > EPOCH_MAX or epoch.regional_epoch > EPOCH_MAX:
        raise LocalProtocolError(
            f"task {task_id} has used up its epochs at {epoch}; submit it again"
        )
    return epoch


def not_found(task_id: int) -> TaskNotFound:
    """The refusal of a write to a task that is not there."""
    return TaskNotFound(f"no task has the id {task_id}")


def still_unfinished(task_id: int, state: str) -> LocalProtocolError:
    """The refusal to delete a task that somebody may be working on."""
    return LocalProtocolError(f"task {task_id} is {state}; cancel it before you delete it")


def document_in_use(doc_id: int, task_id: int) -> LocalProtocolError:
    """The refusal to delete a task's request or response alone."""
    return LocalProtocolError(
        f"document {doc_id} belongs to task {task_id}; delete the task instead"
    )


def key_conflict(user_id: int, key: str, task_id: int) -> KeyConflict:
    """The refusal of a key that stands for another request."""
    return KeyConflict(
        f"user {user_id} has used the key {key!r} for another request, task {task_id}; "
        "use a new key, or send the same type and description"
    )


def foreign(task_id: int, writer: str, owner: str) -> NotTheOwner:
    """The error for a write of somebody who does not hold the task."""
    return NotTheOwner(f"task {task_id} is held by {owner or 'nobody'!r}, not by {writer!r}")


def unissued(task_id: int, epoch: Epoch, current: Epoch) -> UnissuedEpoch:
    """The refusal of a write under an epoch that no claim can have issued."""
    return UnissuedEpoch(
        f"task {task_id}: epoch {epoch} is newer than the task's own, {current}; "
        "no claim has issued it. Claim the task before writing"
    )


def encode_request(user_id: int, task_type: str, key: str | None, task_description: str) -> str:
    """The request document of a task: what was asked, by whom, as it came."""
    request = {
        "user_id": user_id,
        "task_type": task_type,
        "key": key,
        "task_description": task_description,
    }
    return msgspec.json.encode(request).decode()


def encode_labels(labels: Sequence[str]) -> str:
    """Labels as the JSON array that a column holds."""
    return msgspec.json.encode(labels).decode() if labels else "[]"


def decode_labels(text: str) -> tuple[str, ...]:
    """Labels out of the JSON array that a column holds."""
    return () if text == "[]" else _LABELS.decode(text)
