"""The simulator: it finds what is broken, repeats what it found, and finds nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from agentos.cli.simulate import JsonWire
from agentos.core import messages as m
from agentos.core.calls import Calls
from agentos.core.errors import ConfigError
from agentos.core.gateway import GatewayMachine
from agentos.core.jsontext import dump
from agentos.core.liveness import Liveness
from agentos.core.placement import Placement
from agentos.core.ports import SaveOutcome
from agentos.core.proxy import ProxyMachine
from agentos.core.routes import ROUTES
from agentos.core.taskrun import TaskRun
from agentos.simulation import (
    Faults,
    Outcome,
    Report,
    Settings,
    Shape,
    Simulation,
    Trace,
    coverage,
    shrink,
    simulate,
)
from agentos.simulation.faults import HEARD, KIND_OF, SAID, Armed, plan
from agentos.simulation.network import NO_SUCH_ACTOR
from agentos.storage.memory import MemoryDatabase

SEEDS = 200
SMALL = Shape(gateways=1, regions=1, proxies=2, clients=2, tasks=4)
CHAIN = '{"nodes": {"a": {"agent": "writer", "prompt": "x"}, "b": {"agent": "writer", "prompt": "${a}"}}}'


def seed_of(name: str) -> int:
    """A seed that can be set from outside, to look at others than the usual ones."""
    return int(os.environ.get(name, "0"))


# -- the cluster keeps the rules -------------------------------------------------------------------


def test_no_rule_is_broken_and_everything_is_reached() -> None:
    """Whatever fails in 200 clusters, no rule is broken; and all that is to fail has failed."""
    first = seed_of("SIMULATION_FIRST_SEED")
    report = simulate(range(first, first + SEEDS), Settings(wire=JsonWire()))
    assert [f"seed {f.seed}: {f.text}" for f in report.failures] == []
    assert report.missing == []
    assert report.ok
    assert report.seeds == SEEDS


@pytest.mark.parametrize("shape", [SMALL, Shape(gateways=3, regions=1, proxies=1, tasks=6)])
def test_other_clusters_keep_the_rules_too(shape: Shape) -> None:
    """A small cluster with hardly a way out ends all of its tasks as well."""
    report = simulate(range(1, 30), Settings(shape=shape))
    assert [f"seed {f.seed}: {f.text}" for f in report.failures] == []


def test_where_nothing_fails_nothing_is_done_twice() -> None:
    """Without faults every call is made once, no task changes hands, and all of them succeed."""
    calls: Counter[tuple[int, str]] = Counter()

    def answer(call: m.Call) -> str:
        calls[call.task_id, call.row] += 1
        return "fine"

    outcome = Simulation(3, faults=Faults.none(6.0), graph=CHAIN, answer=answer).run()
    assert outcome.rule == ""
    assert set(calls.values()) == {1}
    assert not {"takeover_in_region", "takeover_across_regions", "task_failed"} & set(
        outcome.reached
    )


# -- the same seed, the same run -------------------------------------------------------------------


def trace_of(seed: int, hash_seed: str) -> bytes:
    """What another process prints for a seed."""
    code = f"import sys; from agentos.cli import main; sys.exit(main(['simulate', '--seed', '{seed}', '--trace']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("seed", [7, 10])
def test_the_same_seed_gives_the_same_trace_byte_for_byte(seed: int) -> None:
    """In another process, with other hashes, a seed does exactly the same."""
    first, second = trace_of(seed, "1"), trace_of(seed, "2")
    assert first.count(b"\n") > 1000
    assert first == second


@pytest.mark.parametrize("seed", [3, 20])
def test_looking_changes_nothing(seed: int) -> None:
    """With a trace, or with every message through the codec, a run is the same run."""
    lines: list[str] = []
    plain = Simulation(seed).run()
    assert Simulation(seed, trace=Trace(lines.append)).run().fingerprint == plain.fingerprint
    assert Simulation(seed, wire=JsonWire()).run().fingerprint == plain.fingerprint
    assert Simulation(seed + 1).run().fingerprint != plain.fingerprint


# -- the net is tight ------------------------------------------------------------------------------


def applied(self: Any, task: Any, *_: Any) -> str:
    """A fence that lets everybody in."""
    return "applied"


def nothing(*_: Any, **__: Any) -> list[m.Send]:
    """A part that does nothing."""
    return []


def stale_for_duplicate(self: Any, *args: Any, **more: Any) -> SaveOutcome:
    done: SaveOutcome = record(self, *args, **more)
    return SaveOutcome("stale", done.epoch, done.state) if done.outcome == "duplicate" else done


def no_suspicion(self: Any, now: float) -> list[str]:
    return []


def announces_at_once(self: Any, q: m.Submit, e: m.Envelope, now: float) -> list[m.Send]:
    """A gateway that does not wait for the commit."""
    sends = submit(self, q, e, now)
    return [m.Send(e.sender, m.Submitted(task_id=1, state="accepted", created=True), e.ref), *sends]


def held_back_by_nothing(self: Any, node: Any, now: float) -> list[m.Send]:
    """An owner that goes on before what it rests on is saved."""
    node.unsaved = 0
    return release(self, node, now)


record, submit, release = MemoryDatabase.record, GatewayMachine._submit, TaskRun._release

BREAKAGES: list[tuple[str, type, str, Callable[..., Any]]] = [
    ("writes_are_fenced", MemoryDatabase, "_judge", applied),
    ("outcomes_are_true", MemoryDatabase, "record", stale_for_duplicate),
    ("acknowledged_is_stored", GatewayMachine, "_submit", announces_at_once),
    ("persist_then_send", TaskRun, "_release", held_back_by_nothing),
    ("stale_means_stop", ProxyMachine, "_give_up", nothing),
    ("liveness", Liveness, "newly_suspected", no_suspicion),
    ("liveness", Placement, "counted", nothing),
    ("liveness", Calls, "due", nothing),
]


@pytest.mark.plain
@pytest.mark.parametrize(("rule", "where", "name", "broken"), BREAKAGES)
def test_a_broken_rule_is_seen(
    rule: str,
    where: type,
    name: str,
    broken: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Break a part of the cluster, and the simulator says which rule does not hold any more."""
    monkeypatch.setattr(where, name, broken)
    report = simulate(range(1, 60), most_failures=3)
    assert rule in {failure.rule for failure in report.failures}
    assert not report.ok


