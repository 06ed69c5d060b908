"""An agent behind any OpenAI-compatible endpoint: OpenAI, vLLM, Ollama, llama.cpp and others.

The `openai` client's defaults are not ours (a timeout of 600 s, two silent retries, redirects
followed, the URL, organization and headers taken from the environment): each is set here. Retries
belong to the node that calls, which counts them.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote as percent_encode
from urllib.parse import urlsplit

import msgspec

from agentos import answers
from agentos.core.errors import AgentError, ConfigError, UnusableAnswer
from agentos.core.limits import MAX_INT, MAX_RETRY_AFTER_S
from agentos.core.ports import AgentAnswer, AgentRequest

if TYPE_CHECKING:
    import openai

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_S = 10.0
RETRYABLE_STATUS = frozenset({408, 409, 429})
"""With every 5xx: the ones that may pass by themselves (RFC 9110; RFC 6585 for 429)."""


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)] = 0
    completion_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)] = 0


class _Completion(msgspec.Struct):
    """What we read of a chat completion; servers leave out or add nearly everything else."""

    choices: list[_Choice]
    usage: _Usage | None = None


class OpenAIAgent:
    """Asks a model through the chat completions API.

    An agent belongs to one runner: its connections live in that runner's event loop.

    Args:
        name: what nodes call it.
        model: the model, as the endpoint calls it.
        base_url: the endpoint up to `/v1`; OpenAI's own unless given. Never from the environment.
        api_key_env: the environment variable that holds the key; "" if the endpoint needs none.
            An endpoint on this machine may do without.
        api_key: the key itself, instead of a variable.
        timeout_s: the longest that one call may take, in seconds; a node may ask for less.
        max_concurrency: calls at a time.
        max_tokens: the longest answer; the endpoint's own bound unless given.
        temperature: how freely the model samples; the endpoint's own default unless given.
        system: a system message before every prompt.
        extra_body: further fields of each request, such as `{"top_p": 0.9}`.

    Raises:
        ConfigError: the key is missing, or an argument cannot be used.
    """

    def __init__(
        self,
        name: str,
        *,
        model: str,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        api_key: str | None = None,
        timeout_s: float = 60.0,
        max_concurrency: int = 8,
        max_tokens: int | None = None,
        temperature: float | None = None,
        system: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.max_concurrency = max_concurrency
        self._model = model
        self._url = base_url or OPENAI_URL
        self._timeout_s = timeout_s
        self._system = system
        if not model:
            raise ConfigError(f"agent {name!r}: model must be set")
        if timeout_s <= 0 or max_concurrency < 1:
            raise ConfigError(f"agent {name!r}: timeout_s and max_concurrency must be above 0")
        self._fields = dict(extra_body or {})
        if max_tokens is not None:
            # OpenAI's newer models refuse the old word; other servers may not know the new one.
            word = "max_completion_tokens" if self._url == OPENAI_URL else "max_tokens"
            self._fields[word] = max_tokens
        if temperature is not None:
            self._fields["temperature"] = temperature
        _check_url(name, self._url)
        local = is_loopback(self._url)
        self._key = api_key or _key(name, self._url, api_key_env, may_lack=local)
        self._client = _client(self._url, self._key, timeout_s, local=local)

    async def call(self, request: AgentRequest) -> AgentAnswer:
        """Ask once. The answer is text; with a schema the model is asked for JSON that meets it.

        Raises:
            UnusableAnswer: it is empty, or cut off.
            AgentError: the endpoint could not be reached, refused, or declined to answer.
        """
        body = await self._post(request)
        try:
            completion = msgspec.json.decode(body, type=_Completion)
            choice = completion.choices[0]
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, IndexError) as error:
            shown = self._quote(body.decode(errors="replace"))
            raise UnusableAnswer(
                self._says(f"sent no chat completion ({error}): {shown}")
            ) from None
        text = self._usable(choice)
        usage = completion.usage or _Usage()
        return AgentAnswer(
            value=text,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._client.close()

    async def _post(self, request: AgentRequest) -> bytes:
        """The body of the endpoint's answer.

        Raises:
            AgentError: there was none, or one with an error status.
        """
        import openai

        timeout_s = min(self._timeout_s, request.timeout_s)
        try:
            # The client's own timeouts are for each read; a trickle of bytes would outlast them.
            async with asyncio.timeout(timeout_s):
                # `chat.completions.create` would walk the body to convert types that ours has none
                # of, and the answer once more: a third of the cost of a call.
                response = await self._client.post(
                    "/chat/completions",
                    body={
                        "messages": self._messages(request.prompt),
                        "model": self._model,
                        **self._fields,
                        **_response_format(request.schema),
                    },
                    options={
                        "headers": {"Idempotency-Key": percent_encode(request.key, safe="/:")}
                    },
                    cast_to=openai.HttpxBinaryResponseContent,
                )
        except (TimeoutError, openai.APITimeoutError):
            reason = self._says(f"did not answer within {timeout_s:g} s")
            raise AgentError(reason, retryable=True) from None
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        except openai.APIConnectionError as error:
            reason = self._says(f"cannot be reached: {self._quote(str(error.__cause__ or error))}")
            raise AgentError(reason, retryable=True) from None
        return response.content

    def _messages(self, prompt: str) -> Any:
        user = {"role": "user", "content": prompt}
        return (
            [user] if self._system is None else [{"role": "system", "content": self._system}, user]
        )

    def _usable(self, choice: _Choice) -> str:
        text = choice.message.content or ""
        if choice.message.refusal or choice.finish_reason == "content_filter":
            shown = self._quote(choice.message.refusal or text)
            raise AgentError(self._says(f"declined to answer: {shown}"), retryable=False)
        if choice.finish_reason == "length":
            shown = self._quote(text)
            raise UnusableAnswer(self._says(f"was cut off (max_tokens is too low): {shown}"))
        if not text.strip():
            shown = self._quote(repr(text))
            reason = f"answered nothing: {shown}, finish_reason {choice.finish_reason!r}"
            raise UnusableAnswer(self._says(reason))
        return text

    def _refused(self, error: openai.APIStatusError) -> AgentError:
        status = error.status_code
        if 300 <= status < 400:
            target = error.response.headers.get("location", "nowhere")
            reason = f"redirects to {self._quote(target)}: set base_url to where it is"
            return AgentError(self._says(reason), retryable=False)
        reason = f"refused with status {status}: {self._quote(_message(error))}"
        return AgentError(
            self._says(reason),
            retryable=status in RETRYABLE_STATUS or status >= 500,
            retry_after_s=_retry_after_s(error.response.headers),
        )

    def _says(self, what: str) -> str:
        """What the endpoint did, in a sentence that names the agent."""
        return f"agent {self.name!r} at {self._url} {what}"

    def _quote(self, text: str) -> str:
        """What the endpoint sent, shortened, and never with the key in it."""
        return answers.quote(text.replace(self._key, "***") if self._key else text)


def is_loopback(url: str) -> bool:
    """Whether a URL is on this machine: its host is `localhost` or a loopback address."""
    host = ""
    try:
        host = urlsplit(url).hostname or ""
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # the host is a name, or it is no URL
        return host == "localhost"


def _client(url: str, key: str, timeout_s: float, *, local: bool) -> openai.AsyncOpenAI:
    import openai

    # Any key will do where none is wanted, but the client insists on one.
    bearer = key or "none"
    timeout = openai.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S))
    client = openai.AsyncOpenAI(
        api_key=bearer,
        base_url=url,
        timeout=timeout,
        max_retries=0,
        # Said explicitly, this header wins over one from OPENAI_CUSTOM_HEADERS.
        default_headers={"Authorization": f"Bearer {bearer}"},
        http_client=openai.DefaultAsyncHttpxClient(
            timeout=timeout,
            follow_redirects=False,
            # No proxy from the environment stands between us and our own machine.
            trust_env=not local,
        ),
    )
    # Taken from the environment by the client; they are for OpenAI and nobody else.
    client.organization = client.organization if url == OPENAI_URL else None
    client.project = client.project if url == OPENAI_URL else None
    return client


def _key(name: str, url: str, variable: str, *, may_lack: bool) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not key and not may_lack:
        raise ConfigError(
            f"agent {name!r}: set the environment variable {variable} to the key for {url}, "
            'or api_key_env = "" if it needs none'
        )
    return key


def _check_url(name: str, url: str) -> None:
    """Refuse what is not a URL that can be used.

    Raises:
        ConfigError: it is not; names the agent.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.username is None
        usable = usable and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            f"agent {name!r}: base_url must be like https://host/v1 and hold no password, "
            f"not {answers.quote(url.rpartition('@')[2])!r}"
        )


def _response_format(schema: Mapping[str, Any] | None) -> dict[str, Any]:
    if schema is None:
        return {}
    wanted = {"name": "answer", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": wanted}}


def _message(error: openai.APIStatusError) -> str:
    """The server's own words; the client has taken off the outer `{"error": …}`."""
    match error.body:
        case str(text) | {"message": str(text)} if text:
            return text
    return error.response.text.strip() or error.message


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that a Retry-After header asks for: a number or a date (RFC 9110, 10.2.3).

    A date is compared with the server's own Date header, so that our clock does not matter.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), MAX_RETRY_AFTER_S)
    until = _http_date(text)
    if until is None:
        return None
    seconds = (until - (_http_date(headers.get("date", "")) or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None


def _http_date(text: str) -> datetime | None:
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
