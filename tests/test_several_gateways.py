"""Several gateways below one store: each knows all regions, and none takes what another serves."""

from __future__ import annotations

import json

from agentos.core import messages as m
from agentos.core.balancing import LeastLoaded
from agentos.core.limits import Limits
from agentos.core.placement import PAGE, Placement
from agentos.core.store import StoreMachine
from agentos.storage.memory import MemoryDatabase
from tests.clusters import Cluster
from tests.harness import Reply

LIMITS = Limits()
SLOW = json.dumps({"nodes": {"a": {"agent": "echo", "prompt": "x", "timeout_s": 600}}})


def two_gateways(after_s: float = 0.0) -> Cluster:
    """Regions r0 and r1 dial gateway/a, r2 dials gateway/b."""
    cluster = Cluster(lambda _: Reply("done", after_s=after_s), regions=3, proxies=1)
    cluster.start_gateway("gateway/b")
    for address in ("region/r0", "region/r1", "client/c"):
        cluster.attach(address, "gateway/a")
    for address in ("region/r2", "client/d"):
        cluster.attach(address, "gateway/b")
    cluster.run_for(2.0)
    return cluster


def regions_of(cluster: Cluster, client: str) -> dict[str, bool]:
    """The regions that the client's gateway knows, and whether it takes them for alive."""
    cluster.send(client, m.GATEWAY, m.GetCluster(), "q")
    cluster.run_for(0.1)
    info = [q for q in cluster.mail[client] if isinstance(q, m.ClusterInfo)][-1]
    return {region.address: region.alive for region in info.regions}


def test_each_gateway_knows_all_regions() -> None:
    """A region's heartbeat reaches the gateways that it does not dial, and so does its death."""
    cluster = two_gateways()
    alive = dict.fromkeys(["region/r0", "region/r1", "region/r2"], True)
    assert regions_of(cluster, "client/c") == regions_of(cluster, "client/d") == alive
    cluster.kill("region/r0")
    cluster.run_for(LIMITS.suspicion_s + 1.0)
    assert regions_of(cluster, "client/c") == regions_of(cluster, "client/d")
    assert regions_of(cluster, "client/d") == alive | {"region/r0": False}


def test_nobody_takes_what_another_serves() -> None:
    """Tasks of a region that dials another gateway are left with it, for as long as they take."""
    cluster = two_gateways(after_s=60.0)
    tasks = [cluster.submit(SLOW, client=f"client/{'cd'[i % 2]}") for i in range(6)]
    cluster.run_for(5.0)
    before = [cluster.task(task) for task in tasks]
    assert {task.region for task in before} == {"region/r0", "region/r1", "region/r2"}
    cluster.run_for(40.0)
    assert [cluster.task(task).epoch for task in tasks] == [task.epoch for task in before]
    cluster.run_until(lambda: cluster.ended(*tasks), 200.0)


def test_a_gateway_that_starts_again() -> None:
    """A gateway that comes back takes no tasks from regions which the other has kept alive."""
    cluster = two_gateways(after_s=60.0)
    tasks = [cluster.submit(SLOW) for _ in range(6)]
    cluster.run_for(5.0)
    before = [cluster.task(task).epoch for task in tasks]
    cluster.start_gateway("gateway/b")
    cluster.run_for(20.0)
    assert [cluster.task(task).epoch for task in tasks] == before


def test_a_store_that_starts_again() -> None:
    """After the store was silent, nobody is taken for dead because the others were not heard."""
    cluster = two_gateways(after_s=60.0)
    tasks = [cluster.submit(SLOW) for _ in range(6)]
    cluster.run_for(5.0)
    before = [cluster.task(task).epoch for task in tasks]
    cluster.kill("store")
    cluster.fault = lambda e: int(e.to != "store")
    cluster.run_for(10.0)
    cluster.fault = lambda _: 1
    cluster.add(StoreMachine(cluster.database, LIMITS))
    cluster.run_for(20.0)
    assert [cluster.task(task).epoch for task in tasks] == before


def test_one_gateway_dies() -> None:
    """Tasks of a dead gateway's regions are taken on by the other, and finish."""
    cluster = two_gateways(after_s=3.0)
    tasks = [cluster.submit(SLOW, client=f"client/{'cd'[i % 2]}") for i in range(6)]
    cluster.run_for(1.0)
    cluster.kill("gateway/a")
    for address in ("region/r0", "region/r1", "client/c"):
        cluster.attach(address, "gateway/b")
    cluster.run_until(lambda: cluster.ended(*tasks), 30.0)
    assert {cluster.task(task).state for task in tasks} == {"succeeded"}


def test_the_store_tells_gateways_that_live() -> None:
    """What a gateway heard goes to the others, not back; a gateway that is gone is told no more."""
    store = StoreMachine(MemoryDatabase(clock=lambda: 0.0), LIMITS)
    beat = m.RegionBeat(incarnation="1", tasks=0, capacity=1, agents=(), proxies=())
    heard = m.Heard(region="region/eu", beat=beat)

    def tell(sender: str, message: m.Message, now: float) -> list[m.Send]:
        return store.handle(m.Envelope(m.STORE, sender, message), now)

    assert tell("gateway/a", m.Heard(), 0.0) == []
    assert tell("gateway/a", heard, 0.0) == []
    assert tell("gateway/b", heard, 1.0) == [m.Send("gateway/a", heard)]
    assert tell("gateway/b", heard, 100.0) == []
    tell("gateway/a", m.CountTasks(), 101.0)
    assert tell("gateway/b", heard, 101.0) == [m.Send("gateway/a", heard)]


def test_nobody_is_judged_right_after_silence() -> None:
    """A gateway that had no answer of the store for long waits for heartbeats before it judges."""
    placement = Placement("gateway/a", LIMITS, LeastLoaded())
    unfinished = m.TaskCounts(counts=(m.TaskCount("region/eu", ("echo",), 3),))
    find = m.FindTasks(region="region/eu", after=0, limit=PAGE)
    assert placement.counted(unfinished, 0.0) == [m.Send(m.STORE, find)]
    assert placement.counted(unfinished, 1.0) == [m.Send(m.STORE, find)]
    assert placement.counted(unfinished, 11.0) == []
    assert placement.counted(unfinished, 11.1) == []
    assert placement.counted(unfinished, 12.1) == []
    assert placement.counted(unfinished, 12.6) == [m.Send(m.STORE, find)]
