"""What a real agent call takes longer through Agent OS than made directly with the same client."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from agentos import AsyncClient, OpenAIAgent
from benchmarks import chat_server, clusters, job
from benchmarks.figures import Figure, at_most
from benchmarks.settings import Settings

IN_FLIGHT = 64
LATENCY_S = 0.5
"""The stand-in's: 64 in flight make 128 calls a second, an eighth of what one client process can."""
CALLS = 10
"""Calls in a row in one task: so what a task costs beside its calls hardly counts."""
TURNS = 2
"""How often the calls of each kind have their turn in one run."""
PROMPT = "Say something short."

CONFIG = """[agents.model]
type = "openai"
model = "stand-in"
base_url = "{url}"
max_concurrency = {in_flight}
"""


def measure(settings: Settings) -> list[Figure]:
    """On a cluster of each kind: calls made directly and through it in turn, on the same server."""
    latency_s = settings.size(0.1, LATENCY_S)
    with chat_server.running(latency_s) as url:

        def once() -> dict[str, float]:
            agent = OpenAIAgent("model", model="stand-in", base_url=url, max_concurrency=IN_FLIGHT)
            with clusters.embedded(settings.topology, agent) as client:
                found = asyncio.run(_beside(client, url, settings, latency_s))
            values = {f"embedded {what}": ms for what, ms in found.items()}
            config = CONFIG.format(url=url, in_flight=IN_FLIGHT)
            with clusters.processes(settings.topology, config) as up:
                found = asyncio.run(_beside(up.client(), url, settings, latency_s))
            return values | {f"up {what}": ms for what, ms in found.items()}

        found = settings.repeat("overhead of a real agent call", once)
    title = f"a model's call of {1000 * latency_s:.0f} ms, {IN_FLIGHT} in flight"
    direct = found["embedded direct"] + found["up direct"]
    figures = [Figure("overhead", f"{title}, made directly, p50", "ms", direct)]
    for name, where in (("embedded", "embedded"), ("up", "`agentos up`")):
        for what, words in (
            ("call", f"each call of a chain of {CALLS}"),
            ("task", "a task of one call, from submit to the pushed result"),
        ):
            label = f"{title}, {where}: {words}, p50 beyond the direct call's"
            figures.append(Figure("overhead", label, "ms", found[f"{name} {what}"], at_most(1)))
    return figures


async def _beside(
    client: AsyncClient, url: str, settings: Settings, latency_s: float
) -> dict[str, float]:
    """The median of a direct call, and what those through the cluster take longer.

    In turns that follow each other within seconds, each beside the direct calls before it: the
    machine's speed changes more from one minute to the next than what is to be measured.
    """
    import openai

    calls = settings.size(32, 5 * IN_FLIGHT)
    graphs = {"call": _graph(CALLS), "task": _graph(1)}
    found: dict[str, list[float]] = {"direct": [], "call": [], "task": []}
    async with client, openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as model:

        async def direct() -> None:
            answer = await model.chat.completions.create(
                model="stand-in", messages=[{"role": "user", "content": PROMPT}]
            )
            _check(answer.choices[0].message.content)

        async def through(graph: Mapping[str, Any]) -> None:
            task = await client.submit(graph)
            _check(await task.result(timeout_s=60))

        await job.until_ready(client, settings.topology.total)
        await direct()
        await through(graphs["task"])
        for _ in range(settings.size(1, TURNS)):
            for what, number, in_a_row in (
                ("call", max(calls // CALLS, settings.size(16, IN_FLIGHT)), CALLS),
                ("task", calls, 1),
            ):
                alone = await _median_ms(direct, calls, latency_s)
                median = await _median_ms(partial(through, graphs[what]), number, latency_s)
                found["direct"].append(alone)
                found[what].append(median / in_a_row - alone)
    return {what: statistics.median(values) for what, values in found.items()}


def _graph(calls: int) -> dict[str, Any]:
    """So many calls, one after another."""
    node = {"agent": "model", "prompt": PROMPT}
    nodes = {f"n{i}": node | ({"needs": [f"n{i - 1}"]} if i else {}) for i in range(calls)}
    return {"nodes": nodes, "output": f"n{calls - 1}"}


async def _median_ms(run: Callable[[], Awaitable[None]], count: int, stagger_s: float) -> float:
    """The median time of one, with IN_FLIGHT at a time that began one after another."""
    times: list[float] = []
    left = iter(range(count))

    async def keep_one_in_flight(which: int) -> None:
        await asyncio.sleep(stagger_s * which / IN_FLIGHT)
        for _ in left:
            start = time.perf_counter()
            await run()
            times.append(time.perf_counter() - start)

    await asyncio.gather(*(keep_one_in_flight(i) for i in range(IN_FLIGHT)))
    if len(times) != count:
        raise job.WrongCount(f"{len(times)} of {count} answers")
    return 1000 * statistics.median(times)


def _check(answer: object) -> None:
    if answer != chat_server.ANSWER:
        raise job.WrongCount(f"the answer {answer!r} is not the server's")
