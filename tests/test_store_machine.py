"""The store's machine: every question gets one answer, and a wrong one changes nothing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.limits import Limits
from agentos.core.routes import ROUTES
from agentos.core.store import StoreMachine
from agentos.storage.memory import MemoryDatabase
from tests.hostile import from_anybody, known, state_of

OWNER = "proxy/r0/0"
E10, E11 = Epoch(1, 0), Epoch(1, 1)
REQUESTS = [
    kind
    for kind, ends in ROUTES.items()
    if any(to == "store" for _, to in ends) and kind is not m.Heard  # which asks for nothing
]
fuzzed = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


def store(limits: Limits | None = None) -> tuple[StoreMachine, MemoryDatabase]:
    """A store that holds task 1, owned at (1, 1), and task 2, which nobody has."""
    database = MemoryDatabase(clock=lambda: 0.0)
    machine = StoreMachine(database, limits or Limits())
    for region in ("region/r0", ""):
        tell(machine, create(region))
    tell(machine, claim())
    return machine, database


def tell(machine: StoreMachine, message: m.Message) -> m.Message:
    """The one answer to a message."""
    sender = getattr(message, "claimant", OWNER)
    send, *_ = machine.handle(m.Envelope(m.STORE, sender, message, "r7"), 0.0)
    assert (send.to, send.ref) == (sender, "r7")
    return send.message


def create(region: str, key: str | None = None) -> m.CreateTask:
    """A new task."""
    return m.CreateTask(
        user_id=1,
        task_type="graph",
        task_description="{}",
        key=key,
        agents=("echo",),
        priority=0,
        claimant="gateway/a",
        region=region,
    )


def claim(task_id: int = 1, expected: Epoch = E10) -> m.Claim:
    """A region's claim."""
    return m.Claim(
        task_id=task_id,
        expected=expected,
        scope="regional",
        claimant="region/r0",
        region="region/r0",
        owner=OWNER,
    )


def record(*rows: str, epoch: Epoch = E11, end: m.End | None = None, task_id: int = 1) -> m.Record:
    """A write."""
    saved = tuple(m.Row(row, '{"value":1}') for row in rows)
    return m.Record(task_id=task_id, epoch=epoch, rows=saved, end=end)


@fuzzed
@given(envelopes=st.lists(from_anybody(m.STORE), max_size=8))
def test_nothing_raises_in_any_state(envelopes: list[m.Envelope]) -> None:
    """Whatever comes, the store answers it at most once, and goes on."""
    machine, _ = store()
    for envelope in envelopes:
        sends = machine.handle(envelope, 0.0)
        if isinstance(envelope.message, m.Heard):  # passed on to the other gateways
            assert envelope.sender not in {s.to for s in sends}
        else:
            answers = [s for s in sends if not isinstance(s.message, m.Ended | m.Run)]
            assert [(s.to, s.ref) for s in answers] in ([], [(envelope.sender, envelope.ref)])


@fuzzed
@given(data=st.data(), kind=st.sampled_from(REQUESTS))
def test_every_request_is_answered(data: st.DataObject, kind: type[m.Message]) -> None:
    """Each request that the table of routes allows has an answer, if only a refusal."""
    machine, _ = store()
    if kind is not m.Refused:
        tell(machine, data.draw(known(kind)))


@fuzzed
@given(request=known(m.Record) | known(m.Claim))
def test_what_is_refused_changes_nothing(request: m.Record | m.Claim) -> None:
    """A stale write and a lost claim leave the database as it was."""
    machine, database = store()
    before = state_of(database._tables)
    answer = tell(machine, request)
    refused = isinstance(answer, m.Refused)
    if isinstance(answer, m.Recorded):
        refused = answer.outcome != "applied"
    if isinstance(answer, m.Claimed):
        refused = not answer.granted
    if refused:
        assert state_of(database._tables) == before


def test_the_three_outcomes_of_a_write() -> None:
    """Applied, duplicate and stale reach the writer, with the epoch and state of the task."""
    machine, _ = store()
    outcomes = []
    for q in (record("a"), record("a"), record("a", "b"), record("c", epoch=E10)):
        answer = tell(machine, q)
        assert isinstance(answer, m.Recorded)
        assert (answer.current, answer.state) == (E11, "running")
        assert answer.nodes == tuple(row.node_id for row in q.rows)
        outcomes.append(answer.outcome)
    assert outcomes == ["applied", "duplicate", "applied", "stale"]


