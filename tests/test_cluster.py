"""Whole clusters in one process: started, stopped, restarted, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentos import Client, Cluster, EchoAgent, Host
from agentos.agents.function import FunctionAgent
from agentos.core import messages as m
from agentos.core.errors import (
    AddressTaken,
    AgentNotOffered,
    AgentOSError,
    ConfigError,
    IncompatibleDatabase,
    LocalProtocolError,
    ResultTimeout,
)
from agentos.core.ports import Connection
from agentos.datadir import DataFolder
from agentos.testing.transport_recorder import eventually
from tests.switches import FAST, TCP


def one(agent: str, prompt: str = "x") -> dict[str, object]:
    return {"nodes": {"only": {"agent": agent, "prompt": prompt}}, "output": "only"}


def files() -> set[str]:
    """What this process has open, but for pipes and devices that come and go."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{descriptor.name} {os.readlink(descriptor)}")  # noqa: PTH115
        except FileNotFoundError:
            continue
    return found


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Whatever the test started is gone when it ends: threads and descriptors."""
    with Cluster([EchoAgent()], listen=TCP, limits=FAST):
        pass  # what is made once for the process
    gc.collect()
    before, open_before = threads(), files()
    yield
    eventually(lambda: not threads() - before)
    gc.collect()
    eventually(lambda: len(files() - open_before) == 0)


@pytest.fixture(params=["inproc", "tcp", "ipc"])
def listen(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return {"inproc": None, "tcp": TCP, "ipc": f"ipc://{tmp_path}/gw"}[request.param]


def test_a_cluster_comes_and_goes(nothing_left: None, listen: str | None) -> None:
    """Start, work, stop, again: nothing of it is left, no thread, no descriptor, no file."""
    cluster = Cluster([EchoAgent()], regions=["eu", "us"], proxies=2, listen=listen, limits=FAST)
    for _ in range(2):
        with cluster, cluster.client() as client:
            assert client.submit(one("echo")).result(20) == "x"
        cluster.stop()


def test_temporary_data_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a data folder the database is temporary, and gone after the stop."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Cluster([EchoAgent()], limits=FAST) as cluster, cluster.client() as client:
        client.submit(one("echo")).result(20)
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_starting_twice_is_refused() -> None:
    """A running cluster cannot be started again; stopping one that does not run is nothing."""
    cluster = Cluster([EchoAgent()], limits=FAST)
    cluster.stop()
    with cluster:
        with pytest.raises(LocalProtocolError, match="running"):
            cluster.start()
        with cluster.client() as client:
            assert client.submit(one("echo")).result(20) == "x"
    with pytest.raises(LocalProtocolError, match="not running"):
        cluster.client()
    with pytest.raises(LocalProtocolError, match="not running"):
        cluster.async_client()


@pytest.mark.parametrize("listen", ["inproc", "tcp", "ipc"], indirect=True)
def test_what_was_accepted_is_finished(tmp_path: Path, listen: str | None) -> None:
    """Tasks that a stop interrupted run to their end after a start on the same data."""
    begun = threading.Event()

    async def stuck(prompt: str) -> str:
        begun.set()
        await asyncio.sleep(3600)
        return "never"

    limits = msgspec.structs.replace(FAST, stop_grace_s=0.2)
    data = tmp_path / "data"
    options = {"data": data, "listen": listen, "limits": limits}
    with Cluster([FunctionAgent(stuck, name="worker")], **options) as cluster:  # type: ignore[arg-type]
        with cluster.client() as client:
            tasks = [client.submit(one("worker", f"p{i}")).task_id for i in range(5)]
            unstarted = client.submit(one("other", "later")).task_id
        assert begun.wait(10)
    agents = [EchoAgent("worker"), EchoAgent("other")]
    with Cluster(agents, **options) as cluster, cluster.client() as client:  # type: ignore[arg-type]
        assert [client.task(t).result(30) for t in tasks] == [f"p{i}" for i in range(5)]
        assert client.task(unstarted).result(30) == "later"


def test_a_call_in_flight_may_end_during_the_stop(tmp_path: Path) -> None:
    """An orderly stop gives calls in flight time to end, and what they answer is kept."""
    calls: list[str] = []
    begun = threading.Event()

    async def slow(prompt: str) -> str:
        calls.append(prompt)
        begun.set()
        await asyncio.sleep(0.3)
        return "done"

    graph = {
        "nodes": {
            "a": {"agent": "slow", "prompt": "first"},
            "b": {"agent": "slow", "prompt": "second ${a}"},
        },
        "output": "b",
    }
    limits = msgspec.structs.replace(FAST, stop_grace_s=10.0)
    with Cluster([FunctionAgent(slow, name="slow")], data=tmp_path, limits=limits) as cluster:
        with cluster.client() as client:
            task = client.submit(graph).task_id
        assert begun.wait(10)
    assert calls == ["first"]
    with (
        Cluster([FunctionAgent(slow, name="slow")], data=tmp_path, limits=limits) as cluster,
        cluster.client() as client,
    ):
        assert client.task(task).result(20) == "done"
    assert calls == ["first", "second done"]


def test_an_agent_that_will_not_stop(nothing_left: None) -> None:
    """A blocking function that never returns does not keep the cluster from stopping."""
    release = threading.Event()
    begun = threading.Event()

    def stubborn(prompt: str) -> str:
        begun.set()
        release.wait(60)
        return "late"

    limits = msgspec.structs.replace(FAST, stop_grace_s=0.2)
    with Cluster([stubborn], limits=limits) as cluster:
        with cluster.client() as client:
            client.submit(one("stubborn"))
        assert begun.wait(10)
        begun_at = time.monotonic()
    assert time.monotonic() - begun_at < 10
    release.set()


def test_a_taken_port(nothing_left: None) -> None:
    """A second cluster on the same port is refused, and leaves nothing running."""
    with Cluster([EchoAgent()], listen=TCP, limits=FAST) as first:
        before, open_before = threads(), len(files())
        with pytest.raises(AddressTaken, match=first.url):
            Cluster([EchoAgent()], listen=first.url, limits=FAST).start()
        eventually(lambda: threads() <= before)
        eventually(lambda: len(files()) <= open_before)
        with first.client() as client:
            assert client.submit(one("echo")).result(20) == "x"


def test_a_start_that_fails_leaves_nothing(nothing_left: None, tmp_path: Path) -> None:
    """Whatever is wrong with a cluster's parts is said, and what had started is stopped."""
    (tmp_path / "agentos.db").write_bytes(b"something else entirely, and long enough" * 10)
    with pytest.raises(IncompatibleDatabase, match=r"agentos\.db"):
        Cluster([EchoAgent()], data=tmp_path, limits=FAST).start()
    with pytest.raises(ConfigError, match=r"proxy/r1/1.*poet.*echo"):
        Cluster([EchoAgent()], offers={"r1/1": ["poet"]}, limits=FAST).start()
    with pytest.raises(AgentOSError, match=r"http://"):
        Cluster([EchoAgent()], listen="http://127.0.0.1:1", limits=FAST).start()
    with pytest.raises(AgentOSError):
        Cluster([EchoAgent()], listen="tcp://no.such.host.invalid:1", limits=FAST).start()
    with pytest.raises(ConfigError, match="name"):
        Cluster([EchoAgent()], regions=["eu/west"], limits=FAST).start()
    with pytest.raises(AgentOSError, match=r"twice|already"):
        Cluster([EchoAgent()], regions=["eu", "eu"], limits=FAST).start()
    with pytest.raises(ConfigError, match=r"limits\.heartbeat_s"):
        Cluster([EchoAgent()], limits=msgspec.structs.replace(FAST, heartbeat_s=-1.0)).start()


