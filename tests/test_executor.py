"""The proxy's waiting line and slots."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.executor import Executor

ME, OWNERS = "proxy/r0/0", ("proxy/r0/0", "proxy/r0/1")
SLOTS = {"one": 1, "two": 2}
MOST = 4


def call(
    task: int = 1, row: str = "a/1/s0", epoch: int = 1, attempt: int = 0, agent: str = "one",
    owner: str = OWNERS[1], priority: int = 0,
) -> m.Call:  # fmt: skip
    """A call."""
    return m.Call(
        task_id=task, row=row, epoch=Epoch(1, epoch), attempt=attempt, agent=agent, owner=owner,
        prompt="", timeout_s=1, priority=priority,
    )  # fmt: skip


def result(of: m.Call) -> m.CallResult:
    """The runner's answer to it."""
    return m.CallResult(
        task_id=of.task_id, epoch=of.epoch, row=of.row, attempt=of.attempt, proxy=ME, value="1"
    )


def executor(slots: dict[str, int] | None = None, waiting: int = MOST) -> Executor:
    """An executor."""
    return Executor(
        ME, m.AGENTS, slots or SLOTS, max_waiting=waiting, max_kept=10_000, policy="priority"
    )


def invoked(sends: list[m.Send]) -> list[m.Call]:
    """What is started."""
    return [s.message.call for s in sends if isinstance(s.message, m.Invoke)]


