"""The wire: what is written is read back, and nothing that comes in can do harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_type_hints

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import LocalProtocolError, RemoteProtocolError
from agentos.core.limits import MAX_INT, Limits
from agentos.core.routes import KINDS
from agentos.runtime.wire import _OPEN_ENDED, BUNDLE_BYTES, MAX_BUNDLE, JsonCodec, open_sealed
from tests.strategies import JSON_VALUES, envelopes, messages

LIMITS = Limits()
CODEC = JsonCodec(LIMITS)
RECORD = m.Envelope(
    to="store",
    sender="proxy/eu/1",
    ref="r-1",
    message=m.Record(task_id=7, epoch=Epoch(1, 2), rows=(m.Row("a", '{"v":1}'),)),
)


def read(frames: list[bytes]) -> m.Message:
    """Decode an envelope and its body, as a process at the end of the way does."""
    [envelope] = CODEC.decode(frames)
    assert isinstance(envelope.message, m.Sealed)
    return open_sealed(envelope.message, LIMITS)


def sealed(kind: str, body: Any) -> m.Sealed:
    """A sealed message with this body: bytes, or a value written by the standard library."""
    return m.Sealed(kind, body if isinstance(body, bytes) else json.dumps(body).encode())


def say(value: Any) -> m.Envelope:
    """An envelope with any value in it."""
    return m.Envelope(to="a", sender="b", message=m.Say(value=value))


# -- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=20)
@given(data=st.data())
def test_every_message_arrives_as_it_was_sent(kind: str, data: st.DataObject) -> None:
    """Whatever a message of any kind holds, its receiver gets an equal one."""
    envelope = data.draw(envelopes(messages(KINDS[kind])))
    frames = CODEC.encode(envelope)
    [header] = CODEC.decode(frames)
    assert (header.to, header.sender, header.ref) == (envelope.to, envelope.sender, envelope.ref)
    assert read(frames) == envelope.message
    assert type(read(frames)) is KINDS[kind]


@given(envelopes())
def test_forwarding_changes_nothing(envelope: m.Envelope) -> None:
    """A forwarder passes on the very bytes of the body, and never opens it."""
    frames = CODEC.encode(envelope)
    [received] = CODEC.decode(frames)
    assert CODEC.encode(received) == frames


def test_the_frames_are_as_documented() -> None:
    """Six frames: version, to, sender, ref, kind, and one JSON object."""
    *header, body = CODEC.encode(RECORD)
    assert header == [b"AOS1", b"store", b"proxy/eu/1", b"r-1", b"record"]
    assert orjson.loads(body) == {
        "task_id": 7,
        "epoch": [1, 2],
        "rows": [{"node_id": "a", "result": '{"v":1}'}],
        "end": None,
    }


@given(st.lists(envelopes(), max_size=20))
def test_a_bundle_is_what_was_put_into_it(sent: list[m.Envelope]) -> None:
    """Envelopes that travel together arrive as they would alone, and in their order."""
    alone = [CODEC.decode(CODEC.encode(envelope))[0] for envelope in sent]
    bundles = CODEC.encode_all(sent)
    assert [e for bundle in bundles for e in CODEC.decode(bundle.frames)] == alone
    assert sum(bundle.envelopes for bundle in bundles) == len(sent)
    assert CODEC.encode_all(alone) == bundles  # a forwarder changes nothing


def test_a_bundle_is_as_documented() -> None:
    """Three frames: the version with a star, the headers, the bodies."""
    (bundle,) = CODEC.encode_all([RECORD, say(1)])
    version, headers, bodies = bundle.frames
    assert version == b"AOS1*"
    assert orjson.loads(headers) == [
        ["store", "proxy/eu/1", "r-1", "record", len(bodies) - len(b'{"value":1}')],
        ["a", "b", "", "say", len(b'{"value":1}')],
    ]
    assert bodies == CODEC.encode(RECORD)[-1] + b'{"value":1}'


def test_bundles_stay_small() -> None:
    """Many messages, and large ones, are cut: nobody waits behind megabytes."""
    many = CODEC.encode_all([say(1)] * (2 * MAX_BUNDLE + 1))
    assert [bundle.envelopes for bundle in many] == [MAX_BUNDLE, MAX_BUNDLE, 1]
    large = CODEC.encode_all([say("x" * BUNDLE_BYTES), say(1), say(2)])
    assert [bundle.envelopes for bundle in large] == [1, 2]


@given(st.binary(max_size=200) | JSON_VALUES.map(orjson.dumps), st.binary(max_size=60))
def test_random_bundles_raise_one_error(headers: bytes, bodies: bytes) -> None:
    """Headers that are none, or do not fit the bodies, raise `RemoteProtocolError` alone."""
    complaint = complaint_of(CODEC.decode, [b"AOS1*", headers, bodies])
    assert complaint


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("value", [None, 1.0, True, [], {}, -1])
def test_a_header_of_other_types_is_refused(place: int, value: Any) -> None:
    """Addresses, ref and kind are text, and the size a count: nothing else gets in."""
    (bundle,) = CODEC.encode_all([RECORD])
    headers = orjson.loads(bundle.frames[1])
    headers[0][place] = value
    assert complaint_of(CODEC.decode, [b"AOS1*", orjson.dumps(headers), bundle.frames[2]])


@given(st.lists(envelopes(), min_size=1, max_size=3), st.data())
def test_damaged_bundles_raise_one_error(sent: list[m.Envelope], data: st.DataObject) -> None:
    """A field of a header that is changed, lost or doubled does no harm."""
    frames = list(CODEC.encode_all(sent)[0].frames)
    headers = orjson.loads(frames[1])
    header = headers[data.draw(st.integers(0, len(headers) - 1))]
    place = data.draw(st.integers(0, len(header) - 1))
    header[place : place + 1] = data.draw(
        st.lists(JSON_VALUES | st.integers(-(2**63), 2**64 - 1), max_size=2)
    )
    frames[1] = orjson.dumps(headers)
    assert len(complaint_of(CODEC.decode, frames)) < 1_000


@given(st.lists(envelopes(), min_size=1, max_size=3))
def test_a_bundle_is_told_from_an_envelope(sent: list[m.Envelope]) -> None:
    """Whoever is sent a bundle, even of one, knows that it may answer with bundles."""
    assert all(CODEC.is_bundle(bundle.frames) for bundle in CODEC.encode_all(sent))
    assert not any(CODEC.is_bundle(CODEC.encode(envelope)) for envelope in sent)


def test_every_kind_that_holds_any_value_is_looked_at_strictly() -> None:
    """What no type bounds is checked for depth and 64 bits, wherever the field was declared."""
    assert {k for k, cls in KINDS.items() if Any in get_type_hints(cls).values()} == _OPEN_ENDED
    assert {"say"} == _OPEN_ENDED


def test_only_what_may_hold_any_object_is_searched_for_cycles() -> None:
    """The collector passes over messages, but finds a cycle through a value of the user's own."""
    assert {kind for kind, cls in KINDS.items() if cls.__struct_config__.gc} == _OPEN_ENDED


