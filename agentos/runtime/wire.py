"""The wire: one envelope as six frames, and back, in JSON that orjson writes and reads.

    b"AOS1" | to | sender | ref | kind | body

The first frame is the version. The next four are UTF-8 text, and all that a forwarder reads; the
last is one JSON object, which only the receiver opens (`open_sealed`), against the typed message
that its kind names. docs/protocol.md describes the same for clients in other languages.

Whatever a peer sends, these functions raise `RemoteProtocolError` or nothing: a peer must be able
to harm nobody but itself (LangSec, "The Seven Turrets of Babel", 2016: recognise all of the input
before acting on any of it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import orjson

from agentos.core import jsontext
from agentos.core.errors import GraphError, LocalProtocolError, RemoteProtocolError
from agentos.core.limits import MAX_INT, Limits
from agentos.core.messages import Envelope, Message, Refused, Sealed, is_address
from agentos.core.routes import KINDS

VERSION: Final = b"AOS1"
FRAMES: Final = 6

_REF: Final = re.compile(r"[A-Za-z0-9._-]{0,64}")
_MAX_HEADER: Final = 200
"""Bytes of one header frame: the longest address."""
_MAX_ERROR: Final = 400
"""Characters of an error message: what a peer sent is quoted, but not at any length."""
_KIND_OF: Final[Mapping[type[Message], str]] = {cls: kind for kind, cls in KINDS.items()}


class JsonCodec:
    """Envelopes to frames and back; `agentos.core.ports.Codec`. Stateless, for any thread."""

    def __init__(self, limits: Limits) -> None:
        self._max_bytes = limits.max_frame_bytes
        self._max_depth = limits.max_depth

    def encode(self, envelope: Envelope) -> list[bytes]:
        """Write one envelope; a body that is still sealed is taken as it came.

        Values inside `Say` are written as msgspec writes them: sets and tuples as arrays, dates
        as ISO 8601 text, bytes as base64 text.

        Args:
            envelope: what to write.

        Returns:
            Six frames, without a routing prefix.

        Raises:
            LocalProtocolError: it cannot be written, or nobody would read it: a bad address or
                ref, a kind that never leaves its process, a lone surrogate, NaN, an integer
                outside 64 bits, nesting deeper than `limits.max_depth`, a body larger than
                `limits.max_frame_bytes`.
        """
        message = envelope.message
        if isinstance(message, Sealed):
            kind, body = message.kind, message.body
            if kind not in KINDS:
                raise LocalProtocolError(f"unknown kind of message: {_quote(kind)}")
        else:
            kind, body = self._write(message)
        if len(body) > self._max_bytes:
            raise LocalProtocolError(
                f"{kind}: {len(body)} bytes; a frame may have {self._max_bytes}"
            )
        fault = _header_fault(envelope.to, envelope.sender, envelope.ref)
        if fault:
            raise LocalProtocolError(f"{kind}: {fault}")
        header = (envelope.to, envelope.sender, envelope.ref, kind)
        return [VERSION, *(text.encode() for text in header), body]

    def decode(self, frames: Sequence[bytes]) -> Envelope:
        """Read the header frames of one envelope; its body stays sealed.

        Args:
            frames: what came, without a routing prefix.

        Raises:
            RemoteProtocolError: these are not exactly one envelope of a version that is spoken
                here, or a frame is over its bound.
        """
        if not frames or frames[0] != VERSION:
            raise RemoteProtocolError(_version_fault(frames))
        if len(frames) != FRAMES:
            raise RemoteProtocolError(f"an envelope has {FRAMES} frames, not {len(frames)}")
        if max(map(len, frames[1:-1])) > _MAX_HEADER:
            raise RemoteProtocolError(f"a header frame has more than {_MAX_HEADER} bytes")
        try:
            to, sender, ref, kind = (str(frame, "utf-8") for frame in frames[1:-1])
        except UnicodeDecodeError as error:
            raise RemoteProtocolError(f"a header frame is not UTF-8: {error}") from None
        if kind not in KINDS:
            raise RemoteProtocolError(f"unknown kind of message: {_quote(kind)}")
        fault = _header_fault(to, sender, ref)
        if fault:
            raise RemoteProtocolError(f"{kind}: {fault}")
        body = frames[-1]
        if len(body) > self._max_bytes:
            raise RemoteProtocolError(
                f"{kind}: {len(body)} bytes; a frame may have {self._max_bytes}"
            )
        return Envelope(to=to, sender=sender, message=Sealed(kind, body), ref=ref)

    def _write(self, message: Message) -> tuple[str, bytes]:
        kind = _KIND_OF.get(type(message))
        if kind is None:
            raise LocalProtocolError(f"{type(message).__name__} never leaves its process")
        try:
            value = msgspec.to_builtins(message)
            if _is_suspicious(value, self._max_depth):
                # orjson would write NaN as null, and more levels than a reader takes.
                text = jsontext.dump(value)
                jsontext.parse(text, max_bytes=self._max_bytes, max_depth=self._max_depth)
            return kind, orjson.dumps(value)
        except (TypeError, ValueError, RecursionError, GraphError) as error:
            raise LocalProtocolError(f"{kind}: cannot be written: {_shorten(error)}") from error


def open_sealed(sealed: Sealed, limits: Limits) -> Message:
    """Decode the body of a sealed message to the typed message that its kind names.

    Args:
        sealed: a message as `JsonCodec.decode` leaves it.
        limits: bounds the body (`max_frame_bytes`) and its nesting (`max_depth`).

    Raises:
        RemoteProtocolError: naming the kind and the place. The kind is unknown; the body is not
            JSON, too large or too deep; a field is unknown, missing, of a wrong type or out of
            range; a number is not a 64-bit one.
    """
    kind, body = sealed.kind, sealed.body
    if kind not in KINDS:
        raise RemoteProtocolError(f"unknown kind of message: {_quote(kind)}")
    if len(body) > limits.max_frame_bytes:
        raise RemoteProtocolError(
            f"{kind}: {len(body)} bytes; a frame may have {limits.max_frame_bytes}"
        )
    try:
        value = orjson.loads(body)  # stops by itself at 1,024 levels
        if type(value) is not dict:
            raise RemoteProtocolError(f"{kind}: the body must be one JSON object")
        if _is_suspicious(value, limits.max_depth):
            # Slower, but names the place, and sees integers that orjson made floats of.
            jsontext.parse(
                body.decode(), max_bytes=limits.max_frame_bytes, max_depth=limits.max_depth
            )
        message: Message = msgspec.convert(value, KINDS[kind], strict=True)
    except orjson.JSONDecodeError as error:
        raise RemoteProtocolError(f"{kind}: not JSON: {_shorten(error)}") from None
    except (msgspec.ValidationError, GraphError) as error:
        raise RemoteProtocolError(f"{kind}: {_shorten(error)}") from None
    return message


def is_refusal(envelope: Envelope) -> bool:
    """Whether it carries a `Refused`, opened or not."""
    message = envelope.message
    return isinstance(message, Refused) or (
        isinstance(message, Sealed) and message.kind == "refused"
    )


def _is_suspicious(value: Any, max_depth: int) -> bool:
    """Whether a strict look is needed: too many levels, or a number that is none of 64 bits.

    Breadth first and without recursion; costs about 0.1 µs for each value, whatever its size.
    """
    layer = [value]
    for _ in range(max_depth):
        deeper = []
        for parent in layer:
            for child in parent.values() if type(parent) is dict else parent:
                kind = type(child)
                if kind is int or kind is float:
                    if not -MAX_INT <= child <= MAX_INT:  # NaN is not in it either
                        return True
                elif kind is dict or kind is list or kind is tuple:
                    deeper.append(child)
        if not deeper:
            return False
        layer = deeper
    return True


def _header_fault(to: str, sender: str, ref: str) -> str | None:
    for name, address in (("to", to), ("sender", sender)):
        if address and not is_address(address):
            return f"{name} is not an address: {_quote(address)}"
    if _REF.fullmatch(ref) is None:
        return f"ref must be at most 64 characters of A-Z a-z 0-9 . _ -, not {_quote(ref)}"
    return None


def _version_fault(frames: Sequence[bytes]) -> str:
    spoken = VERSION.decode()
    if not frames or re.fullmatch(rb"AOS[0-9]{1,9}", frames[0]) is None:
        return f"not an envelope: the first frame must be the version, {spoken}"
    return f"version {frames[0].decode()} is not spoken here; versions spoken: {spoken}"


def _quote(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def _shorten(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= _MAX_ERROR else text[: _MAX_ERROR - 3] + "..."
