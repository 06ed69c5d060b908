"""Links that can be cut: a small TCP proxy between a role and the one above it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from urllib.parse import urlsplit


class Link:
    """One link. `silent` keeps the connections and passes nothing on; `down` resets and refuses.

    Args:
        name: `child>parent`.
        target: the URL at which the parent listens.
    """

    def __init__(self, name: str, target: str) -> None:
        self.name = name
        self.target = target
        self._flows = asyncio.Event()
        self._flows.set()
        self._down = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = asyncio.create_task(self._serve())

    def cut(self, how: str) -> None:
        """Cut it: `silent` or `down`."""
        self._flows.clear()
        self._down = how == "down"
        if self._down:
            for writer in list(self._writers):
                writer.transport.abort()

    def heal(self) -> None:
        """Let everything through again."""
        self._down = False
        self._flows.set()

    async def close(self) -> None:
        """Give it up."""
        self._server.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._server

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._socket)
        async with server:
            await server.serve_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._down:
                writer.transport.abort()
                return
            await self._flows.wait()
            parts = urlsplit(self.target)
            up_reader, up_writer = await asyncio.open_connection(parts.hostname, parts.port)
            self._writers.add(up_writer)
            try:
                ways = {
                    asyncio.create_task(self._pass_on(reader, up_writer)),
                    asyncio.create_task(self._pass_on(up_reader, writer)),
                }
                _, others = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for other in others:
                    other.cancel()
            finally:
                self._writers.discard(up_writer)
                up_writer.transport.abort()
        except OSError:
            pass  # nobody listens there now
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
