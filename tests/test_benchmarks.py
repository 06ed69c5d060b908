"""The benchmarks count right, and write down what they measured."""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import __main__ as bench
from benchmarks import children, clusters, finished, job, parts, wide
from benchmarks.figures import DOCUMENT, Bar, Figure, Measured, at_least, at_most, write_section
from benchmarks.life import account, draw
from benchmarks.life.ledger import Ledger
from benchmarks.peers import __main__ as compare
from benchmarks.peers import harness, report
from benchmarks.peers.catalogue import OURS, PEERS, Peer
from benchmarks.peers.environments import NotThere, find
from benchmarks.settings import Settings

ROOT = Path(__file__).parent.parent


def test_a_goal_is_met_by_the_median_and_a_miss_says_by_how_much() -> None:
    """One slow run of five does not miss a goal, and a miss is a factor."""
    goal = at_least(3_000)
    assert Figure("p", "w", "tasks/s", [100, 3_000, 3_100], goal).verdict == "yes"
    assert Figure("p", "w", "tasks/s", [6_000], goal).verdict == "yes (2.0 times better)"
    assert Figure("p", "w", "tasks/s", [1_500], goal).verdict == "no (2.0 times off)"
    assert Figure("p", "w", "%", [-3.0], at_most(10)).verdict == "yes"
    assert Figure("p", "w", "ms", [9.0], at_most(3)).verdict == "no (3.0 times off)"


def test_tables_are_written_between_their_marks(tmp_path: Path) -> None:
    """A run replaces its own table in the document, and nothing else."""
    document = tmp_path / "d.md"
    document.write_text("a\n<!-- bench -->\nold\n<!-- /bench -->\nb\n")
    measured = Measured([Figure("p", "what", "ms", [1.0, 2.0, 3.0], at_most(3))])
    write_section("bench", measured.markdown(), document)
    text = document.read_text()
    assert text.startswith("a\n<!-- bench -->\n| part | what |")
    row = "| p | what | 2 ms | 1 to 3 | ≤ 3 | yes (1.5 times better) |"
    assert f"{row}\n<!-- /bench -->\nb\n" in text
    with pytest.raises(ValueError, match="has no <!-- other -->"):
        write_section("other", "", document)


@pytest.mark.parametrize(
    "name", ["bench", "bench-ratios", "bench-peers", "bench-kill", "bench-profile"]
)
def test_the_document_has_a_place_for_every_table(name: str) -> None:
    """docs/performance.md can take what each command writes."""
    text = DOCUMENT.read_text()
    assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1


