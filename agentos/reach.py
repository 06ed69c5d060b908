"""How a process of its own finds a cluster: its gateways' URLs, and a switch below one of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from agentos.core import messages as m
from agentos.core.errors import ClusterUnreachable
from agentos.core.limits import Limits
from agentos.logs import quiet_unless_configured
from agentos.registry import Transports
from agentos.runtime.switch import Switch
from agentos.runtime.wire import JsonCodec

DEFAULT_URL = "tcp://127.0.0.1:7170"
CONNECT_S = 5.0
"""How long a gateway is looked for before it is said that there is none."""


def urls_of(url: str | Sequence[str] | None) -> list[str]:
    """The gateways meant; if None, those of `AGENTOS_URL` (separated by commas) or the local one."""
    if url is not None:
        return [url] if isinstance(url, str) else list(url)
    named = os.environ.get("AGENTOS_URL", "").split(",")
    return [one.strip() for one in named if one.strip()] or [DEFAULT_URL]


def unreachable(urls: Sequence[str], timeout_s: float) -> ClusterUnreachable:
    """The error of somebody who has waited for a gateway in vain."""
    return ClusterUnreachable(
        f"no gateway answered at {', '.join(urls)} within {timeout_s:g} s: "
        "is `agentos up` running, and is this its URL (`--url`, `AGENTOS_URL`)?"
    )


@contextlib.contextmanager
def connect(
    url: str | Sequence[str] | None = None,
    *,
    timeout_s: float = CONNECT_S,
    limits: Limits | None = None,
) -> Iterator[Switch]:
    """A switch of your own below a gateway: for `ref`s to its actors, and for actors of yours.

    To submit tasks, make a `Client` or an `AsyncClient`: they connect by themselves.

    Args:
        url: a gateway's URL or several, tried in order; `AGENTOS_URL` or the local default if None.
        timeout_s: seconds to wait for one of them.
        limits: the cluster's, if they are not the defaults.

    Raises:
        ClusterUnreachable: none answered in time.
    """
    quiet_unless_configured()
    urls = urls_of(url)
    limits = (limits or Limits()).check()
    transports = Transports(JsonCodec(limits), limits)
    switch = Switch(transports, limits, "own")
    try:
        switch.ref(m.GATEWAY)  # takes the name under which answers come back
        if not switch.connect(urls).wait_up(timeout_s):
            raise unreachable(urls, timeout_s)
        yield switch
    finally:
        switch.close()
        transports.close()
