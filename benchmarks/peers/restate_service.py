"""The service that Restate calls: a handler of five journaled steps, served by hypercorn."""

from __future__ import annotations

from collections.abc import Callable

import restate

from benchmarks.peers import harness

service = restate.Service("Job")


@service.handler()
async def run(context: restate.Context, task: str) -> str:
    def step(name: str, *inputs: str) -> Callable[[], str]:
        return lambda: harness.node(task, name, *inputs)

    first = await context.run_typed("n1", step("n1"))
    three = [context.run_typed(name, step(name, first)) for name in harness.MIDDLE]
    await restate.gather(*three)
    return await context.run_typed("z", step("z", *[await one for one in three]))


app = restate.app([service])
