"""Hypothesis strategies built from the message types, so that no field is ever forgotten."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from msgspec import inspect

from agentos.core import messages as m
from agentos.core.limits import MAX_INT
from agentos.core.routes import KINDS

INTEGERS = st.integers(-MAX_INT - 1, MAX_INT)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
KEYS = TEXTS.filter(lambda text: "\0" not in text)
ADDRESSES = st.from_regex(r"[a-z]{1,10}(/[A-Za-z0-9._-]{1,10}){0,3}", fullmatch=True)
REFS = st.from_regex(r"[A-Za-z0-9._-]{0,64}", fullmatch=True)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
"""Any value that JSON can carry to every 64-bit reader."""


def of_type(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type as msgspec sees it: what `msgspec.convert` would accept for it."""
    return _of(inspect.type_info(kind))


def messages(kind: type[m.Message] | None = None) -> st.SearchStrategy[Any]:
    """Messages of one class, or of every class that may be on a wire."""
    if kind is not None:
        return of_type(kind)
    return st.sampled_from(sorted(KINDS)).flatmap(lambda name: of_type(KINDS[name]))


def envelopes(message: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[m.Envelope]:
    """Envelopes with addresses and refs of every form."""
    address = st.just("") | ADDRESSES
    body = messages() if message is None else message
    return st.builds(m.Envelope, to=address, sender=address, message=body, ref=REFS)


def _of(info: inspect.Type) -> st.SearchStrategy[Any]:
    match info:
        case inspect.AnyType():
            return JSON_VALUES
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType(ge=low, le=high):
            return st.integers(
                -MAX_INT - 1 if low is None else low, MAX_INT if high is None else high
            )
        case inspect.FloatType(ge=low, le=high):
            return st.floats(low, high, allow_nan=False, allow_infinity=False)
        case inspect.StrType(pattern=str()):
            return st.just("") | ADDRESSES  # the only pattern in use
        case inspect.StrType(min_length=low, max_length=high):
            return st.text(
                st.characters(codec="utf-8"), min_size=low or 0, max_size=min(high or 40, 40)
            )
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case inspect.UnionType(types=types):
            return st.one_of(*map(_of, types))
        case inspect.VarTupleType(item_type=item, min_length=low):
            return st.lists(_of(item), min_size=low or 0, max_size=3 + (low or 0)).map(tuple)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(_of(key), _of(value), max_size=3)
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: _of(field.type) for field in fields})
        case inspect.Metadata(type=inner):
            return _of(inner)
    raise TypeError(f"no strategy for {info!r}: add a case to {__name__}")
