"""Adapters by URL: which there are, and what is said when there is none."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from agentos import registry
from agentos.core.errors import ConfigError, LocalProtocolError, StorageError
from agentos.core.limits import Limits
from agentos.core.ports import Database, Transport
from agentos.registry import Transports, open_database
from agentos.runtime.wire import JsonCodec
from agentos.transports.inproc import InprocTransport
from agentos.transports.zeromq import ZeroMQTransport


@pytest.fixture
def transports() -> Any:
    made = Transports(JsonCodec(Limits()), Limits())
    yield made
    made.close()


def test_schemes_lead_to_adapters(transports: Transports) -> None:
    """Each scheme has its adapter, one instance for all of its URLs in a process."""
    assert isinstance(transports.of("inproc://a"), InprocTransport)
    tcp = transports.of("tcp://127.0.0.1:1")
    assert isinstance(tcp, ZeroMQTransport)
    assert transports.of("ipc:///tmp/x") is tcp
    assert transports.of("inproc://b") is transports.of("inproc://a")


@pytest.mark.parametrize("url", ["http://x", "tcp", "", "tcp:/x", "://x", "TCP://x:1"])
def test_other_schemes_are_refused(transports: Transports, url: str) -> None:
    """A URL that nobody serves is an error that names those that are served."""
    with pytest.raises(LocalProtocolError, match=r"installed: inproc://, ipc://, tcp://"):
        transports.of(url)
    with pytest.raises(LocalProtocolError, match=r"agentos\.storage; installed: .*sqlite://"):
        open_database(url)


def test_databases_by_url(tmp_path: Path) -> None:
    """A storage URL opens a database; one that cannot be opened says so."""
    database = open_database(f"sqlite:///{tmp_path}/a.db")
    assert isinstance(database, Database)
    assert database.create_task(1, "graph", "{}").task_id == 1
    database.close()
    open_database("memory://").close()
    with pytest.raises(StorageError, match="create it first"):
        open_database(f"sqlite:///{tmp_path}/missing/a.db")


def test_closed_transports_make_no_new_ones(transports: Transports) -> None:
    """After the end of a process's transports nothing is left that could start a thread again."""
    transports.of("inproc://a")
    transports.close()
    transports.close()
    with pytest.raises(LocalProtocolError, match="closed"):
        transports.of("inproc://a")


def test_a_third_package_adds_a_scheme(
    transports: Transports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry point is all it takes; one whose module is missing says what it needs."""
    points = (
        EntryPoint("pigeon", "agentos.transports.inproc:InprocTransport", registry.TRANSPORTS),
        EntryPoint("carrier", "no_such_package.carrier:Transport", registry.TRANSPORTS),
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    pigeon: Transport = transports.of("pigeon://loft")
    assert isinstance(pigeon, InprocTransport)
    with pytest.raises(ConfigError, match="no_such_package"):
        transports.of("carrier://x")
