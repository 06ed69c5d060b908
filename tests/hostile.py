"""What a machine may be sent by anybody: every kind of message, with names that it knows.

Built on `tests.strategies`, whose messages have values of every form; here the fields that decide
something are drawn from a few that occur in the cluster, so that they hit.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec
from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.routes import KINDS
from tests.strategies import messages

SENDERS = (
    "gateway/a", "store", "agents", "client/c", "client/d", "region/r0", "region/r1", "region",
    "proxy/r0/0", "proxy/r0/1", "proxy/r1/0", "proxy/r0", "proxy", "own/actor", "",
)  # fmt: skip
_TASKS = st.sampled_from([1, 2, 3])
_EPOCHS = st.builds(Epoch, st.integers(0, 2), st.integers(0, 2))
_ADDRESSES = st.sampled_from(SENDERS)
_ROWS = st.sampled_from(["a", "b", "a/1/s0", "a/1/s1", "a/1/v0", "a/2/s0", "b/1/s0", "b/x", "c//"])
_RESULTS = st.sampled_from(
    ['{"value":1}', '{"value":{"choice":1},"usage":{"calls":1}}', "[]", "7", "{", '{"value":NaN}']
)
_POOLS: dict[str, st.SearchStrategy[Any]] = {
    "task_id": _TASKS,
    "epoch": _EPOCHS,
    "current": _EPOCHS,
    "expected": _EPOCHS,
    "row": _ROWS,
    "node_id": _ROWS,
    "attempt": st.integers(0, 2),
    "agent": st.sampled_from(["echo", "nobody"]),
    "value": st.none() | _RESULTS,
    "result": _RESULTS,
    "nodes": st.lists(_ROWS, max_size=3).map(tuple),
    "rows": st.lists(_ROWS, min_size=1, max_size=3).map(tuple),
    "agents": st.sampled_from([("echo",), ("nobody",), ()]),
    **dict.fromkeys(("owner", "proxy", "region", "client", "address", "claimant"), _ADDRESSES),
}


@st.composite
def known(draw: st.DrawFn, kind: type[m.Message] | None = None) -> Any:
    """A message of one kind, or of any that may be on a wire, about things that may exist."""
    if kind is None:
        kind = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    return draw(_about_known(draw(messages(kind))))


@st.composite
def _about_known(draw: st.DrawFn, record: Any) -> Any:
    if isinstance(record, tuple):
        return tuple(draw(_about_known(part)) for part in record)
    if not isinstance(record, msgspec.Struct) or isinstance(record, Epoch):
        return record
    changes = {}
    for name in record.__struct_fields__:
        old = getattr(record, name)
        nested = isinstance(old, tuple) and any(isinstance(part, msgspec.Struct) for part in old)
        if nested or (isinstance(old, msgspec.Struct) and name not in _POOLS):
            changes[name] = draw(_about_known(old))
        elif name in _POOLS and (name != "rows" or isinstance(record, m.Place)):
            changes[name] = draw(_POOLS[name])
    return msgspec.structs.replace(record, **changes)


def from_anybody(to: str, refs: tuple[str, ...] = ("", "look", "sweep")) -> Any:
    """An envelope of any kind from any sender."""
    return st.builds(
        m.Envelope, st.just(to), st.sampled_from(SENDERS), known(), st.sampled_from(refs)
    )


def state_of(thing: Any) -> Any:
    """Everything that a machine knows, as values that can be compared; functions are left out."""
    if callable(thing) and not isinstance(thing, type):
        return None
    match thing:
        case None | bool() | int() | float() | str() | bytes() | msgspec.Struct() if not (
            isinstance(thing, msgspec.Struct) and not type(thing).__struct_config__.frozen
        ):
            return thing
        case dict():
            return [(key, state_of(value)) for key, value in thing.items()]
        case list() | tuple() | deque():
            return [state_of(value) for value in thing]
        case set() | frozenset():
            return sorted(thing, key=repr)
        case type():
            return thing
    names = getattr(thing, "__struct_fields__", None) or [
        *getattr(thing, "__dict__", ()),
        *getattr(thing, "__slots__", ()),
        *(n for n in getattr(thing, "__mypyc_attrs__", ()) if n != "__dict__"),  # compiled
    ]
    return [type(thing), [(name, state_of(getattr(thing, name))) for name in names]]


def changes(machine: Any, envelope: m.Envelope, now: float) -> tuple[bool, list[m.Send]]:
    """Whether a message changed anything, and what was sent because of it."""
    before = state_of(machine)
    sends = machine.handle(envelope, now)
    return state_of(machine) != before, sends