def test_a_machine_that_raises_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    """No message may make a machine raise."""

    def raises(*_: Any) -> list[m.Send]:
        raise KeyError("oops")

    monkeypatch.setattr(ProxyMachine, "_placed", raises)
    failure = simulate(range(1, 10), most_failures=1).failures[0]
    assert failure.rule == "machines_take_anything"
    assert "oops" in failure.text


def test_a_failing_run_becomes_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has nothing to do with a violation is left out of its transcript."""
    monkeypatch.setattr(MemoryDatabase, "_judge", applied)
    failures = simulate(range(1, 60), most_failures=3).failures
    failure = max(failures, key=lambda failure: failure.steps)  # a long one, to be made short
    whole: list[str] = []
    Simulation(failure.seed, trace=Trace(whole.append, short=True)).run()
    shrunk = shrink(failure, within_s=20.0)
    assert shrunk.outcome.rule == failure.rule
    assert len(shrunk.jobs) <= 2
    assert len(shrunk.faults) <= 5
    assert len(shrunk.lines) < len(whole) / 4
    assert "VIOLATION" in shrunk.lines[-1]


def test_a_campaign_that_did_not_reach_all_that_it_covers_fails() -> None:
    """A fault or a state that stays at zero makes a large campaign fail, and it is named."""
    report = Report(Settings(), seeds=SEEDS, reached=Counter([*coverage.FAULTS, *coverage.STATES]))
    assert report.ok
    del report.reached["zombie_region_refused"]
    assert report.missing == ["zombie_region_refused"]
    assert not report.ok


def test_faults_that_cannot_happen_are_not_missed() -> None:
    """With a rate of zero a fault is not expected."""
    possible = coverage.possible(Faults.none())
    assert not any(possible.values())
    assert all(coverage.possible(Faults()).values())


# -- its parts -------------------------------------------------------------------------------------


def quiet(**options: Any) -> Simulation:
    """A cluster in which nothing goes wrong by itself, and that has found itself."""
    sim = Simulation(5, shape=SMALL, faults=Faults.none(1e6), **options)
    sim.run_until(lambda: sim.now > 3.0)
    return sim


def test_a_region_that_is_down_cuts_its_proxies_off() -> None:
    """A proxy's messages go through its region's process: they are lost while that is dead."""
    sim = quiet()
    region = sim.network.processes["region/r0"]
    sim.kill(region, 5.0)
    before = sim.reached["lost_on_a_broken_link"]
    proxy = sim.network.processes["proxy/r0/0"]
    sim.network.send(proxy, m.Envelope(m.STORE, proxy.address, m.GetProgress(task_id=1)))
    assert sim.reached["lost_on_a_broken_link"] == before + 1
    end = sim.now + 12.0
    sim.run_until(lambda: sim.now > end)
    assert sim.reached["found_another_parent"] >= 2


def test_an_address_that_nobody_has_is_answered_by_a_refusal() -> None:
    """As in a switch: a question to nobody is answered, if it has a number."""
    taken: list[str] = []

    class Looking(Trace):
        def took(self, now: float, process: Any, envelope: m.Envelope) -> None:
            if isinstance(envelope.message, m.Refused):
                taken.append(envelope.message.code)

    sim = quiet(trace=Looking(lambda _: None))
    client = sim.network.processes["client/c0"]
    nobody = m.Envelope("actor/nobody", client.address, m.Say(value=1), "q1")
    sim.network.send(client, nobody)
    end = sim.now + 1.0
    sim.run_until(lambda: sim.now > end)
    assert taken == [NO_SUCH_ACTOR]


def test_no_two_processes_share_a_clock() -> None:
    """Monotonic clocks begin anywhere: whoever compares two of them is found out."""
    sim = quiet()
    offsets = [process.offset for process in sim.network.processes.values()]
    assert len(set(offsets)) == len(offsets)


def test_an_armed_fault_waits_for_its_message() -> None:
    """It meets the kind that it names, or any but heartbeats, and is spent after its pattern."""
    beat = m.ProxyBeat(incarnation="i", calls=0, capacity=1, offers=(), claims=())
    task = m.Envelope(m.STORE, "client/c", m.GetTask(task_id=1))
    armed = Armed("drop", "", 0.0, [True, False])
    assert not armed.meets(m.Envelope("region/r", "proxy/r/0", beat))
    assert armed.meets(task)
    assert [armed.strike(), armed.spent, armed.strike(), armed.spent] == [True, False, False, True]
    assert not Armed("drop", "claim", 0.0, [True]).meets(task)


def test_a_message_that_is_late_is_trouble_until_it_arrives() -> None:
    """What is done for want of it is no fault of those who do it."""
    sim = quiet()
    proxy = sim.network.processes["proxy/r0/0"]
    assert proxy.uplink is not None
    proxy.uplink.link.up.armed.append(Armed("delay", "", 5.0, [True]))
    sim.network.send(proxy, m.Envelope("region/r0", proxy.address, m.GetProgress(task_id=1)))
    assert sim.troubled_at == sim.now + 5.0
    sim.trouble()
    assert sim.troubled_at == sim.now + 5.0


def test_faults_are_aimed_at_what_is_said_and_heard() -> None:
    """A fault that waits for a message that nobody sends never happens."""
    for table, end in ((SAID, 0), (HEARD, 1)):
        for role, kinds in table.items():
            for name in kinds:
                ways = ROUTES.get(KIND_OF[name], {(role, role)})  # a tick is on no route
                assert role in {way[end] for way in ways}, f"{role}: {name}"


def test_a_plan_is_drawn_from_the_rates() -> None:
    """A kind of fault with a rate of zero is never drawn; the plan is in order of time."""
    from random import Random

    drawn = plan(Random(1), Faults(crash=0.0, swarm=False), Shape().addresses())
    assert "crash" not in {fault.kind for fault in drawn}
    assert "pause" in {fault.kind for fault in drawn}
    assert [f.at for f in drawn] == sorted(f.at for f in drawn)
    assert [f.number for f in drawn] == list(range(len(drawn)))
    assert all(str(fault) for fault in drawn)


@pytest.mark.parametrize("wrong", [{"crash": -1.0}, {"agent_late": 1.5}])
def test_rates_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    """The message names the rate."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Faults(**wrong).check()


