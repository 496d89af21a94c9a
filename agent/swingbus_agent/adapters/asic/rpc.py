"""One question to a miner's own TCP API, with our deadline and a size limit.

Used for what pyasic-rs 0.8.6 lacks (LuxOS profiles and reasons of refusal) or answers wrongly (whether a miner is asleep:
its `is_mining` defaults to true). Decides what kind of failure a bad answer is; knows no commands. Invariant: a reply is a
whole JSON object without NaN or infinity, or an `RpcFault` that says why not.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import struct
from typing import Any

RPC_PORT = 4028
V3_PORT = 4433
MAX_REPLY_BYTES = 512 * 1024
_CHUNK = 16 * 1024
_NO_ROUTE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.ENETDOWN}


class RpcFault(Exception):
    """A question without a usable answer; `reason` is the value of an `UnavailableReason`, or "hung"."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


async def ask(host: str, request: dict[str, Any], deadline_s: float) -> dict[str, Any]:
    """Send one JSON request to port 4028 and return the reply's object (cgminer style: NUL, newline or close ends it)."""
    data = json.dumps(request, separators=(",", ":")).encode() + b"\n"
    reply = await _exchange(host, RPC_PORT, data, is_framed=False, deadline_s=deadline_s)
    return parse_reply(reply)


async def ask_framed(host: str, request: dict[str, Any], deadline_s: float) -> dict[str, Any]:
    """Send one JSON request to port 4433, framed by a little-endian length (Whatsminer API 3), and return the reply."""
    data = json.dumps(request, separators=(",", ":")).encode()
    reply = await _exchange(host, V3_PORT, struct.pack("<I", len(data)) + data, is_framed=True, deadline_s=deadline_s)
    return parse_reply(reply)


async def _exchange(host: str, port: int, data: bytes, *, is_framed: bool, deadline_s: float) -> bytes:
    # Plain non-blocking sockets: asyncio's streams cost three times the CPU for one question and one answer.
    loop = asyncio.get_running_loop()
    stage = "connect"
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(deadline_s):
                await loop.sock_connect(sock, (host, port))
                stage = "answer"
                await loop.sock_sendall(sock, data)
                return await (_receive_framed(loop, sock) if is_framed else _receive_ended(loop, sock))
        except TimeoutError as error:
            reason = "hung" if stage == "answer" else "unreachable"
            raise RpcFault(reason, f"no {stage} from {host}:{port} within {deadline_s:g} s") from error
        except ConnectionRefusedError as error:
            raise RpcFault("refused", f"{host}:{port} refuses connections") from error
        except (ConnectionResetError, BrokenPipeError) as error:
            raise RpcFault("truncated", f"{host}:{port} reset the connection") from error
        except OSError as error:
            reason = "unreachable" if error.errno in _NO_ROUTE else "refused"
            raise RpcFault(reason, f"{host}:{port}: {error.strerror or error}") from error


async def _receive_ended(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    reply = b""
    while True:
        chunk = await loop.sock_recv(sock, _CHUNK)
        reply = reply + chunk if reply else chunk
        if not chunk or reply.endswith((b"\0", b"\n")):
            return reply
        if len(reply) > MAX_REPLY_BYTES:
            raise RpcFault("garbage", f"reply longer than {MAX_REPLY_BYTES} bytes")


async def _receive_framed(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    reply = b""
    while True:
        chunk = await loop.sock_recv(sock, _CHUNK)
        reply += chunk
        size = struct.unpack_from("<I", reply)[0] if len(reply) >= 4 else None
        if size is not None and size > MAX_REPLY_BYTES:
            raise RpcFault("garbage", f"reply announces {size} bytes, at most {MAX_REPLY_BYTES} are taken")
        if size is not None and len(reply) >= 4 + size:
            return reply[4 : 4 + size]
        if not chunk:
            raise RpcFault("truncated", f"connection closed after {len(reply)} bytes of a framed reply")


def _reject_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def parse_reply(reply: bytes) -> dict[str, Any]:
    """Return the object in `reply`; raises `RpcFault` "truncated" for a cut-off one and "garbage" for anything else.

    >>> parse_reply(b'{"STATUS":[]}' + bytes(1))
    {'STATUS': []}
    """
    text = reply.rstrip(b"\0\r\n ")
    if not text:
        raise RpcFault("truncated", "connection closed without a reply")
    try:
        body = json.loads(text.decode(), parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, NaN or infinity, nested without end
        is_cut_off = text.startswith(b"{") and not text.endswith(b"}")
        reason = "truncated" if is_cut_off else "garbage"
        raise RpcFault(reason, f"{len(reply)} bytes that are not whole JSON: {str(error)[:120]}") from error
    if not isinstance(body, dict):
        raise RpcFault("garbage", f"reply holds {type(body).__name__}, not an object")
    return body


def first_of(body: dict[str, Any], section: str) -> dict[str, Any]:
    """Return the first row of a cgminer section (`{"CONFIG":[{...}]}`), or an empty dict if it is not shaped so."""
    rows = body.get(section)
    row = rows[0] if isinstance(rows, list) and rows else rows
    return row if isinstance(row, dict) else {}
