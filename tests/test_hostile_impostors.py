"""Hostile peers that say what another may say: under its name, for its tasks, or without a name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentos import Client, Cluster, EchoAgent
from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.routes import KINDS, allowed
from agentos.runtime.switch import Switch
from agentos.testing.transport_recorder import eventually
from tests.attackers import GRAPH, LIMITS, SESSION, Attacker, attackers, errors_of, nobody_suffers
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


def legal_body(kind: str) -> dict[str, Any]:
    """A body that a role could have sent."""
    epoch = {"global_epoch": 99, "regional_epoch": 99}
    return {
        "record": {"task_id": 1, "epoch": epoch, "rows": [{"node_id": "a", "result": "{}"}]},
        "claim": {
            "task_id": 1, "expected": {"global_epoch": 1, "regional_epoch": 1},
            "scope": "global", "claimant": "gateway/main", "region": "region/evil",
        },
        "cancel_task": {"task_id": 1},
        "create_task": {
            "user_id": 1, "task_type": "graph", "task_description": orjson.dumps(GRAPH).decode(),
            "key": None, "agents": [], "priority": 0, "claimant": "gateway/main",
        },
        "region_beat": {
            "incarnation": "x", "tasks": 0, "capacity": 10**6, "agents": ["echo"], "proxies": [],
        },
        "assign": {"task_id": 1, "epoch": epoch, "agents": []},
        "proxy_beat": {"incarnation": "x", "calls": 0, "capacity": 9, "offers": [], "claims": []},
        "ended": {"task_id": 1, "epoch": epoch, "state": "failed", "response": "{}"},
        "stop": {"task_id": 1, "epoch": epoch},
    }.get(kind, {})  # fmt: skip


@pytest.mark.parametrize(
    ("to", "kind"),
    [
        ("store", "record"),
        ("store", "claim"),
        ("store", "cancel_task"),
        ("store", "create_task"),
        ("store", "find_tasks"),
        ("gateway", "region_beat"),
        ("gateway", "ended"),
        ("region/r1", "assign"),
        ("region/r1", "proxy_beat"),
        ("region/r1", "stop"),
        ("proxy/r1/1", "stop"),
    ],
)
def test_what_a_client_may_not_send(
    attack: Callable[..., Attacker], gateway: Switch, to: str, kind: str
) -> None:
    """A message of another role is refused before its body is looked at."""
    assert not allowed(KINDS[kind], "client/x", to)
    attacker = attack()
    assert attacker.hello()[0] == "welcome"
    before = errors_of(gateway)
    attacker.say(to, kind, legal_body(kind))
    answered, refused = attacker.hear()
    assert (answered, refused["code"]) == ("refused", "remote_protocol")
    assert "may not send" in refused["reason"]
    assert errors_of(gateway) == before + 1


@pytest.mark.parametrize(
    "sender", ["gateway/main", "gateway", "region/r1", "proxy/r1/1", "store", "client/another", ""]
)
def test_speaking_as_somebody_else(
    attack: Callable[..., Attacker], gateway: Switch, sender: str
) -> None:
    """A connection that said hello as one name is not believed another."""
    attacker = attack()
    assert attacker.hello()[0] == "welcome"
    before, gone = errors_of(gateway), gateway.counters["peers_disconnected"]
    for _ in range(LIMITS.max_peer_errors + 1):
        header = (b"AOS1", b"store", sender.encode(), b"r", b"claim")
        attacker.raw(*header, orjson.dumps(legal_body("claim")))
    eventually(lambda: gateway.counters["peers_disconnected"] == gone + 1)
    assert errors_of(gateway) == before + LIMITS.max_peer_errors + 1


@pytest.mark.parametrize("address", ["gateway/main", "region/r1", "proxy/r1/1"])
def test_a_taken_name(attack: Callable[..., Attacker], gateway: Switch, address: str) -> None:
    """A name whose holder lives cannot be had, and stays with its holder."""
    attacker, holder = attack(), gateway._peers.route(address)
    kind, refused = attacker.hello(address)
    assert kind == "refused"
    assert refused["code"] in {"address_taken", "remote_protocol"}
    assert gateway._peers.route(address) is holder


@pytest.mark.parametrize(
    "address",
    ["gateway", "store", "agents", "region", "proxy", "proxy/r1", "gateway/evil", "region/a/b", ""],
)
def test_names_for_nobody(
    attack: Callable[..., Attacker], gateway: Switch, region: Switch, address: str
) -> None:
    """Neither a gateway nor a region takes a child that would get between it and another role."""
    for switch in (gateway, region):
        attacker = attack(switch._listeners[0].url)
        body = {"address": address, "session": SESSION}
        attacker.say("", "hello", body)
        kind, refused = attacker.hear()
        assert kind == "refused"
        assert refused["code"] in {"remote_protocol", "address_taken"}
        assert switch._peers.route(address) is None


def test_insisting_on_a_name(attack: Callable[..., Attacker], gateway: Switch) -> None:
    """Whoever goes on asking for a name that it cannot have is disconnected."""
    attacker, gone = attack(), gateway.counters["peers_disconnected"]
    for _ in range(LIMITS.max_peer_errors + 1):
        attacker.say("", "hello", {"address": "gateway/evil", "session": SESSION})
    eventually(lambda: gateway.counters["peers_disconnected"] == gone + 1)


def test_foreign_proxies_at_a_region(attack: Callable[..., Attacker], region: Switch) -> None:
    """A region hosts its own proxies only, and is not moved by a beat of somebody else's."""
    attacker = attack(region._listeners[0].url)
    kind, refused = attacker.hello("proxy/r2/1")
    assert (kind, refused["code"]) == ("refused", "remote_protocol")
    attacker.say("region/r1", "proxy_beat", legal_body("proxy_beat"), sender="proxy/r2/1")
    assert attacker.hear()[1]["code"] == "hello_first"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"address": "client/x"},
        {"address": "client/x", "session": "short"},
        {"address": "client/x", "session": "s" * 65},
        {"address": 7, "session": SESSION},
        {"address": "client/x", "session": SESSION, "more": 1},
        {"address": "no address!", "session": SESSION},
        {"address": "client/x\n", "session": SESSION},
    ],
)
def test_a_wrong_hello(
    attack: Callable[..., Attacker], gateway: Switch, body: dict[str, Any]
) -> None:
    """A greeting that is not one is counted, and gives no name."""
    attacker, before = attack(), errors_of(gateway)
    attacker.say("", "hello", body, sender="client/x")
    eventually(lambda: errors_of(gateway) > before)
    assert gateway._peers.route("client/x") is None
    assert gateway._peers.route("client/x\n") is None


