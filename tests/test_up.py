"""`agentos up` and the role commands: real processes, started, watched, killed and stopped."""

import contextlib
import fcntl
import json
import os
import pty
import resource
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agentos.cli import main
from agentos.core.errors import AddressTaken, ConfigError
from agentos.datadir import ClusterRecord, DataFolder, RoleProcess, cleanup

pytestmark = pytest.mark.processes

AGENTOS = [sys.executable, "-m", "agentos"]
DIAMOND = str(Path(__file__).parents[1] / "examples" / "graphs" / "diamond.json")
ANY = "tcp://127.0.0.1:*"


def eventually(condition: Callable[[], bool], within_s: float = 30.0) -> bool:
    """Wait for a condition, up to a deadline."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class Up:
    """An `agentos` process, with its log in a file."""

    def __init__(self, folder: Path, *arguments: str, **options: Any) -> None:
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*AGENTOS, *arguments], stdout=subprocess.PIPE, stderr=log, text=True, **options
            )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def json(self) -> dict[str, Any]:
        line = self.line()
        assert line, self.log.read_text()
        return json.loads(line)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def close(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.end()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start `agentos` with these arguments; it is ended after the test."""
    started: list[Up] = []

    def start(*arguments: str, **options: Any) -> Up:
        folder = tmp_path / f"process{len(started)}"
        folder.mkdir()
        started.append(Up(folder, *arguments, **options))
        return started[-1]

    yield start
    for up in reversed(started):
        up.close()


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def up(start: Callable[..., Up], data: str, *more: str) -> tuple[Up, dict[str, Any]]:
    """A small cluster that is ready, and its record."""
    process = start("up", "--proxies", "1", "--data", data, "--listen", ANY, "--json", *more)
    return process, process.json()


def role(record: dict[str, Any], name: str) -> int:
    return next(found["pid"] for found in record["roles"] if found["name"] == name)


