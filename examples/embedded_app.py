"""Agent OS inside an asyncio web application: started with it, stopped with it.

    pip install aiohttp
    python examples/embedded_app.py
    curl -d '{"topic": "tea"}' http://127.0.0.1:8080/haiku          -> {"task_id": 1}
    curl http://127.0.0.1:8080/haiku/1                              -> {"state": …, "output": …}

The answer to the POST comes after the commit: what was promised to the browser survives a crash
of the application, and goes on when it is started again on the same folder.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

from aiohttp import web

from agentos import (
    AgentOSError,
    AsyncClient,
    Cluster,
    GraphError,
    KeyConflict,
    LocalProtocolError,
    TaskNotFound,
    agent,
)

CLIENT = web.AppKey("client", AsyncClient)
DATA = web.AppKey("data", str)
STATUS = {GraphError: 400, LocalProtocolError: 400, KeyConflict: 409}


@agent
async def poet(prompt: str) -> str:
    """Stands in for a model; an `OpenAIAgent` named `poet` would do."""
    await asyncio.sleep(0.05)
    return f"{prompt.capitalize()}:\nan old silent pond\na frog jumps in"


async def post_haiku(request: web.Request) -> web.Response:
    """Accept a task."""
    try:
        topic = (await request.json())["topic"]
    except (ValueError, LookupError, TypeError):
        return web.json_response({"error": 'send JSON like {"topic": "tea"}'}, status=400)
    graph = {
        "input": {"topic": topic},
        "nodes": {"haiku": {"agent": "poet", "prompt": "a haiku about ${input.topic}"}},
    }
    try:
        task = await request.app[CLIENT].submit(graph, key=request.headers.get("Idempotency-Key"))
    except AgentOSError as error:
        return web.json_response({"error": str(error)}, status=STATUS.get(type(error), 503))
    return web.json_response({"task_id": task.task_id}, status=202)


async def get_haiku(request: web.Request) -> web.Response:
    """Tell how it stands."""
    task = request.app[CLIENT].task(int(request.match_info["task_id"]))
    try:
        status = await task.status()
    except TaskNotFound as error:
        return web.json_response({"error": str(error)}, status=404)
    output = await task.result() if status.state == "succeeded" else None
    return web.json_response({"state": status.state, "output": output})


async def agent_os(app: web.Application) -> AsyncIterator[None]:
    """The cluster's life is the application's."""
    cluster = Cluster([poet], data=app[DATA], proxies=2)
    await asyncio.to_thread(cluster.start)
    try:
        async with cluster.async_client() as app[CLIENT]:
            yield
    finally:
        await asyncio.to_thread(cluster.stop)


def make_app(data: str = "agentos-data") -> web.Application:
    """The application."""
    app = web.Application()
    app[DATA] = data
    app.add_routes(
        [web.post("/haiku", post_haiku), web.get(r"/haiku/{task_id:[1-9]\d{0,17}}", get_haiku)]
    )
    app.cleanup_ctx.append(agent_os)
    return app


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
    web.run_app(make_app(), host="127.0.0.1", port=port)