def test_wrong_parts_are_refused_at_once() -> None:
    """What is no agent, two agents of one name, offers of no proxy: said before anything runs."""
    with pytest.raises(ConfigError, match="neither"):
        Cluster([42])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"echo"):
        Cluster([EchoAgent(), EchoAgent()], limits=FAST).start()
    with pytest.raises(ConfigError, match=r"r9/1"):
        Cluster([EchoAgent()], offers={"r9/1": ["echo"]}, limits=FAST).start()
    with pytest.raises(LocalProtocolError, match="database"):
        Host(FAST).gateway("inproc://x")


def test_offers_by_proxy(listen: str | None) -> None:
    """A call goes to a proxy that offers its agent, wherever its task is walked."""
    names = ("red", "green", "blue")
    graph = {
        "nodes": {name: {"agent": name, "prompt": name} for name in names}
        | {"all": {"agent": "red", "prompt": "${red} ${green} ${blue}"}},
        "output": "all",
    }
    offers = {"eu/1": ["red", "green"], "eu/2": ["blue"]}
    with (
        Cluster(
            [EchoAgent(name) for name in names],
            regions=["eu"],
            proxies=2,
            offers=offers,
            listen=listen,
            limits=FAST,
        ) as cluster,
        cluster.client() as client,
    ):
        assert client.submit(graph).result(20) == "red green blue"
        (region,) = client.cluster().regions
        assert {p.address: set(p.agents) for p in region.proxies} == {
            "proxy/eu/1": {"red", "green"},
            "proxy/eu/2": {"blue"},
        }


def test_an_agent_that_comes_later() -> None:
    """A task whose agent nobody offers waits, and runs as soon as a proxy that has it appears."""
    with Cluster([EchoAgent()], listen=TCP, limits=FAST) as cluster, cluster.client() as client:
        eventually(lambda: bool(client.cluster().regions))
        waiting = client.submit(one("poet", "roses"))
        with pytest.raises(AgentNotOffered, match=r"poet"):
            client.submit(one("poet"), require_agents=True)
        with pytest.raises(ResultTimeout):
            waiting.result(0.5)
        region = cluster.host.switch("region/r1")._listeners[0].url
        with Host(FAST, [EchoAgent("poet")]) as other:
            other.proxy("r1", "guest", [region])
            assert waiting.result(20) == "roses"
            assert (
                client.submit(one("poet", "violets"), require_agents=True).result(20) == "violets"
            )