def _measured(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    **measures: Callable[[Settings], list[Figure]],
) -> tuple[int, dict[str, Any], str]:
    """Run `make bench` with these parts: its exit status, what it saved, and what it printed."""
    monkeypatch.setattr(bench, "PARTS", {k: bench.Part(v, 1, 1) for k, v in measures.items()})
    file = tmp_path / "bench.json"
    monkeypatch.setattr("sys.argv", ["bench", "--json", str(file), "--keep-document"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    return int(ended.value.code or 0), json.loads(file.read_text()), capsys.readouterr().out


def _good(settings: Settings) -> list[Figure]:
    found = settings.repeat("good", lambda: {"v": 7.0})
    return [Figure("good", "a figure", "ms", found["v"])]


def test_what_fails_or_hangs_is_a_line_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One failing part, and one that never ends, cost their own figures and the exit status."""
    monkeypatch.setattr(bench.Part, "limit_s", lambda *_: 0.5)

    def fails(_: Settings) -> list[Figure]:
        raise job.WrongCount("3 of 4 results are wrong")

    def hangs(_: Settings) -> list[Figure]:
        asyncio.run(asyncio.sleep(3_600))
        return []

    status, saved, printed = _measured(
        monkeypatch, tmp_path, capsys, bad=fails, slow=hangs, good=_good
    )
    assert status == 1
    assert [figure["values"] for figure in saved["figures"]] == [[7.0] * 5]
    assert {one["part"]: one["why"] for one in saved["failures"]} == {
        "bad": "WrongCount: 3 of 4 results are wrong",
        "slow": "given up after 0.5 s",
    }
    assert "FAILED: WrongCount" in printed
    assert "a figure" in printed


def test_ctrl_c_shows_what_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever stops a benchmark keeps the parts, and the runs, that had ended."""
    values = iter([1.0, 2.0])

    def stopped(settings: Settings) -> list[Figure]:
        def once() -> dict[str, float]:
            value = next(values, None)
            if value is None:
                signal.raise_signal(signal.SIGINT)
            return {"v": value or 0.0}

        return [Figure("stopped", "half", "ms", settings.repeat("half", once)["v"])]

    status, saved, printed = _measured(
        monkeypatch, tmp_path, capsys, good=_good, stopped=stopped, never=_good
    )
    assert status == 1
    assert [figure["values"] for figure in saved["figures"]] == [[7.0] * 5, [1.0, 2.0]]
    assert [one["why"] for one in saved["failures"]] == ["run 3 of 5: stopped by Ctrl-C"]
    assert "half" in printed


def test_a_child_that_hangs_takes_its_children_with_it(tmp_path: Path) -> None:
    """What a benchmark has started does not outlive it."""
    script = "sleep 3600 & echo $! > pid; wait"
    with pytest.raises(children.ChildFailed, match="has not ended within 1 s"):
        children.output(["sh", "-c", script], timeout_s=1, folder=tmp_path)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_fenced_writes_are_those_of_claimed_tasks() -> None:
    """What is measured is what a proxy does: each write under its claim's epoch, and applied."""
    assert parts.fenced_writes_per_s(20, 5) > 0


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


def test_a_peer_that_fails_is_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that cannot be run, or no longer, leaves the others' rows as they are."""
    ours, sound, broken, tired = (Peer(name, name.upper(), "none") for name in (OURS, *"abc"))
    speeds = {OURS: 300.0, "a": 20.0, "c": 10.0}
    runs: Counter[str] = Counter()

    def run(peer: Peer, *_: str, marks: bool = False) -> dict[str, Any]:
        runs[peer.name] += 1
        if peer is broken or (peer is tired and runs["c"] > 1):
            raise NotThere("it has no licence")
        return {"version": "1", "tasks_s": speeds[peer.name], "alone_ms": 1.0, "wrong": 0}

    monkeypatch.setattr(compare, "run", run)
    found = [report.Found(peer) for peer in (ours, sound, broken, tired)]
    options = argparse.Namespace(runs=3, kills=0, tasks=10, alone=1, minutes=1)
    with Bar(1) as bar:
        assert len(list(compare.compare(options, found, bar))) == 3
    rows = report.speed_rows(found)
    assert [row[0] for row in rows] == [
        "AGENTOS 1",
        "A 1",
        "C 1; after 1 runs: it has no licence",
        "B",
    ]
    assert rows[1][3] == "15.0 times as fast"
    assert rows[3][1] == "not run: it has no licence"
    assert compare.failures(found) == []


def test_a_peer_that_cannot_start_says_its_last_words() -> None:
    """The reason in the table is the peer's own."""
    with pytest.raises(NotThere, match="No module named"):
        compare.run(Peer("nothing", "Nothing", "on_nothing"), "bench", "1", "1")


def test_the_budgets_of_a_task_agree() -> None:
    """By thread, by what is done and by message: the same 600 microseconds."""
    total = sum(account.BUDGET_US.values())
    assert total == sum(account.STEP_BUDGET_US.values()) == 600
    by_message = sum(account.MESSAGE_BUDGET_US.values())
    assert by_message == sum(account.STEP_BUDGET_US[step] for step in draw.BODY)
    assert account.STEP_BUDGET_US.keys() == draw.STEPS.keys()


def test_what_is_missing_is_said() -> None:
    """A server that is not installed is a reason, not a crash."""
    with pytest.raises(NotThere, match="no-such-server is not installed"):
        find("no-such-server")


def test_a_comparison_ends_in_time() -> None:
    """Where there is no time for every round, there is one at least; else all that were asked for."""
    now = time.monotonic()
    assert list(compare.rounds(5, now - 1)) == [0]
    assert list(compare.rounds(5, now + 3_600)) == [0, 1, 2, 3, 4]
