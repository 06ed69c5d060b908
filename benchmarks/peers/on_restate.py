"""Restate: its server (a log and a state machine in Rust), and a service of the Python SDK.

The server is started and configured by `servers.restate`; here is the service's process, which is
registered, called through the ingress (64 at a time), and in the kill started again at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress

import httpx

from benchmarks.peers import harness

INGRESS, ADMIN = os.environ["BENCH_URL"], os.environ["BENCH_ADMIN"]
IN_FLIGHT = 64


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


def start_service(port: int) -> subprocess.Popen[bytes]:
    hypercorn = [sys.executable, "-m", "hypercorn", "--log-level", "ERROR"]
    command = [*hypercorn, "--bind", f"127.0.0.1:{port}", "benchmarks.peers.restate_service:app"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 the service with its workers, if it has not been."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def register(port: int) -> None:
    """Tell the server where the service is; both may still be starting."""
    deadline = time.monotonic() + 60
    answer = ""
    while time.monotonic() < deadline:
        try:
            deployment = {"uri": f"http://127.0.0.1:{port}", "force": True}
            response = httpx.post(f"{ADMIN}/deployments", json=deployment, timeout=20)
        except httpx.HTTPError as error:
            answer = repr(error)
        else:
            if response.is_success:
                return
            answer = response.text
        time.sleep(0.2)
    raise SystemExit(f"the service could not be registered: {answer}")


async def one(client: httpx.AsyncClient, task: str) -> str:
    response = await client.post(f"{INGRESS}/Job/run", json=task)
    response.raise_for_status()
    return str(response.json())


async def run_all(names: list[str]) -> list[str]:
    limits = httpx.Limits(max_connections=IN_FLIGHT)
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        free = asyncio.Semaphore(IN_FLIGHT)

        async def run(task: str) -> str:
            async with free:
                return await one(client, task)

        return await asyncio.gather(*map(run, names))


def bench(tasks: int, alone: int) -> dict[str, float]:
    port = free_port()
    process = start_service(port)
    try:
        register(port)
        asyncio.run(run_all([f"warm{i}" for i in range(harness.WARM_UP)]))

        async def median() -> float:
            async with httpx.AsyncClient(timeout=60) as client:
                return await harness.alone_ms_async(lambda task: one(client, task), alone)

        found = {"alone_ms": asyncio.run(median())}
        start = time.perf_counter()
        outputs = asyncio.run(run_all([f"t{i}" for i in range(tasks)]))
        return harness.rate(tasks, start, outputs) | found
    finally:
        end(process)


def kill(tasks: int) -> dict[str, float]:
    marks = harness.Marks()
    port = free_port()
    process = start_service(port)
    try:
        register(port)
        asyncio.run(run_all(["warm"]))
        marks.clear()
        return asyncio.run(_kill(tasks, marks, port, process))
    finally:
        end(process)


async def _kill(
    tasks: int, marks: harness.Marks, port: int, process: subprocess.Popen[bytes]
) -> dict[str, float]:
    running = asyncio.create_task(run_all([f"k{i}" for i in range(tasks)]))
    await asyncio.to_thread(marks.await_half, tasks)
    killed_at = time.monotonic()
    end(process)
    again = start_service(port)
    try:
        left = harness.KILL_LIMIT_S
        outputs = await asyncio.wait_for(running, left)
        return marks.report(tasks, killed_at, tasks - harness.wrong(outputs))
    finally:
        end(again)


if __name__ == "__main__":
    harness.main("restate_sdk", bench, kill)
