"""What gateway, region and proxy tell each other, and the life of one agent call."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from agentos.core.epoch import Epoch
from agentos.core.messages.base import (
    TERMINAL,
    Address,
    Count,
    Held,
    Json,
    Label,
    Message,
    Offer,
    ProxyInfo,
    RowId,
    Seconds,
    State,
    TaskId,
    Usage,
)
from agentos.core.messages.clients import TaskInfo

# -- gateway and region ----------------------------------------------------------------------------


class Assign(Message, frozen=True, kw_only=True):
    """The gateway has claimed this task for the region, or for a proxy of it, the `owner`.

    `attempts`: owners it has lost in a row.
    """

    task_id: TaskId
    epoch: Epoch
    agents: tuple[Label, ...]
    attempts: Count = 0
    owner: Address = ""


class Declined(Message, frozen=True, kw_only=True):
    """The region cannot run it (no capable proxy, or no room). `lost`: its owner there has died."""

    task_id: TaskId
    epoch: Epoch
    agents: tuple[Label, ...]
    reason: str
    lost: bool = False


class RegionBeat(Message, frozen=True, kw_only=True):
    """A region's heartbeat: from its actor, with its load. `capacity` and `tasks` count tasks."""

    incarnation: Label
    tasks: Count
    capacity: Count
    agents: tuple[Label, ...]
    proxies: tuple[ProxyInfo, ...]
    counters: dict[str, int] = msgspec.field(default_factory=dict)


class Heard(Message, frozen=True, kw_only=True):
    """What a gateway's region told it, for the other gateways; with no region: here is a gateway.

    The store, which they share, passes it on: each gateway knows all regions, whichever each of
    them dials.
    """

    region: str = ""
    beat: RegionBeat | None = None


# -- region and proxy ------------------------------------------------------------------------------


class Run(Message, frozen=True, kw_only=True):
    """The task is the proxy's, under this epoch: from the store, with the commit that made it so.

    `saved`: rows to read first. `attempts` and `lost` are `Claimed`'s: after `limits.max_attempts`
    the task fails unrun. `incarnation`: whom a claim that may have been repeated was for; a process
    that was started since under the same name is somebody else.
    """

    task_id: TaskId
    epoch: Epoch
    task_description: Json
    saved: Count
    incarnation: Label = ""
    attempts: Count = 0
    lost: str = ""


class Ended(Message, frozen=True, kw_only=True):
    """A terminal state is committed. The store tells its gateways, and these whoever watches.

    A proxy tells its region that there is room again, and a region its gateway of an end that it
    has learned of late: both without the response.
    """

    task_id: TaskId
    epoch: Epoch
    state: State
    response: Json = ""
    error: str = ""
    owner: Address = ""
    """Whose task it was."""


def end_of(task: TaskInfo) -> Ended | None:
    """A task's end as its row tells it, or `None` if it goes on."""
    if task.state not in TERMINAL:
        return None
    return Ended(
        task_id=task.task_id,
        epoch=task.epoch,
        state=task.state,
        response=task.response or "",
        error=task.error,
    )


class Dropped(Message, frozen=True, kw_only=True):
    """The proxy holds this claim no more: it was refused as stale, or never got it going."""

    task_id: TaskId
    epoch: Epoch
    reason: str


class Stop(Message, frozen=True, kw_only=True):
    """Whoever works on this task under an epoch older than this one stops, and aborts its calls."""

    task_id: TaskId
    epoch: Epoch


class Yield(Message, frozen=True, kw_only=True):
    """Hand this task back (`Dropped`) as soon as the calls in flight are saved; start no new one."""

    task_id: TaskId
    epoch: Epoch


class ProxyBeat(Message, frozen=True, kw_only=True):
    """A proxy's heartbeat: from its actor, with its load and the claims that it holds."""

    incarnation: Label
    calls: Count
    capacity: Count
    offers: tuple[Offer, ...]
    claims: tuple[Held, ...]


class Rouse(Message, frozen=True):
    """Answer with a heartbeat at once: one that rests was given something, or has a new link."""


class PeerDown(Message, frozen=True, kw_only=True):
    """Proxies of the region are suspected dead: calls that were placed there need another place."""

    proxies: tuple[Address, ...]


# -- one agent call: owner -> (region ->) executor -> agents, and back -----------------------------


class Call(Message, frozen=True, kw_only=True):
    """One call to an agent. `row` with the task's id is its idempotency key, the same on retries."""

    task_id: TaskId
    epoch: Epoch
    row: RowId
    owner: Address
    agent: Label
    prompt: str
    timeout_s: Seconds
    attempt: Count = 0
    schema: Json | None = None
    priority: int = 0


class Place(Message, frozen=True, kw_only=True):
    """Find a proxy for each of `rows`, different ones where there are several.

    The calls differ in their rows only: the samples of one round share agent and prompt.
    """

    call: Call
    rows: Annotated[tuple[RowId, ...], Meta(min_length=1, max_length=1000)]


class Placed(Message, frozen=True, kw_only=True):
    """The region gave the call to this proxy."""

    task_id: TaskId
    epoch: Epoch
    row: RowId
    attempt: Count
    proxy: Address


class CallRefused(Message, frozen=True, kw_only=True):
    """The call found no place; nothing was run. Try again after `retry_after_s`."""

    task_id: TaskId
    epoch: Epoch
    row: RowId
    attempt: Count
    reason: str
    retry_after_s: Seconds


class CallResult(Message, frozen=True, kw_only=True):
    """What the agent answered: `value` (JSON text), or the `error` that made it unusable."""

    task_id: TaskId
    epoch: Epoch
    row: RowId
    attempt: Count
    proxy: Address
    value: Json | None = None
    error: str = ""
    retryable: bool = False
    retry_after_s: Seconds | None = None
    usage: Usage = Usage()
    seconds: Seconds = 0.0


class AbortCalls(Message, frozen=True, kw_only=True):
    """Abort the calls of this task that run under an epoch up to this one; `row` "" means all."""

    task_id: TaskId
    epoch: Epoch
    row: str = ""


class Invoke(Message, frozen=True, kw_only=True):
    """A proxy to its agent runner: run this call now."""

    call: Call


class Revoke(Message, frozen=True, kw_only=True):
    """A proxy to its agent runner: abort it, if it still runs."""

    task_id: TaskId
    epoch: Epoch
    row: RowId
    attempt: Count
