"""`agentos up` with links that can be cut: the supervisor itself, told to dial through them.

Reads orders from standard input, one JSON document a line: `{"link": "region/r1>gateway/main",
"how": "silent", "seconds": 3}`. Ends when standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys

from agentos import logs
from agentos.children import direct
from agentos.config import load
from agentos.datadir import ClusterRecord
from agentos.supervisor import Supervisor
from tests.chaos.links import Link


class Links:
    """Every link of the cluster, made when a role first asks where to dial."""

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}

    def dialled(self, child: str, parent: str, url: str) -> str:
        """The URL of the link from a role to the one above it."""
        name, target = f"{child}>{parent}", direct(child, parent, url)
        link = self._links.get(name)
        if link is None:
            link = self._links[name] = Link(name, target)
        link.target = target
        return link.url

    async def obey(self) -> None:
        """Cut what standard input says, for as long as it says."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            order = json.loads(line)
            if link := self._links.get(order["link"]):
                link.cut(order["how"])
                loop.call_later(order["seconds"], link.heal)
        os.kill(os.getpid(), signal.SIGTERM)


async def main(config: str) -> None:
    """Run the cluster that the file describes."""
    links = Links()
    obeying = asyncio.create_task(links.obey())

    def ready(record: ClusterRecord) -> None:
        sys.stdout.write(json.dumps(record.urls) + "\n")
        sys.stdout.flush()

    supervisor = Supervisor(
        load(config, {}),
        log_level="warning",
        log_json=True,
        on_ready=ready,
        dialled=links.dialled,
    )
    try:
        await supervisor.run()
    finally:
        obeying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await obeying


if __name__ == "__main__":
    logs.configure("warning", as_json=True)
    asyncio.run(main(sys.argv[1]))
