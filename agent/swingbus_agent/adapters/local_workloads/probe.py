"""Asks a workload whether it is ready: by HTTP, by a command, or by its age.

Decides ready or not, with the reason for "not". Invariant: an answer comes within the deadline; no answer is "not ready".
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

_LONGEST_HEAD_BYTES = 8192


async def probe_url(url: str, *, deadline_s: float) -> str:
    """Return "" if GET answers 200, else why it is not ready."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
        if parts.scheme != "http" or not host:
            return f"{url} is no probe: write http://HOST:PORT/PATH"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        async with asyncio.timeout(deadline_s):
            reader, writer = await asyncio.open_connection(host, port, limit=_LONGEST_HEAD_BYTES)
            try:
                writer.write(f"GET {target} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
                head = (await reader.readline()).decode("latin-1").split(None, 2)
                body = (await reader.read(_LONGEST_HEAD_BYTES)).decode(errors="replace")
            finally:
                writer.close()
    except TimeoutError:
        return f"{url} did not answer within {deadline_s:g} s"
    except (OSError, ValueError) as error:
        return f"{url}: {error}"
    if len(head) < 2 or not head[0].startswith("HTTP/"):
        return f"{url} does not speak HTTP"
    if head[1] == "200":
        return ""
    last_line = body.strip().rsplit("\n", 1)[-1][:200]
    return f"{url} answers {head[1]}: {last_line}"


async def probe_command(
    command: Sequence[str], *, environment: Mapping[str, str], folder: str, deadline_s: float
) -> str:
    """Return "" if the command ends with 0, else why it is not ready."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=folder or None,
            env=dict(environment),
        )
    except OSError as error:
        return f"probe {command[0]} cannot be started: {error}"
    try:
        async with asyncio.timeout(deadline_s):
            code = await process.wait()
    except TimeoutError:
        return f"probe {command[0]} did not end within {deadline_s:g} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return "" if code == 0 else f"probe {command[0]} ended with {code}"
