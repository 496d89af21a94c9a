"""The bound of ingest, on this machine and at this moment: the least server that takes the same load, mutual TLS included.

What the trials measured, fed by the same generator: read, numpy over the bytes, one sum, a blob in SQLite, 50 to a commit, an
acknowledgement after it. It checks nothing, knows no fleet and no meter, and its commits do not survive a power cut
(synchronous=NORMAL). The product cannot be faster than this with this transport and this language.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import uvloop

from swingbus.link.v1alpha import agent_link_service_pb2 as pb2
from swingbus.rpc.server import ServerSettings, bind_port, server_credentials, server_options
from swingbus_controller.adapters.pki import CertificateAuthority

PER_COMMIT = 50
CREDIT = 64


class LeastServer:
    """Stores bytes and says so."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("CREATE TABLE batches (id INTEGER PRIMARY KEY, payload BLOB NOT NULL)")
        self._open: list[tuple[dict[str, Any], bytes]] = []
        self._committing = asyncio.Lock()
        self.total = 0

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Serve one stream."""
        hello = await anext(requests)
        assert hello
        await context.write(
            pb2.StreamTelemetryResponse(welcome=pb2.TelemetryWelcome(credit=CREDIT)).SerializeToString()
        )
        state: dict[str, Any] = {"context": context, "stored": 0}
        async for payload in requests:
            # Four bytes at a time from the first whole one: as much arithmetic as the trials' flat matrices took.
            self.total += int(
                np.add.reduce(np.frombuffer(payload, dtype=np.uint8, count=len(payload) & ~3).view(np.uint32))
            )
            self._open.append((state, payload))
            if len(self._open) >= PER_COMMIT:
                await self._commit()

    async def flush_for_ever(self) -> None:
        """Commit what is fewer than a group, so that the last batches are acknowledged too."""
        while True:
            await asyncio.sleep(0.2)
            await self._commit()

    async def _commit(self) -> None:
        async with self._committing:  # one writer at a time to each stream
            await self._commit_group()

    async def _commit_group(self) -> None:
        group, self._open = self._open, []
        if not group:
            return
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO batches VALUES (NULL, ?)", [(payload,) for _, payload in group])
        self._db.execute("COMMIT")
        for state, _ in group:
            state["stored"] += 1
        for state in {id(state): state for state, _ in group}.values():
            ack = pb2.StreamTelemetryResponse(ack=pb2.TelemetryAck(acked_sequence=state["stored"]))
            await state["context"].write(ack.SerializeToString())


async def main(folder: Path) -> None:
    """Serve until killed; the port goes to `folder`/ready."""
    authority = CertificateAuthority(folder / "pki")
    server = grpc.aio.server(options=server_options(ServerSettings()))
    least = LeastServer(folder / "least.sqlite")
    handler: Any = grpc.stream_stream_rpc_method_handler(least.stream)
    service = "swingbus.link.v1alpha.AgentLinkService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"StreamTelemetry": handler}),))
    port = bind_port(server, "127.0.0.1:0", server_credentials(authority.serving.identity))
    await server.start()
    (folder / "ready.part").write_text(f"{port}\n", encoding="ascii")
    (folder / "ready.part").rename(folder / "ready")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(least.flush_for_ever())
        await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
