"""A real HTTP server that speaks the chat completions API, and the OpenAI agent that asks it."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agentos.agents.openai import OpenAIAgent
from agentos.core.errors import AgentError
from agentos.core.ports import AgentAnswer, AgentRequest

VOTE = {
    "type": "object",
    "properties": {"choice": {"type": "integer", "enum": [0, 1]}},
    "required": ["choice"],
    "additionalProperties": False,
}
KEY = "sk-very-secret"


def request(
    prompt: str = "hello", schema: dict[str, Any] | None = None, timeout_s: float = 30.0
) -> AgentRequest:
    return AgentRequest(prompt=prompt, key="7/a/0/s0", timeout_s=timeout_s, schema=schema)


def completion(content: Any, **choice: Any) -> bytes:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": content}
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"} | choice],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
        }
    ).encode()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class Endpoint:
    """An HTTP server that answers what it is told to, and remembers what it was sent."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = completion("fine")
        self.hang = False
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.arrived = threading.Event()
        self.left = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                endpoint.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        serve = self.server.serve_forever
        self.thread = threading.Thread(target=serve, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append((handler.path, headers, body))
        self.arrived.set()
        if self.hang:
            if handler.connection.recv(1) == b"":
                self.left.set()
            handler.close_connection = True
            return
        handler.send_response_only(self.status)
        for name, value in {"Content-Length": str(len(self.body)), **self.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(self.body)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def ask(endpoint: Endpoint, asked: AgentRequest | None = None, **options: Any) -> AgentAnswer:
    """One call of a new agent, from start to close."""

    async def run() -> AgentAnswer:
        agent = OpenAIAgent("writer", model="small", base_url=endpoint.url, **options)
        try:
            return await agent.call(asked or request())
        finally:
            await agent.close()
            await agent.close()

    return asyncio.run(run())


def failure(endpoint: Endpoint, asked: AgentRequest | None = None, **options: Any) -> AgentError:
    """The error of one call."""
    with pytest.raises(AgentError) as caught:
        ask(endpoint, asked, **options)
    return caught.value
