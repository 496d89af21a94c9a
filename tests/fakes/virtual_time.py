"""A loop whose time passes only when nothing else is left to do, and a clock that reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import looptime


@dataclass
class LoopClock:
    """The loop's virtual time; `offset_s` is how far this machine's clocks are off."""

    offset_s: float = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.boottime_s())

    def boottime_s(self) -> float:
        return asyncio.get_running_loop().time() + self.offset_s

    def boottime_ns(self) -> int:
        return int(self.boottime_s() * 1e9)

    def monotonic_s(self) -> float:
        return self.boottime_s()

    async def sleep(self, span_s: float) -> None:
        await asyncio.sleep(max(0.0, span_s))


def in_virtual_time(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end without waiting."""
    loop = looptime.new_event_loop(noop_cycles=4)  # nothing real is waited for in between
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
