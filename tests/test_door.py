"""A store's door: records come straight to the store, and a slow disk holds up nobody else."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from agentos import Client, EchoAgent, Host
from agentos.testing.transport_recorder import eventually
from agentos.transports.zeromq_io import IOThread
from tests.switches import FAST, TCP

GRAPH = {
    "nodes": {"a": {"agent": "echo", "prompt": "x"}, "b": {"agent": "echo", "prompt": "${a}b"}}
}


class House:
    """A gateway with a door, a region, and a proxy that was told of the door: a host each."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.file = folder / "agentos.db"
        self.gateway = stack.enter_context(Host(FAST))
        self.url = self.gateway.gateway(TCP, database=f"sqlite:///{self.file}")
        self.door = self.gateway.store_door("gateway/main", TCP)
        self.gateway.attend_links("gateway/main")
        region = stack.enter_context(Host(FAST))
        region_url = region.region("eu", TCP, [self.url])
        region.attend_links("region/eu")
        proxy = stack.enter_context(Host(FAST, [EchoAgent()]))
        proxy.proxy("eu", "1", [region_url], shortcuts=[self.door])
        proxy.attend_links("proxy/eu/1")
        self.client = stack.enter_context(Client(self.url, timeout_s=20))
        eventually(self.door_is_used)

    def door_is_used(self) -> bool:
        """Whether what is for the proxy goes through the door."""
        way = self.gateway.switch("gateway/main")._peers.route("proxy/eu/1")
        return way is not None and way.peer.startswith(self.door)

    def alive(self) -> int:
        """How many proxies the gateway takes for living."""
        return sum(p.alive for region in self.client.cluster().regions for p in region.proxies)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(stack, tmp_path)


def test_records_come_through_the_door(house: House) -> None:
    """Tasks end, one after another and many at once, and the door stays the way."""
    assert house.client.submit(GRAPH).result(timeout_s=20) == "xb"
    tasks = [house.client.submit(GRAPH) for _ in range(100)]
    assert [task.result(timeout_s=20) for task in tasks] == ["xb"] * 100
    assert house.door_is_used()


def test_a_slow_disk_holds_up_only_the_store(house: House) -> None:
    """While the store waits for its file, gateway and region answer, and nobody is suspected."""
    eventually(lambda: house.alive() == 1)
    slow_s = 2 * FAST.link_ping_s * FAST.suspect_after
    with ThreadPoolExecutor() as pool, sqlite3.connect(house.file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        ending = pool.submit(lambda: house.client.submit(GRAPH).result(timeout_s=20))
        until = time.monotonic() + slow_s
        answers = 0
        while time.monotonic() < until:
            assert house.alive() == 1
            answers += 1
        assert not ending.done()
        other.execute("ROLLBACK")
        assert ending.result(20) == "xb"
    assert answers >= 2
    eventually(house.door_is_used)


def test_a_store_of_its_own_leaves_its_links_to_their_thread(tmp_path: Path) -> None:
    """The gateways below a store hear from it however slow its file is."""
    with Host(FAST) as host:
        host.store(f"sqlite:///{tmp_path / 'agentos.db'}", TCP)
        host.attend_links("store")
        (loop,) = host.transports.loops()
        assert isinstance(loop, IOThread)
        ran: list[str] = []
        loop.submit(lambda: ran.append(threading.current_thread().name))
        eventually(lambda: ran == ["agentos-zeromq"])
