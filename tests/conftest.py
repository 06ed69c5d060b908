"""What several test modules share."""

import os
import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

from agentos.agents.local_model import LocalModelServer
from agentos.build import is_compiled

# A shell starts background jobs with SIGINT ignored, and our children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines differ in speed, so no example has a deadline. A failure prints how to replay it. In CI
# the examples are the same in every run (Hypothesis's own profile `ci`); elsewhere they are new.
settings.register_profile("agentos", deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "agentos")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A compiled package (`make test COMPILED=1`) lets nobody replace a part of it."""
    if not is_compiled():
        return
    skip = pytest.mark.skip(reason="needs the sources of what is compiled")
    for item in items:
        if item.get_closest_marker("plain"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def fresh_logging() -> Iterator[None]:
    """Each test finds structlog as a new process does: a command's log level is that process's."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def model_url() -> Iterator[str]:
    """The base URL of the real small model, started once for all tests that ask for it."""
    with LocalModelServer(parallel=2) as server:
        yield server.url
