"""The attacks: each goes on until its time is over, and says what it did.

Run by `tests.attack` in a process of its own, so that the attacker's work is not the cluster's.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
import zmq

from tests.attack.peer import Peer, frame, handshake, tcp


class Target(msgspec.Struct):
    """What is attacked. `victim`: a task of another client's; `epoch`: the one it has."""

    gateway: str
    region: str
    victim: int
    epoch: tuple[int, int]
    seconds: float


Attack = Callable[[Target, "zmq.Context[Any]"], str]
ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
    """Put a function into the list, under what people call it."""

    def add(function: Attack) -> Attack:
        ATTACKS[name] = function
        return function

    return add


def _until(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end


def _flood(target: Target, peer: Peer, say: Callable[[int], bool]) -> str:
    """Say something as fast as it goes, and read what comes back; in what words it is answered."""
    sent, answers = 0, Counter[str]()
    more = _until(target.seconds)
    while more():
        for _ in range(100):
            sent += say(sent)
        answers.update(peer.listen())
    told = ", ".join(f"{count} {what}" for what, count in answers.most_common(3))
    return f"{sent} requests: {told}, {peer.disconnections()} disconnections"


# -- what is no message ----------------------------------------------------------------------------


@attack("garbage")
def garbage(target: Target, context: zmq.Context[Any]) -> str:
    """Random frames, and connecting again after each disconnection."""
    rng, peer = random.Random(1), Peer(context, target.gateway)
    sent, more = 0, _until(target.seconds)
    while more():
        frames = [rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(1, 9))]
        sent += peer.raw(*frames)
    return f"{sent} messages of random frames, {peer.disconnections()} disconnections"


@attack("wrong bodies")
def wrong_bodies(target: Target, context: zmq.Context[Any]) -> str:
    """Good headers, and bodies that are not what they say."""
    rng, peer = random.Random(2), Peer(context, target.gateway)
    bodies = [b"{", b"[" * 50_000, b'{"task_id":NaN}', b'{"task_id":1,"x":1}', b"\xff" * 1000]

    def say(n: int) -> bool:
        if n % 50 == 0:
            peer.say("", "hello", {"address": peer.address, "session": "s" * 16})
        return peer.say("store", "get_task", rng.choice(bodies))

    return _flood(target, peer, say)


@attack("half messages")
def half_messages(target: Target, context: zmq.Context[Any]) -> str:
    """TCP connections that stop in the greeting, in the handshake, in a frame, in a message."""
    whole = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    opened: list[socket.socket] = []
    more = _until(target.seconds)
    while more():
        connection = tcp(target.gateway)
        opened.append(connection)
        kind = len(opened) % 4
        if kind == 0:
            connection.sendall(whole[: random.randrange(64)])
        elif kind == 1:
            connection.sendall(whole)
        else:
            handshake(connection)
            connection.sendall(b"\x02" + (1_000_000).to_bytes(8, "big") + b"half")
            if kind == 3:
                connection.sendall(frame(b"AOS1", more=True))
        time.sleep(0.01)
    return f"{len(opened)} connections that stop half-way"


@attack("an endless message")
def endless(target: Target, context: zmq.Context[Any]) -> str:
    """Tiny frames of one message that never ends: libzmq keeps them until the last has come."""
    ended, sent, more = 0, 0, _until(target.seconds)
    frames = frame(b"x", more=True) * 100_000
    while more():
        connection = tcp(target.gateway)
        with contextlib.suppress(OSError):
            handshake(connection)
            while more():
                connection.sendall(frames)
                sent += 100_000
        ended += more()
        connection.close()
    return f"{sent} frames, {ended} disconnections"


@attack("a million frames")
def million_frames(target: Target, context: zmq.Context[Any]) -> str:
    """Messages of a million tiny frames, each complete."""
    sent, more = 0, _until(target.seconds)
    tail = frame(b"x", more=True) * 100_000
    while more():
        connection = tcp(target.gateway)
        with contextlib.suppress(OSError):
            handshake(connection)
            for _ in range(10):
                connection.sendall(tail)
            connection.sendall(frame(b"", more=False))
            sent += 1
            while more() and connection.recv(1000):
                pass
        connection.close()
    return f"{sent} messages of 1,000,000 frames"


# -- floods ----------------------------------------------------------------------------------------


@attack("flood: tiny messages")
def tiny(target: Target, context: zmq.Context[Any]) -> str:
    """Pings, up to a million of them."""
    peer = Peer(context, target.gateway)
    peer.hello()
    return _flood(target, peer, lambda n: n < 1_000_000 and peer.say("", "ping"))


@attack("flood: list_tasks")
def list_tasks(target: Target, context: zmq.Context[Any]) -> str:
    """The costliest read there is, as often as it goes."""
    peer = Peer(context, target.gateway)
    peer.hello()
    return _flood(target, peer, lambda _: peer.say("store", "list_tasks", {"limit": 1000}))


@attack("flood: get_task")
def get_task(target: Target, context: zmq.Context[Any]) -> str:
    """A cheap read."""
    peer = Peer(context, target.gateway)
    peer.hello()
    body = {"task_id": target.victim}
    return _flood(target, peer, lambda _: peer.say("store", "get_task", body))


def _submits(target: Target, context: zmq.Context[Any], graph: dict[str, Any]) -> str:
    peer = Peer(context, target.gateway)
    peer.hello()
    body = orjson.dumps({"task_description": orjson.dumps(graph).decode()})
    return _flood(target, peer, lambda _: peer.say("gateway", "submit", body))


