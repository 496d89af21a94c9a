"""What the execution remembers of one device between readings: its target, what was asked of it, and how it took that.

Decides nothing; `execution` reads and writes it. Times are CLOCK_BOOTTIME in seconds.
"""

from __future__ import annotations

import math

from swingbus_agent.domain.asking import AskLog
from swingbus_agent.domain.selection import Target


class DeviceTrack:
    """What is remembered of one device."""

    __slots__ = (
        "asks",
        "attempts",
        "has_stepped",
        "ignored_before",
        "is_ignoring",
        "next_try_s",
        "quarantined_until_s",
        "set_refused",
        "target",
        "was_held",
        "woke",
        "write_ended_s",
        "writing",
    )

    def __init__(self) -> None:
        self.target: Target | None = None
        self.asks = AskLog()
        self.attempts = 0  # in the order in force
        self.ignored_before = 0  # asks for the same that were ignored in earlier orders
        self.next_try_s = -math.inf
        self.write_ended_s = -math.inf
        self.writing = False
        self.has_stepped = False  # the first of two steps was asked for in the order in force
        self.was_held = False
        self.is_ignoring = False
        self.woke = False
        self.set_refused = False
        self.quarantined_until_s = -math.inf

    @property
    def asked_count(self) -> int:
        """Return how often the target was asked for, over all orders, since it was last seen."""
        return self.ignored_before + self.attempts

    def follow(self) -> None:
        """Forget what was asked in vain: it is done now."""
        self.attempts = self.ignored_before = 0
        self.is_ignoring = False
