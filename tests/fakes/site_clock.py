"""The clock of the site in virtual time."""

from __future__ import annotations

from datetime import UTC, datetime

UNIX_ZERO_S = 1_795_435_200.0
BOOTTIME_ZERO_S = 10_000.0


class VirtualClock:
    """Time that moves when it is told to; the wall may be set apart from it."""

    def __init__(self) -> None:
        self.s = BOOTTIME_ZERO_S
        self.wall_offset_s = UNIX_ZERO_S - BOOTTIME_ZERO_S

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.s + self.wall_offset_s, UTC)

    def boottime_s(self) -> float:
        return self.s

    def boottime_ns(self) -> int:
        return round(self.s * 1e9)

    def monotonic_s(self) -> float:
        return self.s

    async def sleep(self, span_s: float) -> None:
        raise AssertionError("nothing sleeps in virtual time")
