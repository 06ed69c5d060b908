"""What clients say to the gateway and read from the store, and what they hear."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from agentos.core.epoch import Epoch
from agentos.core.errors import AgentOSError
from agentos.core.messages.base import (
    Address,
    Count,
    Json,
    Label,
    Message,
    RegionInfo,
    RowId,
    Seconds,
    State,
    TaskId,
    UserId,
)

# -- link: between the two switches of a connection ------------------------------------------------


class Hello(Message, frozen=True, kw_only=True, omit_defaults=True):
    """I am `address`: first on a connection, and again for each further actor behind it.

    `session` is a secret of the process that hosts the actor: whoever says it again is the same
    process on a new connection, and takes its name with it. A switch passes the greetings of its
    children up, so that every parent knows all the names below it.

    `host`: the first name of the process, where this is a further one. A connection may break and
    come back below us while greetings are on their way: without it the parent would take the first
    that arrives for what the process is.

    `limits`: a fingerprint of a role's own limits, so that different ones are noticed.

    `beside`: this connection is a second, shorter way to a process that is known here by another
    one; the session proves it. Answers take the way over which was asked last.
    """

    address: Address
    session: Annotated[str, Meta(min_length=16, max_length=64)]
    host: Address | None = None
    beside: bool = False
    limits: Annotated[str, Meta(max_length=16)] = ""


class Welcome(Message, frozen=True, kw_only=True):
    """The parent knows the way to `address` now."""

    address: Address


class Bye(Message, frozen=True, kw_only=True):
    """`address` is not behind this connection any more: its name is free."""

    address: Address


class Ping(Message, frozen=True, kw_only=True):
    """Is the link alive? Any message from the parent answers it."""


class Pong(Message, frozen=True, kw_only=True):
    """The answer to a `ping`: the link is alive."""


# -- a client and the gateway ----------------------------------------------------------------------


class Submit(Message, frozen=True, kw_only=True):
    """Run this task. `key` makes it idempotent for the user; `notify` asks for `Ended`."""

    task_description: Json
    user_id: UserId = 0
    task_type: Annotated[str, Meta(min_length=1, max_length=64)] = "graph"
    key: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    require_agents: bool = False
    notify: bool = False


class Submitted(Message, frozen=True, kw_only=True):
    """The task is committed. `created` is false when the key named a task that existed."""

    task_id: TaskId
    state: State
    created: bool


class Cancel(Message, frozen=True, kw_only=True):
    """End this task now, and abort the calls that run for it."""

    task_id: TaskId


class Cancelled(Message, frozen=True, kw_only=True):
    """The terminal state that the task has: cancelled, or what it ended as before."""

    task_id: TaskId
    state: State
    epoch: Epoch
    region: Address = ""
    owner: Address = ""


class Watch(Message, frozen=True, kw_only=True):
    """Send `client` the events of this task (`progress`), or only its end."""

    task_id: TaskId
    client: Address
    progress: bool = True


class Unwatch(Message, frozen=True, kw_only=True):
    """Stop telling this client about the task: its progress, and its end."""

    task_id: TaskId
    client: Address


class Event(Message, frozen=True, kw_only=True):
    """Something happened to a task; a hint for people, never the authority.

    `event` is one of: placed, started, call, answer, vote, void, retry, lost, node.
    """

    task_id: TaskId
    epoch: Epoch
    event: Label
    node: str = ""
    round: int = 0
    slot: str = ""
    proxy: Address = ""
    text: str = ""


class GetCluster(Message, frozen=True, kw_only=True):
    """Who is alive, and what was refused?"""


class ClusterInfo(Message, frozen=True, kw_only=True):
    """The gateway's view. `counters`: events in its process by name since that started."""

    gateway: Address
    regions: tuple[RegionInfo, ...]
    unfinished: Count
    backlog: Count
    counters: dict[str, int]


class Refused(Message, frozen=True, kw_only=True):
    """A request that was not carried out. `code` is the class's code in `agentos.core.errors`."""

    code: Label
    reason: str
    retry_after_s: Seconds | None = None


def refusal(error: AgentOSError) -> Refused:
    """What tells a peer of an error: its code, its text, and when to try again if it says."""
    return Refused(
        code=error.code, reason=str(error), retry_after_s=getattr(error, "retry_after_s", None)
    )


# -- reads: anybody and the store ------------------------------------------------------------------


class GetTask(Message, frozen=True, kw_only=True):
    """One task's row, with its response if it has ended."""

    task_id: TaskId


class TaskInfo(Message, frozen=True, kw_only=True):
    """One task. Times are Unix seconds, for people only: no decision uses them.

    `attempts` counts the owners that were lost in a row without a saved row between.
    """

    task_id: TaskId
    user_id: UserId
    task_type: str
    state: State
    epoch: Epoch
    key: str | None = None
    region: Address = ""
    owner: Address = ""
    attempts: Count = 0
    agents: tuple[Label, ...] = ()
    error: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0
    response: Json | None = None


class GetProgress(Message, frozen=True, kw_only=True):
    """The saved rows of a task, in order of node_id, after `after`; a page of `limits.page_bytes`."""

    task_id: TaskId
    after: str = ""


class SavedRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One progress row as it stands in the database."""

    node_id: RowId
    epoch: Epoch
    result: Json


class Progress(Message, frozen=True, kw_only=True):
    """A page of saved rows; `more` when there is another after the last of these."""

    task_id: TaskId
    rows: tuple[SavedRow, ...]
    more: bool


class ListTasks(Message, frozen=True, kw_only=True):
    """Tasks by id, newest first, below `before` (0: from the newest)."""

    user_id: UserId | None = None
    state: State | None = None
    before: Count = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class TaskList(Message, frozen=True, kw_only=True):
    """A page of tasks, without their responses."""

    tasks: tuple[TaskInfo, ...]
