"""The Pykka shells: mailboxes, failures, group commit."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pykka
import pytest
from pykka._envelope import Envelope as PykkaEnvelope

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import Overloaded, StorageError
from agentos.core.limits import Limits
from agentos.registry import open_database
from agentos.runtime import actors
from agentos.runtime.actors import MAX_FAILURES, MachineActor, StoreActor
from agentos.runtime.mailbox import Batch, Mailbox
from agentos.runtime.switch import Switch
from agentos.testing.transport_recorder import eventually
from tests.switches import FAST, net

GRAPH = '{"nodes": {"a": {"agent": "echo", "prompt": "x"}}}'


def said(value: Any, ref: str = "") -> m.Envelope:
    return m.Envelope("worker/x", "client/y", m.Say(value=value), ref)


def values(envelope: PykkaEnvelope[Any]) -> list[Any]:
    return [e.message.value for e in envelope.message]


# -- the mailbox ----------------------------------------------------------------------------------


def test_what_waits_is_taken_together() -> None:
    """Batches are merged, in order, up to the size of a batch."""
    mailbox = Mailbox(bound=100, batch=5)
    for start in range(0, 12, 2):
        mailbox.deliver([said(start), said(start + 1)])
    assert len(mailbox) == 12
    assert values(mailbox.get()) == [0, 1, 2, 3, 4]
    assert values(mailbox.get()) == [5, 6, 7, 8, 9]
    assert values(mailbox.get()) == [10, 11]
    assert mailbox.empty()
    assert len(mailbox) == 0


def test_a_full_mailbox_refuses_all_or_nothing() -> None:
    """Over the bound a batch is refused whole; taking makes room."""
    mailbox = Mailbox(bound=3, batch=10)
    mailbox.deliver([said(1), said(2)])
    with pytest.raises(Overloaded, match="2 messages wait"):
        mailbox.deliver([said(3), said(4)])
    mailbox.deliver([said(3)])
    assert values(mailbox.get()) == [1, 2, 3]
    mailbox.deliver([said(4), said(5), said(6)])


def test_the_mailbox_is_the_alarm_clock() -> None:
    """When the machine's deadline comes before any message, there is an empty batch."""
    mailbox = Mailbox(bound=3, batch=10)
    mailbox.deadline = lambda: time.monotonic() + 0.05
    assert mailbox.get().message == []
    mailbox.deadline = lambda: 0.0  # long ago
    assert mailbox.get().message == []
    mailbox.deliver([said(1)])
    assert values(mailbox.get()) == [1]


def test_pykkas_own_messages_keep_their_place() -> None:
    """A stop is handled after what came before it, and before what comes after."""
    mailbox = Mailbox(bound=10, batch=10)
    mailbox.deliver([said(1)])
    mailbox.deliver([said(2)])
    mailbox.put(PykkaEnvelope("stop"))
    mailbox.deliver([said(3)])
    assert values(mailbox.get()) == [1, 2]
    assert not mailbox.empty()
    assert mailbox.get().message == "stop"
    assert values(mailbox.get()) == [3]
    assert len(mailbox) == 0


def test_many_producers() -> None:
    """Nothing is lost, doubled or miscounted, whoever delivers at once."""
    mailbox = Mailbox(bound=50, batch=8)
    refused = Counter[int]()

    def produce(producer: int) -> None:
        for i in range(500):
            while True:
                try:
                    mailbox.deliver([said((producer, i)), said((producer, -i))])
                    break
                except Overloaded:
                    refused[producer] += 1
                    time.sleep(0)

    producers = [threading.Thread(target=produce, args=(i,)) for i in range(4)]
    for producer in producers:
        producer.start()
    taken: list[Any] = []
    while len(taken) < 4 * 500 * 2:
        assert len(mailbox) <= 50
        taken += values(mailbox.get())
    for producer in producers:
        producer.join(10)
    for number in range(4):
        mine = [i for producer, i in taken if producer == number]
        assert mine == [sign * i for i in range(500) for sign in (1, -1)]
    assert len(mailbox) == 0


def test_a_closed_mailbox_says_so() -> None:
    """What is delivered to an actor that has stopped is refused, not kept for nobody."""
    mailbox = Mailbox(bound=3, batch=3)
    mailbox.close()
    with pytest.raises(pykka.ActorDeadError):
        mailbox.deliver([said(1)])


# -- machines -------------------------------------------------------------------------------------


class Echo:
    """A machine that answers what it is told, and breaks when it is told to."""

    address = "worker/x"

    def __init__(self) -> None:
        self.due: float | None = None
        self.ticks = 0

    def handle(self, envelope: m.Envelope, now: float) -> list[m.Send]:
        message = envelope.message
        if isinstance(message, m.Tick):
            self.due = None
            return [m.Send("client/y", m.Say(value="tick"))]
        assert isinstance(message, m.Say)
        if message.value == "break":
            self.due = 0.0  # long ago: half changed, it wants to be woken
            raise RuntimeError("broken")
        if message.value == "wake me":
            self.due = now + 0.05
        return [m.Send(envelope.sender, message, envelope.ref)]

    def next_deadline(self) -> float | None:
        return self.due

    @property
    def drained(self) -> bool:
        return False


