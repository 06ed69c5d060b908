"""What the OpenAI agent makes of answers that cannot be used, and of servers that give none."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.agents import openai as module
from agentos.core.errors import UnusableAnswer
from tests.endpoints import KEY, Endpoint, ask, completion, failure, request


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A server that speaks the chat completions API, as far as a test says."""
    server = Endpoint()
    yield server
    server.close()


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
