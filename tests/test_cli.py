"""The command line: what it prints, to whom, and its exit codes."""

import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from agentos import Cluster, EchoAgent, FunctionAgent, logs
from agentos.cli import main
from agentos.cli.options import gateways
from agentos.core.errors import ConfigError
from agentos.core.limits import Limits
from tests.commands import graph_file, own_settings
from tests.processes import AGENTOS, DIAMOND


def broken(_prompt: str) -> str:
    raise ValueError("[red]no\x1b[31m")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A cluster to talk to, with quick, slow and failing agents."""
    logs.configure("error")
    agents = [EchoAgent(), EchoAgent("slow", delay_s=120), FunctionAgent(broken)]
    limits = Limits(stop_grace_s=0.5)
    with Cluster(agents, proxies=2, listen="tcp://127.0.0.1:*", limits=limits) as cluster:
        yield cluster.url
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No setting of whoever runs the tests counts, and logging is as it was afterwards."""
    with own_settings(monkeypatch, tmp_path):
        yield


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a client command; returns its exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        logs.configure("error")  # the cluster is in this process, and may have something to say
        capsys.readouterr()
        code = main([*arguments, "--url", url])
        return code, *capsys.readouterr()

    return run


# -- tasks -----------------------------------------------------------------------------------------


def test_submit_and_result(run: Callable[..., tuple[int, str, str]]) -> None:
    """`submit` prints the task's number, `result` its output, and nothing else."""
    code, number, errors = run("submit", DIAMOND)
    assert (code, errors) == (0, "")
    assert run("result", number.strip()) == (
        0,
        "left: hello, middle: hello, right: hello\n",
        "",
    )


def test_json(run: Callable[..., tuple[int, str, str]]) -> None:
    """With --json every command prints one JSON document (`watch`: one a line)."""
    code, out, _ = run("submit", DIAMOND, "--json")
    number = str(json.loads(out)["task_id"])
    assert code == 0
    response = json.loads(run("result", number, "--json")[1])
    assert response["state"] == "succeeded"
    assert response["usage"]["calls"] == 5
    waited = json.loads(run("submit", DIAMOND, "--wait", "--json")[1])
    assert waited["output"] == response["output"]
    status = json.loads(run("status", number, "--json")[1])
    assert status["response"]["output"] == response["output"]
    assert json.loads(run("list", "--json")[1])[-1]["task_id"] >= 1
    assert json.loads(run("status", "--cluster", "--json")[1])["regions"]
    events = [json.loads(line) for line in run("watch", number, "--json")[1].splitlines()]
    assert events[-1]["event"] == "ended"
    assert events[-1]["response"]["output"] == response["output"]
    assert json.loads(run("cancel", number, "--json")[1])["state"] == "succeeded"


def test_wait_shows_progress(run: Callable[..., tuple[int, str, str]]) -> None:
    """`submit --wait` shows in a pipe a line for each event, then the result."""
    code, out, _ = run("submit", DIAMOND, "--wait")
    assert code == 0
    assert re.fullmatch(r"task \d+ is accepted", out.splitlines()[0])
    assert out.splitlines()[-1] == "left: hello, middle: hello, right: hello"
    assert out.splitlines()[-2].endswith("succeeded")


