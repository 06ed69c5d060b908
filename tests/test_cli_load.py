"""`agentos load`: what it sends, prints and writes, and its exit codes."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from agentos import Client, Cluster, EchoAgent, FunctionAgent, logs
from agentos.cli import loadview, main
from agentos.core.limits import Limits
from agentos.loadtest import Report, Run, plots
from tests.processes import eventually

AGENTOS = [sys.executable, "-m", "agentos"]
Run_ = Callable[..., tuple[int, str, str]]


def broken(_prompt: str) -> str:
    raise ValueError("[red]no\x1b[31m")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A cluster to talk to, with quick, slow and failing agents."""
    logs.configure("error")
    agents = [EchoAgent(), EchoAgent("slow", delay_s=120), FunctionAgent(broken)]
    limits = Limits(stop_grace_s=0.2)
    with Cluster(agents, listen="tcp://127.0.0.1:*", limits=limits) as cluster:
        yield cluster.url
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No setting of whoever runs the tests counts; files are written to a folder of the test's."""
    for name in [name for name in os.environ if name.startswith("AGENTOS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield
    structlog.reset_defaults()


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str]) -> Run_:
    """Run `agentos load`, without drawing; returns its exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        logs.configure("error")  # the cluster is in this process, and may have something to say
        capsys.readouterr()
        drawn = () if "--plot" in arguments else ("--no-plot",)
        code = main(["load", *drawn, "--url", url, *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def graph() -> Callable[[str], str]:
    """Write a graph of one node that calls an agent; returns the file's name."""

    def graph(agent: str) -> str:
        node = {"agent": agent, "prompt": "hi there", "retries": 0}
        Path(f"{agent}.json").write_text(json.dumps({"nodes": {"a": node}}))
        return f"{agent}.json"

    return graph


@pytest.mark.parametrize(
    "options",
    [
        ["--pattern", "all"],
        ["--pattern", "interval", "--interval", "0.001:0.002", "--seed", "3"],
        ["--pattern", "batch", "--interval", "0.001", "--batch", "4", "--poll", "0.02"],
        ["--pattern", "dynamic", "--interval", "0:0.002", "--batch", "1:5", "--timeout", "30"],
    ],
    ids=lambda options: options[1],
)
def test_each_pattern(run: Run_, graph: Callable[[str], str], options: list[str]) -> None:
    """It ends with a table of everything, and a report that has every request."""
    code, out, errors = run("--graph", graph("echo"), "-n", "12", *options)
    assert (code, errors) == (0, "the report is in report.json\n")
    requests, latency, cost = out.split("\n\n")
    assert requests.splitlines()[1].split()[:5] == ["12", "12", "0", "0", "0"]
    assert latency.splitlines()[0].split() == [
        *["latency", "count", "mean", "p50", "p90", "p99", "max"]
    ]
    assert latency.splitlines()[1].startswith("all that ended  12 ")
    assert cost.splitlines()[1].split()[:4] == ["12", "0", "24", "24"]
    report = Report.read(Path("report.json"))
    assert report.settings["pattern"] == options[1]
    assert report.summary.usage["prompt_tokens"] == 24
    assert {row.outcome for row in report.requests} == {"succeeded"}
    assert len({row.task_id for row in report.requests}) == 12
    if "--seed" in options:
        assert report.settings["seed"] == 3
    if "--batch" in options:
        assert report.settings["batch"] == [4, 4] if "4" in options else [1, 5]


def test_the_schedule_can_be_repeated(run: Run_, graph: Callable[[str], str]) -> None:
    """A seed that was not given is in the report, and gives the same schedule again."""
    options = ["--graph", graph("echo"), "-n", "9", "--pattern", "dynamic"]
    options += ["--interval", "0.001:0.02", "--batch", "1:4"]
    assert run(*options)[0] == 0
    first = Report.read(Path("report.json"))
    assert run(*options, "--seed", str(first.settings["seed"]))[0] == 0
    again = Report.read(Path("report.json"))
    due = [[row.intended_s for row in report.requests] for report in (first, again)]
    assert due[0] == pytest.approx(due[1], abs=1e-6)


@pytest.mark.parametrize("form", ["array", "lines"])
def test_requests_from_a_file(run: Run_, url: str, form: str) -> None:
    """Each has its user, type, key and graph; with -n the file begins again."""
    task = {"nodes": {"a": {"agent": "echo", "prompt": form}}}
    requests = [
        {"task_description": task, "user_id": 7, "task_type": form, "key": f"k-{form}"},
        {"task_description": json.dumps(task), "task_type": form},
    ]
    lines = "\n".join(map(json.dumps, requests)) + "\n"
    Path("in").write_text(json.dumps(requests) if form == "array" else lines)
    assert run("--requests", "in")[0] == 0
    assert Report.read(Path("report.json")).summary.succeeded == 2
    assert run("--requests", "in", "-n", "5")[0] == 0
    rows = Report.read(Path("report.json")).requests
    assert len({row.task_id for row in rows}) == 3  # the key names one task, three times
    with Client(url) as client:
        found = [task for task in client.list(limit=1000) if task.task_type == form]
    assert max((task.user_id, (task.key or "")[:2]) for task in found) == (7, "k-")
    assert len(found) == 1 + 1 + 2


