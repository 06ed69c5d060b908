"""The three uses, and the user's own actor: every example does what it says."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from agentos import Cluster, EchoAgent

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*command: str, env: dict[str, str] | None = None, timeout_s: float = 60) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.model
def test_quickstart_runs_functions_and_a_real_model_in_a_library() -> None:
    """Thirty lines: an embedded cluster, a Python function and a language model as agents."""
    output = run(sys.executable, str(EXAMPLES / "quickstart.py"), timeout_s=110).strip()
    words = output.splitlines()[-1]
    assert words == words.upper()
    assert len(words.split()) > 3


def test_a_client_needs_nothing_but_pyzmq_and_orjson(tmp_path: Path) -> None:
    """The wire can be spoken by a bare script, in an environment that holds only these two."""
    for package in ("zmq", "orjson"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        (tmp_path / folder.name).symlink_to(folder)
        libraries = folder.parent / "pyzmq.libs"
        if package == "zmq" and libraries.exists():
            (tmp_path / "pyzmq.libs").symlink_to(libraries)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with Cluster([EchoAgent()], listen="tcp://127.0.0.1:*") as cluster:
        # -S: no site-packages, so that `import agentos` would fail.
        script = [sys.executable, "-S", str(EXAMPLES / "zeromq_client.py"), cluster.url]
        output = run(*script, env=env)
    assert output.splitlines()[0] == "task 1 is accepted"
    assert output.splitlines()[-2:] == [
        "task 1 has succeeded",
        "Hello, world, from the left; Hello, world, from the right.",
    ]
    source = (EXAMPLES / "zeromq_client.py").read_text()
    assert "import agentos" not in source


def test_the_bare_client_says_so_when_nobody_answers() -> None:
    """No cluster, no traceback: one sentence and a failure."""
    script = [sys.executable, str(EXAMPLES / "zeromq_client.py"), "tcp://127.0.0.1:9"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "is a cluster running there" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.processes
def test_an_actor_of_your_own_is_reached_from_another_process() -> None:
    """`tell` and `ask` by name, across processes, on a plain Pykka actor."""
    output = run(sys.executable, str(EXAMPLES / "own_actor.py"))
    assert output.splitlines() == ["asked from another process: 2", "asked from this one: 3"]


def test_a_web_application_embeds_a_cluster(tmp_path: Path) -> None:
    """Started and stopped with the application; a restart knows what was accepted before."""
    make_app = runpy.run_path(str(EXAMPLES / "embedded_app.py"))["make_app"]

    async def ask(path: str, *, until: str = "succeeded") -> dict[str, Any]:
        async with asyncio.timeout(30):
            while True:
                response = await http.get(path)
                body: dict[str, Any] = await response.json()
                if body.get("state") == until or response.status != 200:
                    return body
                await asyncio.sleep(0.05)

    async def main() -> None:
        nonlocal http
        async with TestClient(TestServer(make_app(str(tmp_path)))) as http:
            key = {"Idempotency-Key": "once"}
            for _ in range(2):
                response = await http.post("/haiku", json={"topic": "tea"}, headers=key)
                assert response.status == 202
                assert await response.json() == {"task_id": 1}
            haiku = await ask("/haiku/1")
            assert haiku["output"].startswith("A haiku about tea:")
            assert "error" in await ask("/haiku/99")
        async with TestClient(TestServer(make_app(str(tmp_path)))) as http:
            assert await ask("/haiku/1") == haiku

    http: Any = None
    asyncio.run(main())
