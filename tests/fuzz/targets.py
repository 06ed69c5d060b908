"""The targets: each takes any bytes, and raises only when the code under test is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable

from agentos.core.errors import GraphError, RemoteProtocolError
from agentos.core.graph import Walk, parse_graph
from agentos.core.limits import Limits
from agentos.core.messages import Envelope, Sealed
from agentos.core.prompts import PromptError, Template
from agentos.runtime.wire import BUNDLE, JsonCodec, open_sealed

LIMITS = Limits()
CODEC = JsonCodec(LIMITS)
SEPARATOR = b"\x1e"
"""Between the frames of a message, in the bytes of a fuzz target."""
SLOWEST_S = 2.0
"""For inputs of some kilobytes, which take milliseconds: only what grows out of bounds takes longer."""


def wire(data: bytes) -> None:
    """Frames to an envelope to a message: refused as the peer's fault, or written back the same."""
    try:
        envelopes = CODEC.decode(data.split(SEPARATOR))
    except RemoteProtocolError:
        return
    bundles = CODEC.encode_all(envelopes)
    assert [e for b in bundles for e in CODEC.decode(b.frames)] == envelopes, "a bundle changed it"
    for envelope in envelopes:
        _envelope(envelope)
    if not data.startswith(BUNDLE):
        assert CODEC.encode(envelopes[0]) == data.split(SEPARATOR), "a forwarder changed it"


def _envelope(envelope: Envelope) -> None:
    assert isinstance(envelope.message, Sealed)
    try:
        message = open_sealed(envelope.message, LIMITS)
    except RemoteProtocolError:
        return
    opened = Envelope(envelope.to, envelope.sender, message, envelope.ref)
    [again] = CODEC.decode(CODEC.encode(opened))
    assert isinstance(again.message, Sealed)
    assert open_sealed(again.message, LIMITS) == message, "it does not survive being sent on"


def graph(data: bytes) -> None:
    """Text to a graph: refused with the place of the fault, or it runs from end to end."""
    text = data.decode(errors="replace")
    try:
        made = parse_graph(text, LIMITS)
    except GraphError:
        return
    assert parse_graph(text, LIMITS) == made, "the same text gave two graphs"
    walk, values = Walk(made), {"input": made.input}
    ready = walk.ready()
    while ready:
        name = ready.pop()
        try:
            values[name] = made.nodes[name].prompt.render(values, 10_000)
        except PromptError:
            values[name] = ""
        ready += walk.finish(name)
    assert walk.done, "a graph was taken that cannot be finished"
    made.result(values)
    for node in made.nodes.values():
        for reference in node.prompt.references:
            assert Template.parse(str(reference)).references == (reference,), "read and written"


TARGETS: dict[str, Callable[[bytes], None]] = {"wire": wire, "graph": graph}


def timed(target: str, data: bytes) -> None:
    """Run a target; taking long is a failure too."""
    start = time.process_time()
    TARGETS[target](data)
    took = time.process_time() - start
    assert took < SLOWEST_S, f"{len(data)} bytes took {took:.1f} s"