@attack("flood: submit")
def submit(target: Target, context: zmq.Context[Any]) -> str:
    """Good tasks, for an agent that nobody offers: so that it is the submits that are measured."""
    return _submits(target, context, {"nodes": {"a": {"agent": "nobody", "prompt": "x"}}})


@attack("flood: large submits")
def large_submits(target: Target, context: zmq.Context[Any]) -> str:
    """Tasks of 900 kB and ten thousand nodes, which cost most to check; refused for the last."""
    nodes = {f"n{i:04}": {"agent": "nobody", "prompt": "x" * 45} for i in range(9_999)}
    nodes["z"] = {"agent": "nobody", "prompt": "${none}"}
    return _submits(target, context, {"nodes": nodes})


@attack("never reads")
def never_reads(target: Target, context: zmq.Context[Any]) -> str:
    """Asks for megabytes, and does not read what comes."""
    peers = [Peer(context, target.gateway, RCVHWM=1) for _ in range(4)]
    for peer in peers:
        peer.hello()
    sent, more = 0, _until(target.seconds)
    while more():
        for peer in peers:
            sent += peer.say("store", "list_tasks", {"limit": 1000})
            sent += peer.say("gateway", "get_cluster")
    return f"{sent} requests of {len(peers)} clients that read nothing"


# -- lies ------------------------------------------------------------------------------------------


@attack("another's name")
def names(target: Target, context: zmq.Context[Any]) -> str:
    """Greets as living roles, and speaks as others after a greeting of its own."""
    living = ["region/r1", "proxy/r1/1", "gateway/main", "store"]
    answers, more = Counter[str](), _until(target.seconds)
    while more():
        peer = Peer(context, target.gateway)
        for name in living:
            kind, answer = peer.hello(name)
            answers[answer.get("code", kind)] += 1
        peer.hello(f"client/{random.randrange(1 << 40):x}")
        body = {"task_id": target.victim, "epoch": target.epoch, "rows": []}
        for name in [*living, "client/another"]:
            peer.say("store", "record", body, sender=name)
            answers[peer.hear()[1]["code"]] += 1
        peer.close()
    return ", ".join(f"{count} {what}" for what, count in answers.most_common())


@attack("reports for others' tasks")
def not_the_owner(target: Target, context: zmq.Context[Any]) -> str:
    """A proxy that joined under a name of its own writes results and ends for a task of another's."""
    peer = Peer(context, target.region)
    peer.hello("proxy/r1/stranger")
    g, r = target.epoch
    epochs = [(g, r), (g, max(0, r - 1)), (g + 1, 0), (2**30, 2**30)]
    rows = [{"node_id": "a", "result": '{"value": "stolen"}'}]
    end = {"state": "succeeded", "response": '{"output": "stolen"}'}

    def say(n: int) -> bool:
        body = {"task_id": target.victim, "epoch": epochs[n % 4]}
        if n % 3 == 2:
            ended = body | {"state": "failed", "response": "{}"}
            return peer.say("region/r1", "ended", ended)
        return peer.say("store", "record", body | {"rows": rows, "end": end if n % 3 else None})

    return _flood(target, peer, say)


@attack("invented epochs")
def invented_epochs(target: Target, context: zmq.Context[Any]) -> str:
    """A region of its own name claims others' tasks, under epochs that it made up or guessed."""
    peer = Peer(context, target.gateway)
    peer.hello("region/evil")
    g, r = target.epoch
    epochs = [(g, r), (g + 7, 0), (2**30, 2**30), (0, 0)]
    whose = [("region/evil", "region/evil"), ("region/r1", "region/r1"), ("gateway/main", "")]

    def say(n: int) -> bool:
        claimant, region = whose[n % 3]
        body = {"task_id": target.victim, "expected": epochs[n % 4], "claimant": claimant}
        scope = "global" if n % 2 else "regional"
        more = {"scope": scope, "region": region or "region/evil", "owner": "proxy/evil/1"}
        return peer.say("store", "claim", body | more)

    return _flood(target, peer, say)


@attack("thousands of connections")
def connections(target: Target, context: zmq.Context[Any]) -> str:
    """Half of them say hello and then nothing; the other half never says anything."""
    opened, greeted, more = 0, 0, _until(target.seconds)
    held: list[socket.socket] = []
    while more():
        if opened >= 6_000:
            time.sleep(0.05)
            continue
        with contextlib.suppress(OSError):
            connection = tcp(target.gateway)
            held.append(connection)
            opened += 1
            if opened % 2:
                handshake(connection)
                name = f"client/{opened}"
                body = orjson.dumps({"address": name, "session": "s" * 16})
                parts = [b"AOS1", b"", name.encode(), b"", b"hello", body]
                ends = [frame(p, more=i < 5) for i, p in enumerate(parts)]
                connection.sendall(b"".join(ends))
                greeted += 1
    return f"{opened} connections, {greeted} of them greeted"


def main() -> None:
    """Run one attack: its name, and the target as JSON, are the arguments."""
    target = msgspec.json.decode(sys.argv[2], type=Target)
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    context: zmq.Context[Any] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4_000)
    did = ATTACKS[sys.argv[1]](target, context)
    sys.stdout.write(did + "\n")
    sys.stdout.flush()
    os._exit(0)  # with everything open, as attackers do


if __name__ == "__main__":
    main()
