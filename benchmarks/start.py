"""How long it takes from nothing to the first answer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import Any

from benchmarks import clusters, job
from benchmarks.figures import Figure, at_most
from benchmarks.settings import Settings

IMPORT = """
import time
start = time.perf_counter()
import agentos
seconds = time.perf_counter() - start
import json, sys
print(json.dumps({"seconds": seconds, "openai": "openai" in sys.modules}))
"""


def measure(settings: Settings) -> list[Figure]:
    """Import in fresh interpreters, and the first submit to a fresh `agentos up`."""
    said = _import()  # the files are in the system's cache from here on

    def once() -> dict[str, float]:
        return {"import": 1000 * _import()["seconds"], "up": _first_submit(settings)}

    found = settings.repeat("start", once)
    imports, starts = found["import"], found["up"]
    lazy = "LOADED" if said["openai"] else "not loaded"
    return [
        Figure("start", f"`import agentos` (openai {lazy} by it)", "ms", imports, at_most(100)),
        Figure(
            "start",
            f"`agentos up`, {settings.topology}, from the command to the first answered submit",
            "s",
            starts,
            at_most(1),
        ),
    ]


def _import() -> dict[str, Any]:
    output = subprocess.run([sys.executable, "-c", IMPORT], stdout=subprocess.PIPE, check=True)
    said: dict[str, Any] = json.loads(output.stdout)
    return said


def _first_submit(settings: Settings) -> float:
    start = time.perf_counter()

    async def submit() -> float:
        async with up.client() as client:
            task = await client.submit(job.GRAPH)
            seconds = time.perf_counter() - start
            if await task.result(timeout_s=60) != job.OUTPUT:
                raise job.WrongCount("the first result is wrong")
            return seconds

    with clusters.processes(settings.topology) as up:
        return asyncio.run(submit())
