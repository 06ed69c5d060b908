"""What several test modules share."""

from collections.abc import Iterator

import pytest

from agentos.agents.local_model import LocalModelServer


@pytest.fixture(scope="session")
def model_url() -> Iterator[str]:
    """The base URL of the real small model, started once for all tests that ask for it."""
    with LocalModelServer(parallel=2) as server:
        yield server.url
