"""Hostile peers against a living cluster, which goes on serving a good client meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
import zmq

from agentos import Client, Cluster, EchoAgent
from agentos.core.messages.base import MESSAGE_BYTES
from agentos.runtime.switch import Switch
from agentos.testing.transport_recorder import eventually
from tests.attackers import LIMITS, SESSION, Attacker, attackers, errors_of, nobody_suffers
from tests.switches import TCP


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def cluster(data: Path) -> Iterator[Cluster]:
    with Cluster([EchoAgent()], data=data, proxies=2, listen=TCP, limits=LIMITS) as made:
        yield made


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.url, limits=LIMITS) as made:
        yield made


@pytest.fixture
def gateway(cluster: Cluster) -> Switch:
    return cluster.host.switch("gateway/main")


@pytest.fixture
def region(cluster: Cluster) -> Switch:
    return cluster.host.switch("region/r1")


@pytest.fixture
def attack(cluster: Cluster) -> Iterator[Callable[..., Attacker]]:
    """Makes attackers, of the gateway or of another URL."""
    with attackers(cluster.url) as make:
        yield make


@pytest.fixture(autouse=True)
def good_client_is_served(client: Client, cluster: Cluster, data: Path) -> Iterator[None]:
    """Around every attack: a good client is served, nothing is written by it, no actor failed."""
    with nobody_suffers(client, cluster, data):
        yield


HELLO = orjson.dumps({"address": "client/x", "session": SESSION})
NOT_ENVELOPES: dict[str, list[bytes]] = {
    "nothing": [b""],
    "garbage": [os.urandom(50)],
    "no version": [b"hello", b"world"],
    "another version": [b"AOS2", b"", b"client/x", b"", b"hello", HELLO],
    "an unknown kind": [b"AOS1", b"", b"client/x", b"", b"obliterate", b"{}"],
    "a kind that stays in its process": [b"AOS1", b"store", b"client/x", b"", b"tick", b"{}"],
    "truncated": [b"AOS1", b"", b"client/x", b"", b"hello"],
    "too many frames": [b"AOS1", b"", b"client/x", b"", b"hello", HELLO, b"more"],
    "very many frames": [b"AOS1"] * 10_000,
    "not UTF-8": [b"AOS1", b"", b"client/\xff\xfe", b"", b"hello", HELLO],
    "an address that is none": [b"AOS1", b"../etc", b"client/x", b"", b"hello", HELLO],
    "a long header": [b"AOS1", b"a" * 100_000, b"client/x", b"", b"hello", HELLO],
    "an address with a line break": [b"AOS1", b"store\n", b"client/x", b"", b"get_task", b"{}"],
}


@pytest.mark.parametrize("frames", NOT_ENVELOPES.values(), ids=NOT_ENVELOPES)
def test_what_is_no_envelope(
    attack: Callable[..., Attacker], gateway: Switch, frames: list[bytes]
) -> None:
    """It is counted, and whoever goes on with it is disconnected."""
    attacker = attack()
    before, gone = errors_of(gateway), gateway.counters["peers_disconnected"]
    attacker.raw(*frames)
    eventually(lambda: errors_of(gateway) == before + 1)
    for _ in range(LIMITS.max_peer_errors * 2):
        attacker.raw(*frames)
    eventually(lambda: gateway.counters["peers_disconnected"] > gone)
    assert attacker.is_disconnected()


BAD_BODIES: dict[str, bytes] = {
    "no JSON": b"{",
    "empty": b"",
    "no object": b"[]",
    "deep": b'{"task_id":' * 100_000,
    "deep and complete": b'{"task_id":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "invalid UTF-8": b'{"task_id": "\xff"}',
    "a wrong type": b'{"task_id": "one"}',
    "out of range": b'{"task_id": -1}',
    "too large a number": b'{"task_id": 99999999999999999999999}',
    "not a number": b'{"task_id": NaN}',
    "an unknown field": b'{"task_id": 1, "admin": true}',
    "a missing field": b"{}",
    "a lone surrogate": b'{"task_id": "\\ud800"}',
    "null": b"null",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_wrong_bodies(attack: Callable[..., Attacker], gateway: Switch, body: bytes) -> None:
    """A body that is not what its kind says is refused with the reason, and counted."""
    attacker = attack()
    assert attacker.hello()[0] == "welcome"
    before = errors_of(gateway)
    attacker.say("store", "get_task", body)
    kind, answer = attacker.hear()
    assert (kind, answer["code"]) == ("refused", "remote_protocol")
    assert answer["reason"].startswith("get_task")
    assert errors_of(gateway) == before + 1


def test_wrong_bodies_disconnect(attack: Callable[..., Attacker], gateway: Switch) -> None:
    """Whoever goes on sending wrong bodies is disconnected."""
    attacker, gone = attack(), gateway.counters["peers_disconnected"]
    assert attacker.hello()[0] == "welcome"
    for _ in range(LIMITS.max_peer_errors + 1):
        attacker.say("store", "get_task", b"{")
    eventually(lambda: gateway.counters["peers_disconnected"] == gone + 1)
    eventually(lambda: gateway._peers.route(attacker.address) is None)
    assert attacker.is_disconnected()


def test_a_huge_frame(attack: Callable[..., Attacker], client: Client) -> None:
    """A frame over the bound is refused by the socket; others are not delayed by it."""
    attacker = attack()
    assert attacker.hello()[0] == "welcome"
    attacker.say("gateway", "submit", b" " * (LIMITS.max_frame_bytes + 1))
    for _ in range(10):
        assert client.cluster().gateway == "gateway/main"


def test_a_flood_of_pings(attack: Callable[..., Attacker], client: Client) -> None:
    """Pings are answered as far as the bounds go; a good client is served beside them."""
    attacker = attack()
    assert attacker.hello()[0] == "welcome"
    for i in range(20_000):
        attacker.say("", "ping")
        if i % 5_000 == 0:
            assert client.cluster().gateway == "gateway/main"
    assert attacker.hear()[0] == "pong"


def test_never_reading(attack: Callable[..., Attacker], gateway: Switch, client: Client) -> None:
    """Answers to a peer that does not read them are bounded, and dropped above the bound."""
    attacker = attack()
    attacker._socket.set(zmq.RCVHWM, 1)
    assert attacker.hello()[0] == "welcome"
    before = gateway.counters["undelivered.overloaded"]
    until = time.monotonic() + 20
    while gateway.counters["undelivered.overloaded"] == before and time.monotonic() < until:
        for _ in range(500):
            attacker.say("gateway", "get_cluster")
        assert client.cluster().gateway == "gateway/main"
    assert gateway.counters["undelivered.overloaded"] > before


def test_a_flood_of_costly_reads(attack: Callable[..., Attacker], client: Client) -> None:
    """Whoever floods the store is refused above its share; a good client is served beside it."""
    attacker = attack()
    assert attacker.hello()[0] == "welcome"
    for _ in range(LIMITS.peer_bytes // MESSAGE_BYTES + 5_000):
        attacker.say("store", "list_tasks", {"limit": 1000})
    for _ in range(20):
        assert client.cluster().gateway == "gateway/main"
    until = time.monotonic() + 30
    answers = {"task_list"}
    while "overloaded" not in answers and time.monotonic() < until:
        kind, answer = attacker.hear()
        answers.add(answer.get("code", kind))
        assert answer.get("code") != "overloaded" or answer["retry_after_s"] > 0
    assert "overloaded" in answers


def test_questions_of_the_gone_are_not_asked(
    attack: Callable[..., Attacker], gateway: Switch
) -> None:
    """A flood whose author has left costs nothing more: what it still asks is dropped, and counted."""
    attacker, before = attack(), gateway.counters["asker_gone"]
    assert attacker.hello()[0] == "welcome"
    for _ in range(5_000):
        attacker.say("store", "list_tasks", {"limit": 1000})
    attacker.say("", "bye", {"address": attacker.address})
    eventually(lambda: gateway.counters["asker_gone"] > before)


def test_what_was_refused_can_be_seen(
    attack: Callable[..., Attacker], client: Client, region: Switch
) -> None:
    """`agentos status --cluster` shows what the gateway and each region have refused."""
    for url in ("", region._listeners[0].url):
        attacker = attack(url)
        attacker.raw(b"garbage")
    attacker.hello("proxy/r2/1")

    def counted() -> bool:
        info = client.cluster()
        below = info.regions[0].counters
        return bool(
            info.counters.get("protocol_errors")
            and below.get("protocol_errors")
            and below.get("hello_refused.remote_protocol")
        )

    eventually(counted)
