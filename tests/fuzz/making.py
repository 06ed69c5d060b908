"""Good inputs to begin with, and how they are damaged."""

from __future__ import annotations

import random
from typing import Any

import orjson
from msgspec import inspect

from agentos.core.limits import MAX_INT
from agentos.core.routes import KINDS
from tests.fuzz.targets import SEPARATOR

TOKENS = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"NaN", b"-0", b"1e999", b"9" * 20, b"0.1",
    b"\\ud800", b"\\u0000", b"\xff", b"\xc3\xa9", b"\n", b"\x1e", b"AOS1", b"AOS1*", b"AOS2", b"${", b"${n0}",
    b"${input.x}", b"$${", b"}}", b'"needs":["n0"]', b'"rounds":2', b'"samples":3', b'"voters":2',
    b"[" * 70, b'{"a":' * 70, b"hello", b"submit", b"record", b"/", b"../", b"gateway", b"store",
]  # fmt: skip
_ADDRESSES = ["", "gateway", "store", "client/x", "region/r1", "proxy/r1/1", "own/actor"]
_TEXTS = ["", "x", "é", "a\nb", '{"value":1}', "0" * 40, "\U0001f600"]


def envelope(rng: random.Random) -> bytes:
    """A message that the wire takes, of any kind, about anything."""
    kind = rng.choice(sorted(KINDS))
    body = orjson.dumps(_of(inspect.type_info(KINDS[kind]), rng))
    header = [rng.choice(_ADDRESSES), rng.choice(_ADDRESSES), rng.choice(["", "r1", "a.b-c_d"])]
    if rng.random() < 0.5:
        return SEPARATOR.join([b"AOS1", *(part.encode() for part in header), kind.encode(), body])
    headers = orjson.dumps([[*header, kind, len(body)]] * (copies := rng.randint(1, 3)))
    return SEPARATOR.join([b"AOS1*", headers, body * copies])


def description(rng: random.Random) -> bytes:
    """A task that can be run: a graph without cycles, with references and every option."""
    names = [f"n{i}" for i in range(rng.randint(1, 6))]
    nodes: dict[str, Any] = {}
    for i, name in enumerate(names):
        needed = rng.sample(names[:i], rng.randint(0, i))
        node: dict[str, Any] = {"agent": rng.choice(["echo", "writer"]), "prompt": "say "}
        for other in needed:
            if rng.random() < 0.5:
                node["prompt"] += f"${{{other}}} ${{input.topic}} $${{no}}"
            else:
                node.setdefault("needs", []).append(other)
        options: list[dict[str, Any]] = [
            {"rounds": 2}, {"samples": 3}, {"samples": 3, "voters": 2}, {"timeout_s": 1.5},
            {"retries": 1}, {"schema": {"type": "object", "properties": {"a": {"type": "string"}}}},
        ]  # fmt: skip
        for option in options:
            if rng.random() < 0.3:
                node |= option
        nodes[name] = node
    whole: dict[str, Any] = {"input": {"topic": rng.choice(_TEXTS)}, "nodes": nodes}
    if rng.random() < 0.5:
        whole["output"] = rng.choice(names)
    if rng.random() < 0.3:
        whole["priority"] = rng.randint(0, 9)
    return orjson.dumps(whole)


MAKERS = {"wire": envelope, "graph": description}


def damaged(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A few bytes lost, doubled, swapped, changed, or replaced by something that means something."""
    out = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + rng.choice((0, 1, 1, 2, 5, 20)))
        match rng.randrange(6):
            case 0:
                del out[at:end]
            case 1:
                out[at:end] = rng.choice(TOKENS)
            case 2:
                out[at:at] = out[at:end] * rng.choice((1, 2, 100))
            case 3 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 4:
                start = rng.randrange(len(other) + 1)
                out[at:end] = other[start : start + rng.choice((1, 4, 30))]
            case _:
                out[at:end] = rng.randbytes(end - at)
    return bytes(out)


def _of(info: inspect.Type, rng: random.Random) -> Any:
    """A value of a type as msgspec sees it, as JSON has it."""
    match info:
        case inspect.BoolType():
            return rng.random() < 0.5
        case inspect.IntType(ge=low, le=high):
            low, high = (-MAX_INT if low is None else low), (MAX_INT if high is None else high)
            return rng.choice([low, high, min(high, max(low, rng.randrange(1000)))])
        case inspect.FloatType():
            return rng.choice([0.0, 0.5, 1e9])
        case inspect.StrType(pattern=str()):
            return rng.choice(_ADDRESSES)
        case inspect.StrType(min_length=low):
            return rng.choice(_TEXTS) + "s" * (low or 0)
        case inspect.LiteralType(values=values):
            return rng.choice(values)
        case inspect.UnionType(types=types):
            return _of(rng.choice(types), rng)
        case inspect.VarTupleType(item_type=item, min_length=low):
            return [_of(item, rng) for _ in range((low or 0) + rng.randrange(3))]
        case inspect.DictType(value_type=value):
            return {rng.choice(_TEXTS): _of(value, rng) for _ in range(rng.randrange(3))}
        case inspect.StructType(array_like=True, fields=fields):
            return [_of(field.type, rng) for field in fields]
        case inspect.StructType(fields=fields):
            return {
                f.encode_name: _of(f.type, rng) for f in fields if f.required or rng.random() < 0.6
            }
        case inspect.Metadata(type=inner):
            return _of(inner, rng)
    return None