class Calls(RuleBasedStateMachine):
    """Any sequence of calls, answers and aborts."""

    calls = st.builds(
        call, st.integers(1, 2), st.sampled_from(["a/1/s0", "b/1/s0", "c/1/s0"]),
        st.integers(1, 2), st.integers(0, 1), st.sampled_from(["one", "two", "none"]),
        st.sampled_from(OWNERS), st.integers(0, 2),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.executor = executor()
        self.running: list[m.Call] = []
        self.waiting: list[m.Call] = []
        self.kept: dict[tuple[int, str], m.Call] = {}

    def kept_for(self, q: m.Call) -> bool:
        """Whether the answer to this question is still known here."""
        before = self.kept.get((q.task_id, q.row))
        if before is None:
            return False
        again = (before.epoch, before.attempt) == (q.epoch, q.attempt)
        return again or (before.epoch < q.epoch and before.agent == q.agent)

    def note(self, sends: list[m.Send]) -> None:
        """Follow what the runner is told; every start and every end must make sense."""
        for send in sends:
            q = send.message
            if isinstance(q, m.Invoke):
                assert send.to == m.AGENTS
                self.waiting.remove(q.call)
                self.running.append(q.call)
            elif isinstance(q, m.Revoke):
                (mine,) = [
                    c
                    for c in self.running
                    if (c.task_id, c.epoch, c.row, c.attempt)
                    == (q.task_id, q.epoch, q.row, q.attempt)
                ]
                self.running.remove(mine)
            else:
                assert isinstance(q, m.CallRefused | m.CallResult)

    @rule(q=calls)
    def submit(self, q: m.Call) -> None:
        known = [c for c in self.running + self.waiting if (c.task_id, c.row) == (q.task_id, q.row)]
        assert len(known) <= 1
        older = [c for c in known if (c.epoch, c.attempt) < (q.epoch, q.attempt)]
        self.waiting = [c for c in self.waiting if c not in older]
        sends = self.executor.submit(q)
        refused = [s for s in sends if isinstance(s.message, m.CallRefused)]
        answers = [s for s in sends if isinstance(s.message, m.CallResult)]
        if known and not older:
            assert sends == []
        elif self.kept_for(q):
            (answer,) = [s.message for s in answers if isinstance(s.message, m.CallResult)]
            assert (answers[0].to, answer.epoch, answer.attempt) == (q.owner, q.epoch, q.attempt)
            assert not refused
        elif not refused:
            self.waiting.append(q)
        else:
            assert refused[0].to == q.owner
            assert q.agent == "none" or len(self.waiting) >= MOST
        self.note(sends)

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        if self.running:
            done = data.draw(st.sampled_from(self.running))
            self.running.remove(done)
            of, sends = self.executor.finished(result(done))
            assert of == done
            if done.owner != ME:
                self.kept[done.task_id, done.row] = done
            self.note(sends)

    @rule(q=calls)
    def answer_to_another(self, q: m.Call) -> None:
        same = [(c.task_id, c.row, c.epoch, c.attempt) for c in self.running]
        if (q.task_id, q.row, q.epoch, q.attempt) not in same:
            assert self.executor.finished(result(q)) == (None, [])

    @rule(task=st.integers(1, 2), epoch=st.integers(1, 3), owner=st.sampled_from(["", *OWNERS]))
    def abort(self, task: int, epoch: int, owner: str) -> None:
        below = Epoch(1, epoch)

        def hit(c: m.Call) -> bool:
            return c.task_id == task and c.epoch < below and owner in {"", c.owner}

        self.waiting = [c for c in self.waiting if not hit(c)]
        self.note(self.executor.abort(task, below, owner=owner))
        assert not any(hit(c) for c in self.running)

    @rule(owner=st.sampled_from(OWNERS))
    def lose_owner(self, owner: str) -> None:
        self.waiting = [c for c in self.waiting if c.owner != owner]
        self.note(self.executor.abort_owner(owner))
        assert not any(c.owner == owner for c in self.running)

    @invariant()
    def slots_are_used_and_never_exceeded(self) -> None:
        for agent, slots in SLOTS.items():
            used = sum(c.agent == agent for c in self.running)
            wait = sum(c.agent == agent for c in self.waiting)
            assert used <= slots
            assert not wait or used == slots
            assert self.executor._free[agent] == slots - used
        assert len(self.executor) == len(self.running) + len(self.waiting)
        assert len(self.waiting) <= MOST


Calls.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestCalls = Calls.TestCase


def test_an_answer_is_not_paid_for_twice() -> None:
    """Who asks again gets the answer again, and so does the next owner, for the same question only."""
    line = executor()
    line.submit(call(row="a"))
    line.finished(result(call(row="a")))
    for again in (call(row="a"), call(row="a", epoch=2, owner=OWNERS[0])):
        (send,) = line.submit(again)
        assert (send.to, getattr(send.message, "value", None)) == (again.owner, "1")
    assert invoked(line.submit(msgspec.structs.replace(call(row="a", epoch=2), prompt="other")))


def test_a_failure_is_not_kept_for_the_next_owner() -> None:
    """What went wrong for one owner is tried anew for the next."""
    line = executor()
    line.submit(call(row="a"))
    line.finished(msgspec.structs.replace(result(call(row="a")), value=None, error="broke"))
    assert invoked(line.submit(call(row="a", epoch=2)))


def test_kept_answers_are_bounded() -> None:
    """The oldest answers go when together they take more than `kept_answer_bytes`."""
    line = executor({"one": 99})
    for i in range(50):
        one = call(row=f"a/{i}/s0")
        line.submit(one)
        line.finished(result(one))
    again = [invoked(line.submit(call(row=f"a/{i}/s0"))) for i in range(50)]
    assert [bool(started) for started in again] == [True] * 41 + [False] * 9


def test_a_draining_executor_finishes_what_runs() -> None:
    """What runs goes on; what waits, and what comes, is refused; an abort ends what runs."""
    line = executor()
    line.submit(call(row="a"))
    line.submit(call(row="b"))
    (refused,) = line.drain(abort=False)
    assert getattr(refused.message, "row", "") == "b"
    assert isinstance(line.submit(call(row="c"))[0].message, m.CallRefused)
    assert len(line) == 1
    kinds = [type(send.message) for send in line.drain(abort=True)]
    assert kinds == [m.Revoke, m.CallRefused]
    assert not len(line)


def test_a_full_line_does_not_block_a_free_agent() -> None:
    """A call whose agent is idle starts, however many wait for another agent."""
    line = executor(waiting=1)
    for row in ("a", "b"):
        line.submit(call(row=row))
    assert isinstance(line.submit(call(row="c"))[0].message, m.CallRefused)
    assert invoked(line.submit(call(row="d", agent="two")))


def test_urgent_calls_go_first() -> None:
    """Of the calls that wait, the one of the highest priority starts when a slot is free."""
    line = executor()
    running = call(row="a")
    line.submit(running)
    line.submit(call(row="b"))
    line.submit(call(row="c", priority=9))
    assert [c.row for c in invoked(line.finished(result(running))[1])] == ["c"]


def test_start_takes_nothing_that_would_wait() -> None:
    """`start` says no, and changes nothing, when there is no free slot."""
    line = executor()
    assert invoked(line.start(call(row="a")) or [])
    assert line.start(call(row="b")) is None
    assert len(line) == 1
