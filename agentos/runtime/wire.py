"""The wire: one envelope as six frames, and back, in JSON that orjson writes and reads.

    b"AOS1" | to | sender | ref | kind | body

The first frame is the version. The next four are UTF-8 text, and all that a forwarder reads; the
last is one JSON object, which only the receiver opens (`open_sealed`), against the typed message
that its kind names. docs/protocol.md describes the same for clients in other languages.

Many envelopes that go the same way at the same time are one message of three frames, a bundle:

    b"AOS1*" | [[to, sender, ref, kind, bytes of the body], ...] | the bodies, one after the other

A frame costs more than what is in it; between two processes of ours nearly all are bundles.

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
from agentos.core.limits import MAX_DEPTH, MAX_INT, Limits
from agentos.core.messages import Envelope, Message, Refused, Sealed, is_address
from agentos.core.ports import Bundle
from agentos.core.routes import KINDS

VERSION: Final = b"AOS1"
FRAMES: Final = 6
BUNDLE: Final = b"AOS1*"
BUNDLE_FRAMES: Final = 3
MAX_BUNDLE: Final = 256
"""Envelopes in one bundle."""
BUNDLE_BYTES: Final = 256 * 1024
"""Bytes of bodies above which a bundle takes no further one; so a large body travels alone."""

_REF: Final = re.compile(r"[A-Za-z0-9._-]{0,64}")
_MAX_HEADER: Final = 200
"""Bytes of one header frame: the longest address."""
_MAX_ERROR: Final = 400
"""Characters of an error message: what a peer sent is quoted, but not at any length."""
_MAX_HEADERS: Final = MAX_BUNDLE * 8 * _MAX_HEADER
"""Bytes of a bundle's header frame: every character may be written as an escape."""
_KNOWN: Final = 65_536
"""Headers that are remembered as good ones."""
_OPEN_ENDED: Final = frozenset(
    kind for kind, cls in KINDS.items() if "Any" in cls.__annotations__.values()
)
"""Kinds with a field of any JSON value; every other field has a type that bounds it."""
_KIND_OF: Final[Mapping[type[Message], str]] = {cls: kind for kind, cls in KINDS.items()}


