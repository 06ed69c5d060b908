"""What a real agent call takes longer through Agent OS than made directly with the same client."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
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
PROMPT = "Say something short."

CONFIG = """[agents.model]
type = "openai"
model = "stand-in"
base_url = "{url}"
max_concurrency = {in_flight}
"""


def measure(settings: Settings) -> list[Figure]:
    """Direct, embedded, processes: in turn, each against the same server."""
    tasks = settings.size(16, 64)
    latency_s = settings.size(0.1, LATENCY_S)
    with chat_server.running(latency_s) as url:

        def once() -> dict[str, float]:
            values = {"direct": asyncio.run(_direct(url, CALLS * tasks, latency_s))}
            agent = OpenAIAgent("model", model="stand-in", base_url=url, max_concurrency=IN_FLIGHT)
            with clusters.embedded(settings.topology, agent) as client:
                found = asyncio.run(_through(client, settings, tasks, latency_s))
            values |= {f"embedded {what}": ms for what, ms in found.items()}
            config = CONFIG.format(url=url, in_flight=IN_FLIGHT)
            with clusters.processes(settings.topology, config) as up:
                found = asyncio.run(_through(up.client(), settings, tasks, latency_s))
            return values | {f"up {what}": ms for what, ms in found.items()}

        found = settings.repeat("overhead of a real agent call", once)
    title = f"a model's call of {1000 * latency_s:.0f} ms, {IN_FLIGHT} in flight"
    figures = [Figure("overhead", f"{title}, made directly, p50", "ms", found["direct"])]
    for name, where in (("embedded", "embedded"), ("up", "`agentos up`")):
        for what, words in (
            ("call", f"each call of a chain of {CALLS}"),
            ("task", "a task of one call, from submit to the pushed result"),
        ):
            pairs = zip(found[f"{name} {what}"], found["direct"], strict=True)
            more = [through - direct for through, direct in pairs]
            label = f"{title}, {where}: {words}, p50 beyond the direct call's"
            figures.append(Figure("overhead", label, "ms", more, at_most(1)))
    return figures


async def _direct(url: str, calls: int, latency_s: float) -> float:
    import openai

    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def call() -> None:
            answer = await client.chat.completions.create(
                model="stand-in", messages=[{"role": "user", "content": PROMPT}]
            )
            _check(answer.choices[0].message.content)

        await call()
        return await _median_ms(call, calls, latency_s)


async def _through(
    client: AsyncClient, settings: Settings, tasks: int, latency_s: float
) -> dict[str, float]:
    """The median milliseconds of a `call` in a chain, and of a `task` of one call."""
    found: dict[str, float] = {}
    node = {"agent": "model", "prompt": PROMPT}
    single = {"nodes": {"n": node}, "output": "n"}
    row = {f"n{i}": node | ({"needs": [f"n{i - 1}"]} if i else {}) for i in range(CALLS)}
    async with client:
        await job.until_ready(client, settings.topology.total)
        await job.throughput(client, 1, single, chat_server.ANSWER)
        for what, graph, number, calls in (
            ("call", {"nodes": row, "output": f"n{CALLS - 1}"}, tasks, CALLS),
            ("task", single, CALLS * tasks // 2, 1),
        ):

            async def run(graph: Mapping[str, Any] = graph) -> None:
                task = await client.submit(graph)
                _check(await task.result(timeout_s=60))

            median = await _median_ms(run, number, latency_s)
            found[what] = median / calls
    return found


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
