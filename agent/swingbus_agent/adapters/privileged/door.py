"""A socket in the agent's own folder whose connections go on to the kubelet's, which only root may open.

Decides nothing: bytes go through as they come. gRPC cannot be given a connection, only a path, hence this door. Invariants: nobody but the
agent's user reaches it (the folder and the socket are its own); a kubelet that cannot be reached closes the connection at once, and
`why_not` says why.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from swingbus.faults import InvalidInput
from swingbus_agent.adapters.privileged.link import KeeperLink

_LONGEST_PATH_BYTES = 107
_PIECE_BYTES = 65536


class KubeletDoor:
    """Opens at the first `path` and stays open until `aclose`."""

    def __init__(self, folder: Path, link: KeeperLink, *, deadline_s: float) -> None:
        """Nothing is opened yet.

        Args:
            folder: where the socket lies; only the agent's user may enter it.
            link: to the privileged child.
            deadline_s: for the child to connect.
        """
        self._path = folder / "kubelet.sock"
        if len(bytes(self._path)) > _LONGEST_PATH_BYTES:
            raise InvalidInput(
                f"{self._path} is too long a path for a socket (at most {_LONGEST_PATH_BYTES} bytes); choose a shorter state_dir",
                reason="CONFIG_INVALID",
            )
        self._link = link
        self._deadline_s = deadline_s
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()
        self.why_not = ""

    async def path(self) -> Path:
        """Return the socket to connect to."""
        if self._server is None:
            self._server = await asyncio.start_unix_server(self._pass, self._path)
            self._path.chmod(0o600)
        return self._path

    async def aclose(self) -> None:
        """Close the door and every connection through it."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)
        for task in tuple(self._passing):
            task.cancel()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        try:
            answer = await self._link.connect_kubelet(self._deadline_s)
            self.why_not = "" if answer.connection is not None else answer.reply.why
            if answer.connection is not None:
                await self._join(reader, writer, answer.connection)
        except asyncio.CancelledError:  # the door is closing: asyncio's server would tell of it as a failure
            return
        except OSError:  # either end broke off: the other is told by the end of its connection
            return
        finally:
            self._passing.discard(task)
            writer.close()

    async def _join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: socket.socket
    ) -> None:
        kubelet_reader, kubelet_writer = await asyncio.open_unix_connection(sock=connection)
        try:
            async with asyncio.TaskGroup() as group:
                there = group.create_task(_copy(reader, kubelet_writer))
                back = group.create_task(_copy(kubelet_reader, writer))
                # gRPC ends a connection as a whole: half of one is of no use to it.
                there.add_done_callback(lambda _: back.cancel())
                back.add_done_callback(lambda _: there.cancel())
        finally:
            kubelet_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    except OSError:  # broken off: the same as an end here
        return