class JsonCodec:
    """Envelopes to frames and back; `agentos.core.ports.Codec`. For any thread."""

    def __init__(self, limits: Limits) -> None:
        self._max_bytes = limits.max_frame_bytes
        self._good: set[tuple[str, str]] = set()
        """Pairs of receiver and sender that were looked at already; only to save the time."""

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
                outside 64 bits, nesting deeper than `MAX_DEPTH`, a body larger than
                `limits.max_frame_bytes`.
        """
        kind, body = self._write(envelope)
        header = (envelope.to, envelope.sender, envelope.ref, kind)
        return [VERSION, *(text.encode() for text in header), body]

    def encode_all(self, envelopes: Sequence[Envelope]) -> list[Bundle]:
        """Write envelopes as bundles, in order, for a peer that reads those.

        Raises:
            LocalProtocolError: as `encode` does.
        """
        bundles: list[Bundle] = []
        headers: list[tuple[str, str, str, str, int]] = []
        bodies: list[bytes] = []
        size = 0
        for envelope in envelopes:
            kind, body = self._write(envelope)
            if bodies and (size + len(body) > BUNDLE_BYTES or len(bodies) == MAX_BUNDLE):
                bundles.append(_bundle(headers, bodies, size))
                headers, bodies, size = [], [], 0
            headers.append((envelope.to, envelope.sender, envelope.ref, kind, len(body)))
            bodies.append(body)
            size += len(body)
        if bodies:
            bundles.append(_bundle(headers, bodies, size))
        return bundles

    def decode(self, frames: Sequence[bytes]) -> list[Envelope]:
        """Read the header of one envelope, or those of a bundle; the bodies stay sealed.

        Args:
            frames: what came, without a routing prefix.

        Raises:
            RemoteProtocolError: these are not exactly one envelope, or one bundle, of a version
                that is spoken here, or a frame is over its bound.
        """
        if self.is_bundle(frames):
            return self._unbundle(frames)
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
        return [self._sealed(to, sender, ref, kind, frames[-1])]

    def is_bundle(self, frames: Sequence[bytes]) -> bool:
        """Whether these are a bundle, of however many envelopes."""
        return bool(frames) and frames[0] == BUNDLE

    def _unbundle(self, frames: Sequence[bytes]) -> list[Envelope]:
        if len(frames) != BUNDLE_FRAMES or len(frames[1]) > _MAX_HEADERS:
            raise RemoteProtocolError(f"a bundle has {BUNDLE_FRAMES} frames within their bounds")
        _, header, bodies = frames
        envelopes: list[Envelope] = []
        end = 0
        try:
            for to, sender, ref, kind, size in orjson.loads(header):
                if type(size) is not int or size < 0 or len(envelopes) == MAX_BUNDLE:
                    raise RemoteProtocolError(f"a bundle holds at most {MAX_BUNDLE} envelopes")
                if not type(to) is type(sender) is type(ref) is str:
                    raise RemoteProtocolError("a bundle's header: addresses and refs are text")
                start, end = end, end + size
                envelopes.append(self._sealed(to, sender, ref, kind, bodies[start:end]))
        except (TypeError, ValueError) as error:  # no JSON, or not of this shape
            raise RemoteProtocolError(f"a bundle's header: {_shorten(error)}") from None
        if end != len(bodies) or not envelopes:
            raise RemoteProtocolError(f"a bundle of {len(bodies)} bytes says that it has {end}")
        return envelopes

    def _sealed(self, to: str, sender: str, ref: str, kind: str, body: bytes) -> Envelope:
        if kind not in KINDS:
            raise RemoteProtocolError(f"unknown kind of message: {_quote(kind)}")
        if fault := self._header_fault(to, sender, ref):
            raise RemoteProtocolError(f"{kind}: {fault}")
        if len(body) > self._max_bytes:
            raise RemoteProtocolError(
                f"{kind}: {len(body)} bytes; a frame may have {self._max_bytes}"
            )
        return Envelope(to, sender, Sealed(kind, body), ref)

    def _write(self, envelope: Envelope) -> tuple[str, bytes]:
        message = envelope.message
        if isinstance(message, Sealed):
            kind, body = message.kind, message.body
            if kind not in KINDS:
                raise LocalProtocolError(f"unknown kind of message: {_quote(kind)}")
        else:
            kind, body = self._write_body(message)
        if len(body) > self._max_bytes:
            raise LocalProtocolError(
                f"{kind}: {len(body)} bytes; a frame may have {self._max_bytes}"
            )
        if fault := self._header_fault(envelope.to, envelope.sender, envelope.ref):
            raise LocalProtocolError(f"{kind}: {fault}")
        return kind, body

    def _write_body(self, message: Message) -> tuple[str, bytes]:
        kind = _KIND_OF.get(type(message))
        if kind is None:
            raise LocalProtocolError(f"{type(message).__name__} never leaves its process")
        try:
            value = msgspec.to_builtins(message)
            if kind in _OPEN_ENDED and _is_suspicious(value):
                # orjson would write NaN as null, and more levels than a reader takes.
                text = jsontext.dump(value)
                jsontext.parse(text, max_bytes=self._max_bytes)
            return kind, orjson.dumps(value)
        except (TypeError, ValueError, RecursionError, GraphError) as error:
            raise LocalProtocolError(f"{kind}: cannot be written: {_shorten(error)}") from error

    def _header_fault(self, to: str, sender: str, ref: str) -> str | None:
        if (to, sender) not in self._good:
            for name, address in (("to", to), ("sender", sender)):
                if address and not is_address(address):
                    return f"{name} is not an address: {_quote(address)}"
            if len(self._good) >= _KNOWN:
                self._good.clear()
            self._good.add((to, sender))
        if ref and _REF.fullmatch(ref) is None:
            return f"ref must be at most 64 characters of A-Z a-z 0-9 . _ -, not {_quote(ref)}"
        return None


def _bundle(
    headers: list[tuple[str, str, str, str, int]], bodies: list[bytes], size: int
) -> Bundle:
    return Bundle([BUNDLE, orjson.dumps(headers), b"".join(bodies)], len(bodies), size)


def open_sealed(sealed: Sealed, limits: Limits) -> Message:
    """Decode the body of a sealed message to the typed message that its kind names.

    Args:
        sealed: a message as `JsonCodec.decode` leaves it.
        limits: bounds the body (`max_frame_bytes`).

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
        if kind in _OPEN_ENDED:
            _check_strictly(value, body, limits)
        try:
            message: Message = msgspec.convert(value, KINDS[kind], strict=True)
        except msgspec.ValidationError:
            _check_strictly(value, body, limits)
            raise
    except orjson.JSONDecodeError as error:
        raise RemoteProtocolError(f"{kind}: not JSON: {_shorten(error)}") from None
    except (msgspec.ValidationError, GraphError) as error:
        raise RemoteProtocolError(f"{kind}: {_shorten(error)}") from None
    return message


def _check_strictly(value: Any, body: bytes, limits: Limits) -> None:
    """Raise a `GraphError` for what no type bounds: levels, and numbers that are not of 64 bits."""
    if _is_suspicious(value):
        # Slower, but names the place, and sees integers that orjson made floats of.
        jsontext.parse(body.decode(), max_bytes=limits.max_frame_bytes)


def is_refusal(envelope: Envelope) -> bool:
    """Whether it carries a `Refused`, opened or not."""
    message = envelope.message
    return isinstance(message, Refused) or (
        isinstance(message, Sealed) and message.kind == "refused"
    )


def _is_suspicious(value: Any) -> bool:
    """Whether a strict look is needed: too many levels, or a number that is none of 64 bits.

    Breadth first and without recursion; costs about 0.1 µs for each value, whatever its size.
    """
    layer = [value]
    for _ in range(MAX_DEPTH):
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
