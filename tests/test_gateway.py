"""The gateway's machine: durable acceptance, whom it listens to, and its bounds."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.gateway import GatewayMachine
from agentos.core.limits import Limits
from tests.clusters import Cluster
from tests.harness import Reply
from tests.hostile import changes, from_anybody, known
from tests.machines import GRAPH, kinds, sizes

ME, R0, R1, CLIENT = "gateway/a", "region/r0", "region/r1", "client/c"
LIMITS = Limits()
E10, E20 = Epoch(1, 0), Epoch(2, 0)
fuzzed = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def gateway(*regions: str, limits: Limits = LIMITS, capacity: int = 10) -> GatewayMachine:
    """A gateway that these regions have greeted."""
    machine = GatewayMachine(limits, address=ME, incarnation="1")
    tell(machine, ME, m.Tick())
    for region in regions:
        tell(machine, region, beat(capacity))
    return machine


def beat(capacity: int = 10) -> m.RegionBeat:
    """A region's heartbeat."""
    return m.RegionBeat(incarnation="1", tasks=0, capacity=capacity, agents=("echo",), proxies=())


def tell(
    machine: GatewayMachine, sender: str, message: m.Message, ref: str = "", now: float = 0.0
) -> list[m.Send]:
    """Hand a message to a machine."""
    return machine.handle(m.Envelope(ME, sender, message, ref), now)


def created(task_id: int = 1, region: str = R0) -> m.TaskCreated:
    """The store's word that a task is committed."""
    return m.TaskCreated(
        task_id=task_id, created=True, state="accepted", epoch=E10, region=region, owner=""
    )


def submit(machine: GatewayMachine, *, notify: bool = True, ref: str = "q") -> m.Send:
    """Submit a graph; what the gateway asks of the store."""
    q = m.Submit(task_description=GRAPH, notify=notify)
    (send,) = tell(machine, CLIENT, q, ref)
    return send


def ended(response: str = "{}") -> m.Ended:
    """A region's word that task 1 has ended."""
    return m.Ended(task_id=1, epoch=E10, state="succeeded", response=response)


def info(state: m.State = "running") -> m.TaskInfo:
    """The store's view of task 1."""
    return m.TaskInfo(
        task_id=1, user_id=0, task_type="graph", state=state, epoch=E10, owner="proxy/r0/0"
    )


# -- whom it listens to ----------------------------------------------------------------------------


@fuzzed
@given(steps=st.integers(0, 80), seed=st.integers(0, 99), data=st.data())
def test_nothing_raises_in_any_state(steps: int, seed: int, data: st.DataObject) -> None:
    """Whatever message comes from whomever, at whatever moment, the machine goes on."""
    cluster = Cluster(lambda _: Reply("x", after_s=0.1), regions=2, seed=seed)
    cluster.run_for(1.0)
    for _ in range(2):
        cluster.submit(GRAPH)
    cluster.run_steps(steps)
    machine = cluster.machine(ME)
    refs = ("", "look", "sweep", "1.1", "1.2", "1.3")
    for envelope in data.draw(st.lists(from_anybody(ME, refs), max_size=8)):
        machine.handle(envelope, cluster.now)
        machine.handle(m.Envelope(ME, ME, m.Tick()), cluster.now)
        due = machine.next_deadline()
        assert due is not None
        assert due > cluster.now


@fuzzed
@given(
    data=st.data(),
    kind=st.sampled_from([m.Ended, m.Cancelled, m.Refused]),
    sender=st.sampled_from(["proxy/r0/0", CLIENT, "gateway/b", "own/actor"]),
)
def test_only_regions_and_the_store_tell_how_a_task_goes(
    data: st.DataObject, kind: type[m.Message], sender: str
) -> None:
    """A proxy, a client or another gateway cannot announce what only they decide."""
    machine = gateway(R0)
    tell(machine, CLIENT, m.Watch(task_id=1, client=CLIENT), "w")
    envelope = m.Envelope(ME, sender, data.draw(known(kind)), "1.1")
    assert changes(machine, envelope, 0.0) == (False, [])


@fuzzed
@given(data=st.data(), kind=st.sampled_from([m.TaskCreated, m.TaskInfo, m.Claimed, m.Refused]))
def test_answers_that_nobody_waits_for_change_nothing(
    data: st.DataObject, kind: type[m.Message]
) -> None:
    """An answer to a forgotten question, or to the gateway that was here before, is noise."""
    machine = gateway(R0)
    submit(machine)
    ref = data.draw(st.sampled_from(["", "look", "sweep", "0.1", "g1", "1.99"]))
    envelope = m.Envelope(ME, "store", data.draw(known(kind)), ref)
    assert changes(machine, envelope, 0.0) == (False, [])


