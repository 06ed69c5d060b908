"""What `agentos up` refuses to start on: one clear line, and nothing is left behind."""

import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from agentos.cli import main
from tests.processes import ANY, Up, refused, role, starter, up

pytestmark = pytest.mark.processes


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start `agentos` with these arguments; it is ended after the test."""
    with starter(tmp_path) as start:
        yield start


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def test_folder_in_use(start: Callable[..., Up], data: str) -> None:
    """A data folder in use by a living cluster is refused, naming its process and URL."""
    cluster, _ = up(start, data)
    said = refused("up", "--data", data, "--listen", ANY)
    assert f"is in use by process {cluster.process.pid}" in said
    assert f"error: the data folder {data} is in use" in refused("gateway", "--data", data)


def test_folder_of_a_crash(start: Callable[..., Up], data: str) -> None:
    """Where what has the folder was left behind by a crash, the way out is another one."""
    cluster, record = up(start, data)
    os.kill(role(record, "gateway/main"), signal.SIGSTOP)  # it cannot see that its parent is gone
    cluster.process.kill()
    cluster.process.wait()
    said = refused("up", "--data", data, "--listen", ANY)
    assert "is in use by what a crash left behind: `agentos cleanup` ends that" in said
    assert main(["cleanup", "--data", data]) == 0
    start("up", "--data", data, "--listen", ANY, "--json").json()


def test_port_taken(data: str) -> None:
    """A port that somebody listens on is one clear error, and nothing is left running."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        assert url in refused("up", "--data", data, "--listen", url)
    mine = [p for p in psutil.process_iter(["cmdline"]) if data in (p.info["cmdline"] or ())]
    assert mine == []
    assert not (Path(data) / "cluster.json").exists()


def test_data_is_a_file(tmp_path: Path) -> None:
    """A data folder that is a file is refused, and so is one that nobody can make."""
    (tmp_path / "file").write_text("")
    said = refused("up", "--data", str(tmp_path / "file"), "--listen", ANY)
    assert "as data folder: File exists" in said
    said = refused("up", "--data", str(tmp_path / "file" / "below"), "--listen", ANY)
    assert "as data folder: Not a directory" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    """A data folder without permission is refused with that word."""
    (tmp_path / "closed").mkdir(mode=0o500)
    said = refused("up", "--data", str(tmp_path / "closed" / "data"), "--listen", ANY)
    assert "Permission denied" in said


def test_disk_full(data: str) -> None:
    """Where nothing can be written any more, one line says so."""

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    said = refused("up", "--data", data, "--listen", ANY, preexec_fn=no_room)
    assert f"cannot use {data} as data folder: " in said


def test_not_our_database(data: str) -> None:
    """A database that is not ours is refused, not overwritten."""
    Path(data).mkdir()
    (Path(data) / "agentos.db").write_text("my diary")
    said = refused("up", "--data", data, "--listen", ANY)
    assert "not an SQLite database" in said
    assert (Path(data) / "agentos.db").read_text() == "my diary"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[cluster]\nproxeis = 2\n", ':2: cluster.proxeis: unknown key; did you mean "proxies"?'),
        ('[agents.w]\ntype = "openai"\n', ":1: agents.w: model is missing"),
        ('[agents.w]\ntype = "openai"\nmodel = "m"\n', "environment variable OPENAI_API_KEY"),
        ('[agents.w]\ntype = "function"\npath = "nowhere:f"\n', "no module 'nowhere'"),
        ('[agents.w]\ntype = "echo"\nonly = ["r9/1"]\n', "matches none of the proxies"),
    ],
)
def test_bad_configuration(
    tmp_path: Path,
    data: str,
    text: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever is wrong with the configuration stops `up` before it serves anybody."""
    file = tmp_path / "agentos.toml"
    file.write_text(text)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(["up", "--data", data, "--listen", ANY, "--config", str(file)]) == 2
    out, errors = capsys.readouterr()
    assert (out, errors.count("\n")) == ("", 1)
    assert errors.startswith("error: ")
    assert said in errors