def test_defaults_may_be_left_out() -> None:
    """A client in another language sends only the fields that it means."""
    message = open_sealed(sealed("submit", {"task_description": "{}"}), LIMITS)
    assert message == m.Submit(task_description="{}")


# -- nothing that comes in can do harm -------------------------------------------------------------


def complaint_of(reader: Callable[[Any], Any], given_: Any) -> str:
    """What is wrong with input that may be anything, "" for nothing; one error alone may say it."""
    try:
        reader(given_)
    except RemoteProtocolError as error:
        return str(error)
    return ""


@given(st.lists(st.binary(max_size=50), max_size=9))
def test_random_frames_raise_one_error(frames: list[bytes]) -> None:
    """Bytes that are no envelope raise `RemoteProtocolError` and nothing else."""
    assert len(complaint_of(read, frames)) < 1_000


@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=100) | JSON_VALUES.map(orjson.dumps))
def test_random_bodies_raise_one_error(kind: str, body: bytes) -> None:
    """A body that is not the kind's raises `RemoteProtocolError` that names the kind."""
    complaint = complaint_of(lambda text: open_sealed(m.Sealed(kind, text), LIMITS), body)
    assert complaint == "" or complaint.startswith(f"{kind}: ")


@given(envelopes(), st.data())
def test_damaged_envelopes_raise_one_error(envelope: m.Envelope, data: st.DataObject) -> None:
    """A valid envelope with a frame lost, doubled, cut or with bytes changed does no harm."""
    frames = CODEC.encode(envelope)
    place = data.draw(st.integers(0, len(frames) - 1))
    start = data.draw(st.integers(0, len(frames[place])))
    replaced = frames[place][:start] + data.draw(st.binary(max_size=8)) + frames[place][start + 4 :]
    frames[place : place + 1] = data.draw(
        st.sampled_from([[], [frames[place]] * 2, [frames[place][:start]], [replaced]])
    )
    assert len(complaint_of(read, frames)) < 1_000