def test_failures_are_counted_by_cause(run: Run_, graph: Callable[[str], str]) -> None:
    """A task that failed, and one that was refused, are exit code 1 and say why; nothing raises."""
    documents = [json.loads(Path(graph(name)).read_text()) for name in ("echo", "broken")]
    documents += [documents[1], {"nodes": {}}]
    requests = [{"task_description": document} for document in documents]
    Path("in").write_text(json.dumps(requests))
    code, out, errors = run("--requests", "in", "--report", "r.json")
    assert (code, errors) == (1, "the report is in r.json\n")
    summary = Report.read(Path("r.json")).summary
    (broke, twice), (refused, once) = summary.failed.items()
    assert (twice, once, summary.succeeded) == (2, 1, 1)
    assert broke in out
    assert "ValueError" in broke
    assert refused.startswith("refused: bad_graph: nodes")
    assert "\nsucceeded       1 " in out  # the latency of those that did succeed, alone
    code, out, _ = run("--requests", "in", "--json")
    assert (code, json.loads(out)["summary"]["failed"]) == (1, summary.failed)


def test_against_an_earlier_report(run: Run_, graph: Callable[[str], str]) -> None:
    """Two runs stand side by side; the earlier report may be the file that is written anew."""
    assert run("--graph", graph("echo"), "-n", "4")[0] == 0
    code, out, _ = run("--graph", "echo.json", "-n", "8", "--against", "report.json")
    rows = {line.split()[0]: line.split()[1:] for line in out.split("\n\n")[-1].splitlines()}
    assert code == 0
    assert rows["figure"] == ["now", "then", "change"]
    assert rows["succeeded"] == ["8", "4", "+100.0", "%"]
    assert rows["failed"] == ["0", "0"]
    assert {"tasks/s", "mean", "p50", "p90", "p99", "max", "retries"} < set(rows)
    assert Report.read(Path("report.json")).summary.requests == 8
    code, out, _ = run("--graph", "echo.json", "-n", "2", "--against", "report.json", "--json")
    document = json.loads(out)
    assert document["summary"]["requests"] == 2
    assert document["against"]["summary"]["requests"] == 8


def test_it_is_drawn(run: Run_, graph: Callable[[str], str]) -> None:
    """`--plot` names a page or a picture; the page has the tables too."""
    code, _, errors = run("--graph", graph("echo"), "-n", "5", "--plot", "r.html")
    assert (code, errors) == (0, "the report is in report.json and r.html\n")
    page = Path("r.html").read_text()
    assert "tasks/s" in page
    assert "<svg" in page


