"""One TCP forwarder an agent, so that a link can really be cut: bytes stop, connections break, nobody is told."""

from __future__ import annotations

import asyncio
from contextlib import suppress

_CHUNK = 65536


class Link:
    """Forwards 127.0.0.1:port to the controller until it is cut."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._pairs: set[asyncio.StreamWriter] = set()
        self.is_cut = False

    async def open(self) -> int:
        """Listen on a free loopback port and return it."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        self.is_cut = True
        for writer in list(self._pairs):
            writer.transport.abort()

    def mend(self) -> None:
        """Let connections through again."""
        self.is_cut = False

    async def close(self) -> None:
        """Stop listening."""
        self.cut()
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        try:
            async with asyncio.timeout(2.0):
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        self._pairs |= {writer, far_writer}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, far_writer))
                group.create_task(_pump(far_reader, writer))
        finally:
            self._pairs -= {writer, far_writer}
            writer.transport.abort()
            far_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
    # One side is gone: let the other see it.
    writer.transport.abort()
