"""Takeovers: what is repeated, what is not, who stops, and a task that kills its owners."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.limits import Limits
from tests.clusters import Cluster
from tests.harness import Reply

ONE = '{"nodes": {"a": {"agent": "echo", "prompt": "x", "timeout_s": 3600}}}'
SAMPLES = '{"nodes": {"a": {"agent": "echo", "prompt": "x", "samples": 8, "voters": 0}}}'


def invoked(cluster: Cluster, task_id: int) -> list[tuple[float, m.Call]]:
    """The calls that agents were really asked for a task, and when."""
    return [
        (at, e.message.call)
        for at, e in cluster.sent(m.Invoke)
        if isinstance(e.message, m.Invoke) and e.message.call.task_id == task_id
    ]


def kill_owners(cluster: Cluster, task_id: int, dead_s: float = 0.1) -> Iterator[str]:
    """Kill each proxy that has begun a call of the task, and start it again after a while."""
    killed: set[Epoch] = set()

    def begun() -> bool:
        epoch = cluster.task(task_id).epoch
        return epoch not in killed and any(c.epoch == epoch for _, c in invoked(cluster, task_id))

    while not cluster.ended(task_id):
        cluster.run_until(lambda: begun() or cluster.ended(task_id), 60)
        owner = cluster.task(task_id).owner
        if not cluster.ended(task_id):
            killed.add(cluster.task(task_id).epoch)
            cluster.kill(owner)
            cluster.run_for(dead_s)
            cluster.start_proxy(owner)
            yield owner


def test_a_dead_proxy_that_rested_is_replaced_as_fast_as_any() -> None:
    """A task given to an idle proxy that is dead already goes on elsewhere within the usual time."""
    limits = Limits()
    for seed in range(10):
        cluster = Cluster(lambda _: Reply("x"), proxies=2, seed=seed)
        cluster.run_for(20.0 + seed / 2)
        cluster.kill("proxy/r0/0")
        cluster.run_for(1.0)
        tasks = [cluster.submit(ONE) for _ in range(2)]
        assert "proxy/r0/0" in {cluster.task(task_id).owner for task_id in tasks}
        began = cluster.now
        cluster.run_until(lambda: cluster.ended(*tasks), 10)  # noqa: B023
        assert cluster.now - began < limits.suspicion_s + 1.0


def test_a_lost_run_does_not_make_its_owner_a_suspect() -> None:
    """An idle proxy that never heard of its task is asked, and given it by a claim of its region."""
    cluster = Cluster(lambda _: Reply("x"), proxies=1)
    cluster.run_for(20.0)
    lost = [2]

    def lose(envelope: m.Envelope) -> int:
        if isinstance(envelope.message, m.Run) and lost[0]:
            lost[0] -= 1
            return 0
        return 1

    cluster.fault = lose
    task_id = cluster.submit(ONE)
    cluster.run_until(lambda: cluster.ended(task_id), 10)
    task = cluster.task(task_id)
    assert (task.state, task.epoch, task.attempts) == ("succeeded", Epoch(1, 2), 0)
    assert not list(cluster.sent(m.PeerDown))


def test_a_task_does_not_try_the_dead_one_by_one() -> None:
    """Most idle proxies died unnoticed: a task loses two owners to that at most, not its chances."""
    cluster = Cluster(lambda _: Reply("x"), proxies=12)
    cluster.run_for(20.0)
    for number in range(10):
        cluster.kill(f"proxy/r0/{number}")
    task_ids = [cluster.submit(ONE) for _ in range(4)]
    cluster.run_until(lambda: cluster.ended(*task_ids), 30)
    tasks = [cluster.task(task_id) for task_id in task_ids]
    assert {task.state for task in tasks} == {"succeeded"}
    assert max(task.epoch.regional_epoch for task in tasks) <= 3


def test_a_task_that_kills_its_owners_fails() -> None:
    """After `max_attempts` owners in a row it is FAILED, and its error names every one of them."""
    cluster = Cluster(lambda _: Reply(never=True), proxies=3)
    cluster.run_for(1.0)
    task_id = cluster.submit(ONE)
    killed = list(kill_owners(cluster, task_id))
    assert len(killed) == Limits().max_attempts == cluster.task(task_id).attempts
    task = cluster.task(task_id)
    assert task.state == "failed"
    for number, owner in enumerate(killed, 1):
        assert f"{owner} at 1.{number}" in task.error
    assert "max_attempts" in task.error
    assert json.loads(task.response or "")["error"]["reason"] == task.error
    cluster.run_for(5.0)
    ends = [q for q in cluster.mail["client/c"] if isinstance(q, m.Ended)]
    assert [end.state for end in ends] == ["failed"]


def test_it_cannot_eat_the_regions_one_by_one() -> None:
    """Owners that were the last ones of their regions are counted as well."""
    cluster = Cluster(lambda _: Reply(never=True), regions=3, proxies=1)
    cluster.run_for(1.0)
    task_id = cluster.submit(ONE)
    killed = list(kill_owners(cluster, task_id, dead_s=4.0))
    assert len(killed) == Limits().max_attempts
    assert all(owner in cluster.task(task_id).error for owner in killed)


def test_owners_that_got_on_do_not_count() -> None:
    """A long task in an unlucky cluster is no poison: what was saved starts the count anew."""
    nodes = {f"n{i:02}": {"agent": "echo", "prompt": f"{i}"} for i in range(12)}
    for i in range(1, 12):
        nodes[f"n{i:02}"]["prompt"] = f"${{n{i - 1:02}}}"
    cluster = Cluster(lambda call: Reply("x", after_s=0.2), proxies=3)
    cluster.run_for(1.0)
    task_id = cluster.submit(json.dumps({"nodes": nodes}))
    killed = 0
    while not cluster.ended(task_id):
        saved = len(cluster.database.get_progress_list(task_id))
        cluster.run_until(
            lambda: (
                len(cluster.database.get_progress_list(task_id)) > saved or cluster.ended(task_id)  # noqa: B023
            ),
            60,
        )
        if not cluster.ended(task_id):
            owner = cluster.task(task_id).owner
            cluster.kill(owner)
            cluster.run_for(0.1)
            cluster.start_proxy(owner)
            killed += 1
    assert killed > 2 * Limits().max_attempts
    assert cluster.task(task_id).state == "succeeded"
    assert cluster.task(task_id).attempts <= 1


@settings(max_examples=20, deadline=None)
@given(saved=st.integers(0, 8), seed=st.integers(0, 2**32))
def test_a_takeover_repeats_only_what_was_not_saved(saved: int, seed: int) -> None:
    """Of eight samples those whose answers were saved are never asked for again."""
    quick = {f"a/1/s{i}" for i in range(saved)}

    def script(call: m.Call) -> Reply:
        slow = call.row not in quick and call.epoch == Epoch(1, 1)
        return Reply("x", never=slow)

    cluster = Cluster(script, proxies=3, seed=seed)
    cluster.run_for(1.0)
    task_id = cluster.submit(SAMPLES)
    if saved == 8:
        cluster.run_until(lambda: cluster.ended(task_id), 60)
        return
    cluster.run_until(lambda: len(cluster.database.get_progress_list(task_id)) == saved, 60)
    cluster.run_until(lambda: len(invoked(cluster, task_id)) >= min(8, 6), 60)
    cluster.kill(cluster.task(task_id).owner)
    cluster.run_until(lambda: cluster.ended(task_id), 60)
    later = [call.row for _, call in invoked(cluster, task_id) if call.epoch > Epoch(1, 1)]
    assert sorted(later) == sorted({f"a/1/s{i}" for i in range(8)} - quick)


def test_a_zombie_region_stops_spending() -> None:
    """Cut off, replaced, and back again, it aborts its calls in seconds, though nothing is saved."""
    cluster = Cluster(lambda _: Reply(never=True), regions=2, proxies=2)
    cluster.run_for(1.0)
    task_id = cluster.submit(ONE)
    cluster.run_until(lambda: bool(invoked(cluster, task_id)), 10)
    region = cluster.task(task_id).region
    inside = {region, *(f"proxy/{region.partition('/')[2]}/{i}" for i in range(2))}
    cut = True

    def fault(envelope: m.Envelope) -> int:
        return 0 if cut and (envelope.to in inside) != (envelope.sender in inside) else 1

    cluster.fault = fault
    cluster.run_until(lambda: cluster.task(task_id).region not in {region, ""}, 20)
    cluster.run_for(5.0)
    assert not revoked(cluster, inside)
    cut, healed = False, cluster.now
    cluster.run_until(lambda: revoked(cluster, inside), 10)
    assert cluster.now - healed < 3 * Limits().sweep_s
    assert len([call for _, call in invoked(cluster, task_id)]) == 2


def revoked(cluster: Cluster, senders: set[str]) -> bool:
    """Whether one of these has aborted a call."""
    return any(e.sender in senders for _, e in cluster.sent(m.Revoke))


def test_a_paused_owner_checks_its_claims_first() -> None:
    """A proxy that stood still repeats no call before the store has said that the task is its own."""
    cluster = Cluster(
        lambda call: Reply("x", error="" if call.epoch > Epoch(1, 1) else "busy"), proxies=2
    )
    cluster.run_for(1.0)
    task_id = cluster.submit(ONE)
    # The call has failed, and waits to be repeated.
    cluster.run_until(lambda: bool(list(cluster.sent(m.CallResult))), 10)
    owner = cluster.task(task_id).owner
    cluster.pause(owner)
    cluster.run_for(10.0)
    cluster.resume(owner)
    cluster.run_until(lambda: cluster.ended(task_id), 60)
    cluster.run_for(30.0)
    assert Counter(call.epoch for _, call in invoked(cluster, task_id))[Epoch(1, 1)] == 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), lost=st.integers(1, 3))
def test_a_lost_answer_is_not_paid_for_twice(seed: int, lost: int) -> None:
    """An answer that is lost on its way to the owner is asked after, and comes without a new call."""
    cluster = Cluster(lambda _: Reply("x"), proxies=3, seed=seed)
    dropped: Counter[str] = Counter()

    def fault(envelope: m.Envelope) -> int:
        q = envelope.message
        if isinstance(q, m.CallResult) and dropped[q.row] < lost:
            dropped[q.row] += 1
            return 0
        return 1

    cluster.fault = fault
    cluster.run_for(1.0)
    task_id = cluster.submit(SAMPLES)
    cluster.run_until(lambda: cluster.ended(task_id), 120)
    assert sum(dropped.values()) >= lost
    assert max(Counter(call.row for _, call in invoked(cluster, task_id)).values()) == 1


def test_the_checks_of_claims_are_bounded() -> None:
    """Limits of takeovers are checked with the others."""
    limits = msgspec.structs.replace(Limits(), max_attempts=2, ask_again_s=1.0).check()
    cluster = Cluster(lambda _: Reply(never=True), proxies=2, limits=limits)
    cluster.run_for(1.0)
    task_id = cluster.submit(ONE)
    assert len(list(kill_owners(cluster, task_id))) == 2
    assert cluster.task(task_id).state == "failed"


def test_the_innocent_do_not_fail_with_it() -> None:
    """Tasks that share their only proxy with one that kills it get a last chance without it."""
    killer = ONE.replace('"x"', '"kill"')
    cluster = Cluster(lambda call: Reply("x", after_s=1.0, never=call.prompt == "kill"))
    cluster.run_for(1.0)
    tasks = [cluster.submit(text) for text in (ONE, ONE, killer, ONE, ONE)]
    deadly, innocent = tasks[2], [*tasks[:2], *tasks[3:]]
    for _ in kill_owners(cluster, deadly):
        assert not any(cluster.task(task_id).state == "failed" for task_id in innocent)
    cluster.run_until(lambda: cluster.ended(*innocent), 60)
    assert cluster.task(deadly).state == "failed"
    assert {cluster.task(task_id).state for task_id in innocent} == {"succeeded"}
