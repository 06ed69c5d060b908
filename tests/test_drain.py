"""An orderly stop: claims are handed back, what is in flight is saved, and nothing saved is repeated."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.errors import Overloaded
from agentos.core.limits import Limits
from tests.clusters import Cluster
from tests.harness import Reply
from tests.test_takeover import ONE, invoked

SLOW_S = 0.3
NODES = {
    "a": {"agent": "echo", "prompt": "x", "samples": 3, "voters": 0},
    "b": {"agent": "echo", "prompt": "${a}"},
    "c": {"agent": "echo", "prompt": "${a} ${b}", "samples": 2, "voters": 0, "rounds": 2},
}
GRAPH = json.dumps({"nodes": NODES})


def drain(cluster: Cluster, *addresses: str, abort: bool = False) -> None:
    """Tell roles to stop, as their hosts do."""
    for address in addresses:
        cluster.send(address, address, m.Drain(abort=abort))


def drained(cluster: Cluster, *addresses: str) -> bool:
    """Whether these have nothing left to hand back."""
    return all(cluster.machine(address).drained for address in addresses)


def slow(_: m.Call) -> Reply:
    """An agent that takes its time."""
    return Reply("x", after_s=SLOW_S)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), after_s=st.floats(0.0, 2.0), regions=st.booleans())
def test_a_rolling_restart_repeats_nothing(seed: int, after_s: float, regions: bool) -> None:
    """Proxies or regions stop in order one after the other, under load: no call is made twice."""
    cluster = Cluster(slow, regions=2, proxies=2, seed=seed)
    cluster.run_for(1.0)
    tasks = [cluster.submit(GRAPH) for _ in range(4)]
    cluster.run_for(after_s)
    proxies = [f"proxy/r{r}/{p}" for r in range(2) for p in range(2)]
    for address in ["region/r0", "region/r1"] if regions else proxies:
        drain(cluster, address)
        cluster.run_until(lambda: drained(cluster, address), Limits().stop_grace_s)  # noqa: B023
        cluster.run_for(0.01)  # what it said last is on its way
        cluster.kill(address)
        cluster.run_for(0.5)
        start = cluster.start_region if regions else cluster.start_proxy
        start(address)
        cluster.run_for(1.0)
    cluster.run_until(lambda: cluster.ended(*tasks), 120)
    for task_id in tasks:
        assert cluster.task(task_id).state == "succeeded"
        assert cluster.task(task_id).attempts == 0
        rows = [call.row for _, call in invoked(cluster, task_id)]
        assert len(rows) == len(set(rows)) == 8


def test_a_draining_proxy_takes_nothing_more() -> None:
    """It starts neither tasks nor calls, and is rid of what it had as soon as its calls end."""
    cluster = Cluster(slow, proxies=2)
    cluster.run_for(1.0)
    task_id = cluster.submit(GRAPH)
    cluster.run_until(lambda: bool(invoked(cluster, task_id)), 10)
    owner = cluster.task(task_id).owner
    drain(cluster, owner)
    begun = cluster.now
    cluster.run_until(lambda: drained(cluster, owner), 2 * SLOW_S)
    more = [cluster.submit(GRAPH) for _ in range(3)]
    cluster.run_until(lambda: cluster.ended(task_id, *more), 60)
    late = [e for at, e in cluster.sent(m.Invoke) if at > begun + 0.02 and e.sender == owner]
    assert late == []
    assert all(cluster.task(i).owner != owner for i in more)


def test_what_does_not_end_is_aborted() -> None:
    """When the grace is over, calls are revoked and the task goes to another proxy at once."""
    cluster = Cluster(lambda _: Reply(never=True), proxies=2)
    cluster.run_for(1.0)
    task_id = cluster.submit(ONE)
    cluster.run_until(lambda: bool(invoked(cluster, task_id)), 10)
    owner = cluster.task(task_id).owner
    drain(cluster, owner)
    cluster.run_for(Limits().stop_grace_s)
    assert not drained(cluster, owner)
    assert cluster.task(task_id).owner == owner
    drain(cluster, owner, abort=True)
    begun = cluster.now
    cluster.run_until(lambda: len(invoked(cluster, task_id)) == 2, 10)
    assert cluster.now - begun < Limits().heartbeat_s
    assert drained(cluster, owner)
    assert [e.sender for _, e in cluster.sent(m.Revoke)] == [owner]
    assert cluster.task(task_id).attempts == 0


def test_a_region_that_stops_hands_its_tasks_to_another() -> None:
    """With no region left they wait, and go on as soon as one appears."""
    cluster = Cluster(slow, regions=2, proxies=1)
    cluster.run_for(1.0)
    tasks = [cluster.submit(GRAPH) for _ in range(4)]
    cluster.run_for(0.1)
    for region in ("region/r0", "region/r1"):
        drain(cluster, region)
        cluster.run_until(lambda: drained(cluster, region), Limits().stop_grace_s)  # noqa: B023
    cluster.run_for(0.1)
    assert {cluster.task(task_id).region for task_id in tasks} == {""}
    assert not cluster.ended(*tasks)
    for region in ("region/r0", "region/r1"):
        cluster.kill(region)
    cluster.run_for(5.0)
    cluster.start_region("region/r1")
    cluster.run_until(lambda: cluster.ended(*tasks), 60)
    assert {cluster.task(task_id).state for task_id in tasks} == {"succeeded"}


def test_a_region_aborts_what_is_late() -> None:
    """Owners that do not let go in time are deposed by the next region's claim, and stop."""
    cluster = Cluster(lambda _: Reply(never=True), regions=2, proxies=1)
    cluster.run_for(1.0)
    task_id = cluster.submit(ONE)
    cluster.run_until(lambda: bool(invoked(cluster, task_id)), 10)
    region, owner = cluster.task(task_id).region, cluster.task(task_id).owner
    drain(cluster, region)
    cluster.run_for(1.0)
    drain(cluster, region, abort=True)
    cluster.run_until(lambda: drained(cluster, region), 0.1)
    cluster.run_for(0.1)
    assert cluster.task(task_id).region not in {"", region}
    cluster.kill(region)
    cluster.run_for(1.0)
    cluster.start_region(region)
    cluster.run_until(lambda: any(e.sender == owner for _, e in cluster.sent(m.Revoke)), 20)