@pytest.fixture
def switch() -> Iterator[Switch]:
    with net() as made:
        yield made.switch("actors")
        pykka.ActorRegistry.stop_all(timeout=5)


@pytest.fixture
def heard(switch: Switch) -> list[m.Envelope]:
    """What `client/y` on the switch hears."""
    envelopes: list[m.Envelope] = []
    switch.attach("client/y", envelopes.extend)
    return envelopes


def start(switch: Switch, **options: Any) -> pykka.ActorRef[MachineActor]:
    actor = MachineActor.start(Echo, switch, **options)
    switch.attach("worker/x", actor.actor_inbox.deliver)  # type: ignore[attr-defined]
    return actor


def test_a_machine_answers(switch: Switch, heard: list[m.Envelope]) -> None:
    """What a machine sends goes out with its address and the question's number."""
    start(switch)
    switch.send([said("hi", "q1")])
    eventually(lambda: len(heard) == 1)
    assert heard[0] == m.Envelope("client/y", "worker/x", m.Say(value="hi"), "q1")


def test_a_machine_is_woken(switch: Switch, heard: list[m.Envelope]) -> None:
    """A machine that asks to be woken is, though nobody says anything."""
    start(switch)
    switch.send([said("wake me")])
    eventually(lambda: [e.message.value for e in heard] == ["wake me", "tick"])  # type: ignore[union-attr]


def test_a_machine_that_breaks_is_made_anew(switch: Switch, heard: list[m.Envelope]) -> None:
    """One message that breaks it costs that message; the ones around it are answered."""
    start(switch)
    switch.send([said(1), said("break"), said(2)])
    eventually(lambda: [e.message.value for e in heard] == [1, 2])  # type: ignore[union-attr]
    assert switch.counters["machine_failures"] == 1


def test_too_many_failures_stop_the_actor(switch: Switch, heard: list[m.Envelope]) -> None:
    """After its budget the actor stops, tells its owner once, and whoever asks hears that it did."""
    gave_up: list[str] = []
    actor = start(switch, on_give_up=gave_up.append)
    switch.send([said("break")] * (MAX_FAILURES * 3))
    eventually(lambda: not actor.is_alive())
    assert gave_up == ["worker/x"]
    assert not heard  # the last machine, which broke, was woken no more
    assert switch.counters["machine_failures"] == MAX_FAILURES + 1
    with pytest.raises(pykka.ActorDeadError):
        switch.ref("worker/x").ask("hello?", timeout=10)


def test_a_shell_that_breaks_tells_its_owner(switch: Switch) -> None:
    """Even a fault outside the machine does not leave a role dead without a word."""
    gave_up: list[str] = []
    actor = start(switch, on_give_up=gave_up.append)
    actor.tell("not a batch")
    actor.tell(["not an envelope"])
    eventually(lambda: gave_up == ["worker/x"])


def test_orders_are_handled_before_the_stop(switch: Switch, heard: list[m.Envelope]) -> None:
    """An orderly stop handles what came before it."""
    actor = start(switch)
    for i in range(100):
        switch.send([said(i)])
    actor.stop(timeout=10)
    assert [e.message.value for e in heard] == list(range(100))  # type: ignore[union-attr]


# -- the store ------------------------------------------------------------------------------------


class Watched:
    """A real database that writes down when its transactions begin and end, and may fail."""

    def __init__(self, path: Path, log: list[str]) -> None:
        self._database = open_database(f"sqlite:///{path}/store.db")
        self._log = log
        self.entered = threading.Event()
        self.proceed = threading.Event()
        self.proceed.set()
        self.fail: Callable[[m.Claim], Exception | None] = lambda claim: None
        self.depth = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.entered.set()
        assert self.proceed.wait(10)
        try:
            with self._database.transaction():
                self._log.append("begin")
                yield
        except BaseException:
            self._log.append("rollback")
            raise
        self._log.append("commit")

    def close(self) -> None:
        self._database.close()
        self._log.append("close")

    def claim(self, claim: m.Claim) -> m.Claimed:
        self._log.append(f"claim {claim.task_id}")
        if (error := self.fail(claim)) is not None:
            raise error
        return self._database.claim(claim)


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def database(tmp_path: Path, log: list[str]) -> Watched:
    return Watched(tmp_path, log)


@pytest.fixture
def store(switch: Switch, database: Watched, log: list[str]) -> pykka.ActorRef[StoreActor]:
    for _ in range(6):
        database.create_task(1, "graph", GRAPH, agents=["echo"])
    actor = StoreActor.start(database, switch)
    switch.attach(m.STORE, actor.actor_inbox.deliver)  # type: ignore[attr-defined]

    def answered(batch: Batch) -> None:
        for e in batch:
            what = e.message.code if isinstance(e.message, m.Refused) else type(e.message).__name__
            log.append(f"answer {e.ref} {what}")

    switch.attach("gateway/a", answered)
    return actor


