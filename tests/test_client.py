"""What a client can rely on for its tasks, against a real cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from agentos import Client, Cluster
from agentos.core import messages as m
from agentos.core.errors import (
    AgentNotOffered,
    GraphError,
    KeyConflict,
    LocalProtocolError,
    ResultTimeout,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
)
from agentos.testing.transport_recorder import eventually
from tests.clients import DIAMOND, RESULT, Gate, gated_cluster, one, rows_of


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


def test_agents_that_nobody_offers(client: Client) -> None:
    """With `require_agents` such a task is refused and says what there is; without, it waits."""
    with pytest.raises(AgentNotOffered, match=r"poet.*echo"):
        client.submit(one("poet"), require_agents=True)
    task = client.submit(one("poet"))
    with pytest.raises(ResultTimeout):
        task.result(0.5)
    assert task.status().state == "accepted"
    task.cancel()


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


def test_watching_in_vain(client: Client, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch has a timeout too, and may be left at any time; the end is told all the same."""
    monkeypatch.setattr("agentos.client.POLL_S", 1000.0)  # it is not to be found by polling
    task = client.submit(one("gate"))
    with pytest.raises(ResultTimeout):
        list(task.watch(0.2))
    for _ in task.watch(20):
        break
    gate.opened.set()
    assert task.result(20) == "let: x"


def test_an_end_that_was_looked_for_is_known(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever missed the end, and found it by looking, need not look again."""
    monkeypatch.setattr("agentos.client.POLL_S", 0.05)
    monkeypatch.setattr("agentos.client.AsyncClient._take", lambda *_: None)  # nothing is heard
    task = client.submit(DIAMOND)
    assert task.result(20) == RESULT
    monkeypatch.setattr("agentos.client.POLL_S", 1000.0)
    assert task.result(2) == RESULT
    assert task.wait(2).state == "succeeded"