def test_a_graph_of_the_users_own_is_run_with_answers_of_their_own() -> None:
    """`Settings(graph=…, answer=…)`: every task is that graph, under the usual faults."""
    asked: list[str] = []

    def answer(call: m.Call) -> str:
        asked.append(call.agent)
        return call.row

    settings = Settings(graph=CHAIN, answer=answer, shape=SMALL)
    report = simulate(range(1, 10), settings)
    assert report.ok
    assert set(asked) == {"writer"}


def test_a_graph_of_the_users_own_may_call_any_agents() -> None:
    """The proxies offer what the graph needs; a call may run for as long as its time limit."""
    node = {"agent": "summarizer", "prompt": "x", "samples": 2}
    graph = {"nodes": {"a": node, "b": {"agent": "judge", "prompt": "${a}"}}}
    for seed in range(8):
        outcome = Settings(graph=dump(graph), shape=SMALL).simulation(seed).run()
        assert outcome.rule == "", outcome.text


def test_work_can_be_shared_by_processes() -> None:
    """With `jobs` the same seeds give the same sums."""
    settings = Settings(shape=SMALL)
    alone, shared = simulate(12, settings), simulate(12, settings, jobs=2)
    assert (shared.steps, shared.reached, shared.virtual_s) == (
        alone.steps,
        alone.reached,
        pytest.approx(alone.virtual_s),
    )


@pytest.mark.plain
def test_a_campaign_stops_when_there_is_enough_to_think_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a number of broken rules no more seeds are run; after Ctrl-C neither."""
    monkeypatch.setattr(ProxyMachine, "_give_up", nothing)
    assert len(simulate(1000, Settings(), most_failures=2).failures) == 2

    def interrupt(_: Outcome) -> None:
        raise KeyboardInterrupt

    report = simulate(1000, Settings(), on_outcome=interrupt)
    assert (report.seeds, report.interrupted) == (1, True)
