"""The job that everything is measured by: tasks of five no-op nodes, 1 -> 3 -> 1."""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from agentos import AsyncClient, Cluster, EchoAgent

GRAPH = {
    "nodes": {
        "n1": {"agent": "echo", "prompt": "x"},
        "a": {"agent": "echo", "prompt": "${n1}a"},
        "b": {"agent": "echo", "prompt": "${n1}b"},
        "c": {"agent": "echo", "prompt": "${n1}c"},
        "z": {"agent": "echo", "prompt": "${a}${b}${c}"},
    },
    "output": "z",
}
OUTPUT = "xaxbxc"


async def throughput(client: AsyncClient, tasks: int) -> float:
    """Tasks per second, from the first submit to the last result, all handed in at once."""
    start = time.perf_counter()

    async def one() -> Any:
        task = await client.submit(GRAPH)
        return await task.result(timeout_s=300)

    outputs = await asyncio.gather(*(one() for _ in range(tasks)))
    seconds = time.perf_counter() - start
    wrong = sum(output != OUTPUT for output in outputs)
    if wrong:
        raise SystemExit(f"{wrong} of {tasks} results are wrong")
    return tasks / seconds


async def latency_ms(client: AsyncClient, tasks: int) -> float:
    """Median milliseconds from submit to result, one task at a time."""
    times = []
    for _ in range(tasks):
        start = time.perf_counter()
        task = await client.submit(GRAPH)
        await task.result(timeout_s=60)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


async def until_ready(client: AsyncClient, proxies: int) -> None:
    """Wait until the gateway knows this many living proxies."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        regions = (await client.cluster()).regions
        if sum(p.alive for region in regions for p in region.proxies) >= proxies:
            return
        await asyncio.sleep(0.05)
    raise SystemExit(f"the cluster has not got its {proxies} proxies within 30 s")


@contextmanager
def embedded(regions: int, proxies: int) -> Iterator[AsyncClient]:
    """A cluster in this process, in memory but for its database; yields an unconnected client."""
    with Cluster([EchoAgent()], regions=regions, proxies=proxies) as cluster:
        yield cluster.async_client(timeout_s=60)


@contextmanager
def processes(regions: int, proxies: int) -> Iterator[tuple[AsyncClient, dict[str, float]]]:
    """`agentos up`, a process per role; yields a client, and the memory of each role at the end.

    The dictionary is filled when the block ends: role to resident megabytes.
    """
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="agentos-bench-") as data:
        command = [
            *(sys.executable, "-m", "agentos", "up", "--data", data, "--json"),
            *("--listen", "tcp://127.0.0.1:*", "--log-level", "error"),
            *("--regions", str(regions), "--proxies", str(proxies)),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as up:
            try:
                assert up.stdout is not None
                line = up.stdout.readline()
                if not line:
                    raise SystemExit("`agentos up` has not started")
                yield AsyncClient(json.loads(line)["url"], timeout_s=60), memory
                memory |= _memory(Path(data) / "cluster.json")
            finally:
                up.send_signal(signal.SIGTERM)
                up.wait(30)


def _memory(file: Path) -> dict[str, float]:
    roles = json.loads(file.read_text())["roles"]
    return {r["name"]: psutil.Process(r["pid"]).memory_info().rss / 1e6 for r in roles}
