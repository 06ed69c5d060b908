"""The campaign itself: its hand replays, and its verdict finds what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from itertools import islice
from pathlib import Path

import pytest

from agentos import Client, Cluster
from tests.chaos import agents, calls
from tests.chaos.calls import UNEXPLAINED, Call, Key
from tests.chaos.cluster import Shape
from tests.chaos.graphs import graph
from tests.chaos.hand import Act, Done, schedule
from tests.chaos.links import Link
from tests.chaos.verdict import of_database, percentiles
from tests.chaos.watch import Change, Row, Watch


def test_the_hand_replays() -> None:
    """A seed's deeds are the same every time; another seed's are others; all kinds come."""
    roles = Shape().roles

    def deeds(seed: int) -> list[Act]:
        return list(islice(schedule(seed, roles, 1.0, 30.0), 500))

    assert deeds(7) == deeds(7) != deeds(8)
    assert {act.what for act in deeds(7)} == {
        "kill",
        "term",
        "stop",
        "freeze",
        "cut",
        "lock",
        "fill",
    }
    assert {act.target for act in deeds(7) if act.what == "kill"} == set(roles)
    assert max(act.seconds for act in deeds(7)) <= 30.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, int]]:
    """The database of a cluster that ran some of the campaign's tasks, and their ids."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(agents.LOG, str(folder / "calls.log"))
        patch.setenv(agents.SLOWEST, "0.01")
        cluster = Cluster([agents.work, agents.vote], data=folder, proxies=2)
        with cluster, cluster.client() as client:
            accepted = {n: _run(client, n) for n in range(8)}
    return folder / "agentos.db", accepted


def _run(client: Client, number: int) -> int:
    task = client.submit(graph(number), key=f"chaos-{number}")
    task.result(30)
    return task.task_id


def test_a_quiet_cluster_is_right(finished: tuple[Path, dict[int, int]]) -> None:
    """What a cluster without faults records is what the campaign expects, row by row."""
    assert of_database(*finished) == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("DELETE FROM Progress WHERE task_id = 1 AND node_id = 'n2'", "lacks rows"),
        ("UPDATE Progress SET global_epoch = 9 WHERE task_id = 2", "which no claim gave"),
        ("UPDATE Progress SET result = '{\"value\": 1}' WHERE task_id = 3", "is 1, not"),
        ("UPDATE Tasks SET state = 'running' WHERE task_id = 4", "task 4 is running"),
        ("DELETE FROM Tasks WHERE task_id = 5", "is lost"),
        ("UPDATE Documents SET doc_content = '{\"output\": 0}' WHERE doc_type = 'response'", "has the output"),
        ("UPDATE Tasks SET response_doc_id = 2 WHERE task_id < 3", "belongs to 2 tasks"),
        ("UPDATE Tasks SET task_key = 'other' WHERE task_id = 6", "and is other"),
    ],
)  # fmt: skip
def test_damage_is_found(
    finished: tuple[Path, dict[int, int]], tmp_path: Path, damage: str, said: str
) -> None:
    """A lost task, a lost or wrong row, an epoch that nobody was given: each is a fault."""
    file, accepted = finished
    copy = tmp_path / "copy.db"
    with (
        contextlib.closing(sqlite3.connect(file)) as source,
        contextlib.closing(sqlite3.connect(copy)) as db,
    ):
        source.backup(db)
        db.execute(damage)
        db.commit()
    assert any(said in fault for fault in of_database(copy, accepted))


def watching(*rows: tuple[float, str, tuple[int, int]]) -> Watch:
    """A watch that has seen these owners of task 1."""
    watch = Watch(Path("nowhere"))
    watch.changes[1] = [Change(at, Row(owner, epoch, "running")) for at, owner, epoch in rows]
    return watch


