"""Where a boot's CLOCK_BOOTTIME lies on the wall's time, so that what must not jump can still be told to people.

Decides nothing. Invariant: seconds of two boots are never compared; only `zero_unix_s`, what the wall clock showed, connects them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BootAxis:
    """One boot of the controller's host.

    Attributes:
        zero_unix_s: what the wall clock made of this boot's second 0, when somebody last looked.

    >>> BootAxis(boot_id="b", zero_unix_s=1000.0).unix_s(5.0)
    1005.0
    """

    boot_id: str
    zero_unix_s: float

    def unix_s(self, at_s: float) -> float:
        """Return a moment of this boot as Unix seconds, for people."""
        return at_s + self.zero_unix_s


def axis_at(boot_id: str, *, now_s: float, now_unix_s: float) -> BootAxis:
    """Return the axis of a boot by what both clocks show now."""
    return BootAxis(boot_id=boot_id, zero_unix_s=now_unix_s - now_s)


# What was recorded in Unix seconds lies on an axis of its own, which no boot has.
WALL = BootAxis(boot_id="", zero_unix_s=0.0)
