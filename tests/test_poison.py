"""A task that kills whoever runs it, in real processes: it fails, and the cluster goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentos import Client
from agentos.core.errors import TaskFailed
from tests.processes import starter, up

AGENTS = """
import os

def answer(prompt: str) -> str:
    if prompt == "die":
        os._exit(1)
    return prompt
"""
CONFIG = """
[cluster]
max_restarts = 50
[limits]
max_attempts = 3
[agents.answer]
type = "function"
path = "deadly_agents:answer"
"""


@pytest.mark.processes
@pytest.mark.parametrize("samples", [1, 2])
def test_it_fails_with_its_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    """A call that ends its process costs `max_attempts` of them; other tasks are served meanwhile."""
    (tmp_path / "deadly_agents.py").write_text(AGENTS)
    (tmp_path / "agentos.toml").write_text(CONFIG)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    node = {"agent": "answer", "prompt": "die", "samples": samples, "voters": 0}
    with starter(tmp_path) as start:
        config = str(tmp_path / "agentos.toml")
        _, record = up(start, str(tmp_path / "data"), "--config", config)
        with Client(record["url"]) as client:
            deadly = client.submit(json.dumps({"nodes": {"a": node}}))
            others = [
                client.submit({"nodes": {"a": {"agent": "answer", "prompt": f"p{i}"}}})
                for i in range(5)
            ]
            with pytest.raises(TaskFailed, match=r"3 .* in a row were lost .*limits.max_attempts"):
                deadly.result(timeout_s=60)
            assert "proxy/r1/" in deadly.status().error
            assert [task.result(timeout_s=30) for task in others] == [f"p{i}" for i in range(5)]