def test_the_answer_to_an_earlier_incarnation_is_not_ours() -> None:
    """A client is never told the id of somebody else's task after the gateway was started anew."""
    before = submit(gateway(R0))
    machine = GatewayMachine(LIMITS, address=ME, incarnation="2")
    submit(machine, ref="other")
    assert tell(machine, "store", created(), before.ref) == []


def test_clients_watch_for_themselves_only() -> None:
    """Nobody can have somebody else sent events, or have them taken away."""
    machine = gateway(R0)
    tell(machine, CLIENT, m.Watch(task_id=1, client=CLIENT), "w")
    for message in (m.Watch(task_id=2, client=CLIENT), m.Unwatch(task_id=1, client=CLIENT)):
        assert changes(machine, m.Envelope(ME, "client/d", message), 0.0) == (False, [])


def test_who_has_heard_enough_is_sent_nothing_more() -> None:
    """Whoever sends the events is told, which is the task's owner: by way of the regions."""
    machine = gateway(R0)
    for progress in (False, True):
        tell(machine, CLIENT, m.Watch(task_id=1, client=CLIENT, progress=progress), "w")
        enough = m.Unwatch(task_id=1, client=CLIENT)
        assert tell(machine, CLIENT, enough) == ([m.Send(R0, enough)] if progress else [])
        assert tell(machine, CLIENT, enough) == []


def test_who_waits_for_the_end_as_well_goes_on_hearing_of_progress() -> None:
    """One client's handle watches, another only waits: the first is not forgotten for the second."""
    machine = gateway(R0)
    for progress in (True, False):
        watch = m.Watch(task_id=1, client=CLIENT, progress=progress)
        (ask,) = tell(machine, CLIENT, watch, "w")
        tell(machine, "store", info(), ask.ref)
    ask = next(s for s in ticks(machine, 6.0) if isinstance(s.message, m.GetTask))
    told = tell(machine, "store", msgspec.structs.replace(info(), region=R0), ask.ref)
    assert kinds(told) == [(R0, m.Watch)]


# -- tasks -----------------------------------------------------------------------------------------


def test_persist_then_send() -> None:
    """Neither client nor region hears of a task before it is committed."""
    machine = gateway(R0)
    create = submit(machine)
    assert (create.to, type(create.message)) == ("store", m.CreateTask)
    assert kinds(tell(machine, "store", created(), create.ref)) == [
        (CLIENT, m.Submitted),
        (R0, m.Assign),
    ]


def test_bad_graphs_are_refused_before_the_store() -> None:
    """What cannot run is refused with the place of the fault, and nothing is written."""
    machine = gateway(R0)
    (send,) = tell(machine, CLIENT, m.Submit(task_description='{"nodes":{}}'), "q")
    assert isinstance(send.message, m.Refused)
    assert (send.message.code, send.ref) == ("bad_graph", "q")


def test_agents_that_nobody_offers_are_refused_if_asked() -> None:
    """With `require_agents` the client is told at once; without, the task waits."""
    graph = json.dumps({"nodes": {"a": {"agent": "nobody", "prompt": ""}}})
    machine = gateway(R0)
    (send,) = tell(machine, CLIENT, m.Submit(task_description=graph, require_agents=True), "q")
    assert isinstance(send.message, m.Refused)
    assert send.message.code == "agent_not_offered"
    (send,) = tell(machine, CLIENT, m.Submit(task_description=graph), "q")
    assert isinstance(send.message, m.CreateTask)
    assert send.message.region == ""


def test_a_refusal_that_is_older_than_the_claim_is_noise() -> None:
    """A claim that is under way is not given up for the answer to an earlier one."""
    machine = gateway(R0, R1)
    declined = m.Declined(task_id=1, epoch=E20, agents=("echo",), reason="no room")
    (claim,) = tell(machine, R0, declined)
    assert isinstance(claim.message, m.Claim)
    old = m.Claimed(task_id=1, granted=False, epoch=E10, region=R0, owner="", state="running")
    assert changes(machine, m.Envelope(ME, "store", old), 0.0) == (False, [])
    granted = m.Claimed(
        task_id=1, granted=True, epoch=E20.next_global(), region=R1, owner="", state="accepted"
    )
    assert kinds(tell(machine, "store", granted)) == [(R1, m.Assign)]


def test_the_tasks_of_a_dead_region_are_found_page_by_page() -> None:
    """All of them are claimed in one sweep, however many there are."""
    machine = gateway(R1)
    briefs = tuple(m.TaskBrief(i, E10, R0, "", ("echo",), 0, 0) for i in range(1, 257))
    sends = tell(machine, "store", m.TasksFound(region=R0, agents=None, tasks=briefs))
    assert [type(s.message) for s in sends] == [m.Claim] * 256 + [m.FindTasks]
    assert isinstance(sends[-1].message, m.FindTasks)
    assert sends[-1].message.after == 256


