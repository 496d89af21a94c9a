"""A relay from one port on the host's loopback into the control plane's namespace: how programs on the host reach what listens there.

Listens first, then moves itself into the namespace: a socket stays where it was made, so nothing else on the host is opened. It only
passes bytes; who may do what is for the other end to say. Run by its path, so that it needs nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import sys
from pathlib import Path

_CLONE_NEWNET = 0x4000_0000
_CHUNK_BYTES = 256 * 1024


def main() -> None:
    """Usage: relay.py NETWORK_NAMESPACE HOST PORT PORT_FILE OWN_PORT; the port that it listens at is written into PORT_FILE."""
    namespace, host, port, port_file, own_port = sys.argv[1:]
    listener = socket.create_server(("127.0.0.1", int(own_port)))
    _enter(namespace)
    new = Path(f"{port_file}.new")
    new.write_text(str(listener.getsockname()[1]))
    new.rename(port_file)
    asyncio.run(_serve(listener, host, int(port)))


def _enter(namespace: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(namespace, os.O_RDONLY)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    os.close(descriptor)


async def _serve(listener: socket.socket, host: str, port: int) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()  # nobody listens there: the caller sees what it would see without us
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(_pass(reader, inner_writer))
            group.create_task(_pass(inner_reader, writer))

    server = await asyncio.start_server(relay, sock=listener)
    await server.serve_forever()


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    # Either end may go at any time; then both go.
    with contextlib.suppress(OSError):
        while chunk := await source.read(_CHUNK_BYTES):
            sink.write(chunk)
            await sink.drain()
    with contextlib.suppress(OSError):
        sink.close()


if __name__ == "__main__":
    main()
