"""The command line without a cluster: what it checks and explains, and what it refuses."""

import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos.cli import main
from tests.commands import graph_file, own_settings
from tests.processes import DIAMOND


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No setting of whoever runs the tests counts, and logging is as it was afterwards."""
    with own_settings(monkeypatch, tmp_path):
        yield


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
    """A node's schema that is no JSON Schema is refused, with its place, before anything is sent."""
    node = {"agent": "echo", "prompt": "hi", "schema": schema}
    (tmp_path / "graph.json").write_text(json.dumps({"nodes": {"c": node}}))
    for command in ("check", "submit"):
        assert main([command, "graph.json"]) == 2
        assert capsys.readouterr().err.startswith(f"error: nodes.c.schema{said}")


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


@pytest.mark.processes
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_without_standard_streams(closed: str) -> None:
    """A service may be started without them."""
    for command in ("version", "check --help"):
        shell = f'exec "$0" -m agentos {command} {closed}'
        done = subprocess.run(["sh", "-c", shell, sys.executable], check=False, timeout=60)
        assert done.returncode == 0


def test_debug(capsys: pytest.CaptureFixture[str]) -> None:
    """There is a traceback with --debug, wherever it stands, and none without."""
    assert main(["check", "nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["check", "nowhere"]) == 2
    assert "Traceback" not in capsys.readouterr().err


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
