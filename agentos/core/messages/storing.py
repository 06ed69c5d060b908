"""What the roles ask of the store: creation, claims, fenced writes, the sweeper's queries."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from agentos.core.epoch import Epoch
from agentos.core.messages.base import (
    Address,
    Count,
    End,
    Json,
    Label,
    Message,
    Row,
    RowId,
    State,
    TaskBrief,
    TaskId,
    UserId,
)

# -- a role and the store --------------------------------------------------------------------------


class CreateTask(Message, frozen=True, kw_only=True):
    """Commit a task; with a `region`, also the gateway's first claim, in the same transaction.

    With an `owner` too, one of the region's proxies, as if the region had claimed it next.
    """

    user_id: UserId
    task_type: str
    task_description: Json
    key: str | None
    agents: tuple[Label, ...]
    priority: int
    claimant: Address
    region: Address = ""
    owner: Address = ""


class TaskCreated(Message, frozen=True, kw_only=True):
    """It is committed, or was before (`created` is false)."""

    task_id: TaskId
    created: bool
    state: State
    epoch: Epoch
    region: Address
    owner: Address


class Claim(Message, frozen=True, kw_only=True):
    """Compare-and-set on the task row: if its epoch is `expected`, the next one is the claimant's.

    `scope` global: the gateway gives the task to `region` ("" leaves it unplaced). regional: the
    region, which must be the one that the row names, gives it to the proxy `owner`, as long as that
    is still the process of this `incarnation`. `lost`: the owner in the row is taken for dead; how
    many died in a row, with nothing saved, is counted.
    """

    task_id: TaskId
    expected: Epoch
    scope: Literal["global", "regional"]
    claimant: Address
    region: Address
    owner: Address = ""
    incarnation: Label = ""
    lost: bool = False


class Claimed(Message, frozen=True, kw_only=True):
    """The answer to a claim. When it was not granted, `epoch`, `region` and `owner` are the row's.

    `saved` counts the progress rows; `task_description`, with a granted regional claim, is for the
    owner, whom the store tells (`Run`), and goes no further. `attempts` counts the owners that were
    lost in a row without a saved row between, and `lost` names them.
    """

    task_id: TaskId
    granted: bool
    epoch: Epoch
    region: Address
    owner: Address
    state: State
    attempts: Count = 0
    lost: str = ""
    saved: Count = 0
    task_description: Json = ""


class Record(Message, frozen=True, kw_only=True):
    """Save rows and perhaps the end of a task, all or nothing, under the writer's epoch."""

    task_id: TaskId
    epoch: Epoch
    rows: tuple[Row, ...] = ()
    end: End | None = None


class Recorded(Message, frozen=True, kw_only=True):
    """What became of a `Record`. `current` and `state` are the task row's after it."""

    task_id: TaskId
    epoch: Epoch
    outcome: Literal["applied", "duplicate", "stale"]
    nodes: tuple[RowId, ...]
    ended: bool
    current: Epoch
    state: State


class CancelTask(Message, frozen=True, kw_only=True):
    """End a task as cancelled: a claim that hands it to nobody. Answered by `Cancelled`."""

    task_id: TaskId


class FindTasks(Message, frozen=True, kw_only=True):
    """Unfinished tasks of a region ("": those that nobody has).

    Without `after`: by priority (high first), then by age. With it: ids above it, by id.
    """

    region: Address
    agents: tuple[Label, ...] | None = None
    """Only tasks that need exactly these."""
    after: Count | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 256


class TasksFound(Message, frozen=True, kw_only=True):
    """The tasks that `find_tasks` asked for. `region` and `agents` are the question's."""

    region: Address
    agents: tuple[Label, ...] | None
    tasks: tuple[TaskBrief, ...]


class CountTasks(Message, frozen=True, kw_only=True):
    """How many unfinished tasks are there, by region and by the agents that they need?"""


class TaskCount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Unfinished tasks of one region ("": nobody's) that need the same agents."""

    region: Address
    agents: tuple[Label, ...]
    count: Count


class TaskCounts(Message, frozen=True, kw_only=True):
    """How many unfinished tasks there are, in groups: the answer to `count_tasks`."""

    counts: tuple[TaskCount, ...]