def test_without_the_library_there_is_a_report_all_the_same(
    url: str,
    graph: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is drawn; who asks for it is told what to install, before anything is sent."""
    monkeypatch.setattr(plots, "available", lambda: False)
    command = ["load", "--graph", graph("echo"), "-n", "2", "--url", url]
    assert main(command) == 0
    assert [file.name for file in Path.cwd().glob("report*")] == ["report.json"]
    Path("report.json").unlink()
    assert main([*command, "--plot", "r.png"]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not Path("report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--graph FILE or with --requests FILE"),
        (["--graph", "echo.json", "--requests", "echo.json"], "--graph FILE or with"),
        (["--graph", "missing.json"], "cannot read the graph missing.json"),
        (["--requests", "missing.json"], "missing.json"),
        (["--requests", "empty"], "no request in it"),
        (["--requests", "words"], "neither a JSON array nor an object a line"),
        (["--requests", "echo.json"], "echo.json: request 1: "),
        (["--graph", "echo.json", "--pattern", "burst"], "burst"),
        (["--graph", "echo.json", "-n", "0"], "0 is not a number from 1"),
        (["--graph", "echo.json", "-n", "many"], "many is not a number"),
        (["--graph", "echo.json", "--pattern", "interval", "--interval", "2:1"], "2:1"),
        (["--graph", "echo.json", "--pattern", "interval", "--interval", "nan"], "nan"),
        (["--graph", "echo.json", "--interval", "1"], "--interval is for"),
        (["--graph", "echo.json", "--batch", "1"], "--batch is for"),
        (["--graph", "echo.json", "--pattern", "batch", "--batch", "2:3"], "one size"),
        (["--graph", "echo.json", "--pattern", "batch", "--batch", "1.5"], "whole numbers"),
        (["--graph", "echo.json", "--poll", "0"], "0 is not a number of seconds above 0"),
        (["--graph", "echo.json", "--against", "missing.json"], "cannot read missing.json"),
        (["--graph", "echo.json", "--against", "echo.json"], "echo.json is no report"),
        (["--graph", "echo.json", "--report", "no/where.json"], "there is no folder no"),
        (["--graph", "echo.json", "--report", "folder"], "folder: this cannot be written"),
        (["--graph", "echo.json", "--plot", "r.pdf"], "r.pdf: a plot is one of"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_wrong_input(
    run: Run_, graph: Callable[[str], str], arguments: list[str], said: str
) -> None:
    """It is exit code 2 and a message that names it, before anything is sent or written."""
    graph("echo")
    Path("empty").write_text("\n")
    Path("words").write_text("hello\n")
    Path("folder").mkdir()
    code, out, errors = run(*arguments)
    assert (code, out) == (2, "")
    assert errors.startswith("error: ")
    assert said in errors
    assert not Path("report.json").exists()


def test_nobody_answers(
    run: Run_, graph: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cluster it is exit code 3, and there is no report."""
    monkeypatch.setattr("agentos.client.CONNECT_S", 0.2)
    code, out, errors = run("--graph", graph("echo"), "--url", "tcp://127.0.0.1:9")
    assert (code, out) == (3, "")
    assert "no gateway answered at tcp://127.0.0.1:9" in errors
    assert not Path("report.json").exists()


@pytest.mark.processes
def test_ctrl_c_shows_what_there_is(url: str, graph: Callable[[str], str]) -> None:
    """The table and the report have what has ended by then, and say what goes on."""
    documents = [json.loads(Path(graph(name)).read_text()) for name in ("echo", "slow", "echo")]
    requests = [{"task_description": document, "task_type": "marked"} for document in documents]
    Path("in").write_text(json.dumps(requests))
    command = [*AGENTOS, "load", "--requests", "in", "--url", url, "--no-plot"]
    command += ["--pattern", "batch", "--batch", "2", "--interval", "60"]
    with Client(url) as client:

        def one_of_two_has_ended() -> bool:
            states = [t.state for t in client.list(limit=1000) if t.task_type == "marked"]
            return len(states) == 2 and "succeeded" in states

        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            # What the client has been told by then is its own affair: it counts as in flight.
            assert eventually(one_of_two_has_ended)
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=30)
        for task in client.list(limit=1000):
            if task.task_type == "marked":
                client.task(task.task_id).cancel()
    assert process.returncode == 130
    summary = Report.read(Path("report.json")).summary
    assert (summary.requests, summary.not_sent, summary.failed) == (3, 1, {})
    assert summary.succeeded + summary.in_flight == 2
    assert summary.in_flight >= 1
    assert out.splitlines()[1].split()[0] == "3"
    assert "1 of 3 were not sent" in errors
    assert "will go on" in errors


@pytest.mark.processes
def test_on_a_terminal(url: str, graph: Callable[[str], str]) -> None:
    """On a terminal a bar shows how it goes, and the tables follow."""
    here, there = pty.openpty()
    command = [*AGENTOS, "load", "--graph", graph("echo"), "-n", "40", "--url", url, "--no-plot"]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "150"}
    with subprocess.Popen(
        command, stdout=there, stderr=there, stdin=there, env=environment
    ) as shown:
        os.close(there)
        text = b""
        while True:
            try:
                text += os.read(here, 65_536)
            except OSError:  # its end, for a terminal
                break
        assert shown.wait(timeout=30) == 0
    os.close(here)
    assert b"40/40 done" in text
    assert b"0 in flight" in text
    assert b"p99" in text
    assert b"completion tokens" in text


def test_the_line_of_progress() -> None:
    """Done, in flight, failed, rate and percentiles; before the start, that it connects."""
    run = Run()
    assert loadview.progress(run) == "connecting …"
    run.begin(4)
    assert loadview.progress(run).startswith("0/4 done  0 in flight  0 failed  ")
    assert [loadview.duration(s) for s in (0.00321, 0.5, 1, 75)] == [
        "3.2 ms",
        "500.0 ms",
        "1.00 s",
        "75.00 s",
    ]


def test_many_causes_are_cut() -> None:
    """The table shows the most frequent causes, and how many others there are."""
    empty = Report.of(Run(), {})
    failed = {f"failed: {i}": 20 - i for i in range(15)}
    fields = {name: getattr(empty.summary, name) for name in vars(empty.summary)}
    summary = type(empty.summary)(**{**fields, "failed": failed, "requests": sum(failed.values())})
    causes = {title: rows for title, _, rows in loadview.tables(Report({}, summary, []), None)}[
        "failed by cause"
    ]
    assert len(causes) == loadview.MOST_CAUSES + 1
    assert causes[-1][0] == "5 other causes"
    assert sum(int(str(number)) for _, number in causes) == sum(failed.values())
