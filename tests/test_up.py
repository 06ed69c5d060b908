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
from agentos.core.errors import AddressTaken, AgentOSError, ConfigError
from agentos.datadir import ClusterRecord, DataFolder, RoleProcess, cleanup, restart
from agentos.supervisor import _gateway_urls
from agentos.topology import ClusterConfig
from tests.processes import AGENTOS, ANY, DIAMOND, Up, eventually, gone, role, starter, up

pytestmark = pytest.mark.processes


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start `agentos` with these arguments; it is ended after the test."""
    with starter(tmp_path) as start:
        yield start


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


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


def test_two_gateways(
    start: Callable[..., Up], data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several gateways share a store of its own, take the ports after the first, and are found."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        first = free.getsockname()[1]
    listen = f"tcp://127.0.0.1:{first}"
    cluster = start(*_two(data, listen), "--json")
    record = cluster.json()
    names = [found["name"] for found in record["roles"]]
    assert names == ["store", "gateway/main", "gateway/2", "region/r1", "proxy/r1/1"]
    assert record["urls"][0] == record["url"] == listen
    assert int(record["urls"][1].rpartition(":")[2]) > first
    for url in record["urls"]:
        assert main(["submit", DIAMOND, "--wait", "--url", url]) == 0
    # Without --url, the cluster whose data folder this is; with one gateway dead, the other.
    os.kill(role(record, "gateway/main"), signal.SIGSTOP)
    listed = subprocess.run(
        [*AGENTOS, "list", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"AGENTOS_DATA": data},
    )
    os.kill(role(record, "gateway/main"), signal.SIGCONT)
    assert [task["state"] for task in json.loads(listed.stdout)] == ["succeeded"] * 2
    assert cluster.end() == 0
    assert all(gone(found["pid"]) for found in record["roles"])


def _two(data: str, listen: str) -> tuple[str, ...]:
    return ("up", "--gateways", "2", "--proxies", "1", "--data", data, "--listen", listen)


def test_where_gateways_listen() -> None:
    """Further gateways take free ports after the first one's, any port, or paths of their own."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        urls = _gateway_urls(ClusterConfig(gateways=3, listen=f"tcp://127.0.0.1:{port - 1}"))
    ports = [int(url.rpartition(":")[2]) for url in urls]
    assert ports[0] == port - 1
    assert port < ports[1] < ports[2]
    assert _gateway_urls(ClusterConfig(gateways=2, listen=ANY)) == [ANY, ANY]
    assert _gateway_urls(ClusterConfig(gateways=2, listen="ipc:///x")) == ["ipc:///x", "ipc:///x-2"]
    with pytest.raises(ConfigError, match="no port from 65536 on is free"):
        _gateway_urls(ClusterConfig(gateways=2, listen="tcp://*:65535"))


def test_a_store_of_its_own(start: Callable[..., Up], data: str) -> None:
    """The store as a process of its own is restarted when it dies, and the tasks are there."""
    cluster, record = up(start, data, "--store")
    assert main(["submit", DIAMOND, "--wait", "--url", record["url"]]) == 0
    os.kill(role(record, "store"), signal.SIGKILL)
    assert eventually(lambda: '"role_restarted"' in cluster.log.read_text())
    assert main(["result", "1", "--timeout", "20", "--url", record["url"]]) == 0
    assert main(["submit", DIAMOND, "--wait", "--url", record["url"]]) == 0
    said = refused("up", "--data", data, "--listen", ANY)
    assert f"is in use by process {cluster.process.pid}" in said


def test_a_larger_budget(start: Callable[..., Up], data: str) -> None:
    """`--max-restarts` says how many deaths of a role within a minute are repaired."""
    cluster, record = up(start, data, "--max-restarts", "1")
    os.kill(role(record, "proxy/r1/1"), signal.SIGKILL)

    def second() -> int:
        now = json.loads((Path(data) / "cluster.json").read_text())
        return role(now, "proxy/r1/1")

    assert eventually(lambda: second() != role(record, "proxy/r1/1"))
    os.kill(second(), signal.SIGKILL)
    assert cluster.process.wait(timeout=30) == 1
    assert "it was restarted 1 times within 60 s" in cluster.log.read_text()


def test_grace(start: Callable[..., Up], data: str, tmp_path: Path) -> None:
    """`--grace` bounds how long a stop waits for the calls in flight; then it is orderly all the same."""
    config = tmp_path / "agentos.toml"
    config.write_text('[agents.slow]\ntype = "echo"\ndelay_s = 600\n')
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps({"nodes": {"a": {"agent": "slow", "prompt": "hi"}}}))
    cluster, record = up(start, data, "--grace", "0.3", "--config", str(config))
    assert main(["submit", str(graph), "--url", record["url"]]) == 0
    begun = time.monotonic()
    assert cluster.end() == 0
    assert time.monotonic() - begun < 5.0  # the default grace alone is as long
    assert "role_killed" not in cluster.log.read_text()
    assert "--grace must be seconds, more than 0, not 0" in refused("up", "--grace", "0")


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


# -- rolling restarts ------------------------------------------------------------------------------


def test_restart(start: Callable[..., Up], data: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`restart` replaces regions and proxies one after the other, and no other process."""
    cluster, record = up(start, data, "--max-restarts", "1")
    for _ in range(3):  # an orderly stop is no death: it does not count
        assert main(["restart", "--data", data]) == 0
    said = capsys.readouterr().out.splitlines()
    now = json.loads((Path(data) / "cluster.json").read_text())
    assert said[-4:] == [
        "region/r1 stops",
        f"region/r1 is back: process {role(now, 'region/r1')}",
        "proxy/r1/1 stops",
        f"proxy/r1/1 is back: process {role(now, 'proxy/r1/1')}",
    ]
    assert role(now, "gateway/main") == role(record, "gateway/main")
    assert main(["submit", DIAMOND, "--wait", "--url", record["url"]]) == 0
    assert '"role_died"' not in cluster.log.read_text()
    assert main(["restart", "gateway/main", "--data", data, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(printed) == ["gateway/main"]
    assert printed["gateway/main"] != role(record, "gateway/main")
    assert main(["restart", "proxy/r1/2", "--data", data]) == 2
    assert "no role 'proxy/r1/2'; did you mean \"proxy/r1/1\"?" in capsys.readouterr().err


def test_restart_of_nothing(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`restart` without a running cluster says so."""
    assert main(["restart", "--data", data]) == 2
    assert f"no `agentos up` runs on the data folder {data}" in capsys.readouterr().err


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


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    """The folder belongs to one until it closes it."""
    with DataFolder(tmp_path) as folder:
        folder.tell("tcp://here")
        with pytest.raises(AddressTaken, match=rf"process {os.getpid()}, a cluster at tcp://here"):
            DataFolder(tmp_path)
    DataFolder(tmp_path).close()
