"""The role commands: a store, a gateway, a region and a proxy, each a process started by hand."""

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentos.cli import main
from tests.processes import ANY, DIAMOND, Up, eventually, refused, starter

pytestmark = pytest.mark.processes


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start `agentos` with these arguments; it is ended after the test."""
    with starter(tmp_path) as start:
        yield start


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


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


def test_the_gateway_may_come_later(start: Callable[..., Up], data: str, tmp_path: Path) -> None:
    """A region that starts before its gateway says that it waits, and finds it where it listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    region = start("region", "eu", "--gateway", url, "--json")
    assert eventually(lambda: "no_parent_answers" in region.log.read_text())
    config = tmp_path / "agentos.toml"
    config.write_text(f'[cluster]\nlisten = "{url}"\ndata = "{data}"\n')
    start("gateway", "--config", str(config), "--json").json()
    assert region.json()["role"] == "region/eu"


def test_a_proxy_below_somebody_else(start: Callable[..., Up], data: str) -> None:
    """A proxy that dials a gateway, or another region, is refused: nobody would give it anything."""
    gateway = start("gateway", "--listen", ANY, "--data", data, "--json").json()
    region = start("region", "eu", "--gateway", gateway["url"], "--json").json()
    for url, said in (
        (gateway["url"], "'proxy/us/1' is a child of 'region/us', not of 'gateway/main'"),
        (region["url"], "'region/eu' cannot host 'proxy/us/1'"),
    ):
        assert said in refused("proxy", "us/1", "--region-url", url, "--log-level", "error")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_role_stops_in_order(start: Callable[..., Up], data: str, number: signal.Signals) -> None:
    """As `up` does; and a service manager may say it twice."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # who runs the tests may ignore it
    gateway = start("gateway", "--listen", ANY, "--data", data, "--json")
    signal.signal(signal.SIGHUP, before)
    gateway.json()
    gateway.process.send_signal(number)
    gateway.process.send_signal(number)
    assert gateway.process.wait(timeout=30) == 0
    assert "role_stops" in gateway.log.read_text()


@pytest.mark.parametrize("arguments", [("region", "a/b"), ("proxy", "eu", "--region-url", ANY)])
def test_names(arguments: tuple[str, ...]) -> None:
    """A name that is none of a region or proxy is refused."""
    assert "is no" in refused(*arguments)