@given(messages(), st.data())
def test_changed_fields_raise_one_error(message: m.Message, data: st.DataObject) -> None:
    """A message with one field of any value instead raises `RemoteProtocolError` or is valid."""
    frames = CODEC.encode(m.Envelope(to="a", sender="b", message=message))
    fields = orjson.loads(frames[-1])
    name = data.draw(st.sampled_from([*fields, "extra"]))
    fields[name] = data.draw(JSON_VALUES)
    complaint = complaint_of(read, [*frames[:-1], orjson.dumps(fields)])
    assert complaint == "" or complaint.startswith(frames[-2].decode())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({0: b"AOS2"}, "AOS2 is not spoken here; versions spoken: AOS1"),
        ({0: b""}, "must be the version, AOS1"),
        ({0: b"\xff" * 1000}, "must be the version, AOS1"),
        ({1: b"Store"}, "record: to is not an address: 'Store'"),
        ({2: b"proxy/eu/1\n"}, "record: sender is not an address"),
        ({2: b"a/../b/" + b"c" * 200}, "more than 200 bytes"),
        ({3: b"a b"}, "record: ref must be"),
        ({3: b"r" * 65}, "record: ref must be"),
        ({4: b"tick"}, "unknown kind of message: 'tick'"),
        ({4: b"no\x00such"}, "unknown kind of message"),
        ({1: b"\xed\xa0\x80"}, "not UTF-8"),
        ({4: "récord".encode("latin-1")}, "not UTF-8"),
    ],
)
def test_a_bad_header_is_named(change: dict[int, bytes], complaint: str) -> None:
    """What is wrong with a header frame is said, before anything looks at the body."""
    frames = CODEC.encode(RECORD)
    for place, frame in change.items():
        frames[place] = frame
    frames[-1] = b"never looked at"
    with pytest.raises(RemoteProtocolError) as refusal:
        CODEC.decode(frames)
    assert complaint in str(refusal.value)


@pytest.mark.parametrize("count", [0, 1, 5, 7, 16])
def test_an_envelope_has_six_frames(count: int) -> None:
    """Truncated and extra frames are refused."""
    frames = (CODEC.encode(RECORD) * 3)[:count]
    with pytest.raises(RemoteProtocolError):
        CODEC.decode(frames)


GOOD = {"task_id": 7, "epoch": [1, 2], "rows": [{"node_id": "a", "result": "{}"}]}


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "not JSON"),
        (b"{} {}", "not JSON"),
        (b'{"task_id": NaN}', "not JSON"),
        (b'{"task_id": 1e999}', "not JSON"),
        (b'{"task_id": "\\ud800"}', "not JSON"),
        (b'{"task_id": "\xed\xa0\x80"}', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b'{"rows":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
        (b'{"rows":' + b"[" * 64 + b"]" * 64 + b"}", "deeper than 64"),
        (b"[]", "one JSON object"),
        (b"7", "one JSON object"),
        (b'"text"', "one JSON object"),
        (b"null", "one JSON object"),
        ({**GOOD, "more": 1}, "unknown field `more`"),
        ({"task_id": 7}, "missing required field `epoch`"),
        ({**GOOD, "task_id": "7"}, "$.task_id"),
        ({**GOOD, "task_id": 7.0}, "$.task_id"),
        ({**GOOD, "task_id": True}, "$.task_id"),
        ({**GOOD, "task_id": 0}, "$.task_id"),
        ({**GOOD, "task_id": MAX_INT + 1}, "task_id: 9223372036854775808 is an integer outside"),
        ({**GOOD, "task_id": 2**64}, "task_id: 18446744073709551616 is an integer outside"),
        ({**GOOD, "epoch": [1, -1]}, "$.epoch[1]"),
        ({**GOOD, "epoch": [1, 2, 3]}, "$.epoch"),
        ({**GOOD, "rows": [{"node_id": "", "result": "{}"}]}, "$.rows[0].node_id"),
        ({**GOOD, "rows": [{"node_id": "a", "result": {}}]}, "$.rows[0].result"),
    ],
)
def test_a_bad_body_is_named(body: Any, complaint: str) -> None:
    """The error names the kind, the place in the body, and what is wrong there."""
    with pytest.raises(RemoteProtocolError) as refusal:
        open_sealed(sealed("record", body), LIMITS)
    assert str(refusal.value).startswith("record: ")
    assert complaint in str(refusal.value)