def test_a_stopping_gateway_refuses_and_answers() -> None:
    """It accepts nothing new, and answers what it has; then it is drained."""
    cluster = Cluster(slow)
    cluster.run_for(1.0)
    held: list[m.Envelope] = []
    cluster.fault = lambda e: (
        0 if isinstance(e.message, m.TaskCreated) and not held.append(e) else 1
    )  # type: ignore[func-returns-value]
    cluster.send("client/c", m.GATEWAY, m.Submit(task_description=ONE), "1")
    cluster.run_until(lambda: bool(held), 5)
    drain(cluster, "gateway/a")
    cluster.run_for(0.1)
    assert not drained(cluster, "gateway/a")
    cluster.send("client/d", m.GATEWAY, m.Submit(task_description=ONE), "2")
    cluster.run_until(lambda: bool(cluster.mail["client/d"]), 5)
    (refused,) = cluster.mail["client/d"]
    assert isinstance(refused, m.Refused)
    assert (refused.code, refused.retry_after_s) == (Overloaded.code, Limits().reconnect_max_s)
    cluster.fault = lambda _: 1
    cluster.send(held[0].sender, held[0].to, held[0].message, held[0].ref)  # type: ignore[arg-type]
    cluster.run_until(lambda: drained(cluster, "gateway/a"), 5)
    cluster.run_for(0.1)
    assert any(isinstance(q, m.Submitted) for q in cluster.mail["client/c"])
