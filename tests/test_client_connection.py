"""A client's connection: how it is found, closed and shared, and how it outlives a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos import Client, Cluster, EchoAgent, Host, connect
from agentos.agents.function import FunctionAgent
from agentos.client import LOOK_S
from agentos.core import messages as m
from agentos.core.errors import (
    ClusterUnreachable,
    LocalProtocolError,
    ResultTimeout,
    StorageError,
)
from agentos.testing.transport_recorder import eventually
from tests.clients import DIAMOND, RESULT, Gate, gated_cluster, one
from tests.switches import FAST, TCP, Net, net


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module", params=["inproc", "tcp"])
def cluster(
    request: pytest.FixtureRequest, gate: Gate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with gated_cluster(request.param, gate, tmp_path_factory.mktemp("clients")) as made:
        yield made


@pytest.fixture
def client(cluster: Cluster, gate: Gate) -> Iterator[Client]:
    gate.opened.clear()
    with cluster.client() as made:
        yield made
        gate.opened.set()


@pytest.fixture
def world() -> Iterator[Net]:
    with net() as made:
        yield made


# -- connecting -----------------------------------------------------------------------------------


def test_nobody_listens() -> None:
    """Without a cluster there is an error within seconds, and it names the URL."""
    begun = time.monotonic()
    with pytest.raises(ClusterUnreachable, match=r"tcp://127\.0\.0\.1:9.*agentos up"):
        Client("tcp://127.0.0.1:9", timeout_s=1.0)
    with pytest.raises(ConnectionError), connect("tcp://127.0.0.1:9", timeout_s=0.3):
        pass
    assert time.monotonic() - begun < 10
    with pytest.raises(LocalProtocolError, match="installed"):
        Client("http://127.0.0.1:9")


def test_the_url_comes_from_the_environment(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`AGENTOS_URL` names gateways, in order; the first that answers is used."""
    if not cluster.url.startswith("tcp"):
        pytest.skip("another process's client needs a socket")
    monkeypatch.setenv("AGENTOS_URL", f"tcp://127.0.0.1:9, {cluster.url}")
    with Client(limits=FAST) as client:
        assert client.urls == ["tcp://127.0.0.1:9", cluster.url]
        assert client.submit(DIAMOND).result(20) == RESULT


def test_a_closed_client(cluster: Cluster) -> None:
    """After `close` every call is a clear error; closing again is none."""
    client = cluster.client()
    task = client.submit(DIAMOND)
    watching = task.watch(20)
    next(watching)
    client.close()
    client.close()
    for call in (lambda: client.submit(DIAMOND), task.result, task.status, client.cluster):
        with pytest.raises(LocalProtocolError, match="closed"):
            call()
    with pytest.raises(LocalProtocolError, match="closed"):
        list(watching)


def test_closing_wakes_who_waits(cluster: Cluster, gate: Gate) -> None:
    """A thread that waits for a result hears that the client was closed."""
    gate.opened.clear()
    client = cluster.client()
    task = client.submit(one("gate"))
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            task.result(60)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: bool(client._client._waiters))
    client.close()
    thread.join(20)
    gate.opened.set()
    assert not thread.is_alive()
    assert len(errors) == 1
    assert isinstance(errors[0], LocalProtocolError), errors


