"""Hands the truth to whoever listens: every listener gets every line from the first, however late it comes.

Owns RUN_DIR/truth.sock and RUN_DIR/truth.jsonl.gz. Invariant: the order of lines is the same for all; a listener too slow for the
bounded backlog is dropped, and sees it by the missing "end" line.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from swingbus.faults import WrongState

BACKLOG_BYTES = 96 * 1024 * 1024
_FLUSH_LINES = 30
_WRITE_S = 10.0


class TruthHub:
    """One run's stream of lines. Use as an async context manager."""

    def __init__(self, folder: Path, *, writes_file: bool = True) -> None:
        self.socket_path = folder / "truth.sock"
        self.file_path = folder / "truth.jsonl.gz"
        self._stack = ExitStack()
        self._file: gzip.GzipFile | None = None
        if writes_file:
            self._file = self._stack.enter_context(gzip.GzipFile(self.file_path, "wb", compresslevel=1))
        self._lines: list[bytes] = []
        self._bytes = 0
        self._is_full = False
        self._is_closed = False
        self._more = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._unflushed = 0
        self._listeners = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> TruthHub:
        self.socket_path.unlink(missing_ok=True)
        try:
            self._server = await asyncio.start_unix_server(self._serve, path=self.socket_path)
        except OSError as error:
            raise WrongState(f"cannot listen on {self.socket_path}: {error}; choose a shorter --dir") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closed = True
        self._more.set()
        if self._server is not None:
            self._server.close()
            # Every listener gets its last line; one that does not read must not hold up the end.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WRITE_S):
                    await self._idle.wait()
        self._stack.close()
        self.socket_path.unlink(missing_ok=True)

    def send(self, line: str) -> None:
        """Add a line (without its newline) to the stream."""
        raw = line.encode() + b"\n"
        if self._file is not None:
            self._file.write(raw)
            self._unflushed += 1
            if self._unflushed >= _FLUSH_LINES:
                self._unflushed = 0
                self._file.flush()  # so that a killed simulator leaves its truth behind
        if self._is_full:
            return
        self._lines.append(raw)
        self._bytes += len(raw)
        if self._bytes > BACKLOG_BYTES:
            self._is_full = True
            self._lines.clear()
        self._more.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        position = 0
        self._listeners += 1
        self._idle.clear()
        try:
            while not self._is_full:
                if position < len(self._lines):
                    batch = b"".join(self._lines[position : position + 200])
                    position = min(len(self._lines), position + 200)
                    writer.write(batch)
                    async with asyncio.timeout(_WRITE_S):
                        await writer.drain()
                elif self._is_closed:
                    break
                else:
                    self._more.clear()
                    await self._more.wait()
        except (ConnectionError, TimeoutError):
            return  # the listener left or stopped reading: its loss, the others go on
        finally:
            self._listeners -= 1
            if self._listeners == 0:
                self._idle.set()
            writer.close()
