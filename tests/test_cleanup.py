"""`agentos cleanup` and `agentos restart`: what they find in a data folder, and whose it is."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from agentos.cli import main
from agentos.core.errors import AddressTaken, AgentOSError, ConfigError
from agentos.datadir import ClusterRecord, DataFolder, RoleProcess, cleanup, restart
from tests.processes import ANY

pytestmark = pytest.mark.processes


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def test_cleanup(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`cleanup` ends what is left of a crashed cluster, and only that."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    deafen = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    stubborn = [
        sys.executable,
        "-c",
        f"import signal, time; {deafen}; print(flush=True); time.sleep(600)",
    ]
    with (
        subprocess.Popen(sleeper) as left,
        subprocess.Popen(stubborn, stdout=subprocess.PIPE) as deaf,
        subprocess.Popen(sleeper) as other,
        subprocess.Popen(["true"]) as ended,
    ):
        assert deaf.stdout is not None
        deaf.stdout.readline()
        records = {"region/r1": left.pid, "proxy/r1/1": deaf.pid, "proxy/r1/2": other.pid}
        roles = [RoleProcess.of(name, pid) for name, pid in records.items()]
        assert all(roles)
        found = [role for role in roles if role is not None]
        # The last one's pid is another process by now: it started at another time.
        found[2] = RoleProcess(
            name=found[2].name, pid=other.pid, started=1.0, command=found[2].command
        )
        supervisor = RoleProcess(name="up", pid=ended.pid, started=1.0, command=("true",))
        with DataFolder(data) as folder:
            record = ClusterRecord(url=ANY, supervisor=supervisor, roles=tuple(found))
            folder.write(record)
        fates = cleanup(data, grace_s=0.5)
        assert fates == {"region/r1": "ended", "proxy/r1/1": "killed", "proxy/r1/2": "gone"}
        assert other.poll() is None
        other.kill()
    with DataFolder(data) as folder:
        folder.write(record)
    assert main(["cleanup", "--data", data]) == 0
    assert "proxy/r1/1: had ended already\n" in capsys.readouterr().out
    assert main(["cleanup", "--data", data]) == 0
    assert "nothing was left behind" in capsys.readouterr().out
    assert main(["cleanup", "--data", data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {}


def test_a_process_is_known_again_when_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells of the boot by the wall clock; a process is told by what does not move."""
    known = RoleProcess.of("up", os.getpid())
    assert known is not None
    booted = psutil._psplatform.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: booted + 10.0)
    assert psutil.boot_time() == booted + 10.0
    assert known.find() is not None
    assert msgspec.structs.replace(known, boot="another").find() is None
    assert msgspec.structs.replace(known, started=known.started - 1.0).find() is None


def test_cleanup_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there, or whose cluster.json is damaged, is an error."""
    assert main(["cleanup", "--data", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(ConfigError, match="is not a list of a cluster's processes"):
        cleanup(tmp_path)


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    """The folder belongs to one until it closes it."""
    with DataFolder(tmp_path) as folder:
        folder.tell("tcp://here")
        with pytest.raises(AddressTaken, match=rf"process {os.getpid()}, a cluster at tcp://here"):
            DataFolder(tmp_path)
    DataFolder(tmp_path).close()


def test_restart_of_roles_that_have_died(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role that is in no record, having just died, is awaited, or named with the way out."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    supervisor = RoleProcess.of("up", os.getpid())
    assert supervisor is not None
    with DataFolder(data) as folder, contextlib.ExitStack() as stack:
        old, new, other = (stack.enter_context(subprocess.Popen(sleeper)) for _ in range(3))
        for each in (old, new, other):
            stack.callback(each.kill)

        def write(**pids: int) -> None:
            roles = (RoleProcess.of(f"proxy/r1/{name}", pid) for name, pid in pids.items())
            found = tuple(role for role in roles if role is not None)
            folder.write(ClusterRecord(url=ANY, supervisor=supervisor, roles=found))

        write(a=old.pid, b=other.pid)
        steps = restart(data, ["proxy/*"], timeout_s=30.0)
        assert next(steps)[0] == "stops"
        write(b=other.pid)
        with monkeypatch.context() as patch:  # it is back after the first look
            patch.setattr(time, "sleep", lambda _s: write(a=new.pid))
            what, process = next(steps)
        assert (what, process.pid) == ("back", new.pid)
        with pytest.raises(AgentOSError, match=r"proxy/r1/b has just died, .* ask .* again"):
            next(steps)


# -- cleanup ---------------------------------------------------------------------------------------


def test_the_folder_of_restart_and_cleanup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both look where `up` does: in what --data names, else AGENTOS_DATA, else agentos.toml."""
    monkeypatch.chdir(tmp_path)
    for folder in ("file", "env", "option"):
        (tmp_path / folder).mkdir()

    def look(folder: str, *arguments: str) -> None:
        assert main(["cleanup", *arguments]) == 0
        assert capsys.readouterr().out == f"{folder}: nothing was left behind\n"
        assert main(["restart", *arguments]) == 2
        assert capsys.readouterr().err.endswith(f" on the data folder {folder}\n")

    (tmp_path / "agentos.toml").write_text('[cluster]\ndata = "file"\n')
    look("file")
    monkeypatch.setenv("AGENTOS_DATA", "env")
    look("env")
    look("option", "--data", "option")
