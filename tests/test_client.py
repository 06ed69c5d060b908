"""What a client can rely on, against a real cluster."""

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

import msgspec
import pytest

from agentos import (
    AsyncClient,
    Client,
    Cluster,
    EchoAgent,
    Host,
    connect,
)
from agentos import client as client_module
from agentos.agents.function import FunctionAgent
from agentos.core import messages as m
from agentos.core.errors import (
    AgentNotOffered,
    ClusterUnreachable,
    GraphError,
    KeyConflict,
    LocalProtocolError,
    Overloaded,
    ResultTimeout,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
)
from agentos.runtime.asking import AsyncAsker
from agentos.testing.transport_recorder import eventually
from tests.switches import FAST, TCP

DIAMOND = {
    "input": {"topic": "queues"},
    "nodes": {
        "a": {"agent": "echo", "prompt": "about ${input.topic}"},
        "b": {"agent": "echo", "prompt": "${a}, left"},
        "c": {"agent": "echo", "prompt": "${a}, right"},
        "d": {"agent": "echo", "prompt": "${b} and ${c}"},
    },
    "output": "d",
}
RESULT = "about queues, left and about queues, right"


def one(agent: str, prompt: str = "x", **fields: Any) -> dict[str, Any]:
    """A graph of one node."""
    return {"nodes": {"only": {"agent": agent, "prompt": prompt, **fields}}, "output": "only"}


class Gate:
    """An agent that answers when it is let, and notices its cancellation."""

    name = "gate"
    max_concurrency = 100

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.calls = 0
        self.cancelled = 0

    async def __call__(self, prompt: str) -> str:
        self.calls += 1
        try:
            while not self.opened.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return f"let: {prompt}"


