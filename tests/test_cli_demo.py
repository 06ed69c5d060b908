"""`agentos demo`: what it shows, and that it leaves nothing behind."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentos.cli import main
from agentos.cli.article import ARTICLE
from tests.commands import own_settings
from tests.processes import AGENTOS

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No setting of whoever runs the tests counts, and logging is as it was afterwards."""
    with own_settings(monkeypatch, tmp_path):
        yield


def test_the_demo_graph_is_in_the_package() -> None:
    """An installed wheel has the same demo as the checkout."""
    example = (ROOT / "examples" / "graphs" / "article.json").read_text()
    assert json.loads(ARTICLE) == json.loads(example)


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


def test_a_graph_that_the_demo_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A graph of agents that nobody will offer is refused at once, instead of waiting for ever."""
    monkeypatch.chdir(tmp_path)
    node = {"agent": "poet", "prompt": "x"}
    (tmp_path / "graph.json").write_text(json.dumps({"nodes": {"a": node}}))
    assert main(["demo", "--graph", "graph.json"]) == 2
    assert "'poet', and the demo offers 'writer'" in capsys.readouterr().err


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
