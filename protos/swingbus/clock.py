"""Time, as a port: the only module that asks the machine what time it is.

Three clocks with three uses, never mixed: `now()` (aware UTC, jumps) is for records and people; `boottime_s()` (CLOCK_BOOTTIME, counts
through suspend, comparable within one boot) is for leases, dwell, windows and everything called `now_s`; `monotonic_s()` is for measuring
what this process did. Domain code takes `now_s` as an argument and never sees this room.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from swingbus.faults import Unreachable

_BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """What loops may ask of time."""

    def now(self) -> datetime:
        """Return the wall clock, aware, in UTC."""
        ...

    def boottime_s(self) -> float:
        """Return CLOCK_BOOTTIME in seconds."""
        ...

    def boottime_ns(self) -> int:
        """Return CLOCK_BOOTTIME in nanoseconds, as the wire carries it."""
        ...

    def monotonic_s(self) -> float:
        """Return CLOCK_MONOTONIC in seconds."""
        ...

    async def sleep(self, span_s: float) -> None:
        """Wait; a span of 0 or less yields once."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def boottime_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def boottime_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, span_s: float) -> None:
        await asyncio.sleep(max(0.0, span_s))


def boot_id(path: Path = _BOOT_ID_PATH) -> str:
    """Return the kernel's boot id: boot times of different ids are never compared. Raises Unreachable where there is none."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Unreachable(
            f"cannot read the kernel's boot id from {path}: {error}; Swingbus needs Linux with /proc mounted",
            reason="NO_BOOT_ID",
        ) from error
    if not text:
        raise Unreachable(f"the kernel's boot id in {path} is empty", reason="NO_BOOT_ID")
    return text