def broken(prompt: str) -> str:
    """An agent that fails."""
    raise ValueError(f"cannot do {prompt}")


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module", params=["inproc", "tcp"])
def cluster(
    request: pytest.FixtureRequest, gate: Gate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    agents = [EchoAgent(), FunctionAgent(gate, name="gate"), broken]
    listen = TCP if request.param == "tcp" else None
    data = tmp_path_factory.mktemp("clients")
    with Cluster(agents, data=data, proxies=2, listen=listen, limits=FAST) as made:
        yield made


@pytest.fixture
def client(cluster: Cluster, gate: Gate) -> Iterator[Client]:
    gate.opened.clear()
    with cluster.client() as made:
        yield made
        gate.opened.set()


def rows_of(cluster: Cluster) -> list[int]:
    """How many rows each table has, read beside the running cluster."""
    with contextlib.closing(sqlite3.connect(f"{cluster._data}/agentos.db")) as connection:
        return [
            connection.execute(query).fetchone()[0]
            for query in (
                "SELECT count(*) FROM Documents",
                "SELECT count(*) FROM Tasks",
                "SELECT count(*) FROM Progress",
            )
        ]


# -- tasks ----------------------------------------------------------------------------------------


def test_a_task_runs(client: Client) -> None:
    """Submit a graph, get its output; status, progress and list tell of it."""
    task = client.submit(DIAMOND, user_id=7, task_type="demo")
    assert task.result(20) == RESULT
    assert task.result(0.001) == RESULT  # known by now
    info = task.status()
    assert (info.state, info.user_id, info.task_type) == ("succeeded", 7, "demo")
    assert msgspec.json.decode(info.response or "")["output"] == RESULT
    assert {row.node_id for row in task.progress()} >= {"a", "b", "c", "d"}
    assert task.task_id in {t.task_id for t in client.list(user_id=7, state="succeeded")}
    assert task.task_id not in {t.task_id for t in client.list(user_id=8)}
    ended = task.wait(5)
    assert (ended.state, ended.error) == ("succeeded", "")
    assert repr(task) == f"<Task {task.task_id}>"


def test_a_description_may_be_text(client: Client) -> None:
    """JSON text is taken as it is, so that another program's graph need not be decoded."""
    text = msgspec.json.encode(DIAMOND).decode()
    assert client.submit(text).result(20) == RESULT


def test_the_same_key_is_the_same_task(client: Client, cluster: Cluster) -> None:
    """Repeating a submission with its key makes no second task, also after the end."""
    key = f"order-{time.monotonic_ns()}"
    first = client.submit(DIAMOND, key=key)
    again = client.submit(DIAMOND, key=key)
    assert again.task_id == first.task_id
    assert again.result(20) == RESULT
    with cluster.client() as other:
        later = other.submit(DIAMOND, key=key)
        assert later.task_id == first.task_id
        assert later.result(20) == RESULT
        assert other.submit(DIAMOND, key=key, user_id=99).task_id != first.task_id


def test_a_key_stands_for_one_description(client: Client, cluster: Cluster) -> None:
    """The same key with another description is refused, and nothing is written."""
    key = f"order-{time.monotonic_ns()}"
    client.submit(DIAMOND, key=key).result(20)
    before = rows_of(cluster)
    with pytest.raises(KeyConflict, match=key):
        client.submit(one("echo"), key=key)
    assert rows_of(cluster) == before


@pytest.mark.parametrize(
    ("graph", "where"),
    [
        ({}, "nodes"),
        ({"nodes": {}}, "nodes"),
        ("not json", ""),
        ({"nodes": {"a": {"agent": "echo"}}}, "nodes.a"),
        ({"nodes": {"a": {"agent": "echo", "prompt": "${b}"}}}, "nodes.a"),
        (
            {"nodes": {"a": {"agent": "echo", "prompt": "${b}"}, "b": {"agent": "echo", "prompt": "${a}"}}},
            "nodes",
        ),
        (one("echo", rounds=0), "nodes.only.rounds"),
        (one("echo", round=1), "nodes.only.round"),
        ({"nodes": {"a": {"agent": "echo", "prompt": "x", "timeout_s": float("nan")}}}, ""),
        ({"nodes": {"a": {"agent": "echo", "prompt": {1, 2}}}}, ""),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(
    client: Client, cluster: Cluster, graph: Any, where: str
) -> None:
    """A wrong description is a `GraphError` that names the place; nothing is written."""
    before = rows_of(cluster)
    with pytest.raises(GraphError) as caught:
        client.submit(graph)
    assert caught.value.where.startswith(where)
    assert rows_of(cluster) == before


@pytest.mark.parametrize(
    "options",
    [{"user_id": -1}, {"user_id": "me"}, {"key": ""}, {"key": "k" * 201}, {"task_type": ""}],
)
def test_wrong_arguments_are_refused_here(client: Client, options: dict[str, Any]) -> None:
    """What could never be accepted is refused before anything is sent."""
    with pytest.raises(LocalProtocolError):
        client.submit(DIAMOND, **options)


def test_text_that_is_no_unicode(client: Client, cluster: Cluster) -> None:
    """A lone surrogate anywhere is an error of the caller's, however often: nothing breaks."""
    for _ in range(12):
        for options in ({"task_type": "\ud800"}, {"key": "\ud800"}):
            with pytest.raises(Exception, match=r".") as caught:
                client.submit(DIAMOND, **options)  # type: ignore[arg-type]
            assert "surrogate" in str(caught.value).lower() or caught.type in {
                LocalProtocolError,
                GraphError,
            }
        with pytest.raises((GraphError, LocalProtocolError)):
            client.submit(one("echo", "\ud800"))
    assert client.submit(DIAMOND).result(20) == RESULT


def test_waiting_in_vain(client: Client, gate: Gate) -> None:
    """A result that does not come in time is a `ResultTimeout`, and the task goes on."""
    task = client.submit(one("gate"))
    begun = time.monotonic()
    with pytest.raises(ResultTimeout, match=f"{task.task_id}.*goes on"):
        task.result(0.2)
    assert time.monotonic() - begun < 10
    with pytest.raises(TimeoutError):
        task.result(0)
    assert task.status().state in {"accepted", "running"}
    gate.opened.set()
    assert task.result(20) == "let: x"


def test_a_failure_names_the_node(client: Client) -> None:
    """A task that failed says where and why."""
    task = client.submit(one("broken", "the impossible", retries=0))
    with pytest.raises(TaskFailed, match=r"only.*cannot do the impossible"):
        task.result(20)
    assert task.status().state == "failed"
    assert task.wait(5).state == "failed"
    assert task.cancel() == "failed"


def test_cancelling_reaches_the_calls(client: Client, cluster: Cluster, gate: Gate) -> None:
    """Cancelling ends the task at once, and the agents that run for it notice."""
    gate.calls = gate.cancelled = 0
    task = client.submit(one("gate", samples=3))
    eventually(lambda: gate.calls == 3)
    assert task.cancel() == "cancelled"
    with pytest.raises(TaskCancelled):
        task.result(20)
    eventually(lambda: gate.cancelled == 3)
    assert task.cancel() == "cancelled"
    with cluster.client() as other, pytest.raises(TaskCancelled):
        other.task(task.task_id).result(20)


def test_cancelling_too_late(client: Client) -> None:
    """Cancelling a task that has ended says what it ended as, and changes nothing."""
    task = client.submit(DIAMOND)
    task.result(20)
    assert task.cancel() == "succeeded"
    assert task.result(5) == RESULT


def test_unknown_tasks(client: Client) -> None:
    """Whatever is asked about a task that does not exist is `TaskNotFound`, at once."""
    ghost = client.task(2**62)
    for ask in (ghost.status, ghost.result, ghost.wait, ghost.progress, ghost.cancel):
        with pytest.raises(TaskNotFound, match=str(2**62)):
            ask()
    with pytest.raises(TaskNotFound):
        list(ghost.watch())
    for wrong in (0, -1, 2**63):
        with pytest.raises(LocalProtocolError):
            client.task(wrong).status()
        with pytest.raises(LocalProtocolError):
            client.task(wrong).result()


def test_another_client_has_the_result(client: Client, cluster: Cluster, gate: Gate) -> None:
    """A task belongs to the cluster: any client can wait for it, before and after its end."""
    task = client.submit(one("gate"))
    with cluster.client() as other:
        theirs = other.task(task.task_id)
        with pytest.raises(ResultTimeout):
            theirs.result(0.1)
        gate.opened.set()
        assert theirs.result(20) == "let: x"
    with cluster.client() as late:
        begun = time.monotonic()
        assert late.task(task.task_id).result(20) == "let: x"
        assert time.monotonic() - begun < 1.5  # asked for, not found by polling


# -- watching -------------------------------------------------------------------------------------


def test_watching(client: Client, gate: Gate) -> None:
    """A watcher hears of calls, answers and nodes as they happen, and of the end last."""
    graph = {
        "nodes": {
            "first": {"agent": "gate", "prompt": "x"},
            "second": {"agent": "echo", "prompt": "${first}", "samples": 2, "voters": 1},
        },
        "output": "second",
    }
    wanted = [("answer", "first"), ("node", "first"), ("call", "second"), ("answer", "second")]
    for _ in range(5):  # events are hints, and may have been before the watch reached the owner
        gate.opened.clear()
        heard: list[Any] = []
        for message in client.submit(graph).watch(20):
            heard.append(message)
            gate.opened.set()
        if ("answer", "first") in [(e.event, e.node) for e in heard[:-1]]:
            break
    assert isinstance(heard[-1], m.Ended)
    assert heard[-1].state == "succeeded"
    events = [(e.event, e.node) for e in heard[:-1]]
    assert all(isinstance(e, m.Event) for e in heard[:-1])
    assert set(wanted) <= set(events)
    assert sorted(wanted, key=events.index) == wanted


def test_watching_after_the_end(client: Client) -> None:
    """Whoever starts watching too late still hears the end, with its response."""
    task = client.submit(DIAMOND)
    task.result(20)
    (ended,) = task.watch(10)
    assert isinstance(ended, m.Ended)
    assert msgspec.json.decode(ended.response)["output"] == RESULT


def test_watching_in_vain(client: Client, gate: Gate) -> None:
    """A watch has a timeout too, and may be left at any time."""
    task = client.submit(one("gate"))
    with pytest.raises(ResultTimeout):
        list(task.watch(0.2))
    for _ in task.watch(20):
        break
    gate.opened.set()
    assert task.result(20) == "let: x"


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


# -- clusters of their own ------------------------------------------------------------------------


def test_agents_that_nobody_offers(client: Client) -> None:
    """With `require_agents` such a task is refused and says what there is; without, it waits."""
    with pytest.raises(AgentNotOffered, match=r"poet.*echo"):
        client.submit(one("poet"), require_agents=True)
    task = client.submit(one("poet"))
    with pytest.raises(ResultTimeout):
        task.result(0.5)
    assert task.status().state == "accepted"
    task.cancel()


def test_a_full_cluster_says_so(gate: Gate) -> None:
    """Over `max_unfinished` a submission waits for room as long as it may, and is refused then."""
    gate.opened.clear()
    limits = msgspec.structs.replace(FAST, max_unfinished=2)
    with (
        Cluster([FunctionAgent(gate, name="gate")], limits=limits) as full,
        full.client(timeout_s=1.0) as client,
        full.client(timeout_s=20.0) as patient,
    ):
        tasks = [client.submit(one("gate")) for _ in range(2)]
        eventually(lambda: client.cluster().unfinished == 2)
        with pytest.raises(Overloaded, match="2 tasks are unfinished") as caught:
            client.submit(one("gate"))
        assert caught.value.retry_after_s > 0
        opener = threading.Timer(0.5, gate.opened.set)
        opener.start()
        assert patient.submit(one("gate")).result(20) == "let: x"
        assert [task.result(20) for task in tasks] == ["let: x"] * 2
        opener.join()


def test_a_crowd_waits_its_turn(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many submissions at once only some are on their way; all are accepted, each once."""
    monkeypatch.setattr(client_module, "ON_THEIR_WAY", 3)
    seen: list[int] = []
    ask = AsyncAsker.ask

    async def watched(self: AsyncAsker, *arguments: Any) -> m.Message:
        seen.append(len(self._open) + 1)
        return await ask(self, *arguments)

    monkeypatch.setattr(AsyncAsker, "ask", watched)

    async def work() -> None:
        async with cluster.async_client(timeout_s=30) as client:
            tasks = await asyncio.gather(*(client.submit(one("echo", str(i))) for i in range(40)))
            assert len({task.task_id for task in tasks}) == 40

    _, before, _ = rows_of(cluster)
    asyncio.run(work())
    assert rows_of(cluster)[1] == before + 40
    assert 2 <= max(seen) <= 3


def test_waiting_for_a_turn_is_not_held_against_the_cluster(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waited while others were answered has the whole timeout; who heard nothing, none more."""
    monkeypatch.setattr(client_module, "ON_THEIR_WAY", 1)
    deadlines: list[float] = []

    async def slow(self: AsyncClient, *arguments: Any) -> m.Message:
        deadlines.append(arguments[-1] - time.monotonic())
        await asyncio.sleep(0.3)
        if len(deadlines) < 3:
            self._connected().heard_at = time.monotonic()
        return m.Submitted(task_id=1, state="accepted", created=True)

    monkeypatch.setattr(AsyncClient, "_answer", slow)

    async def work() -> None:
        async with cluster.async_client(timeout_s=0.5) as client:
            await asyncio.gather(*(client.submit(one("echo")) for _ in range(5)))

    asyncio.run(work())
    assert min(deadlines[:4]) > 0.15  # the fourth begins 0.3 s after the last word at most
    assert deadlines[4] < deadlines[2]


def test_too_many_watchers(gate: Gate) -> None:
    """Where the gateway cannot tell everybody, the others find out by themselves."""
    gate.opened.clear()
    limits = msgspec.structs.replace(FAST, max_watchers=1)
    with Cluster([FunctionAgent(gate, name="gate")], limits=limits) as few, few.client() as client:
        tasks = [client.submit(one("gate")) for _ in range(2)]
        with few.client() as other:
            handles = [other.task(task.task_id) for task in tasks]
            with pytest.raises(ResultTimeout):
                handles[1].result(0.2)
            gate.opened.set()
            assert [handle.result(30) for handle in handles] == ["let: x"] * 2
        assert [task.result(30) for task in tasks] == ["let: x"] * 2


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
        assert time.monotonic() - begun < 2.0
        with pytest.raises(ClusterUnreachable, match=url):
            client.task(task.task_id).result()