def test_never_saying_hello(attack: Callable[..., Attacker], gateway: Switch) -> None:
    """Without a greeting every request is refused; whoever insists is disconnected."""
    attacker, gone = attack(), gateway.counters["peers_disconnected"]
    attacker.say("gateway", "submit", {"task_description": orjson.dumps(GRAPH).decode()})
    kind, refused = attacker.hear()
    assert (kind, refused["code"]) == ("refused", "hello_first")
    for _ in range(LIMITS.max_peer_errors):
        attacker.say("store", "get_task", {"task_id": 1})
    eventually(lambda: gateway.counters["peers_disconnected"] == gone + 1)


def test_links_are_not_for_children(attack: Callable[..., Attacker], gateway: Switch) -> None:
    """What only a parent may say is an error when a child says it."""
    attacker = attack()
    assert attacker.hello()[0] == "welcome"
    before = errors_of(gateway)
    attacker.say("", "welcome", {"address": "client/x"})
    attacker.say("", "pong")
    attacker.say("", "refused", {"code": "hello_first", "reason": "ha"})
    attacker.say("", "get_task", {"task_id": 1})
    eventually(lambda: errors_of(gateway) == before + 4)


def test_a_goodbye_for_somebody_else(attack: Callable[..., Attacker], gateway: Switch) -> None:
    """Nobody can say goodbye for another."""
    attacker = attack()
    assert attacker.hello()[0] == "welcome"
    attacker.say("", "bye", {"address": "region/r1"})
    attacker.say("", "bye", {"address": attacker.address})
    eventually(lambda: gateway._peers.route(attacker.address) is None)
    assert gateway._peers.route("region/r1") is not None


def test_many_names(attack: Callable[..., Attacker], gateway: Switch) -> None:
    """A client may have names for its actors; they are gone when it is."""
    attacker = attack()
    assert attacker.hello()[0] == "welcome"
    for i in range(200):
        address = f"greeter/{i}"
        attacker.say("", "hello", {"address": address, "session": SESSION}, sender=address)
    eventually(lambda: gateway._peers.route("greeter/199") is not None)
    for _ in range(LIMITS.max_peer_errors + 1):
        attacker.raw(b"garbage")
    eventually(lambda: gateway._peers.route("greeter/199") is None)
    assert gateway._peers.route("greeter/0") is None