def test_ready_when_started(listen: str | None) -> None:
    """The first task after the start need not wait for heartbeats: all is known by then."""
    with (
        Cluster([EchoAgent()], regions=2, proxies=2, listen=listen, limits=FAST) as cluster,
        cluster.client() as client,
    ):
        assert client.submit(one("echo"), require_agents=True).result(20) == "x"
        assert sum(len(region.proxies) for region in client.cluster().regions) == 4


def test_a_host_has_each_role_once() -> None:
    """Two roles of one name on a host are refused; other hosts' are refused by their parent."""
    with Host(FAST, [EchoAgent()]) as host:
        url = host.gateway("inproc://gateway", database="memory://")
        region = host.region("eu", "inproc://eu", [url])
        host.proxy("eu", "1", [region])
        with pytest.raises(LocalProtocolError, match="proxy/eu/1"):
            host.proxy("eu", "1", [region])
        with pytest.raises(LocalProtocolError, match="region/eu"):
            host.region("eu", "inproc://eu2", [url])
        with pytest.raises(AgentOSError, match="a/b"):
            host.region("a/b", "inproc://eu2", [url])
    host.close()


class Nobody:
    """A receiver that listens to nothing."""

    def received(self, connection: Connection, envelopes: Sequence[m.Envelope]) -> None: ...

    def failed(self, connection: Connection, error: Exception) -> None: ...

    def closed(self, connection: Connection) -> None: ...


def test_children_that_wait_do_not_name_their_parent() -> None:
    """A role that comes back is greeted at once by those below: it is itself to those above."""
    with Host(FAST, [EchoAgent()]) as host:
        early = {"inproc://gateway": "client/early", "inproc://eu": "proxy/eu/early"}
        for url, name in early.items():  # what is said now is heard as soon as somebody listens
            connection = host.transports.of(url).connect(url, Nobody())
            hello = m.Hello(address=name, session="s" * 32)
            connection.send([m.Envelope(m.NEIGHBOUR, name, hello)])
        store = host.store("memory://", "inproc://store")
        gateway = host.gateway("inproc://gateway", store=[store])
        host.proxy("eu", "1", [host.region("eu", "inproc://eu", [gateway])])
        with Client(gateway, limits=FAST, transports=host.transports) as client:
            assert client.submit(one("echo", "late")).result(20) == "late"
        assert host.switch("store").counters["protocol_errors"] == 0
        assert host.switch("gateway/main").counters["protocol_errors"] == 0


def test_two_gateways_on_one_store() -> None:
    """Gateways above one store serve the same tasks; a client of one sees those of the other."""
    hosts = [Host(FAST, [EchoAgent()]) for _ in range(4)]
    try:
        store = hosts[0].store("memory://", TCP)
        urls = [
            host.gateway(TCP, name=name, store=[store])
            for host, name in zip(hosts[1:3], "ab", strict=True)
        ]
        region = hosts[3].region("eu", TCP, urls)
        hosts[3].proxy("eu", "1", [region])
        with Client(urls[0], limits=FAST) as one_, Client(urls[1], limits=FAST) as other:
            task = one_.submit(one("echo", "seen by both"))
            assert task.result(20) == "seen by both"
            assert other.task(task.task_id).result(20) == "seen by both"
            hosts[1].close()
            late = other.submit(one("echo", "after the death of a"))
            assert late.result(30) == "after the death of a"
        with Client(urls, limits=FAST, timeout_s=20) as either:
            assert either.submit(one("echo", "either")).result(30) == "either"
    finally:
        for host in reversed(hosts):
            host.close()


@pytest.mark.parametrize(
    "shape",
    [{"regions": "eu"}, {"regions": 0}, {"regions": []}, {"regions": ["no name"]}, {"proxies": 0}],
    ids=str,
)
def test_a_shape_that_can_run_nothing_is_refused(shape: dict[str, Any]) -> None:
    """A cluster without regions or proxies, or with names that are none, is a mistake."""
    with pytest.raises(ConfigError, match=next(iter(shape))):
        Cluster([EchoAgent()], **shape)


def test_a_data_folder_is_one_clusters(tmp_path: Path) -> None:
    """Two clusters on one database would take each other's owners for dead: the second is refused."""
    with Cluster([EchoAgent()], data=tmp_path, limits=FAST, listen=TCP) as cluster:
        with pytest.raises(AddressTaken, match=rf"{os.getpid()}, a cluster at {cluster.url}"):
            Cluster([EchoAgent()], data=tmp_path, limits=FAST).start()
        with pytest.raises(AddressTaken, match="in use"):
            DataFolder(tmp_path)
        with cluster.client() as client:
            assert client.submit(one("echo")).result(20) == "x"
    with Cluster([EchoAgent()], data=tmp_path, limits=FAST) as again, again.client() as client:
        assert client.submit(one("echo")).result(20) == "x"


def test_a_data_folder_that_cannot_be_is_a_clear_error(tmp_path: Path) -> None:
    """A file where the folder should be is said in our words, as everything else is."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="data folder"):
        Cluster([EchoAgent()], data=tmp_path / "file", limits=FAST).start()