def test_any_value_is_bounded_too() -> None:
    """Where any JSON value may stand, numbers are still 64-bit ones and nesting has an end."""
    for value in (2**63, 2**64, -(2**63) - 1, [{"deep": 2**70}]):
        with pytest.raises(RemoteProtocolError, match=r"^say: value.* is an integer outside"):
            open_sealed(sealed("say", {"value": value}), LIMITS)
    for value in (MAX_INT, -MAX_INT - 1, 1e300, 2.0**64):
        assert open_sealed(sealed("say", {"value": value}), LIMITS) == m.Say(value=value)


def test_large_frames_are_refused() -> None:
    """A body over the bound is refused on both sides; one of exactly the bound passes."""
    limits = Limits(max_frame_bytes=100)
    codec = JsonCodec(limits)
    frames = codec.encode(say("x" * (100 - len('{"value":""}'))))
    assert len(frames[-1]) == 100
    codec.decode(frames)
    with pytest.raises(LocalProtocolError, match="101 bytes"):
        codec.encode(say("x" * (101 - len('{"value":""}'))))
    frames[-1] += b" "
    with pytest.raises(RemoteProtocolError, match="101 bytes"):
        codec.decode(frames)
    with pytest.raises(RemoteProtocolError, match="101 bytes"):
        open_sealed(m.Sealed("say", frames[-1]), limits)


def test_long_complaints_are_cut() -> None:
    """What a peer sent is quoted in an error, but never at any length."""
    for case in (sealed("no" * 10_000, {}), sealed("ping", {"x" * 100_000: 1})):
        with pytest.raises(RemoteProtocolError) as refusal:
            open_sealed(case, LIMITS)
        assert len(str(refusal.value)) < 500


# -- what cannot be written ------------------------------------------------------------------------


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def _cycle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        "\ud800",
        {"\udfff": 1},
        2**63,
        -(2**63) - 1,
        2**64,
        float("nan"),
        [float("inf")],
        object(),
        {1: 2},
        _nested(64),
        _nested(100_000),
        _cycle(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_written_is_refused(value: Any) -> None:
    """What no reader could read back is the sender's error, and names the kind."""
    with pytest.raises(LocalProtocolError, match=r"^say: cannot be written: "):
        CODEC.encode(say(value))


def test_the_deepest_that_is_written_is_read() -> None:
    """Both sides count levels alike."""
    assert read(CODEC.encode(say(_nested(63)))) == m.Say(value=_nested(63))


@pytest.mark.parametrize(
    "envelope",
    [
        m.Envelope(to="A", sender="b", message=m.Ping()),
        m.Envelope(to="a", sender="b c", message=m.Ping()),
        m.Envelope(to="a", sender="\ud800", message=m.Ping()),
        m.Envelope(to="a", sender="b", message=m.Ping(), ref="r" * 65),
        m.Envelope(to="a", sender="b", message=m.Ping(), ref="ü"),
        m.Envelope(to="a", sender="b", message=m.Tick()),
        m.Envelope(to="a", sender="b", message=m.Sealed("tick", b"{}")),
    ],
    ids=repr,
)
def test_bad_envelopes_are_not_written(envelope: m.Envelope) -> None:
    """A bad address or ref, and a kind that never leaves its process, are the sender's errors."""
    with pytest.raises(LocalProtocolError):
        CODEC.encode(envelope)