def test_an_end_is_told_only_if_it_stands() -> None:
    """`ended` is said to the owner whose end was committed, again and again; to nobody else."""
    machine, _ = store()
    end = m.End("succeeded", "{}")
    for q, told in (
        (record("z", epoch=E10, end=end), False),
        (record("a", end=end), True),
        (record("a", end=end), True),
        (record("b"), False),
    ):
        answer = tell(machine, q)
        assert isinstance(answer, m.Recorded)
        assert answer.ended is told
        assert answer.outcome == "stale" or told


def test_every_living_gateway_hears_of_an_end() -> None:
    """Whoever waits for it may wait at any of them; an end that does not stand is not told."""
    machine, _ = store()
    for gateway in ("gateway/a", "gateway/b"):
        machine.handle(m.Envelope(m.STORE, gateway, m.CountTasks()), 0.0)
    end = m.End("succeeded", '{"output":1}')
    for q, told in (
        (record("z", epoch=E10, end=end), []),
        (record("b"), []),
        (record("a", end=end), ["gateway/a", "gateway/b"]),
        (record("a", end=end), ["gateway/a", "gateway/b"]),  # the first word may be lost
        (record("a", end=m.End("succeeded", '{"output":2}')), ["gateway/a", "gateway/b"]),
    ):
        _, *news = machine.handle(m.Envelope(m.STORE, OWNER, q, "r7"), 0.0)
        assert [send.to for send in news] == told
        for send in news:
            assert send.message == m.Ended(
                task_id=1,
                epoch=E11,
                state="succeeded",
                response='{"output":1}',
                owner=OWNER,
            )


def test_the_store_gives_a_task_to_its_owner() -> None:
    """With the commit that made it the owner: at creation or by a claim, and again on repetition."""
    machine, _ = store()
    born = msgspec.structs.replace(create("region/r0", "k"), owner=OWNER)
    answer, run = machine.handle(m.Envelope(m.STORE, "gateway/a", born, "r7"), 0.0)
    assert isinstance(answer.message, m.TaskCreated)
    task_id, epoch = answer.message.task_id, answer.message.epoch
    assert (answer.message.owner, epoch) == (OWNER, E11)
    assert run.to == OWNER
    assert run.message == m.Run(task_id=task_id, epoch=E11, task_description="{}", saved=0)
    tell(machine, record("a", task_id=task_id))
    again = machine.handle(m.Envelope(m.STORE, "gateway/a", born, "r8"), 0.0)
    assert [type(send.message) for send in again] == [m.TaskCreated]  # it was created before
    taken = msgspec.structs.replace(claim(task_id, E11), lost=True)
    for _ in range(2):
        answer, run = machine.handle(m.Envelope(m.STORE, "region/r0", taken, "r9"), 0.0)
        assert isinstance(answer.message, m.Claimed)
        assert answer.message.task_description == ""
        assert run.message == m.Run(
            task_id=task_id,
            epoch=Epoch(1, 2),
            task_description="{}",
            saved=1,
            attempts=1,
            lost=f"{OWNER} at 1.1; ",
        )
    late = m.Envelope(m.STORE, "region/r0", claim(task_id, E10), "r9")
    assert [type(send.message) for send in machine.handle(late, 0.0)] == [m.Claimed]


def test_the_other_gateways_hear_of_a_cancellation() -> None:
    """The one that cancelled knows; a client of another one waits for the end as well."""
    machine, _ = store()
    for gateway in ("gateway/a", "gateway/b"):
        machine.handle(m.Envelope(m.STORE, gateway, m.CountTasks()), 0.0)
    cancel = m.Envelope(m.STORE, "gateway/a", m.CancelTask(task_id=1), "r7")
    _, news = machine.handle(cancel, 0.0)
    assert news.to == "gateway/b"
    assert isinstance(news.message, m.Ended)
    assert news.message.state == "cancelled"


def test_writers_of_nothing_are_told_to_stop() -> None:
    """A task that was deleted, and an epoch that nobody issued, are stale: the writer stops."""
    machine, _ = store()
    for q in (record("a", task_id=99), record("a", epoch=Epoch(7, 7))):
        answer = tell(machine, q)
        assert isinstance(answer, m.Recorded)
        assert answer.outcome == "stale"


