"""`agentos simulate`: what it prints, and the status with which it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentos.cli import main
from agentos.core.proxy import ProxyMachine
from agentos.simulation.coverage import FAULTS, STATES

SMALL = ("--gateways", "1", "--regions", "1", "--proxies", "2", "--tasks", "3")


def test_a_campaign_prints_what_it_reached(capsys: pytest.CaptureFixture[str]) -> None:
    """Two tables and a line of sums; status 0 when no rule was broken."""
    assert main(["simulate", "--seeds", "5", *SMALL]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{out}" for name in (*FAULTS, *STATES))
    assert out.splitlines()[-1].startswith("5 seeds, ")
    assert out.splitlines()[-1].endswith(": 0 violations")


def test_as_json_it_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints the same for programs."""
    assert main(["simulate", "--seeds", "3", "--json", *SMALL]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["seeds"], found["failures"]) == (True, 3, [])
    assert set(found["faults"]) == set(FAULTS)
    assert set(found["states"]) == set(STATES)


def test_one_seed_can_be_read_message_by_message(capsys: pytest.CaptureFixture[str]) -> None:
    """`--seed K --trace` shows every message and every fault, with its time."""
    assert main(["simulate", "--seed", "3", "--trace", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("gateway/a -> store  create_task" in line for line in lines)
    assert any("!! " in line for line in lines)
    times = [float(line.split(maxsplit=1)[0]) for line in lines]
    assert times == sorted(times)


@pytest.mark.plain
def test_a_violation_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which rule, how to see it again, and the shortest transcript; status 1."""
    monkeypatch.setattr(ProxyMachine, "_give_up", lambda *_: [])
    assert main(["simulate", "--seeds", "40", "--regions", "2", "--tasks", "6"]) == 1
    out, err = capsys.readouterr()
    assert "stale_means_stop" in err
    assert "replay: agentos simulate --regions 2 --tasks 6 --seed " in err
    assert ", shrunk to " in out
    assert "VIOLATION" in out.splitlines()[-1]


def test_rates_and_a_graph_come_from_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Faults that a file sets to nothing do not happen; the graph is the user's."""
    rates, graph = tmp_path / "rates.toml", tmp_path / "graph.json"
    rates.write_text("crash = 0.0\ncrash_in_step = 0.0\ncrash_after_commit = 0.0\ndeath = 0.0\n")
    graph.write_text('{"nodes": {"only": {"agent": "writer", "prompt": "x"}}}')
    files = ("--faults", str(rates), "--graph", str(graph))
    assert main(["simulate", "--seeds", "4", "--json", *SMALL, *files]) == 0
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert {faults["crash_store"], faults["crash_region"], faults["death"]} == {0}
    assert faults["drop"] > 0


@pytest.mark.parametrize(
    ("text", "word"),
    [("crash = 'often'", "crash"), ("crahs = 1.0", "crahs"), ("drop = -1", "drop")],
)
def test_rates_that_are_none_are_refused(
    text: str, word: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A wrong file is named with what is wrong in it; status 2."""
    rates = tmp_path / "rates.toml"
    rates.write_text(text)
    assert main(["simulate", "--seeds", "1", "--faults", str(rates)]) == 2
    err = capsys.readouterr().err
    assert word in err
