"""Restarts of real processes under load, by order and by violence: what was accepted is finished.

Each test starts a cluster of the campaign's (tests/chaos) in small: the load's results, the
database, and the log of what the agents were really asked are judged as there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from agentos import Limits
from agentos.cli import main
from agentos.datadir import restart
from agentos.registry import Transports
from agentos.runtime.switch import Switch
from agentos.runtime.wire import JsonCodec
from tests.chaos.cluster import Attacked, Shape
from tests.chaos.hand import Act
from tests.chaos.verdict import Report, report
from tests.processes import ANY, Up, eventually, starter

pytestmark = [pytest.mark.processes, pytest.mark.restarts]

QUICK = {"reconnect_max_s": 0.5}
SMALL = Shape(gateways=1, regions=2, proxies=2, workers=6, slowest_s=0.2, limits=QUICK)


@pytest.fixture
def attack(tmp_path: Path) -> Iterator[Callable[[Shape], Attacked]]:
    """Start a cluster under load; whatever is left of it after the test is killed."""
    started: list[Attacked] = []

    def start(shape: Shape) -> Attacked:
        started.append(Attacked(tmp_path, shape, room=0))
        assert eventually(lambda: len(started[0].load.finished) >= shape.workers)
        return started[0]

    yield start
    for attacked in started:
        attacked.load.stop()
        if attacked.up.poll() is None:
            attacked.kill_everything()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start `agentos` with these arguments; it is ended after the test."""
    with starter(tmp_path) as start:
        yield start


def judged(attacked: Attacked) -> Report:
    """Let everything finish, stop the cluster in order, and judge what happened."""
    assert attacked.settle(), attacked.load.unfinished()
    assert attacked.stop() == 0
    found = report(attacked, 0, 0.0)
    assert found.faults == []
    return found


def goes_on(attacked: Attacked, tasks: int = 10) -> bool:
    """Whether so many more tasks are finished before long."""
    before = len(attacked.load.finished)
    return eventually(lambda: len(attacked.load.finished) >= before + tasks)


def test_a_rolling_restart(attack: Callable[[Shape], Attacked]) -> None:
    """All regions and proxies are restarted one by one: nothing is lost, no saved call repeated."""
    attacked = attack(SMALL)
    before = attacked.hand.pids()
    steps = list(restart(attacked.data, ["region/*", "proxy/*"], 60.0))
    assert [what for what, _ in steps] == ["stops", "back"] * 6
    after = attacked.hand.pids()
    above = {name for name in SMALL.roles if not name.startswith(("region/", "proxy/"))}
    assert {name for name in before if before[name] == after[name]} == above
    assert goes_on(attacked)
    assert judged(attacked).repeated == {}  # each call in flight was given the time to end
    assert '"role_died"' not in attacked.log.read_text()


def test_a_stop_under_load(attack: Callable[[Shape], Attacked]) -> None:
    """SIGTERM ends a loaded cluster with exit code 0; the next start goes on from what was saved."""
    attacked = attack(SMALL)
    attacked.up.send_signal(signal.SIGTERM)
    assert attacked.ended(30) == 0
    assert "role_killed" not in attacked.log.read_text()
    assert attacked.load.unfinished()
    attacked.start_again()
    assert goes_on(attacked)
    judged(attacked)


def test_everything_is_killed(attack: Callable[[Shape], Attacked]) -> None:
    """SIGKILL to every process at once, under load: after the next start everything finishes."""
    attacked = attack(SMALL)
    attacked.kill_everything()
    attacked.start_again()
    assert goes_on(attacked)
    judged(attacked)


def test_one_of_two_gateways_is_killed(attack: Callable[[Shape], Attacked]) -> None:
    """Regions and clients move on to the other gateway: no task is lost, and none is there twice."""
    attacked = attack(msgspec.structs.replace(SMALL, gateways=2, proxies=1))
    for gateway in ("gateway/main", "gateway/2"):
        attacked.hand.do(Act(0.0, "kill", gateway))
        assert goes_on(attacked)
        assert eventually(lambda: len(attacked.hand.pids()) == len(attacked.shape.roles))
    assert judged(attacked).kills == 2


