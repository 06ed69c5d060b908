"""The benchmarks count right, and write down what they measured."""

from __future__ import annotations

import ast
import asyncio
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import clusters, finished, job, wide
from benchmarks.figures import DOCUMENT, Figure, Measured, at_least, at_most, write_section
from benchmarks.life.ledger import Ledger
from benchmarks.peers import harness
from benchmarks.peers.catalogue import OURS, PEERS
from benchmarks.peers.environments import NotThere, find

ROOT = Path(__file__).parent.parent


def test_a_goal_is_met_by_the_median_and_a_miss_says_by_how_much() -> None:
    """One slow run of five does not miss a goal, and a miss is a factor."""
    goal = at_least(3_000)
    assert Figure("p", "w", "tasks/s", [100, 3_000, 3_100], goal).verdict == "yes"
    assert Figure("p", "w", "tasks/s", [1_500], goal).verdict == "no (2.0 times off)"
    assert Figure("p", "w", "ms", [9.0], at_most(3)).verdict == "no (3.0 times off)"


def test_tables_are_written_between_their_marks(tmp_path: Path) -> None:
    """A run replaces its own table in the document, and nothing else."""
    document = tmp_path / "d.md"
    document.write_text("a\n<!-- bench -->\nold\n<!-- /bench -->\nb\n")
    measured = Measured([Figure("p", "what", "ms", [1.0, 2.0, 3.0], at_most(3))])
    write_section("bench", measured.markdown(), document)
    text = document.read_text()
    assert text.startswith("a\n<!-- bench -->\n| what |")
    assert "| what | 2 ms | 1 to 3 | ≤ 3 | yes |\n<!-- /bench -->\nb\n" in text
    with pytest.raises(ValueError, match="has no <!-- other -->"):
        write_section("other", "", document)


@pytest.mark.parametrize("name", ["bench", "bench-peers", "bench-kill", "bench-profile"])
def test_the_document_has_a_place_for_every_table(name: str) -> None:
    """docs/performance.md can take what each command writes."""
    text = DOCUMENT.read_text()
    assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1


def test_a_filled_database_works_on(tmp_path: Path) -> None:
    """A database of copied tasks has as many whole tasks as asked for, and takes new ones."""
    finished.fill(tmp_path, 50)
    with closing(sqlite3.connect(tmp_path / "agentos.db")) as database:
        rows = [
            database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("Tasks", "Documents", "Progress")
        ]
        assert rows == [50, 100, 250]
        kinds = "SELECT doc_type, count(*) FROM Tasks JOIN Documents ON doc_id = {}_doc_id"
        for which in ("request", "response"):
            grouped = database.execute(kinds.format(which) + " GROUP BY doc_type").fetchall()
            assert [count for _, count in grouped] == [50], which
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []

    async def one_more(client: clusters.AsyncClient) -> int:
        async with client:
            await job.throughput(client, 1)
            return len(await client.list(limit=100))

    with clusters.embedded(clusters.Topology(1, 1), data=tmp_path) as client:
        assert asyncio.run(one_more(client)) == 51


def test_a_wrong_result_stops_the_benchmark() -> None:
    """Throughput of wrong results is never reported; wide graphs give what they should."""

    async def check(client: clusters.AsyncClient) -> None:
        async with client:
            await job.throughput(client, 2, wide.fan_out(5), "xxxxx")
            await job.throughput(client, 2, wide.chain(5), "x")
            with pytest.raises(job.WrongCount, match="2 of 2"):
                await job.throughput(client, 2, job.GRAPH, "something else")

    with clusters.embedded(clusters.Topology(1, 1)) as client:
        asyncio.run(check(client))


def test_a_step_is_not_charged_for_the_steps_inside_it() -> None:
    """What a ledger says of a step is that step's own time, in every thread."""
    ledger = Ledger()

    def spin(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    def outer() -> None:
        spin(0.01)
        ledger.measure("inner", "", lambda: spin(0.04))

    threads = [threading.Thread(target=ledger.measure, args=("outer", "", outer)) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (calls, outer_ns), (_, inner_ns) = ledger.steps["outer", ""], ledger.steps["inner", ""]
    assert calls == 2
    assert outer_ns < inner_ns / 2


def test_runs_of_nodes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that never ran is lost, one that ran more than once ran twice."""
    monkeypatch.setenv("BENCH_MARKS", str(tmp_path / "marks"))
    marks = harness.Marks()
    for name in ("n1", "a", "b", "c", "a"):
        harness.node("t0", name, "x")
    report = marks.report(1, time.monotonic(), completed=0)
    assert (report["incomplete"], report["lost"], report["twice"]) == (1, 1, 1)
    assert harness.node("t0", "z", "xa", "xb", "xc") == harness.OUTPUT == job.OUTPUT


def test_peers_know_nothing_of_us() -> None:
    """What runs in a peer's environment imports the harness, and nothing of Agent OS."""
    modules = {peer.module for peer in PEERS if peer.name != OURS} | {"harness", "restate_service"}
    for module in modules:
        tree = ast.parse((ROOT / "benchmarks" / "peers" / f"{module}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchmarks"):
                assert node.module == "benchmarks.peers"
                assert [alias.name for alias in node.names] == ["harness"]
            elif isinstance(node, ast.Import | ast.ImportFrom):
                assert "agentos" not in ast.unparse(node)


def test_what_is_missing_is_said() -> None:
    """A server that is not installed is a reason, not a crash."""
    with pytest.raises(NotThere, match="no-such-server is not installed"):
        find("no-such-server")
