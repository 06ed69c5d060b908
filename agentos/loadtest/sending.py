"""Sending tasks on a schedule, and waiting for the end of each.

The schedule is fixed before anything is sent and never waits for an answer (an open loop), and a
latency counts from the moment at which the schedule wanted the request sent. A cluster that stalls
therefore cannot hide it by keeping the client from asking (coordinated omission: Gil Tene, "How
NOT to Measure Latency").
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Unpack

import msgspec

from agentos.client import AsyncClient
from agentos.core import messages as m
from agentos.core.errors import (
    AgentOSError,
    ClusterUnreachable,
    GraphError,
    LocalProtocolError,
    ResultTimeout,
)
from agentos.handles import AsyncTask
from agentos.loadtest.run import Options, Outcome, Range, Request, Response, Run

POLL_S = 3.0
"""How often a task's status is asked for, unless pushed events are waited for."""
MOST_OF_CAUSE = 160
"""Characters of a task's error that count as its cause."""

TELLING = (GraphError, LocalProtocolError)
"""Refusals that say the same of every request; others name a task or a key, and are counted by
their code."""

Url = str | Sequence[str]


async def send_req(
    url: Url,
    req: Request,
    *,
    poll_s: float | None = POLL_S,
    timeout_s: float | None = None,
    client: AsyncClient | None = None,
    intended_at: float | None = None,
) -> Response:
    """Submit a task, wait for its end, and say how it went. Never raises for a failed task.

    Args:
        url: a gateway's URL, or several; not used if `client` is given.
        req: the task.
        poll_s: seconds between two questions for its status; None waits for the pushed event.
        timeout_s: seconds to wait for its end once it is accepted; for ever if None.
        client: a connected client to use instead of a connection of its own.
        intended_at: when it should have been sent, by `time.perf_counter`; now if None.

    Raises:
        ClusterUnreachable: no gateway answered, and nothing was sent.
        LocalProtocolError: an argument is wrong.
    """
    _check_waits(poll_s, timeout_s)
    async with _connected(url, client) as connected:
        planned = time.perf_counter() if intended_at is None else intended_at
        return await _send_one(connected, req, planned, poll_s, timeout_s)


async def send_all(
    url: Url, req_list: Sequence[Request], **options: Unpack[Options]
) -> list[Response]:
    """Send all at once; the responses are in the order of `req_list`.

    Args:
        url: a gateway's URL, or several.
        req_list: the tasks.
        options: see `Options`.

    Raises:
        ClusterUnreachable: no gateway answered, and nothing was sent.
        LocalProtocolError: an argument is wrong.
    """
    return await _send(url, req_list, itertools.repeat(0.0), options)


async def send_in_interval(
    url: Url,
    req_list: Sequence[Request],
    interval_range: Range,
    *,
    seed: int | None = None,
    **options: Unpack[Options],
) -> list[Response]:
    """Send one after the other, a random time apart, and wait for all at the very end.

    Args:
        url: a gateway's URL, or several.
        req_list: the tasks.
        interval_range: the least and the most seconds to sleep before each but the first.
        seed: of the intervals; the same seed gives the same.
        options: see `Options`.

    Raises:
        ClusterUnreachable: no gateway answered, and nothing was sent.
        LocalProtocolError: an argument is wrong.
    """
    _check_range("interval_range", interval_range, 0)
    chance = random.Random(seed)  # noqa: S311 - a schedule, no secret
    offsets = _offsets(itertools.repeat(1), interval_range, chance)
    return await _send(url, req_list, offsets, options)


async def send_batch_interval(
    url: Url,
    req_list: Sequence[Request],
    interval_range: Range,
    batch_size: int,
    *,
    seed: int | None = None,
    **options: Unpack[Options],
) -> list[Response]:
    """Send in batches of one size, a random time apart, and wait for all at the very end.

    Args:
        url: a gateway's URL, or several.
        req_list: the tasks.
        interval_range: the least and the most seconds to sleep before each batch but the first.
        batch_size: requests that are sent at once; the last batch may have fewer.
        seed: of the intervals; the same seed gives the same.
        options: see `Options`.

    Raises:
        ClusterUnreachable: no gateway answered, and nothing was sent.
        LocalProtocolError: an argument is wrong.
    """
    return await send_dynamic_batch_interval(
        url, req_list, interval_range, (batch_size, batch_size), seed=seed, **options
    )