def test_a_lost_end_is_found_by_the_sweep() -> None:
    """A client that waits is told of the end although the region's word was lost."""
    machine = gateway(R0)
    (ask,) = tell(machine, CLIENT, m.Watch(task_id=1, client=CLIENT, progress=False), "w")
    tell(machine, "store", info(), ask.ref)
    sends = ticks(machine, 6.0)
    ask = next(s for s in sends if isinstance(s.message, m.GetTask))
    told = tell(machine, "store", info("succeeded"), ask.ref)
    assert kinds(told) == [(CLIENT, m.Ended)]
    assert ticks(machine, 8.0, m.GetTask) == []


@pytest.mark.parametrize("code", ["overloaded", "storage", "no_such_actor"])
def test_a_refusal_that_passes_costs_nobody_the_end(code: str) -> None:
    """A store that cannot look for the moment has not said that there is no such task."""
    machine = gateway(R0)
    submit(machine)
    tell(machine, CLIENT, m.Watch(task_id=1, client=CLIENT, progress=False))
    ask = next(s for s in ticks(machine, 6.0) if isinstance(s.message, m.GetTask))
    tell(machine, "store", m.Refused(code=code, reason="for the moment"), ask.ref)
    ended = m.Ended(task_id=1, epoch=E10, state="succeeded", owner=f"proxy/{R0[7:]}/1")
    assert (CLIENT, m.Ended) in kinds(tell(machine, "store", ended))


# -- time and bounds -------------------------------------------------------------------------------


def ticks(machine: GatewayMachine, until: float, kind: type[m.Message] = m.Message) -> list[m.Send]:
    """All of one kind that comes out until then."""
    sends: list[m.Send] = []
    while (due := machine.next_deadline()) is not None and due <= until:
        sends += tell(machine, ME, m.Tick(), now=due)
        assert (machine.next_deadline() or 0.0) > due
    return [send for send in sends if isinstance(send.message, kind)]


def test_requests_that_wait_are_bounded() -> None:
    """When the store does not keep up, every further request is refused, and says when to return."""
    machine = gateway(R0, limits=Limits(max_pending_submits=5))
    submits = [m.Submit(task_description=GRAPH)] * 4
    requests = [*submits, m.Cancel(task_id=1), m.Watch(task_id=1, client=CLIENT), *submits]
    answers = [tell(machine, CLIENT, q, "q")[0].message for q in requests]
    assert [type(q) for q in answers[:5]] == [m.CreateTask] * 4 + [m.CancelTask]
    assert {getattr(q, "code", "") for q in answers[5:]} == {"overloaded"}


def test_watchers_are_bounded() -> None:
    """Above the bound clients are told to poll, whether they watch many tasks or one."""
    machine = gateway(R0, limits=Limits(max_watchers=3))
    watches = [m.Watch(task_id=i % 2 + 1, client=f"client/{i}") for i in range(5)]
    answers = [tell(machine, q.client, q, "w")[0].message for q in watches]
    assert [type(q) for q in answers] == [m.GetTask] * 3 + [m.Refused] * 2
    tell(machine, "client/0", m.Unwatch(task_id=1, client="client/0"))
    assert isinstance(tell(machine, "client/9", watches[0], "w"), list)
    again = m.Watch(task_id=1, client="client/9")
    assert isinstance(tell(machine, "client/9", again, "w")[0].message, m.GetTask)


def test_unanswered_requests_are_forgotten() -> None:
    """What the store never answers does not stay in memory."""
    machine = gateway(R0)
    empty = sizes(machine)
    for _ in range(20):
        submit(machine, notify=False)
    assert sizes(machine) != empty
    ticks(machine, 40.0)
    assert sizes(machine) == empty | {"counters": sizes(machine)["counters"]}


def test_nothing_of_a_finished_task_is_left() -> None:
    """When all tasks have ended, the gateway holds none of them, nor their watchers."""
    cluster = Cluster(lambda _: Reply("x"), regions=2)
    cluster.run_for(1.0)
    machine = cluster.machine(ME)
    empty = sizes(machine) | {"counters": 0}
    tasks = [cluster.submit(GRAPH) for _ in range(10)]
    cluster.run_until(lambda: cluster.ended(*tasks), 60)
    cluster.run_for(3.0)
    assert sizes(machine) | {"counters": 0} == empty
    info_of = m.GetCluster()
    (send,) = machine.handle(m.Envelope(ME, CLIENT, info_of, "i"), cluster.now)
    assert isinstance(send.message, m.ClusterInfo)
    assert (send.message.unfinished, send.message.backlog) == (0, 0)
