"""The pipe between the agent and its ASIC child: four bytes of length (little-endian), then a JSON array.

Values travel by position, not by name, so one miner's answer is some 200 bytes and one line of code at each end.
Invariant: a frame over `MAX_FRAME_BYTES` is an error, never an allocation.
"""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

MAX_FRAME_BYTES = 4 * 1024 * 1024
_LENGTH = struct.Struct("<I")


def pack(body: list[Any]) -> bytes:
    """Return the frame of `body`."""
    data = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    return _LENGTH.pack(len(data)) + data


async def read_frame(reader: asyncio.StreamReader) -> list[Any]:
    """Return the next frame's array; raises `EOFError` at the end and `ValueError` on anything that is no frame."""
    try:
        size = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))[0]
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"frame of {size} bytes, at most {MAX_FRAME_BYTES} are taken")
        body = json.loads(await reader.readexactly(size))
    except asyncio.IncompleteReadError as error:
        raise EOFError("the other side closed the pipe") from error
    if not isinstance(body, list):
        raise ValueError(f"frame holds {type(body).__name__}, not an array")
    return body
