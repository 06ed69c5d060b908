"""`python -m tests.attack`: every attack on a real cluster, with what became of it and of the others.

Starts `agentos up` with two regions of two proxies, and for each attack: measures a good client,
starts the attacker in a process of its own, measures the good client again. The attacker has the
same machine's cores, which a real one has not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from agentos import Client
from tests.attack.attacks import ATTACKS, Target
from tests.attack.peer import GRAPH

LIVE = ("submitted", "succeeded", "placed_again", "declined")
PREFILL = 1_500
"""Tasks that `list_tasks` has to list."""


class Row(msgspec.Struct):
    """What one attack did, and what became of it. Times are in milliseconds."""

    attack: str
    did: str
    counted: dict[str, int]
    before: dict[str, float]
    during: dict[str, float]
    grown_mb: float
    served: int
    wrong: int


class Arena:
    """A cluster of real processes, and a good client of it."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "agentos", "up", "--data", str(folder), "--json"]
        command += ["--listen", "tcp://127.0.0.1:*", "--log-level", "error"]
        command += ["--regions", "2", "--proxies", "2"]
        self.log = (folder.parent / "log").open("w+")
        self.up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert self.up.stdout is not None
        self.url: str = json.loads(self.up.stdout.readline())["url"]
        roles = json.loads((folder / "cluster.json").read_text())["roles"]
        self.pids: dict[str, int] = {role["name"]: role["pid"] for role in roles}
        self.gateway = psutil.Process(self.pids["gateway/main"])
        self.region = "tcp://127.0.0.1:" + str(self._port("region/r1"))
        self.client = Client(self.url, timeout_s=60)
        self._await_proxies()
        hopeless = {"nodes": {"a": {"agent": "nobody", "prompt": "x"}}}
        self.hopeless = [self.client.submit(hopeless) for _ in range(PREFILL)]

    def close(self) -> None:
        """Stop everything."""
        self.client.close()
        self.up.terminate()
        self.up.wait(60)
        self.log.seek(0)
        sys.stderr.write(self.log.read()[-5_000:])  # errors only: there should be none
        self.log.close()

    def target(self, seconds: float) -> Target:
        """The next victim: a task that has been placed, under the epoch that it has by now."""
        task = self.client.submit(GRAPH)
        task.result(60)
        status = task.status()
        epoch = (status.epoch.global_epoch, status.epoch.regional_epoch)
        return Target(self.url, self.region, status.task_id, epoch, seconds)

    def counters(self) -> dict[str, int]:
        """What was refused, by the gateway's process and by the regions'."""
        info = self.client.cluster()
        counted = dict(info.counters)
        for region in info.regions:
            for name, count in region.counters.items():
                counted[f"{region.address}: {name}"] = count
        return {name: count for name, count in counted.items() if name not in LIVE}

    def measure(self, seconds: float) -> tuple[dict[str, float], int, int]:
        """One request after the other: how long they took, how many, and how many were wrong."""
        acks, results, wrong = [], [], 0
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(acks) < 10:
            start = time.perf_counter()
            task = self.client.submit(GRAPH)
            acks.append(time.perf_counter() - start)
            wrong += task.result(60) != "well"
            results.append(time.perf_counter() - start)
        times = {"ack_p50": acks, "ack_p99": acks, "result_p50": results, "result_p99": results}
        return {n: 1000 * _quantile(t, n[-2:]) for n, t in times.items()}, len(acks), wrong

    def run(self, name: str, seconds: float) -> Row:
        """Measure, attack and measure."""
        before, _, _ = self.measure(seconds / 2)
        target, counters = self.target(seconds), self.counters()
        memory = [self.gateway.memory_info().rss]
        arguments = [name, msgspec.json.encode(target).decode()]
        command = [sys.executable, "-m", "tests.attack.attacks", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attacker:
            assert attacker.stdout is not None
            attacker.stdout.readline()
            with _watching(self.gateway, memory):
                during, served, wrong = self.measure(seconds)
                did = attacker.stdout.readline().strip() or "the attacker has failed"
        after = self.counters()
        changed = {n: c - counters.get(n, 0) for n, c in after.items() if c != counters.get(n, 0)}
        again = self.client.task(target.victim)
        epoch = again.status().epoch
        wrong += (epoch.global_epoch, epoch.regional_epoch) != target.epoch
        wrong += again.result(60) != "well"
        grown = (max(memory) - memory[0]) / 1e6
        return Row(name, did, changed, before, during, grown, served, wrong)

    def _port(self, role: str) -> int:
        for connection in psutil.Process(self.pids[role]).net_connections():
            if connection.status == psutil.CONN_LISTEN:
                return int(connection.laddr.port)
        raise SystemExit(f"{role} does not listen")

    def _await_proxies(self) -> None:
        until = time.monotonic() + 30
        while sum(len(region.proxies) for region in self.client.cluster().regions) < 4:
            if time.monotonic() > until:
                raise SystemExit("the cluster has not got its proxies")
            time.sleep(0.05)


def _quantile(times: list[float], percent: str) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[int(percent) - 1]


@contextlib.contextmanager
def _watching(process: psutil.Process, memory: list[int]) -> Iterator[None]:
    """Append the process's resident bytes, ten times a second."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            memory.append(process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def arena() -> Iterator[Arena]:
    """A cluster in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="agentos-attack-") as folder:
        (Path(folder) / "data").mkdir()
        made = Arena(Path(folder) / "data")
        try:
            yield made
        finally:
            made.close()


def _shown(row: Row) -> list[str]:
    counted = ", ".join(f"{name} {count}" for name, count in sorted(row.counted.items()))
    cells = [row.attack, row.did, counted]
    for what in ("ack", "result"):
        old, new = row.before, row.during
        cells.append(
            f"{old[what + '_p50']:.1f} / {old[what + '_p99']:.1f} → "
            f"{new[what + '_p50']:.1f} / {new[what + '_p99']:.1f} "
            f"(x{new[what + '_p50'] / old[what + '_p50']:.1f} / "
            f"x{new[what + '_p99'] / old[what + '_p99']:.1f})"
        )
    return [*cells, f"{row.grown_mb:+.0f} MB", f"{row.served}", f"{row.wrong}"]


def main() -> int:
    """Run the attacks that were asked for; returns 0 if the good client was served right in all."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each attack")
    parser.add_argument("--only", action="append", choices=sorted(ATTACKS), help="this one")
    parser.add_argument("--json", action="store_true", help="one JSON document per attack")
    options = parser.parse_args()
    columns = ("attack", "what it did", "counted", "submit p50 / p99 ms", "result p50 / p99 ms")
    table = Table(*columns, "gateway", "served", "wrong", show_lines=True)
    wrong = 0
    with arena() as cluster:
        for name in options.only or ATTACKS:
            row = cluster.run(name, options.seconds)
            wrong += row.wrong
            if options.json:
                sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
                sys.stdout.flush()
            else:
                sys.stderr.write(f"{name}: {row.did}\n")
                table.add_row(*_shown(row))
    if not options.json:
        Console(width=200).print(table)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
