"""`agentos up`: real processes, started, watched, killed, stopped and replaced."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from agentos.cli import main
from agentos.core.errors import ConfigError
from agentos.supervisor import _gateway_urls
from agentos.topology import ClusterConfig
from tests.processes import AGENTOS, ANY, DIAMOND, Up, eventually, gone, refused, role, starter, up

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
    file = Path(data) / "cluster.json"
    assert eventually(lambda: not pids(file) & set(killed.values()))
    now = json.loads(file.read_text())
    assert [r["address"] for r in now["roles"]] == [r["address"] for r in record["roles"]]
    assert main(["submit", DIAMOND, "--wait", "--url", record["url"]]) == 0
    events = [json.loads(line) for line in cluster.log.read_text().splitlines()]
    deaths = {e["role"]: e for e in events if e["event"] == "role_died"}
    assert {name: event["pid"] for name, event in deaths.items()} == killed
    assert deaths["proxy/r1/1"]["status"] == "was ended by SIGKILL"


def pids(file: Path) -> set[int]:
    """The processes of a `cluster.json`."""
    return {found["pid"] for found in json.loads(file.read_text())["roles"]}


def test_a_record_that_cannot_be_written(start: Callable[..., Up], data: str) -> None:
    """As on a full disk: it is tried again, so that `restart` finds the processes of today."""
    cluster, record = up(start, data)
    in_the_way = Path(data) / "cluster.json.new"
    in_the_way.mkdir()
    killed = role(record, "proxy/r1/1")
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: "record_not_written" in cluster.log.read_text())
    assert killed in pids(Path(data) / "cluster.json")
    in_the_way.rmdir()
    assert eventually(lambda: killed not in pids(Path(data) / "cluster.json"))


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