def test_the_main_job(
    start: Callable[..., Up], data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`up` runs tasks, lists every process in cluster.json, and SIGTERM stops all of them."""
    cluster, record = up(start, data)
    on_disk = json.loads((Path(data) / "cluster.json").read_text())
    assert on_disk == record
    assert [found["name"] for found in record["roles"]] == [
        "gateway/main",
        "region/r1",
        "proxy/r1/1",
    ]
    assert record["supervisor"]["pid"] == cluster.process.pid
    assert record["roles"][0]["address"] == record["url"]
    url = ("--url", record["url"])
    assert main(["submit", DIAMOND, *url]) == 0
    number = capsys.readouterr().out.strip()
    assert main(["result", number, *url]) == 0
    assert capsys.readouterr().out == "left: hello, middle: hello, right: hello\n"
    assert main(["list", "--json", *url]) == 0
    assert [task["state"] for task in json.loads(capsys.readouterr().out)] == ["succeeded"]
    assert main(["cleanup", "--data", data]) == 2
    assert "is running" in capsys.readouterr().err
    assert cluster.end() == 0
    assert all(gone(found["pid"]) for found in record["roles"])
    assert not (Path(data) / "cluster.json").exists()


def test_killed_parent(start: Callable[..., Up], data: str) -> None:
    """Kill -9 of `up` leaves no process behind, and the next `up` has the tasks."""
    cluster, record = up(start, data)
    assert main(["submit", DIAMOND, "--wait", "--url", record["url"]]) == 0
    cluster.end(signal.SIGKILL)
    assert eventually(lambda: all(gone(found["pid"]) for found in record["roles"]))
    _, record = up(start, data)
    assert main(["result", "1", "--timeout", "20", "--url", record["url"]]) == 0


def test_killed_roles(start: Callable[..., Up], data: str) -> None:
    """A role that dies is reported and started again, at its address, and tasks run again."""
    cluster, record = up(start, data)
    killed = {name: role(record, name) for name in ("gateway/main", "region/r1", "proxy/r1/1")}
    for pid in killed.values():
        os.kill(pid, signal.SIGKILL)

    def restarted() -> bool:
        return cluster.log.read_text().count('"role_restarted"') == len(killed)

    assert eventually(restarted)
    now = json.loads((Path(data) / "cluster.json").read_text())
    assert [r["address"] for r in now["roles"]] == [r["address"] for r in record["roles"]]
    assert not {r["pid"] for r in now["roles"]} & set(killed.values())
    assert main(["submit", DIAMOND, "--wait", "--url", record["url"]]) == 0
    events = [json.loads(line) for line in cluster.log.read_text().splitlines()]
    deaths = {e["role"]: e for e in events if e["event"] == "role_died"}
    assert {name: event["pid"] for name, event in deaths.items()} == killed
    assert deaths["proxy/r1/1"]["status"] == "was ended by SIGKILL"


def test_a_lost_cluster(start: Callable[..., Up], data: str, tmp_path: Path) -> None:
    """`submit --wait` that loses its cluster says that the task goes on, and no log lines."""
    file = tmp_path / "graph.json"
    file.write_text(json.dumps({"nodes": {"a": {"agent": "nobody", "prompt": "hi"}}}))
    cluster, record = up(start, data)
    waiting = start("submit", str(file), "--wait", "--url", record["url"])
    assert waiting.line() == "task 1 is accepted\n"
    cluster.end()
    assert waiting.process.wait(timeout=60) == 3
    goes_on, error = waiting.log.read_text().splitlines()
    assert goes_on == "task 1 goes on; follow it with: agentos watch 1"
    assert error.startswith("error: no gateway answered at ")


def test_logs_for_people(start: Callable[..., Up], data: str) -> None:
    """Without --json the log is readable text without colours, in a pipe too."""
    process = start("gateway", "--data", data, "--listen", ANY)
    assert process.line().startswith("gateway/main is ready at ")
    assert process.end() == 0
    log = process.log.read_text()
    assert "role_stops" in log
    assert "role=gateway/main" in log
    assert "\x1b" not in log


def test_the_budget(start: Callable[..., Up], data: str) -> None:
    """A role that dies again and again stops the cluster, with a clear error and nothing left."""
    cluster, record = up(start, data)
    seen: set[int] = set()

    def kill_again() -> bool:
        if cluster.process.poll() is not None:
            return True
        for process in psutil.Process(cluster.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if process.pid not in seen and "proxy/r1/1" in process.cmdline():
                    seen.add(process.pid)
                    process.kill()
        return False

    with contextlib.suppress(psutil.NoSuchProcess):
        assert eventually(kill_again, within_s=60)
    assert cluster.process.wait(timeout=30) == 1
    assert "error: proxy/r1/1 (process" in cluster.log.read_text()
    assert "restarted 5 times within 60 s" in cluster.log.read_text()
    assert all(gone(found["pid"]) for found in record["roles"])


def test_ctrl_c(data: str) -> None:
    """Ctrl-C on a terminal reaches only `up`, which stops the roles in order: exit code 0."""
    here, there = pty.openpty()
    process = subprocess.Popen(
        [*AGENTOS, "up", "--proxies", "1", "--data", data, "--listen", ANY],
        stdin=there,
        stdout=there,
        stderr=there,
        start_new_session=True,
        preexec_fn=_take_terminal,  # noqa: PLW1509 - the child only execs
    )
    os.close(there)
    text = ""
    while "agentos is ready at tcp://127.0.0.1:" not in text:
        text += os.read(here, 65536).decode()
    pids = [
        found["pid"] for found in json.loads((Path(data) / "cluster.json").read_text())["roles"]
    ]
    assert os.getpgid(process.pid) not in map(os.getpgid, pids)
    os.write(here, b"\x03")
    assert process.wait(timeout=30) == 0
    assert all(map(gone, pids))
    with contextlib.suppress(OSError):
        text += os.read(here, 65536).decode()
    os.close(here)
    assert "error" not in text
    assert "Traceback" not in text


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


# -- what cannot start -----------------------------------------------------------------------------


def refused(*arguments: str, **options: Any) -> str:
    """The error of a command that must fail with exit code 2, in one line."""
    done = subprocess.run(
        [*AGENTOS, *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_folder_in_use(start: Callable[..., Up], data: str) -> None:
    """A data folder in use by a living cluster is refused, naming its process and URL."""
    cluster, _ = up(start, data)
    said = refused("up", "--data", data, "--listen", ANY)
    assert f"is in use by process {cluster.process.pid}" in said
    assert f"error: the data folder {data} is in use" in refused("gateway", "--data", data)


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


# -- one role each ---------------------------------------------------------------------------------


def test_one_role_each(
    start: Callable[..., Up], data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store, a gateway, a region and a proxy, each started by hand, are a cluster."""
    store = start("store", "--listen", ANY, "--data", data, "--json").json()
    gateway = start("gateway", "--listen", ANY, "--store", store["url"], "--json").json()
    region = start("region", "eu", "--gateway", gateway["url"], "--json")
    region_url = region.json()["url"]
    proxy = start("proxy", "eu/1", "--region-url", region_url, "--json")
    assert proxy.json()["role"] == "proxy/eu/1"
    assert main(["submit", DIAMOND, "--wait", "--url", gateway["url"]]) == 0
    assert capsys.readouterr().out.endswith("right: hello\n")
    assert proxy.end() == 0
    assert region.end(signal.SIGINT) == 0


def test_a_name_that_is_taken(start: Callable[..., Up], data: str, tmp_path: Path) -> None:
    """A second region of a name that is alive gives up, naming the address; the first goes on."""
    config = tmp_path / "agentos.toml"
    config.write_text("[limits]\nlink_ping_s = 0.3\n")
    quick = ("--config", str(config))
    gateway = start("gateway", "--listen", ANY, "--data", data, "--json", *quick).json()
    first = start("region", "eu", "--gateway", gateway["url"], "--json", *quick)
    first.json()
    said = refused("region", "eu", "--gateway", gateway["url"], "--log-level", "error", *quick)
    assert "'region/eu' is the name of another process, which is alive" in said
    assert first.process.poll() is None


def test_the_gateway_may_come_later(start: Callable[..., Up], data: str) -> None:
    """A region that starts before its gateway says that it waits, and finds it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    region = start("region", "eu", "--gateway", url, "--json")
    assert eventually(lambda: "no_parent_answers" in region.log.read_text())
    start("gateway", "--listen", url, "--data", data, "--json").json()
    assert region.json()["role"] == "region/eu"


@pytest.mark.parametrize("arguments", [("region", "a/b"), ("proxy", "eu", "--region-url", ANY)])
def test_names(arguments: tuple[str, ...]) -> None:
    """A name that is none of a region or proxy is refused."""
    assert "is no" in refused(*arguments)


# -- cleanup ---------------------------------------------------------------------------------------


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
