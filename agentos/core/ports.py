"""What a machine, a transport, a storage and an agent must offer: the seams of the system.

Adapters live outside the core and are chosen by URL scheme (transports, storages) or by the
configuration (agents). One contract suite for each port ships in `agentos.testing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import AgentOSError
from agentos.core.limits import Limits


class Machine(Protocol):
    """A role as a pure state machine: messages and time go in, messages come out.

    The shape of aioquic's `QuicConnection` and of etcd's raft: the machine never waits, never
    looks at a clock, and never does what it decides. An illegal input changes nothing.
    """

    address: str

    def handle(self, envelope: m.Envelope, now: float) -> list[m.Send]:
        """Take one message at `now` (seconds on a monotonic clock); return what must be sent."""
        ...

    def next_deadline(self) -> float | None:
        """When a `Tick` is wanted, on the same clock; `None` for never."""
        ...

    @property
    def drained(self) -> bool:
        """Whether it was told to `Drain`, and has nothing left to hand back."""
        ...


# -- transports -----------------------------------------------------------------------------------


class Bundle(NamedTuple):
    """One message of a transport, that carries several envelopes."""

    frames: list[bytes]
    envelopes: int
    """How many it carries."""
    size: int
    """Bytes of their bodies."""


class Codec(Protocol):
    """Envelopes to frames and back; given to transports that need bytes."""

    def encode(self, envelope: m.Envelope) -> list[bytes]:
        """Frames of one envelope, without any routing prefix."""
        ...

    def encode_all(self, envelopes: Sequence[m.Envelope]) -> list[Bundle]:
        """The same for many, in order, for a peer that has sent a bundle itself."""
        ...

    def is_bundle(self, frames: Sequence[bytes]) -> bool:
        """Whether what came is a bundle: then its sender reads bundles too."""
        ...

    def decode(self, frames: Sequence[bytes]) -> list[m.Envelope]:
        """What came in one message, one envelope or a bundle, their bodies still sealed.

        Raises:
            RemoteProtocolError: for anything that is not exactly that.
        """
        ...


class Connection(Protocol):
    """One end of a link. Callable from any thread; never blocks."""

    peer: str
    """Who is at the other end, for logs: a URL or a connection's number."""

    def send(self, envelopes: Sequence[m.Envelope]) -> None:
        """Queue these, in order.

        Raises:
            Overloaded: the peer takes messages more slowly than they come; none was queued.
        """
        ...

    def close(self) -> None:
        """Give the link up; `closed` is not called for it. Idempotent."""
        ...


class Receiver(Protocol):
    """What a transport calls, from a thread of its own. Must be quick, and must not raise."""

    def received(self, connection: Connection, envelopes: Sequence[m.Envelope]) -> None:
        """These came over this connection, in order."""
        ...

    def failed(self, connection: Connection, error: Exception) -> None:
        """Something came that is no envelope (`RemoteProtocolError`); it was dropped."""
        ...

    def closed(self, connection: Connection) -> None:
        """The peer is gone for certain. Some transports never know: use heartbeats as well."""
        ...


class Listener(Protocol):
    """A bound address. `url` is where it can be reached, with the port that was really taken."""

    url: str

    def close(self) -> None:
        """Stop listening and give up every connection made through it. Idempotent."""
        ...


class Transport(Protocol):
    """How envelopes cross from one switch to another."""

    def listen(self, url: str, receiver: Receiver) -> Listener:
        """Bind `url`; peers that connect appear as new connections in `received`.

        Raises:
            AddressTaken: somebody else listens there.
            LocalProtocolError: the URL cannot be listened on.
        """
        ...

    def connect(self, url: str, receiver: Receiver) -> Connection:
        """A connection to `url`, at once, whether or not anybody is there yet."""
        ...

    def close(self) -> None:
        """Close everything, within a second. Idempotent."""
        ...


TransportFactory = Callable[[Codec, Limits], Transport]
"""What the entry-point group `agentos.transports` names, by URL scheme."""


# -- storage --------------------------------------------------------------------------------------


class SaveOutcome(msgspec.Struct, frozen=True):
    """What became of a fenced write: `outcome` is applied, duplicate or stale, never mixed."""

    outcome: str
    epoch: Epoch
    """The task row's epoch after it."""
    state: str
    """The task row's state after it."""

    def __bool__(self) -> bool:
        """Whether what was to be recorded stands, by this owner's hand."""
        return self.outcome != "stale"


class Document(msgspec.Struct, frozen=True):
    """One row of Documents."""

    doc_id: int
    doc_type: str
    doc_content: str


