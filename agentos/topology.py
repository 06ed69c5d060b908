"""`[cluster]`: which roles `agentos up` starts, what they are called, and when it gives up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Text = Annotated[str, Meta(min_length=1)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
_Number = Annotated[int, Meta(ge=1, le=1_000)]


def database_in(folder: str | Path) -> str:
    """The URL of the SQLite file in a data folder."""
    return f"sqlite:///{Path(folder).absolute() / 'agentos.db'}"


def from_here(url: str) -> str:
    """Where a process of this machine reaches who listens at `url`.

    `tcp://0.0.0.0:7170` is no address to connect to.
    """
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    return f"{scheme}://127.0.0.1:{port}" if host in {"0.0.0.0", "*"} else url  # noqa: S104


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[cluster]`: what `agentos up` starts, and where.

    Args:
        regions: how many (they are called r1, r2 and so on), or their names.
        proxies: proxies in each region.
        gateways: how many; several share one store, which is then a process of its own.
        store: whether the store is a process of its own below a single gateway too.
        data: the folder of the database and of `cluster.json`.
        listen: where the gateway listens; further ones take the next free ports.
        database: a database's URL, if it is not the SQLite file in `data`.
        max_restarts: deaths of one role within `restart_window_s` seconds that are repaired;
            one more, and something is wrong that restarts do not cure: `up` stops the cluster.
    """

    regions: _Number | Annotated[tuple[Name, ...], Meta(min_length=1, max_length=1_000)] = 1
    proxies: _Number = 2
    gateways: _Number = 1
    store: bool = False
    data: Text = "agentos-data"
    listen: Text = "tcp://127.0.0.1:7170"
    database: Text | None = None
    max_restarts: Annotated[int, Meta(ge=0, le=1_000_000)] = 5
    restart_window_s: Seconds = 60.0

    @property
    def gateway_names(self) -> list[str]:
        """The gateways by name: `main`, then `2`, `3` and so on."""
        return ["main", *(str(i) for i in range(2, self.gateways + 1))]

    @property
    def store_apart(self) -> bool:
        """Whether the store is a process of its own."""
        return self.store or self.gateways > 1

    @property
    def region_names(self) -> list[str]:
        """The regions by name."""
        if isinstance(self.regions, int):
            return [f"r{i}" for i in range(1, self.regions + 1)]
        return list(self.regions)

    @property
    def proxy_names(self) -> list[str]:
        """The proxies by name, like `r1/2`."""
        numbers = range(1, self.proxies + 1)
        return [f"{region}/{i}" for region in self.region_names for i in numbers]
