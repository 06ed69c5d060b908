"""The agents of the campaign: slow, exactly predictable, and watched from outside.

Each call that an agent is really asked is appended to a file outside the cluster, one `write` per
line (O_APPEND: lines of several processes do not mix), when it begins and when it ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from typing import Any

from agentos import AgentRequest, agent

LOG = "CHAOS_LOG"
"""The environment variable that names the file."""
SLOWEST = "CHAOS_SLOWEST_S"
SLOTS = 16


def digest(*parts: str) -> str:
    """Twelve hexadecimal digits that only these texts have."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def answer(agent_name: str, prompt: str, slot: str, schema: Any) -> Any:
    """What an agent answers: a function of what it is asked, and of nothing else."""
    found = digest(agent_name, prompt, slot)
    if agent_name == "vote":
        choices = schema["properties"]["choice"]["enum"]
        return {"choice": int(found, 16) % len(choices)}
    return found


@agent(max_concurrency=SLOTS)
async def work(request: AgentRequest) -> Any:
    """Answer after a while."""
    return await _answer("work", request)


@agent(max_concurrency=SLOTS)
async def vote(request: AgentRequest) -> Any:
    """Choose after a while."""
    return await _answer("vote", request)


async def _answer(name: str, request: AgentRequest) -> Any:
    _note("begin", request)
    try:
        share = int(digest(request.key), 16) / 16**12
        await asyncio.sleep((0.2 + 0.8 * share) * float(os.environ.get(SLOWEST, "0.5")))
    except asyncio.CancelledError:
        _note("abort", request)
        raise
    slot = request.key.rpartition("/")[2]
    found = answer(name, request.prompt, slot, request.schema)
    _note("end", request)
    return found


def _note(event: str, request: AgentRequest) -> None:
    # `python -m agentos.role proxy/r1/1`: the process knows which proxy it is.
    role = sys.argv[1] if len(sys.argv) > 1 else "embedded"
    line = f"{time.monotonic():.6f} {os.getpid()} {role} {event} {request.key}\n"
    file = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
