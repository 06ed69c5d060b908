"""The testing client's report: every figure is right, can be read again, and is drawn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos import ConfigError
from agentos.loadtest import (
    Latency,
    Outcome,
    Report,
    Response,
    Row,
    Run,
    compare,
    percentile,
    plots,
)

# -- figures ---------------------------------------------------------------------------------------

SECONDS = st.floats(0, 1e6)


@given(st.lists(SECONDS, min_size=1), st.floats(0.1, 100))
def test_a_percentile_is_a_value_that_was_seen(values: list[float], percent: float) -> None:
    """So many percent are not above it, and fewer are below: the nearest rank."""
    values.sort()
    found = percentile(values, percent)
    needed = len(values) * percent / 100
    assert sum(value <= found for value in values) >= needed
    assert sum(value < found for value in values) < max(needed, 1)


@given(st.lists(SECONDS, min_size=1))
def test_a_distribution_is_in_order(values: list[float]) -> None:
    """The percentiles never go down, and the mean is between the least and the most."""
    found = Latency.of(values)
    assert found is not None
    assert min(values) <= found.p50_s <= found.p90_s <= found.p99_s <= found.max_s == max(values)
    assert min(values) <= found.mean_s <= found.max_s
    assert found.count == len(values)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A run, whole or interrupted: what ended, what is in flight, what was not sent."""
    run = Run()
    indices = draw(st.lists(st.integers(0, 40), unique=True))
    run.begin(max(indices, default=0) + draw(st.integers(1, 5)))
    assert run.begun_at is not None
    run.begun_at = 0.0
    for index in indices:
        intended, late, took = draw(SECONDS), draw(SECONDS), draw(SECONDS)
        outcome: Outcome | None = draw(
            st.sampled_from(["succeeded", "failed", "refused", "unanswered", None])
        )
        run.in_flight[index] = (intended, intended + late)
        if outcome is not None:
            cause = "" if outcome == "succeeded" else f"{outcome}: {draw(st.sampled_from('ab'))}"
            usage = {"calls": draw(st.integers(0, 9)), "retries": 1}
            document = {"usage": usage} if outcome == "succeeded" else None
            ended = intended + late + took
            response = Response(
                outcome, index, document, cause, cause, intended, intended + late, ended
            )
            run.take(index, response)
    run.ended_at = max([0.0, *(s for _, s in run.in_flight.values())]) + 1e7
    return run


@given(runs())
def test_every_request_is_counted_once(run: Run) -> None:
    """Always: all that were asked for = succeeded + failed by cause + in flight + not sent."""
    report = Report.of(run, {})
    s = report.summary
    assert s.requests == s.succeeded + sum(s.failed.values()) + s.in_flight + s.not_sent
    assert sum(s.failed.values()) == run.failed
    assert len(report.requests) == s.requests - s.not_sent
    assert (s.latency.count if s.latency else 0) == s.succeeded + run.failed
    assert (s.latency_succeeded.count if s.latency_succeeded else 0) == s.succeeded
    assert s.usage["retries"] == s.succeeded
    moments, counts = plots.in_flight(report.requests)
    assert moments == sorted(moments)
    assert (counts[-1] if counts else 0) == s.in_flight


@settings(max_examples=25)
@given(run=runs())
def test_a_report_is_read_as_it_was_written(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`report.json` holds all of it."""
    file = tmp_path_factory.mktemp("report") / "report.json"
    report = Report.of(run, {"pattern": "all", "seed": 4})
    report.write(file)
    assert Report.read(file) == report


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    """The message names the file and what is wrong with it."""
    file = tmp_path / "x.json"
    with pytest.raises(ConfigError, match=r"cannot read .*x\.json: No such file"):
        Report.read(file)
    for text in ("", "[]", '{"settings": {}}', '{"format": "other"}', "\x00"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"x\.json is no report"):
            Report.read(file)
    with pytest.raises(ConfigError, match="cannot write"):
        Report.of(Run(), {}).write(tmp_path / "nowhere" / "x.json")


def some_report(latencies: Sequence[float]) -> Report:
    run = Run()
    run.begin(len(latencies) + 2)
    run.begun_at = 0.0
    for i, latency in enumerate(latencies):
        run.in_flight[i] = (i / 10, i / 10)
        outcome: Outcome = "failed" if i % 7 == 6 else "succeeded"
        cause = "failed: <b>$x" if outcome == "failed" else ""
        run.take(i, Response(outcome, i, None, cause, cause, i / 10, i / 10, i / 10 + latency))
    run.in_flight[len(latencies)] = (0.5, 0.5)
    run.ended_at = 10.0
    return Report.of(run, {"pattern": "<i>"})


def test_two_runs_compare() -> None:
    """Each figure of the one stands beside that of the other, none where there was none."""
    now, then = some_report([0.1, 0.2, 0.3]).summary, some_report([0.2, 0.4]).summary
    rows = {name: (new, old) for name, new, old, _ in compare(now, then)}
    assert rows["p50"] == pytest.approx((0.2, 0.2))
    assert rows["max"] == pytest.approx((0.3, 0.4))
    assert rows["succeeded"] == (3, 2)
    none = {name: old for name, _, old, _ in compare(now, some_report([]).summary)}
    assert (none["p99"], none["tasks/s"]) == (None, 0)


# -- pictures --------------------------------------------------------------------------------------


def test_a_report_is_drawn(tmp_path: Path) -> None:
    """As a page with the figures, with another run behind it; the page runs nothing."""
    file = tmp_path / "r.html"
    plots.check(file)
    report = some_report([0.01 * i for i in range(1, 20)])
    tables = [("causes <b>", ("cause", "failed"), [("failed: <b>$x", 2)])]
    plots.save(report, file, against=some_report([0.3]), tables=tables)
    page = file.read_text()
    assert page.startswith("<!doctype html>")
    assert "failed: &lt;b&gt;$x" in page
    assert [text for text in ("<b>", "<i>", "<script", " src=") if text in page] == []
    assert page.count("<svg") == 1


def test_a_run_without_an_end_is_drawn(tmp_path: Path) -> None:
    """Nothing sent, or all at once and with no end: there is a picture all the same."""
    file = tmp_path / "r.png"
    row, empty = Row(0.0, 0.0, 0.0, "succeeded"), Report.of(Run(), {})
    for report in (empty, Report({}, empty.summary, [row, row])):
        plots.save(report, file, against=empty)
        assert file.read_bytes().startswith(b"\x89PNG")


def test_matplotlib_is_imported_for_drawing_only() -> None:
    """Neither the library nor the command line needs it, or waits for it."""
    code = (
        "import sys, agentos.cli, agentos.loadtest.plots\n"
        "print(sorted({'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_without_matplotlib_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the run, not after it."""
    with pytest.raises(ConfigError, match=r"\.html, \.png, \.svg"):
        plots.check(tmp_path / "r.pdf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        plots.check(tmp_path / "r.png")