def test_answers_are_not_believed_from_strangers(
    attack: Callable[..., Attacker], client: Client
) -> None:
    """A client that is told of an end by somebody else than its gateway does not believe it."""
    attacker = attack()
    assert attacker.hello()[0] == "welcome"
    asker = client._client._asker
    assert asker is not None
    attacker.say(asker.address, "ended", legal_body("ended") | {"task_id": 1})
    attacker.say(asker.address, "submitted", {"task_id": 1, "state": "failed", "created": True})
    assert [attacker.hear()[1]["code"] for _ in range(2)] == ["remote_protocol"] * 2


def newest(attacker: Attacker) -> tuple[int, list[int]]:
    """The newest task, with its epoch."""
    attacker.say("store", "list_tasks", {"limit": 1})
    kind, answer = attacker.hear()
    assert kind == "task_list"
    return answer["tasks"][0]["task_id"], answer["tasks"][0]["epoch"]


def test_reports_for_tasks_of_others(
    attack: Callable[..., Attacker], gateway: Switch, region: Switch
) -> None:
    """A proxy that guesses an epoch writes nothing into a task that it does not hold."""
    spy, thief = attack(), attack(region._listeners[0].url)
    assert spy.hello()[0] == "welcome"
    thief.address = "proxy/r1/thief"
    assert thief.hello()[0] == "welcome"
    task_id, epoch = newest(spy)
    before = gateway.counters["store_refused.not_the_owner"]
    end = {"state": "failed", "response": "{}", "error": "stolen"}
    rows = [{"node_id": "a", "result": '{"value": "stolen"}'}]
    body = {"task_id": task_id, "epoch": epoch, "rows": rows, "end": end}
    thief.say("store", "record", body)
    assert thief.hear()[1]["code"] == "not_the_owner"
    invented = body | {"epoch": [epoch[0] + 5, 0]}
    thief.say("store", "record", invented)
    kind, answer = thief.hear()
    assert (kind, answer["outcome"]) == ("recorded", "stale")
    assert gateway.counters["store_refused.not_the_owner"] == before + 1
    assert newest(spy) == (task_id, epoch)


def test_invented_epochs(attack: Callable[..., Attacker]) -> None:
    """A region gets no claim by guessing, by pretending to be another, or by another's scope."""
    spy, evil = attack(), attack()
    assert spy.hello()[0] == "welcome"
    evil.address = "region/evil"
    assert evil.hello()[0] == "welcome"
    task_id, epoch = newest(spy)
    for claimant, region, scope in (
        ("region/r1", "region/r1", "regional"),
        ("gateway/main", "region/evil", "global"),
        ("region/evil", "region/evil", "global"),
    ):
        claim = {
            "task_id": task_id, "expected": epoch, "scope": scope,
            "claimant": claimant, "region": region, "owner": "proxy/evil/1",
        }  # fmt: skip
        evil.say("store", "claim", claim)
        assert evil.hear()[1]["code"] == "not_the_owner"
    own = claim | {"claimant": "region/evil", "scope": "regional"}
    for expected in (epoch, [9, 9], [0, 0]):
        evil.say("store", "claim", own | {"expected": expected})
        kind, answer = evil.hear()
        assert (kind, answer["granted"]) == ("claimed", False)
    assert newest(spy) == (task_id, epoch)


@pytest.mark.parametrize("sender", ["region/r1", "proxy/r1/1"])
def test_an_end_comes_from_the_gateway_or_not_at_all(sender: str) -> None:
    """Who ran a task cannot tell its client of an end that is not recorded."""

    async def go(cluster: Cluster) -> None:
        async with cluster.async_client() as client:
            task = await client.submit({"nodes": {"a": {"agent": "echo", "prompt": "true"}}})
            asker = client._asker
            assert asker is not None
            invented = m.Ended(
                task_id=task.task_id,
                epoch=Epoch(1, 1),
                state="succeeded",
                response='{"output": "invented"}',
            )
            switch = cluster.host.switch(sender)
            switch.send([m.Envelope(asker.address, sender, invented)])
            assert await task.result(20) == "true"

    with Cluster([EchoAgent(delay_s=0.5)]) as cluster:
        asyncio.run(go(cluster))
