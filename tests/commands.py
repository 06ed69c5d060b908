"""What the tests of the command line share: settings that are nobody's, and graphs in files."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog


@contextmanager
def own_settings(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """No setting of whoever runs the tests counts, and logging is as it was afterwards."""
    for name in [name for name in os.environ if name.startswith("AGENTOS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    yield
    structlog.reset_defaults()


def graph_file(folder: Path, agent: str) -> str:
    file = folder / f"{agent}.json"
    file.write_text(json.dumps({"nodes": {"a": {"agent": agent, "prompt": "hi", "retries": 0}}}))
    return str(file)
