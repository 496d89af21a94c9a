"""What a collector may answer instead of samples: the three ways of not knowing, told apart.

Decides nothing; holds the words. Invariant: none of them is ever turned into a zero.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """This host can never say it: there is no such device, driver or function."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """It cannot be read now, but may be later."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hung:
    """A call into it has not come back since `since_boottime_ns` (CLOCK_BOOTTIME of this host)."""

    since_boottime_ns: int
    reason: str