def test_a_failed_task(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """A failed task is exit code 1 and says which node; with --json the response says so too."""
    file = graph_file(tmp_path, "broken")
    code, out, errors = run("submit", file, "--wait", "--json")
    assert code == 1
    assert json.loads(out)["error"]["node"] == "a"
    assert errors.startswith("error: task ")
    assert "node 'a'" in errors
    code, out, errors = run("submit", file, "--wait")
    assert (code, "Traceback" in errors) == (1, False)
    assert (out + errors).count("failed: ") == 1  # said once
    assert "\x1b" not in out + errors  # what an agent said never reaches the terminal raw


def test_cancel(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """`cancel` ends a task that runs; its result is exit code 1."""
    number = run("submit", graph_file(tmp_path, "slow"))[1].strip()
    assert run("cancel", number)[:2] == (0, f"task {number} is cancelled\n")
    said = (1, "", f"error: task {number} is cancelled\n")
    assert run("result", number) == said
    assert run("watch", number) == said


def test_cancel_too_late(run: Callable[..., tuple[int, str, str]]) -> None:
    """`cancel` of a task that has ended says how it had ended."""
    number = run("submit", DIAMOND)[1].strip()
    run("result", number)
    assert run("cancel", number)[1] == f"task {number} had already ended: succeeded\n"


def test_a_task_without_agents(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """A task whose agents nobody offers can be watched and cancelled."""
    number = run("submit", graph_file(tmp_path, "nobody"))[1].strip()
    assert run("cancel", number)[1] == f"task {number} is cancelled\n"


def test_result_in_time(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """`result --timeout` gives up with exit code 3; the task goes on."""
    number = run("submit", graph_file(tmp_path, "slow"))[1].strip()
    code, _, errors = run("result", number, "--timeout", "0.1")
    assert code == 3
    assert errors.startswith(f"error: task {number} did not end ")
    assert errors.endswith("it goes on\n")
    assert json.loads(run("status", number, "--json")[1])["state"] in {"accepted", "running"}
    run("cancel", number)


def test_idempotent_submit(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """The same --key is the same task; with another graph it is an error."""
    first = run("submit", DIAMOND, "--key", "k", "--user", "3")[1]
    assert run("submit", DIAMOND, "--key", "k", "--user", "3")[1] == first
    code, _, errors = run("submit", graph_file(tmp_path, "echo"), "--key", "k", "--user", "3")
    assert code == 2
    assert errors.startswith("error: ")


def test_list(run: Callable[..., tuple[int, str, str]]) -> None:
    """`list` shows the newest first, by state and user, and no more than --limit."""
    numbers = [run("submit", DIAMOND, "--user", "9", "--type", "t")[1].strip() for _ in range(3)]
    for number in numbers:
        run("result", number)
    rows = json.loads(run("list", "--user", "9", "--state", "succeeded", "--json")[1])
    assert [str(row["task_id"]) for row in rows] == numbers[::-1]
    assert {row["task_type"] for row in rows} == {"t"}
    assert len(json.loads(run("list", "--limit", "2", "--json")[1])) == 2
    table = run("list", "--user", "9")[1].splitlines()
    assert table[0].split()[:2] == ["task", "state"]
    assert table[1].split()[:2] == [numbers[2], "succeeded"]


def test_status(run: Callable[..., tuple[int, str, str]]) -> None:
    """`status` shows a task, and without a number who is alive in the cluster."""
    number = run("submit", DIAMOND)[1].strip()
    run("result", number)
    assert "state     succeeded\n" in run("status", number)[1]
    shown = run("status")[1]
    assert "proxy/r1/2" in shown
    assert "echo" in shown


def test_no_such_task(run: Callable[..., tuple[int, str, str]]) -> None:
    """A number that no task has is an error at once, for every command that takes one."""
    for command in ("status", "result", "watch", "cancel"):
        code, out, errors = run(command, "999999999")
        assert (code, out) == (2, ""), command
        assert errors.startswith("error: ")
        assert "999999999" in errors


def test_a_bad_graph(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """A graph that cannot be run is refused with its place, and so is a file that is not there."""
    bad = tmp_path / "bad.json"
    bad.write_text('{"nodes": {"a": {"agent": "echo", "prompt": "${b}"}}}')
    code, out, errors = run("submit", str(bad))
    assert (code, out) == (2, "")
    assert errors.startswith("error: nodes.a.prompt: ")
    missing = "error: cannot read the graph nowhere.json: No such file or directory\n"
    assert run("submit", "nowhere.json")[2] == missing
    assert run("submit", graph_file(tmp_path, "nobody"), "--require-agents")[0] == 2


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a cluster every command says so within seconds, with exit code 3."""
    begun = time.monotonic()
    assert main(["submit", DIAMOND, "--url", "tcp://127.0.0.1:1"]) == 3
    assert time.monotonic() - begun < 10
    errors = capsys.readouterr().err
    assert errors.startswith("error: no gateway answered at tcp://127.0.0.1:1 within ")
    assert errors.count("\n") == 1


def test_where_a_cluster_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `agentos.toml` has the gateway listen, if no cluster of this folder is up."""
    monkeypatch.chdir(tmp_path)
    assert gateways("tcp://a:1, tcp://b:2") == ("tcp://a:1", "tcp://b:2")
    assert gateways(None) == ("tcp://127.0.0.1:7170",)
    file = tmp_path / "agentos.toml"
    file.write_text('[cluster]\nlisten = "tcp://0.0.0.0:7999"\n')
    assert gateways(None) == ("tcp://127.0.0.1:7999",)
    monkeypatch.setenv("AGENTOS_LISTEN", "ipc:///run/agentos")
    assert gateways(None) == ("ipc:///run/agentos",)
    monkeypatch.setenv("AGENTOS_LISTEN", "tcp://127.0.0.1:*")
    assert gateways(None) is None, "nobody knows which port it took"
    file.write_text("[clustr]\n")
    with pytest.raises(ConfigError, match=r"agentos.toml:1: clustr"):
        gateways(None)
    assert gateways("tcp://a:1") == ("tcp://a:1",)


# -- processes -------------------------------------------------------------------------------------


@pytest.mark.processes
def test_head(url: str) -> None:
    """A reader that has enough (`| head -1`) ends the command without a word, as SIGPIPE would."""
    command = [*AGENTOS, "submit", "--wait", "--url", url, DIAMOND]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.processes
def test_on_a_terminal(url: str) -> None:
    """On a terminal there are colours and a table that changes in place; `agentos` is a module too."""
    here, there = pty.openpty()
    command = [*AGENTOS, "submit", "--wait", "--url", url, DIAMOND]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
    with subprocess.Popen(
        command, stdout=there, stderr=there, stdin=there, env=environment
    ) as shown:
        os.close(there)
        text = _drain(here)
        assert shown.wait(timeout=30) == 0
    os.close(here)
    assert "\x1b[" in text
    assert "samples" in text
    assert "5/5 nodes" in text
    assert "left: hello, middle: hello, right: hello" in text


def _drain(fd: int) -> str:
    text = b""
    while True:
        try:
            piece = os.read(fd, 65536)
        except OSError:  # Linux says EIO when the other end of a terminal is closed
            piece = b""
        if not piece:
            return text.decode()
        text += piece


@pytest.mark.processes
def test_ctrl_c_detaches(
    url: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """Ctrl-C in `submit --wait` leaves the task running, and says how to follow it."""
    command = [*AGENTOS, "submit", "--wait", "--url", url, graph_file(tmp_path, "slow")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(" is accepted\n")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    number = errors.split()[1]
    assert errors == f"task {number} goes on; follow it with: agentos watch {number}\n"
    assert json.loads(run("status", number, "--json")[1])["state"] in {"accepted", "running"}
    run("cancel", number)