def claims(*tasks: int) -> Batch:
    return [
        m.Envelope(
            m.STORE,
            "gateway/a",
            m.Claim(
                task_id=task,
                expected=Epoch(0, 0),
                scope="global",
                claimant="gateway/a",
                region="region/eu",
            ),
            str(task),
        )
        for task in tasks
    ]


def answers(log: list[str]) -> list[str]:
    return [line.removeprefix("answer ") for line in log if line.startswith("answer")]


def test_what_waits_is_one_commit(
    store: Any,
    switch: Switch,
    database: Watched,
    log: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Messages that wait together are one transaction, and no answer leaves before its commit."""
    monkeypatch.setattr(actors, "TURN_S", 60.0)
    database.proceed.clear()
    switch.send(claims(1))
    assert database.entered.wait(10)  # the store is busy with the first; the others pile up
    for task in (2, 3, 4, 5):
        switch.send(claims(task))
    database.proceed.set()
    eventually(lambda: len(answers(log)) == 5)
    assert log == [
        "begin", "claim 1", "commit", "answer 1 Claimed",
        "begin", "claim 2", "claim 3", "claim 4", "claim 5", "commit",
        "answer 2 Claimed", "answer 3 Claimed", "answer 4 Claimed", "answer 5 Claimed",
    ]  # fmt: skip


def test_one_that_fails_does_not_spoil_the_others(
    store: Any, switch: Switch, database: Watched, log: list[str]
) -> None:
    """When the transaction fails, each message is tried alone, and only the bad one is refused."""
    database.fail = lambda claim: StorageError("bad block") if claim.task_id == 2 else None
    switch.send(claims(1, 2, 3))
    eventually(lambda: len(answers(log)) == 3)
    assert answers(log) == ["1 Claimed", "2 storage", "3 Claimed"]
    assert log[:4] == ["begin", "claim 1", "claim 2", "rollback"]
    assert log.count("commit") == 2
    assert [database.get_task(task).epoch.global_epoch for task in (1, 2, 3)] == [1, 0, 1]
    assert switch.counters["storage_failures"] == 1


def test_a_refusal_says_when_to_try_again(store: Any, switch: Switch, database: Watched) -> None:
    """Whoever asks a store that cannot write hears why, and after which time to ask again."""
    database.fail = lambda claim: StorageError("disk full")
    refused: list[m.Envelope] = []
    switch.attach("gateway/b", refused.extend)
    (mine,) = claims(1)
    claim = msgspec.structs.replace(mine.message, claimant="gateway/b")  # type: ignore[type-var]
    switch.send([m.Envelope(m.STORE, "gateway/b", claim, "7")])
    eventually(lambda: len(refused) == 1)
    assert refused[0].ref == "7"
    assert refused[0].message == m.Refused(code="storage", reason="disk full", retry_after_s=1.0)
    database.fail = lambda claim: None
    switch.send([m.Envelope(m.STORE, "gateway/b", claim, "8")])
    eventually(lambda: len(refused) == 2)
    assert isinstance(refused[1].message, m.Claimed)


def test_a_request_that_breaks_the_store_is_refused(
    store: pykka.ActorRef[StoreActor], switch: Switch, database: Watched, log: list[str]
) -> None:
    """A fault in the code behind one request is that request's; the store serves on."""
    database.fail = lambda claim: ZeroDivisionError() if claim.task_id == 2 else None
    switch.send(claims(1, 2, 3))
    eventually(lambda: len(answers(log)) == 3)
    assert answers(log) == ["1 Claimed", "2 storage", "3 Claimed"]
    assert store.is_alive()
    assert switch.counters["machine_failures"] == 1


def test_a_domain_error_keeps_the_transaction(
    store: Any, switch: Switch, database: Watched, log: list[str]
) -> None:
    """A request that is refused by the rules (no such task) does not undo its neighbours."""
    switch.send(
        [*claims(1), m.Envelope(m.STORE, "gateway/a", m.GetTask(task_id=99), "99"), *claims(2)]
    )
    eventually(lambda: len(answers(log)) == 3)
    assert answers(log) == ["1 Claimed", "99 task_not_found", "2 Claimed"]
    assert log.count("commit") == 1


def test_stopping_releases_the_database(
    store: pykka.ActorRef[StoreActor], log: list[str], tmp_path: Path
) -> None:
    """After a stop the file is closed, with everything that was committed in it."""
    store.stop(timeout=10)
    assert log[-1] == "close"
    again = open_database(f"sqlite:///{tmp_path}/store.db")
    assert len(again.list_tasks()) == 6
    again.close()


def test_a_mailbox_bound_is_the_limit() -> None:
    """The bound of an actor's mailbox is `limits.mailbox`."""
    limits = msgspec.structs.replace(FAST, mailbox=2)
    with net(limits) as made:
        switch = made.switch("bounded")
        actor = MachineActor.start(Echo, switch)
        inbox: Any = actor.actor_inbox
        assert inbox._bound == 2
        assert inbox._batch == Limits().batch
        actor.stop(timeout=5)