async def send_dynamic_batch_interval(
    url: Url,
    req_list: Sequence[Request],
    interval_range: Range,
    batch_range: tuple[int, int],
    *,
    seed: int | None = None,
    **options: Unpack[Options],
) -> list[Response]:
    """Send in batches of random sizes, a random time apart, and wait for all at the very end.

    Args:
        url: a gateway's URL, or several.
        req_list: the tasks.
        interval_range: the least and the most seconds to sleep before each batch but the first.
        batch_range: the least and the most requests of a batch; the last may have fewer.
        seed: of the intervals and the sizes; the same seed gives the same.
        options: see `Options`.

    Raises:
        ClusterUnreachable: no gateway answered, and nothing was sent.
        LocalProtocolError: an argument is wrong.
    """
    _check_range("interval_range", interval_range, 0)
    _check_range("batch_range", batch_range, 1)
    chance = random.Random(seed)  # noqa: S311 - a schedule, no secret
    sizes = (chance.randint(*batch_range) for _ in itertools.count())
    return await _send(url, req_list, _offsets(sizes, interval_range, chance), options)


# -- how it is done --------------------------------------------------------------------------------


def _offsets(sizes: Iterable[int], interval: Range, chance: random.Random) -> Iterator[float]:
    """When each request is due, in seconds from the start: that of its batch."""
    due = 0.0
    for number, size in enumerate(sizes):
        due += chance.uniform(*interval) if number else 0.0
        yield from itertools.repeat(due, size)


async def _send(
    url: Url, req_list: Sequence[Request], offsets: Iterable[float], options: Options
) -> list[Response]:
    """Send each request at its offset from the start over one connection, then gather."""
    poll_s, timeout_s = options.get("poll_s", POLL_S), options.get("timeout_s")
    run = options.get("run") or Run()
    _check_waits(poll_s, timeout_s)
    async with _connected(url, options.get("client")) as client:
        begun_at = run.begin(len(req_list))

        async def one(index: int, req: Request, planned: float) -> None:
            run.in_flight[index] = (planned, time.perf_counter())
            run.take(index, await _send_one(client, req, planned, poll_s, timeout_s))

        try:
            async with asyncio.TaskGroup() as group:  # gathers all at its end
                for (index, req), offset in zip(enumerate(req_list), offsets, strict=False):
                    planned = begun_at + offset
                    # Not a sleep of the interval: what the loop is late by must not add up.
                    await asyncio.sleep(max(0.0, planned - time.perf_counter()))
                    group.create_task(one(index, req, planned))
        finally:
            run.ended_at = time.perf_counter()
    return [run.responses[index] for index in range(len(req_list))]


async def _send_one(
    client: AsyncClient,
    req: Request,
    intended_at: float,
    poll_s: float | None,
    timeout_s: float | None,
) -> Response:
    sent_at = time.perf_counter()
    task_id: int | None = None
    outcome: Outcome
    document: Mapping[str, Any] | None = None
    try:
        task = await client.submit(
            req.task_description, user_id=req.user_id, task_type=req.task_type, key=req.key
        )
        task_id = task.task_id
        ended = await _end(task, poll_s, timeout_s)
    except AgentOSError as problem:
        unanswered = task_id is not None or isinstance(problem, ClusterUnreachable)
        outcome = "unanswered" if unanswered else "refused"
        error = str(problem)
        cause = f"{outcome}: {problem.code}" + (
            f": {error}" if isinstance(problem, TELLING) else ""
        )
    else:
        outcome = ended.state  # type: ignore[assignment] # a terminal one
        document = msgspec.json.decode(ended.response) if ended.response else None
        error = "" if outcome == "succeeded" else ended.error or outcome
        cause = f"{outcome}: {ended.error}"[:MOST_OF_CAUSE] if ended.error else error
    return Response(
        outcome, task_id, document, error, cause, intended_at, sent_at, time.perf_counter()
    )


async def _end(task: AsyncTask, poll_s: float | None, timeout_s: float | None) -> m.Ended:
    """The task's end, asked for or pushed. Raises `ResultTimeout`."""
    if poll_s is None:
        return await task.wait(timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                await asyncio.sleep(poll_s)
                if (ended := m.end_of(await task.status())) is not None:
                    return ended
    except TimeoutError as error:
        if isinstance(error, AgentOSError):
            raise
        raise ResultTimeout(f"task {task.task_id} did not end in time; it goes on") from error


@contextlib.asynccontextmanager
async def _connected(url: Url, client: AsyncClient | None) -> AsyncIterator[AsyncClient]:
    """The client that was given, or one for as long as it is needed."""
    if client is not None:
        yield client
        return
    async with AsyncClient(url) as own:
        yield own


def _check_waits(poll_s: float | None, timeout_s: float | None) -> None:
    if poll_s is not None and not 0 < poll_s < math.inf:
        raise LocalProtocolError(f"poll_s must be a number above 0, or None, not {poll_s}")
    if timeout_s is not None and not timeout_s > 0:
        raise LocalProtocolError(f"timeout_s must be a number above 0, or None, not {timeout_s}")


def _check_range(name: str, found: Range, least: int) -> None:
    low, high = found
    if not least <= low <= high < math.inf:
        raise LocalProtocolError(
            f"{name} must be two finite numbers, the least ({least} or more) and the most, "
            f"not {found!r}"
        )
