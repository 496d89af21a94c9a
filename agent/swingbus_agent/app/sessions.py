"""Open one session after another, for ever, with a pause between them: what both streams to the controller do alike.

Decides when to try again and what to log; knows nothing of what a session says. Invariants: a fault that repeats is logged once until
a session opens; the pause is never shorter than the controller asked for; any error that is not a SwingbusError ends the loop.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import structlog

from swingbus.clock import Clock
from swingbus.faults import SwingbusError
from swingbus_agent.app.backoff import Backoff

_log = structlog.get_logger()
_FIRST_PAUSE_S = 0.5


class Sessions:
    """Sessions of one stream, by its name in the log: `telemetry` gives `telemetry_lost` and `telemetry_opened`."""

    def __init__(self, stream: str, *, clock: Clock, random_: random.Random, backoff_max_s: float) -> None:
        self._stream = stream
        self._clock = clock
        self._backoff = Backoff(random_, first_s=_FIRST_PAUSE_S, max_s=backoff_max_s)
        self._last_fault = ""
        self.is_connected = False

    def opened(self, **facts: int) -> None:
        """Mark the session as heard by the controller, and log it with `facts`."""
        self.is_connected = True
        self._last_fault = ""
        _log.info(f"{self._stream}_opened", **facts)

    async def run(self, session: Callable[[], Awaitable[None]], ended: Callable[[], None] = lambda: None) -> None:
        """Run `session` again and again, and `ended` after each, however it ended."""
        while True:
            began_s = self._clock.monotonic_s()
            asked_s = 0.0
            try:
                await session()
            except* SwingbusError as group:
                error = _first(group)
                asked_s = _retry_after_s(error)
                if str(error) != self._last_fault:
                    _log.warning(f"{self._stream}_lost", reason=error.reason, message=str(error))
                self._last_fault = str(error)
            finally:
                self.is_connected = False
                ended()
            await self._clock.sleep(self._backoff.after(self._clock.monotonic_s() - began_s, asked_s=asked_s))


def _first(group: BaseExceptionGroup[SwingbusError]) -> SwingbusError:
    """Return the first fault of a group of groups."""
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")


def _retry_after_s(error: SwingbusError) -> float:
    try:
        return max(0.0, float(error.metadata.get("retry_after_s", "0")))
    except ValueError:
        return 0.0