def test_a_watch_finds_what_must_not_change(tmp_path: Path) -> None:
    """An epoch that goes back, an end that is none, a row that changes: each is a fault."""
    watch = Watch(tmp_path / "db")
    for row in (Row("a", (1, 2), "running"), Row("b", (1, 1), "running")):
        watch._see(1, row, 0.0)
    watch._see(2, Row("a", (1, 1), "succeeded"), 0.0)
    watch._see(2, Row("a", (1, 1), "failed"), 0.0)
    assert len(watch.faults) == 2


def test_repeated_calls_are_explained() -> None:
    """A repeated call is laid at the door of what happened between; what was saved is no excuse."""
    key = Key(1, "n0/1/s0")
    again = [Call(1.0, 11, "proxy/r1/1"), Call(4.0, 12, "proxy/r1/2", 4.5, "end")]
    killed = Done(2.0, 2.0, Act(0.0, "kill", "proxy/r1/1"), 11, {1: (1, 1)})
    moved = watching((0.5, "proxy/r1/1", (1, 1)), (3.5, "proxy/r1/2", (1, 2)))
    found = calls.repeats({key: again}, moved, [killed])
    assert found.why == {"its executor was killed": 1}
    assert found.needless == []
    again[0].ended, again[0].how = 1.5, "end"
    assert list(calls.repeats({key: again}, moved, []).why) == [calls.REPLACED]
    for what, target, why in (
        ("freeze", "proxy/r1/1", "its owner stood still"),
        ("cut", "region/r1>gateway/main", "its owner's region was cut off"),
        ("kill", "store", f"{calls.REPLACED}: kill of a store"),
    ):
        deed = Done(2.0, 2.5, Act(0.0, what, target), 99, {})
        assert list(calls.repeats({key: again}, moved, [deed]).why) == [why]
    still = watching((0.5, "proxy/r1/1", (1, 1)))
    still.saved[1, "n0"] = 2.0
    found = calls.repeats({key: again}, still, [])
    assert list(found.why) == [UNEXPLAINED]
    assert len(found.needless) == 1


def test_takeover_times() -> None:
    """A takeover lasts from the kill to the first call after the next claim, not to one before."""
    moved = watching((0.5, "proxy/r1/1", (1, 1)), (3.5, "proxy/r1/2", (1, 2)))
    killed = Done(2.0, 2.0, Act(0.0, "kill", "proxy/r1/1"), 11, {1: (1, 1)})
    asked = {
        Key(1, "a/1/s1"): [Call(2.5, 13, "proxy/r1/3")],  # the dead owner had placed it
        Key(1, "a/1/s0"): [Call(3.6, 12, "proxy/r1/2")],
    }
    (found,) = calls.takeovers(asked, moved, [killed])
    assert (found.role, round(found.seconds, 3), found.clean) == ("proxy", 1.6, True)
    other = Done(1.0, 3.0, Act(0.0, "freeze", "region/r1", 2.0), 14, {})
    (found,) = calls.takeovers(asked, moved, [killed, other])
    assert not found.clean


def test_percentiles() -> None:
    """Percentiles are of the times themselves, not interpolated."""
    assert percentiles([]) == {}
    assert percentiles([float(n) for n in range(100)]) == {
        "n": 100, "p50": 50.0, "p99": 99.0, "max": 99.0,
    }  # fmt: skip


def test_a_link_is_cut() -> None:
    """A silent link keeps what is sent until it is healed; one that is down resets and refuses."""
    asyncio.run(_cut())


async def _cut() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = Link("a>b", f"tcp://127.0.0.1:{port}")
    own = int(link.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", own)
    writer.write(b"one")
    assert await reader.readexactly(3) == b"one"
    link.cut("silent")
    writer.write(b"two")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readexactly(3), 0.2)
    link.heal()
    assert await reader.readexactly(3) == b"two"
    link.cut("down")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.transport.abort()
    refused, other = await asyncio.open_connection("127.0.0.1", own)
    with contextlib.suppress(ConnectionError):
        assert await refused.read() == b""
    other.transport.abort()
    await link.close()
    server.close()
    await server.wait_closed()