def test_a_successor_is_welcomed() -> None:
    """The name of a process that died is free when its successor asks, not after a long silence."""
    limits = Limits(link_ping_s=1.0, suspect_after=10)  # ten seconds until a link is given up
    codec = JsonCodec(limits)
    with contextlib.ExitStack() as stack:
        kinds = [Transports(codec, limits) for _ in range(3)]
        parent, first, second = (Switch(kind, limits) for kind in kinds)
        for part in (parent, first, second):
            stack.callback(part.close)
        for kind in kinds:
            stack.callback(kind.close)
        url = parent.listen(ANY)
        for child in (first, second):
            child.attach("gateway/main", lambda _: None)
        assert first.connect([url]).wait_up(5.0)
        kinds[1].close()  # its sockets are gone, as when its process dies: it says no `bye`
        assert second.connect([url]).wait_up(5.0)


def test_the_store_is_killed(attack: Callable[[Shape], Attacked]) -> None:
    """The store dies and comes back: its database is the cluster's memory, and nothing is lost."""
    attacked = attack(SMALL)
    attacked.hand.do(Act(0.0, "kill", "store"))
    assert goes_on(attacked)
    judged(attacked)


def test_a_region_stands_still(attack: Callable[[Shape], Attacked]) -> None:
    """A region that is stopped for longer than its lease, and goes on as a zombie, breaks nothing."""
    attacked = attack(SMALL)
    attacked.hand.do(Act(0.0, "freeze", "region/r1", seconds=4.0))
    assert goes_on(attacked)
    judged(attacked)


def test_a_task_waits_for_a_proxy(
    start: Callable[..., Up], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no capable proxy anywhere a task waits, and runs as soon as one appears."""
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps({"nodes": {"a": {"agent": "rare", "prompt": "at last"}}}))
    config = tmp_path / "agentos.toml"
    config.write_text('[agents.rare]\ntype = "echo"\n')
    gateway = start("gateway", "--listen", ANY, "--data", str(tmp_path / "data"), "--json").json()
    region = start("region", "eu", "--gateway", gateway["url"], "--json").json()
    start("proxy", "eu/1", "--region-url", region["url"], "--json").json()  # offers `echo` alone
    assert main(["submit", str(graph), "--url", gateway["url"]]) == 0
    assert main(["result", "1", "--timeout", "1", "--url", gateway["url"]]) == 3
    capsys.readouterr()
    rare = ("--config", str(config), "--json")
    start("proxy", "eu/2", "--region-url", region["url"], *rare).json()
    begun = time.monotonic()
    assert main(["result", "1", "--timeout", "30", "--url", gateway["url"]]) == 0
    assert capsys.readouterr().out == "at last\n"
    assert time.monotonic() - begun < 15.0


def test_a_role_alone_hands_back(start: Callable[..., Up], tmp_path: Path) -> None:
    """SIGTERM to a proxy of several machines: it ends with 0 within its grace, and another goes on."""
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps({"nodes": {"a": {"agent": "echo", "prompt": "hi"}}}))
    config = tmp_path / "agentos.toml"
    config.write_text('[agents.echo]\ntype = "echo"\ndelay_s = 3600\n')
    gateway = start("gateway", "--listen", ANY, "--data", str(tmp_path / "data"), "--json").json()
    region = start("region", "eu", "--gateway", gateway["url"], "--json").json()
    slow = ("--config", str(config), "--grace", "0.5", "--json")
    proxy = start("proxy", "eu/1", "--region-url", region["url"], *slow)
    proxy.json()
    assert main(["submit", str(graph), "--url", gateway["url"]]) == 0
    assert eventually(lambda: _owner(gateway["url"]) == "proxy/eu/1")
    start("proxy", "eu/2", "--region-url", region["url"], "--json").json()
    os.kill(proxy.process.pid, signal.SIGTERM)
    assert proxy.process.wait(timeout=10) == 0
    assert main(["result", "1", "--timeout", "30", "--url", gateway["url"]]) == 0


def _owner(url: str) -> str:
    from agentos import Client

    with Client(url) as client:
        return client.task(1).status().owner
