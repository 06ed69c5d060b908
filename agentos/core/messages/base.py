"""The parts that messages are made of: addresses, states, small records, envelopes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from agentos.core.addresses import call_row as call_row  # noqa: PLC0414 - exported, also for mypy
from agentos.core.addresses import is_address as is_address  # noqa: PLC0414
from agentos.core.addresses import region_of as region_of  # noqa: PLC0414
from agentos.core.addresses import role_of as role_of  # noqa: PLC0414
from agentos.core.epoch import Epoch
from agentos.core.limits import MAX_INT

Address = Annotated[str, Meta(max_length=200, pattern=r"^([a-z]+(/[A-Za-z0-9._-]+)*)?\Z")]
TaskId = Annotated[int, Meta(ge=1, le=MAX_INT)]
UserId = Annotated[int, Meta(ge=0, le=MAX_INT)]
Count = Annotated[int, Meta(ge=0, le=MAX_INT)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Label = Annotated[str, Meta(max_length=200)]
RowId = Annotated[str, Meta(min_length=1, max_length=200)]
"""A node's name, or `node/round/slot` for one saved answer of it; see `call_row`."""
Json = str
"""The text of one JSON value."""

State = Literal["accepted", "running", "succeeded", "failed", "cancelled"]
TERMINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})

GATEWAY, STORE, AGENTS = "gateway", "store", "agents"
MESSAGE_BYTES = 8 * 1024
"""What a message counts as for its own sake, beside its content; see `weight`."""
NEIGHBOUR = ""
"""The address of the switch at the other end of a link."""


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The base of everything that travels in an envelope.

    `gc=False`: text and numbers make no cycles, and a collector that looks for some in what
    waits takes a tenth of all the time.
    """


# -- parts -----------------------------------------------------------------------------------------


class Usage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What agent calls cost: calls made, attempts repeated, tokens as the endpoint counted them."""

    calls: Count = 0
    retries: Count = 0
    prompt_tokens: Count = 0
    completion_tokens: Count = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.retries + other.retries,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One progress row as its owner writes it. `result` is the text of a JSON object."""

    node_id: RowId
    result: Json


class End(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """How a task ends: its terminal state and the response document (JSON text)."""

    state: Literal["succeeded", "failed"]
    response: Json
    error: str = ""


class Held(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A claim that somebody says it holds."""

    task_id: TaskId
    epoch: Epoch


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """An agent that a proxy runs, with the calls that it runs at once."""

    agent: Label
    slots: Annotated[int, Meta(ge=1)] = 1


class TaskBrief(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What placing a task needs of its row."""

    task_id: TaskId
    epoch: Epoch
    region: Address
    owner: Address
    agents: tuple[Label, ...]
    priority: int
    attempts: Count


class ProxyInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One proxy as its region sees it."""

    address: Address
    alive: bool
    tasks: Count
    calls: Count
    capacity: Count
    agents: tuple[Label, ...]


class RegionInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One region as the gateway sees it. `silent_s`: seconds since its last heartbeat.

    `counters`: events in the region's process by name, like the protocol errors of its children.
    """

    address: Address
    alive: bool
    silent_s: Seconds
    tasks: Count
    capacity: Count
    proxies: tuple[ProxyInfo, ...]
    counters: dict[str, int] = msgspec.field(default_factory=dict)


# -- everybody ------------------------------------------------------------------------------------


class Tick(Message, frozen=True, kw_only=True):
    """Time has come to a machine's next deadline."""


class Drain(Message, frozen=True, kw_only=True):
    """Take nothing new, and hand back what is held; with `abort` at once, whatever still runs."""

    abort: bool = False


class Say(Message, frozen=True, kw_only=True, gc=True):
    """A message to an actor of the user's own, or its reply: any JSON value."""

    value: Any = None


class Sealed(msgspec.Struct, frozen=True, gc=False):
    """A message that was not decoded: what a forwarder carries."""

    kind: str
    body: bytes


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """What a switch delivers. `ref` pairs an answer with its question ("" expects none)."""

    to: str
    sender: str
    message: Message | Sealed
    ref: str = ""


class Send(msgspec.Struct, frozen=True, gc=False):
    """The only effect that a machine has. Its shell adds the sender and hands it to the switch."""

    to: str
    message: Message
    ref: str = ""
