"""The command line: what it prints, to whom, and its exit codes."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from agentos import Cluster, EchoAgent, FunctionAgent, logs
from agentos.cli import main
from agentos.cli.article import ARTICLE
from agentos.cli.progress import TaskView, sentence
from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.graph import parse_graph
from agentos.core.limits import Limits

ROOT = Path(__file__).parents[1]
DIAMOND = str(ROOT / "examples" / "graphs" / "diamond.json")
AGENTOS = [sys.executable, "-m", "agentos"]


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
    for name in [name for name in os.environ if name.startswith("AGENTOS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield
    structlog.reset_defaults()


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a client command; returns its exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        logs.configure("error")  # the cluster is in this process, and may have something to say
        capsys.readouterr()
        code = main([*arguments, "--url", url])
        return code, *capsys.readouterr()

    return run


def graph_file(folder: Path, agent: str) -> str:
    file = folder / f"{agent}.json"
    file.write_text(json.dumps({"nodes": {"a": {"agent": agent, "prompt": "hi", "retries": 0}}}))
    return str(file)


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


# -- without a cluster -----------------------------------------------------------------------------


def test_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`check` shows a graph's layers and agents, or what is wrong with it, without a cluster."""
    assert main(["check", DIAMOND]) == 0
    assert "5 nodes in 3 layers, agents: echo, output: end" in capsys.readouterr().out
    assert main(["check", DIAMOND, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["layers"] == [["start"], ["left", "middle", "right"], ["end"]]
    bad = tmp_path / "bad.json"
    bad.write_text('{"nodes": {"a": {"agent": "echo", "prompt": "x", "sample": 2}}}')
    assert main(["check", str(bad)]) == 2
    assert capsys.readouterr().err.startswith("error: nodes.a.sample: unknown field; did you mean")
    (tmp_path / "agentos.toml").write_text("[limits]\nmax_nodes = 2\n")
    assert main(["check", DIAMOND]) == 2
    assert main(["check", graph_file(tmp_path, "echo")]) == 0
    assert ": 1 node in 1 layer, agents: echo" in capsys.readouterr().out


def test_check_of_agents(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`check` warns of agents that the configuration at hand does not offer."""
    assert main(["check", DIAMOND]) == 0
    assert capsys.readouterr().err == ""
    (tmp_path / "agentos.toml").write_text('[agents.ecko]\ntype = "echo"\n')
    assert main(["check", DIAMOND]) == 0
    warning = "warning: agentos.toml offers no agent named 'echo'; did you mean \"ecko\"?\n"
    assert capsys.readouterr().err == warning


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": {"x": {"type": "strng"}}}, ".properties.x.type: not a JSON Schema: "),
        ({"type": "odd"}, ".type: not a JSON Schema: "),
        ({"minimum": "1"}, ".minimum: not a JSON Schema: "),
        ({"pattern": "("}, ".pattern: not a JSON Schema: "),
        ({"$schema": [1]}, ".$schema: must be a string"),
    ],
)
def test_check_of_schemas(
    schema: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`check` refuses a node's schema that is no JSON Schema, and says where."""
    node = {"agent": "echo", "prompt": "hi", "schema": schema}
    (tmp_path / "graph.json").write_text(json.dumps({"nodes": {"c": node}}))
    assert main(["check", "graph.json"]) == 2
    assert capsys.readouterr().err.startswith(f"error: nodes.c.schema{said}")


def test_submit_takes_any_schema(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """`submit` does not look into a schema: the node fails at its first answer."""
    node = {"agent": "echo", "prompt": "hi", "schema": {"type": "objct"}}
    (tmp_path / "graph.json").write_text(json.dumps({"nodes": {"c": node}}))
    code, _, errors = run("submit", "graph.json", "--wait")
    assert code == 1
    assert "the node's schema cannot be used, at $.type: not a JSON Schema: 'objct'" in errors


def test_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph may come from standard input, which is called that."""
    graph = Path(DIAMOND).read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(graph)))
    assert main(["check", "-"]) == 0
    assert "standard input: 5 nodes" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert main(["check", "-"]) == 2
    said = "error: cannot read the graph standard input: it is not UTF-8 text"
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    "arguments",
    [
        ["submt"],
        ["status", "x"],
        ["status", "0"],
        ["status", "9" * 30],
        ["list", "--state", "odd"],
        ["list", "--limit", "0"],
        ["list", "--limit", "9" * 30],
        ["submit", DIAMOND, "--type", ""],
        ["submit", DIAMOND, "--key", "k" * 201],
        ["submit", DIAMOND, "--user", "-1"],
        ["submit"],
        ["--nope"],
    ],
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage is one line on standard error and exit code 2."""
    assert main(arguments) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command explains itself and each of its options."""
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("up", "demo", "submit", "cleanup", "Exit codes"):
        assert name in shown
    commands = "up gateway store region proxy submit status result watch cancel list cleanup check"
    for command in commands.split():
        assert main([command, "--help"]) == 0
        assert "Usage: agentos " + command in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`version` names the distribution."""
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "agentos-cluster"
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("agentos-cluster ")


def test_debug(capsys: pytest.CaptureFixture[str]) -> None:
    """There is a traceback with --debug, wherever it stands, and none without."""
    assert main(["check", "nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["check", "nowhere"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_demo_graph_is_in_the_package() -> None:
    """An installed wheel has the same demo as the checkout."""
    example = (ROOT / "examples" / "graphs" / "article.json").read_text()
    assert json.loads(ARTICLE) == json.loads(example)


def test_sentences() -> None:
    """Each event is a line for people: which call, of which node, on which proxy."""
    graph = parse_graph(ARTICLE, Limits())
    view = TaskView(graph)

    def say(
        event: str, node: str = "draft", slot: str = "", round_: int = 0, text: str = ""
    ) -> str:
        message = m.Event(
            task_id=1,
            epoch=Epoch(1, 1),
            event=event,
            node=node,
            slot=slot,
            round=round_,
            proxy="proxy/r1/2",
            text=text,
        )
        view.take(message)
        return sentence(message, view.nodes.get(node))

    assert say("started", node="") == "started on r1/2"
    assert say("call", slot="s0") == "draft: sample 1 -> r1/2"
    assert say("call", slot="v1", round_=2) == "draft: round 2, vote 2 -> r1/2"
    assert say("answer", slot="s2", text="0.10s a\nb") == "draft: sample 3 <- r1/2  0.10s a b"
    assert say("call", node="plan", slot="s0") == "plan: call -> r1/2"
    assert say("node", node="plan", text="x" * 200).startswith("plan: done  xxx")
    assert view.done == 1
    assert say("retry", slot="s0", text="no") == (
        "draft: sample 1 failed on r1/2, is tried again: no"
    )
    assert say("lost", slot="s0") == "draft: sample 1 was lost with r1/2, is placed again"


def test_a_watch_without_the_graph() -> None:
    """A node of which one sample was heard has a call; of which more were, samples."""
    view = TaskView()

    def say(slot: str, round_: int = 1) -> str:
        message = m.Event(
            task_id=1, epoch=Epoch(1, 1), event="call", node="a", slot=slot, round=round_
        )
        view.take(message)
        return sentence(message, view.nodes["a"])

    assert say("s0") == "a: call ->"
    assert say("s1") == "a: sample 2 ->"
    assert say("s0") == "a: sample 1 ->"
    assert say("s0", 2) == "a: round 2, call ->"


def test_why_a_task_waits() -> None:
    """A task without a place says why, once for each reason, and where it is placed at last."""
    view = TaskView()
    waits = m.Event(task_id=1, epoch=Epoch(1, 0), event="placed", text="no region offers ['x']")
    assert not view.knows(waits)
    view.take(waits)
    assert sentence(waits) == "waits to be placed: no region offers ['x']"
    assert view.knows(waits)
    placed = m.Event(task_id=1, epoch=Epoch(1, 1), event="placed", proxy="region/r1")
    assert not view.knows(placed)
    assert sentence(placed) == "placed in r1"


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


def demo(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """The demo, with everything temporary in a folder where one can look for what it leaves."""
    (folder / "tmp").mkdir()
    return subprocess.Popen(
        [*AGENTOS, "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder / "tmp")},
    )


@pytest.mark.processes
def test_demo(tmp_path: Path) -> None:
    """The demo shows each node, the result and what it cost, and leaves nothing behind."""
    (tmp_path / "agentos.toml").write_text('[agents.writer]\ntype = "echo"\ndelay_s = 0.05\n')
    with demo(tmp_path) as process:
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "draft: sample 3 ->" in out
    assert "draft: vote 2 <-" in out
    assert "task 1 succeeded" in out
    assert out.splitlines()[-2].split()[:4] == ["task", "state", "wall", "time"]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.processes
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Ctrl-C and SIGTERM end the demo at once, and leave nothing behind."""
    (tmp_path / "agentos.toml").write_text(
        '[limits]\nstop_grace_s = 0.5\n[agents.writer]\ntype = "echo"\ndelay_s = 120\n'
    )
    with demo(tmp_path) as process:
        assert process.stdout is not None
        while "placed" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, "")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_interrupt_is_one_wherever_it_strikes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while a condition takes its lock back comes out of it as a RuntimeError."""

    class Lock:
        """As `threading.Condition` uses one; Ctrl-C comes just before it is taken back."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self.acquire, self.release = self._lock.acquire, self._lock.release

        def __enter__(self) -> None:
            self.acquire()

        def __exit__(self, *_: object) -> None:
            self.release()

        def _acquire_restore(self, _state: object) -> None:
            signal.raise_signal(signal.SIGINT)

    condition = threading.Condition(Lock())  # type: ignore[arg-type]

    def wait(_file: str) -> str:
        with condition:
            condition.wait(0)
        return ""

    with pytest.raises(RuntimeError, match="unlocked"):
        wait("")
    monkeypatch.setattr("agentos.cli.tasks.read_text", wait)
    assert main(["check", "any.json"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.model
@pytest.mark.processes
def test_demo_on_the_real_model(tmp_path: Path) -> None:
    """The demo starts the small model by itself, and stops it."""
    graph = {"nodes": {"a": {"agent": "writer", "prompt": "Say hello in three words."}}}
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    with demo(tmp_path, "--graph", "graph.json", "--json") as process:
        out, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    response = json.loads(out)
    assert response["output"]
    assert response["usage"]["completion_tokens"] > 0