def test_closing_wakes_who_awaits(
    cluster: Cluster, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coroutine that waits for a result hears at once that the client was closed."""
    monkeypatch.setattr("agentos.client.POLL_S", 600.0)
    gate.opened.clear()

    async def work() -> None:
        async with cluster.async_client() as client:
            waiting = asyncio.create_task((await client.submit(one("gate"))).result())
            while not client._waiters:
                await asyncio.sleep(0)
        with pytest.raises(LocalProtocolError, match="not connected"):
            await asyncio.wait_for(waiting, 60)

    asyncio.run(work())
    gate.opened.set()


def test_control_c_leaves_the_client_usable(client: Client, gate: Gate) -> None:
    """An interrupt in the middle of a wait stops the wait, and nothing else."""
    task = client.submit(one("gate"))
    for wait in (lambda: task.result(60), lambda: list(task.watch(60))):
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            wait()
        timer.join()
        eventually(lambda: not client._client._waiters)
    gate.opened.set()
    assert task.result(20) == "let: x"


def test_an_unclosed_client_does_not_keep_the_process(cluster: Cluster) -> None:
    """A script that forgets to close ends all the same."""
    if not cluster.url.startswith("tcp"):
        pytest.skip("another process's client needs a socket")
    script = textwrap.dedent(f"""
        from agentos import Client
        client = Client({cluster.url!r})
        print(client.submit({DIAMOND!r}).result(20))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert RESULT in done.stdout
    assert "Traceback" not in done.stderr


def test_many_threads_submit(client: Client) -> None:
    """One client serves many threads; each gets its own results."""
    results: dict[int, Any] = {}

    def work(thread: int) -> None:
        for i in range(10):
            number = thread * 100 + i
            results[number] = client.submit(one("echo", f"number {number}")).result(60)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert results == {t * 100 + i: f"number {t * 100 + i}" for t in range(8) for i in range(10)}


def test_the_cluster_as_a_client_sees_it(client: Client) -> None:
    """`cluster()` shows the gateway, its regions and their proxies."""
    client.submit(DIAMOND).result(20)

    def complete() -> bool:
        info = client.cluster()
        return [len(r.proxies) for r in info.regions] == [2]

    eventually(complete)
    info = client.cluster()
    assert info.gateway == "gateway/main"
    assert info.counters["succeeded"] >= 1
    assert "echo" in info.regions[0].proxies[0].agents


async def all_of(cluster: Cluster) -> None:
    async with cluster.async_client() as client:
        task = await client.submit(DIAMOND)
        assert await task.result(20) == RESULT
        assert (await task.status()).state == "succeeded"
        assert [type(x) async for x in task.watch(10)] == [m.Ended]
        assert len(await task.progress()) >= 4
        assert await task.cancel() == "succeeded"
        tasks = await asyncio.gather(*[client.submit(DIAMOND) for _ in range(50)])
        results = await asyncio.gather(*[t.result(60) for t in tasks])
        assert results == [RESULT] * 50
        assert (await client.list(limit=1))[0].task_id == max(t.task_id for t in tasks)
        waiting = asyncio.create_task(client.task(task.task_id).result())
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not client._waiters
    with pytest.raises(LocalProtocolError, match="not connected"):
        await client.submit(DIAMOND)


def test_the_asyncio_client(cluster: Cluster) -> None:
    """The asyncio client does all that the blocking one does, and cancels cleanly."""
    asyncio.run(all_of(cluster), debug=True)


# -- a gateway that goes away ---------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path, gate: Gate) -> Iterator[Callable[[str], tuple[Host, str]]]:
    """Starts gateways at one address and on one database, one after another."""
    gate.opened.clear()
    hosts: list[Host] = []

    def gateway(listen: str) -> tuple[Host, str]:
        host = Host(FAST)
        hosts.append(host)
        return host, host.gateway(listen, database=f"sqlite:///{tmp_path}/a.db")

    yield gateway
    gate.opened.set()
    for host in hosts:
        host.close()


def test_a_gateway_restart_is_survived(
    parts: Callable[[str], tuple[Host, str]], gate: Gate
) -> None:
    """A client that waits, and one that submits, get their results across a gateway's restart."""
    first, url = parts(TCP)
    below = Host(FAST, [FunctionAgent(gate, name="gate"), EchoAgent()])
    with below, Client(url, limits=FAST, timeout_s=20) as client:
        region = below.region("eu", TCP, [url])
        below.proxy("eu", "1", [region])
        task = client.submit(one("gate"))
        eventually(lambda: task.status().state == "running")
        results: list[Any] = []
        waiting = threading.Thread(target=lambda: results.append(task.result(60)))
        waiting.start()
        first.close()
        submitted: list[Any] = []
        submitting = threading.Thread(
            target=lambda: submitted.append(client.submit(DIAMOND).result(60))
        )
        submitting.start()
        gate.opened.set()
        time.sleep(0.3)  # the task may end while there is no gateway
        parts(url)
        for thread in (waiting, submitting):
            thread.join(60)
        assert results == ["let: x"]
        assert submitted == [RESULT]
        assert client.submit(DIAMOND).result(20) == RESULT


def test_a_timeout_holds_without_a_gateway(
    parts: Callable[[str], tuple[Host, str]],
) -> None:
    """`result` comes back in its time, also when there is nobody left to ask."""
    host, url = parts(TCP)
    with Client(url, limits=FAST, timeout_s=2.0) as client:
        task = client.submit(one("poet"))
        host.close()
        begun = time.monotonic()
        with pytest.raises(ResultTimeout):
            task.result(0.5)
        with pytest.raises(ResultTimeout):
            client.task(task.task_id).result(0.5)
        # Each looks once more when its time is over, for LOOK_S at most.
        assert time.monotonic() - begun < 2 * (0.5 + LOOK_S) + 1.0
        with pytest.raises(ClusterUnreachable, match=url):
            client.task(task.task_id).result()


def test_a_gateway_whose_store_is_gone(world: Net) -> None:
    """It is not said that nobody is there; and the key is, to submit the same task again."""
    switch = world.switch("upper", limits=FAST)
    switch.attach("gateway", lambda batch: None)
    with Client(switch.listen(TCP), limits=FAST, timeout_s=0.5) as client:
        with pytest.raises(
            ClusterUnreachable, match=r"the gateway is there .* key 'auto-"
        ) as caught:
            client.submit(DIAMOND)
        assert "agentos up" not in str(caught.value)
        with pytest.raises(ClusterUnreachable, match=r"its store is down, or behind$"):
            client.list()


def test_a_refusal_that_comes_late_counts(
    parts: Callable[[str], tuple[Host, str]], tmp_path: Path
) -> None:
    """A database that another process holds is refused after 5 s, when the client has asked again."""
    _, url = parts(TCP)
    with Client(url, limits=FAST, timeout_s=30.0) as client:
        client.submit(DIAMOND)
        with contextlib.closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError, match="another process is using it"):
                client.submit(DIAMOND)