@runtime_checkable
class Database(Protocol):
    """The only authority. Every method that writes is one transaction, or part of `transaction`.

    Method names and leading arguments are the specification's. Used by one thread at a time.
    Unknown ids: getters return None, deletes False; writes of a task raise `TaskNotFound`.
    """

    def transaction(self) -> AbstractContextManager[Any]:
        """Commit everything inside it together, durably; roll all of it back on an exception."""
        ...

    def close(self) -> None:
        """Release the database. Idempotent."""
        ...

    # documents
    def store_document(self, doc_type: str, doc_content: str) -> int: ...
    def get_document(self, doc_id: int) -> Document | None: ...
    def delete_document(self, doc_id: int) -> bool: ...

    # tasks
    def create_task(
        self,
        user_id: int,
        task_type: str,
        task_description: str,
        *,
        key: str | None = None,
        agents: Sequence[str] = (),
        priority: int = 0,
        claimant: str = "",
        region: str = "",
        owner: str = "",
    ) -> m.TaskCreated:
        """Insert a task and its request document at epoch (0, 0), or (1, 0) with a `region`.

        With an `owner` too it is running, at (1, 1): as a global and a regional claim leave it.
        With a `key` that this user has used for the same type and description: that task, with
        `created` false.

        Raises:
            KeyConflict: the key was used for another one.
            LocalProtocolError: an owner without a region.
        """
        ...

    def get_task(self, task_id: int) -> m.TaskInfo | None: ...
    def get_task_description(self, task_id: int) -> str | None: ...

    def update_task_type(self, task_id: int, task_type: str) -> bool: ...

    def update_task_description(
        self, task_id: int, global_epoch: int, regional_epoch: int, task_description: str
    ) -> SaveOutcome:
        """Replace the description, fenced: the epoch must be the row's, the task not finished."""
        ...

    def delete_task(self, task_id: int) -> bool:
        """Delete a task that has ended, with its progress and documents.

        Raises:
            LocalProtocolError: the task has not ended; cancel it first.
        """
        ...

    # progress
    def save_progress(
        self, task_id: int, node_id: str, global_epoch: int, regional_epoch: int, result: str
    ) -> SaveOutcome:
        """Record one row under the fence; see `record`."""
        ...

    def get_progress(self, task_id: int, node_id: str) -> m.SavedRow | None: ...
    def get_progress_list(
        self, task_id: int, *, after: str = "", max_bytes: int | None = None
    ) -> list[m.SavedRow]:
        """Rows in order of node_id (by code point); at least one, then up to `max_bytes` of results."""
        ...

    def delete_progress(self, task_id: int, node_id: str) -> bool: ...

    # beyond the specification
    def record(
        self,
        task_id: int,
        epoch: Epoch,
        rows: Sequence[m.Row],
        end: m.End | None = None,
        *,
        writer: str = "",
    ) -> SaveOutcome:
        """Record rows and perhaps the end, all or nothing.

        The fence, in this order: the task's epoch is newer than `epoch`, or the task has ended
        (by somebody else): stale. Every row is already there under `epoch`, and so is the end:
        duplicate. A row is there under a newer epoch: stale. Otherwise applied; rows under older
        epochs are replaced. The end also stores the response document.

        With a `writer`, the row's owner must be that: an epoch can be guessed.

        Raises:
            NotTheOwner: the claim of this epoch is another's.
            TaskNotFound: there is no such task.
            UnissuedEpoch: `epoch` is newer than the task's; no claim has issued it.
        """
        ...

    def record_all(
        self, records: Sequence[tuple[str, m.Record]]
    ) -> list[SaveOutcome | AgentOSError]:
        """What `record` would do for each writer's record, one after another; answers in order.

        For storages that write many at once for less. Each is all or nothing for itself: what
        `record` would raise to refuse one is its answer here, and the others stand.
        """
        ...

    def claim(self, claim: m.Claim) -> m.Claimed:
        """Compare-and-set the task's epoch. Granted again to the same claimant of the same claim.

        A regional claim also needs the row's region to be the claimant, sets the state to
        `running`.

        `attempts` counts the owners that were lost (`claim.lost`, with an owner in the row) in a
        row without a saved row between; `lost` names them.
        """
        ...

    def cancel_task(self, task_id: int) -> m.Cancelled:
        """End it as cancelled at the next global epoch, unless it has ended."""
        ...

    def find_tasks(
        self,
        region: str,
        *,
        agents: Sequence[str] | None = None,
        after: int | None = None,
        limit: int = 256,
    ) -> list[m.TaskBrief]:
        """Unfinished tasks of a region: by priority (high first) and id, or from `after` by id.

        With `agents`, only those that need exactly these.
        """
        ...

    def count_unfinished(self) -> list[m.TaskCount]:
        """Unfinished tasks by region ("": nobody's) and by the agents that they need."""
        ...

    def list_tasks(
        self,
        *,
        user_id: int | None = None,
        state: str | None = None,
        before: int = 0,
        limit: int = 100,
    ) -> list[m.TaskInfo]:
        """Tasks with ids below `before` (0: all), newest first, without their responses."""
        ...


StorageFactory = Callable[[str], Database]
"""What the entry-point group `agentos.storage` names, by URL scheme: opens a URL."""


# -- agents ---------------------------------------------------------------------------------------


class AgentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One call, as an agent sees it. `schema`: the JSON Schema that the answer must meet."""

    prompt: str
    key: str
    """The same in every attempt of this call: `task/node/round/slot`."""
    timeout_s: float
    attempt: int = 0
    schema: Mapping[str, Any] | None = None


class AgentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A usable answer: any JSON value, and what it cost."""

    value: Any
    prompt_tokens: int = 0
    completion_tokens: int = 0


@runtime_checkable
class Agent(Protocol):
    """Something that answers prompts."""

    name: str
    max_concurrency: int

    async def call(self, request: AgentRequest) -> AgentAnswer:
        """Answer, or raise; cancelled when the call is aborted or its time is over.

        Raises:
            AgentError: the call failed; says whether it may be repeated.
            UnusableAnswer: the endpoint answered something that cannot be used.
        """
        ...

    async def close(self) -> None:
        """Release connections. Idempotent."""
        ...
