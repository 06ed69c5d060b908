"""Questions and answers: what travels, what comes back, and that nothing stays open."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import msgspec
import pykka
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from agentos.core import errors
from agentos.core import messages as m
from agentos.core.errors import AgentOSError, GraphError, LocalProtocolError, Overloaded
from agentos.runtime.refs import Asker, RemoteActorError, error_of
from agentos.runtime.switch import Switch
from tests.strategies import JSON_VALUES
from tests.switches import FAST, TCP, Net, net

CODES = {
    cls.code: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, AgentOSError)
}


class Mirror(pykka.ThreadingActor):
    """Answers what it is told; some values stand for trouble."""

    def on_receive(self, message: object) -> object:
        if message == "unwritable":
            return object()
        if message == "surrogate":
            raise ValueError("\ud800 is no text")
        return message


@pytest.fixture
def world() -> Iterator[Net]:
    with net() as made:
        yield made
    pykka.ActorRegistry.stop_all(timeout=5)


@pytest.fixture
def far(world: Net) -> tuple[Switch, Switch]:
    """Two switches with a TCP connection between them; the mirror is on the upper one."""
    top, below = world.switch("t", alone=True), world.switch("b", alone=True)
    top.attach_actor("mirror", Mirror.start())
    below.ref("mirror")
    assert below.connect([top.listen(TCP)]).wait_up(10)
    return top, below


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_refusal_is_its_exception(code: str) -> None:
    """What was raised in one process is raised as the same class in another, with its text."""
    error = error_of(m.Refused(code=code, reason="nodes.a: because", retry_after_s=2.5))
    assert type(error) is CODES[code]
    assert "because" in str(error)
    if isinstance(error, Overloaded):
        assert error.retry_after_s == 2.5
        assert str(error) == "nodes.a: because"
    if isinstance(error, GraphError):
        assert error.where == "nodes.a"


@given(code=st.text(max_size=30), reason=st.text(max_size=50), wait_s=st.none() | st.floats(0, 1e9))
def test_any_refusal_is_some_exception(code: str, reason: str, wait_s: float | None) -> None:
    """A peer of another version, or a liar, cannot make the caller's side fail otherwise."""
    error = error_of(m.Refused(code=code, reason=reason, retry_after_s=wait_s))
    assert isinstance(error, AgentOSError | pykka.ActorDeadError)


def test_json_values_survive(far: tuple[Switch, Switch]) -> None:
    """Any JSON value comes back as it went."""
    mirror = far[1].ref("mirror")

    @settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(JSON_VALUES)
    def comes_back(value: object) -> None:
        assume("\\x00" not in repr(value))  # in a key, JSON text of ours may not hold it
        assert mirror.ask(value, timeout=20) == value

    comes_back()


def test_an_answer_that_cannot_be_sent(far: tuple[Switch, Switch]) -> None:
    """An actor that answers with what JSON cannot carry is an error for its asker, at once."""
    _, below = far
    mirror = below.ref("mirror")
    with pytest.raises(RemoteActorError, match="cannot be sent"):
        mirror.ask("unwritable", timeout=10)
    assert mirror.ask("still well", timeout=10) == "still well"
    with pytest.raises(RemoteActorError, match="ValueError"):
        mirror.ask("surrogate", timeout=10)


def test_blocking_needs_a_timeout(far: tuple[Switch, Switch]) -> None:
    """Asking another process without a timeout is refused: it may never answer."""
    with pytest.raises(LocalProtocolError, match="timeout"):
        far[1].ref("mirror").ask("hello?")


def test_nothing_stays_open(far: tuple[Switch, Switch]) -> None:
    """Answered, refused and timed-out questions are all forgotten."""
    top, below = far
    mirror = below.ref("mirror")
    top.attach("silent", lambda batch: None)
    for i in range(50):
        assert mirror.ask(i, timeout=10) == i
    with pytest.raises(pykka.Timeout):
        below.ref("silent").ask(1, timeout=0.01)
    with pytest.raises(pykka.ActorDeadError):
        below.ref("nobody").ask(1, timeout=10)
    with pytest.raises(RemoteActorError):
        mirror.ask("surrogate", timeout=10)
    futures = [mirror.ask(i, block=False) for i in range(50)]
    assert [future.get(timeout=10) for future in futures] == list(range(50))
    assert not mirror._asker._open


def test_open_questions_are_bounded(world: Net) -> None:
    """Whoever asks and never listens has the oldest questions given up, not memory filled."""
    switch = world.switch(limits=msgspec.structs.replace(FAST, mailbox=3))
    switch.attach("silent", lambda batch: None)
    futures = [switch.ref("silent").ask(i, block=False) for i in range(5)]
    for future in futures[:2]:
        with pytest.raises(Overloaded, match="open"):
            future.get(timeout=1)
    assert len(switch.ref("silent")._asker._open) == 3


def test_what_waits_for_an_actor_is_bounded(world: Net) -> None:
    """Whoever floods an actor of the user's own is refused, and the memory is not filled."""
    switch = world.switch(limits=msgspec.structs.replace(FAST, mailbox=10))
    busy, go_on = threading.Event(), threading.Event()

    class Slow(pykka.ThreadingActor):
        def on_receive(self, message: object) -> object:
            busy.set()
            go_on.wait(20)
            return message

    switch.attach_actor("slow", Slow.start())
    slow = switch.ref("slow")
    first = slow.ask(0, block=False)
    assert busy.wait(10)
    for i in range(1, 200):
        slow.tell(i)
    with pytest.raises(Overloaded, match="10 messages wait for 'slow'"):
        slow.ask("one more", timeout=10)
    assert switch.counters["undelivered.overloaded"] == 190
    go_on.set()
    assert first.get(timeout=10) == 0


def test_late_and_unasked_messages(world: Net) -> None:
    """What answers no open question is dropped, and harms nothing."""
    switch = world.switch()
    asker = Asker(switch)
    answers: list[m.Message | Exception] = []
    switch.attach("silent", lambda batch: None)
    ref = asker.ask("silent", m.Say(value=1), answers.append)
    switch.send([m.Envelope(asker.address, "silent", m.Say(value="in time"), ref)])
    switch.send([m.Envelope(asker.address, "silent", m.Say(value="again"), ref)])
    switch.send([m.Envelope(asker.address, "silent", m.Say(value="unasked"))])
    assert answers == [m.Say(value="in time")]
    asker.ask("silent", m.Say(value=2), answers.append)
    asker.close()
    assert [type(answer) for answer in answers] == [m.Say, pykka.ActorDeadError]


def test_many_threads_ask_at_once(far: tuple[Switch, Switch]) -> None:
    """Each thread gets the answers to its own questions."""
    mirror = far[1].ref("mirror")
    wrong: list[object] = []

    def ask(thread: int) -> None:
        for i in range(100):
            answer = mirror.ask([thread, i], timeout=20)
            if answer != [thread, i]:
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not mirror._asker._open
