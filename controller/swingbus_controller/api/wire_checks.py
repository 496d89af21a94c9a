"""What every message of an agent is held against: how much of each thing is taken, and what a number or a name may be.

Decides whether a value is well-formed. Refuses to know: which message it is of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from swingbus.faults import InvalidInput

MAX_BANKS = 256
MAX_DEVICES = 20_000
MAX_FIELDS = 256
MAX_METERS = 256
MAX_EVENTS = 1000
MAX_TEXT = 4096
MAX_UID = 128
MAX_HOLDERS = 256  # of one unit


def watts(value: float, what: str) -> float:
    """Return watts, if a finite number of 0 or more. Raises InvalidInput."""
    if not math.isfinite(value) or value < 0:
        raise InvalidInput(f"{what} is {value}, must be a finite number of 0 or more.", reason="BAD_NUMBER")
    return value


def at_most(count: int, limit: int, what: str) -> None:
    """Raise InvalidInput where an agent sends more of something than is taken from one."""
    if count > limit:
        raise InvalidInput(f"{count} {what}, at most {limit} are taken from one agent.", reason="TOO_MUCH")


def unique(names: Iterable[str], what: str) -> None:
    """Raise InvalidInput where a name is given twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidInput(f"{what} {name!r} is given twice.", reason="BAD_INVENTORY")
        seen.add(name)