def test_claims_of_a_deleted_task_are_lost() -> None:
    """Whoever claims a task that is gone is told that it is over, and does not ask for ever."""
    machine, _ = store()
    answer = tell(machine, claim(99))
    assert isinstance(answer, m.Claimed)
    assert (answer.granted, answer.state) == (False, "cancelled")


def test_pages_follow_each_other() -> None:
    """Saved rows come page by page, each once and in order, and the last page says so."""
    limits = Limits(page_bytes=30)
    machine, _ = store(limits)
    names = [f"n{i}" for i in range(7)]
    tell(machine, record(*names))
    seen: list[str] = []
    pages = 0
    while True:
        page = tell(machine, m.GetProgress(task_id=1, after=seen[-1] if seen else ""))
        assert isinstance(page, m.Progress)
        seen += [row.node_id for row in page.rows]
        pages += 1
        if not page.more:
            break
    assert seen == names
    assert pages == 4


def test_unknown_tasks_are_named() -> None:
    """Reading a task that does not exist is refused with its id."""
    machine, _ = store()
    for q in (m.GetTask(task_id=99), m.GetProgress(task_id=99), m.CancelTask(task_id=99)):
        answer = tell(machine, q)
        assert isinstance(answer, m.Refused)
        assert answer.code == "task_not_found"
        assert "99" in answer.reason


def test_a_key_that_names_another_task_is_a_conflict() -> None:
    """The refusal reaches whoever asked, with its code."""
    machine, _ = store()
    first = tell(machine, create("", "k"))
    again = tell(machine, create("", "k"))
    assert isinstance(first, m.TaskCreated)
    assert isinstance(again, m.TaskCreated)
    assert (again.task_id, again.created) == (first.task_id, False)
    other = m.CreateTask(
        user_id=1,
        task_type="graph",
        task_description='{"x":1}',
        key="k",
        agents=(),
        priority=0,
        claimant="gateway/a",
    )
    answer = tell(machine, other)
    assert isinstance(answer, m.Refused)
    assert answer.code == "key_conflict"


def test_nobody_writes_for_another() -> None:
    """A proxy that does not hold the task is refused, whatever epoch it guessed; nothing changes."""
    machine, database = store()
    stolen = m.Envelope(m.STORE, "proxy/r0/1", record("a", epoch=E11), "r7")
    (send,) = machine.handle(stolen, 0.0)
    assert isinstance(send.message, m.Refused)
    assert send.message.code == "not_the_owner"
    assert database.get_progress(1, "a") is None
    assert tell(machine, record("a", epoch=E11)).outcome == "applied"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("sender", "changes"),
    [
        ("region/r1", {}),
        ("gateway/a", {}),
        ("region/r0", {"scope": "global"}),
        ("region/r0", {"owner": "proxy/r1/0"}),
        ("region/r0", {"owner": "client/r0/0"}),
        ("region/r0", {"owner": ""}),
        ("region/r0", {"region": "region/r1"}),
    ],
)
def test_nobody_claims_for_another(sender: str, changes: dict[str, str]) -> None:
    """A claim is its sender's own, within its role: otherwise it is refused, and no epoch moves."""
    machine, database = store()
    before = database.get_task(1)
    forged = msgspec.structs.replace(claim(expected=E11), **changes)
    (send,) = machine.handle(m.Envelope(m.STORE, sender, forged, "r7"), 0.0)
    assert isinstance(send.message, m.Refused)
    assert send.message.code == "not_the_owner"
    assert database.get_task(1) == before


@pytest.mark.parametrize(
    ("region", "owner"),
    [("region/r1", OWNER), ("region/r0", "proxy/r1/0"), ("region/r0", "client/r0/0"), ("", OWNER)],
)
def test_nobody_creates_a_task_for_a_stranger(region: str, owner: str) -> None:
    """A new task's owner is a proxy of the region that it is placed at: else there is no task."""
    machine, database = store()
    before = database.list_tasks()
    q = msgspec.structs.replace(create(region), owner=owner)
    (send,) = machine.handle(m.Envelope(m.STORE, "gateway/a", q, "r7"), 0.0)
    assert isinstance(send.message, m.Refused)
    assert send.message.code == "not_the_owner"
    assert database.list_tasks() == before
