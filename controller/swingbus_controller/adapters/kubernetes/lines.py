"""Bytes into lines.

Decides where a line ends. Refuses to know what is in it. Invariant: never holds more than a line of the allowed length.
"""

from __future__ import annotations


class LineTooLong(Exception):
    """A line that no object of this API could fill."""


class LineSplitter:
    """Takes bytes as they come, gives whole lines; what is left at the end is half a line and worth nothing."""

    def __init__(self, bytes_at_most: int) -> None:
        self._bytes_at_most = bytes_at_most
        self._rest = bytearray()

    @property
    def has_half_line(self) -> bool:
        return bool(self._rest)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that are whole now, without their ends. Raises LineTooLong once one is."""
        if b"\n" not in chunk:
            self._keep(chunk)
            return []
        *lines, rest = chunk.split(b"\n")
        self._keep(lines[0])
        lines[0] = bytes(self._rest)
        self._rest.clear()
        self._keep(rest)
        if max(map(len, lines)) > self._bytes_at_most:
            raise LineTooLong(f"a line is longer than {self._bytes_at_most} bytes")
        return lines

    def _keep(self, part: bytes) -> None:
        if len(self._rest) + len(part) > self._bytes_at_most:
            raise LineTooLong(f"a line is longer than {self._bytes_at_most} bytes")
        self._rest += part
