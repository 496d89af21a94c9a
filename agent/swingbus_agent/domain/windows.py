"""Date a meter's reading on this host's own clock, as early as it can have begun. Pure.

A meter says neither when its window ended nor on whose clock. What is known: the registers held this measurement when the
reading was answered, a measurement appears at most `lag_s` after its window ended, and a new one appears every window. Where
the meter counts its measurements, a count that changed since the reading before appeared after that reading began. The start
that is returned is a lower bound: the true window began at that time or later, so a change in force by then is in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """An averaging window in seconds of CLOCK_BOOTTIME; both ends are lower bounds."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowDating:
    """What the dating of the next reading needs of the one before."""

    count: int | None = None
    window: Window | None = None
    asked_s: float | None = None


def date_window(
    before: WindowDating, *, count: int | None, asked_s: float, window_s: float, lag_s: float
) -> tuple[Window, WindowDating]:
    """Return the window of a reading that was asked for at `asked_s`, and what to keep for the next one.

    >>> first, kept = date_window(WindowDating(), count=7, asked_s=100.0, window_s=1.0, lag_s=0.5)
    >>> first.start_s, first.end_s
    (97.5, 98.5)
    >>> date_window(kept, count=8, asked_s=100.4, window_s=1.0, lag_s=0.5)[0].start_s
    98.5
    >>> date_window(kept, count=7, asked_s=100.4, window_s=1.0, lag_s=0.5)[0].start_s
    97.5
    """
    if count is not None and count == before.count and before.window is not None:
        return before.window, WindowDating(count=count, window=before.window, asked_s=asked_s)
    appeared_s = asked_s - window_s  # at the latest this long ago something new appeared
    if count is not None and before.count is not None and before.asked_s is not None:
        appeared_s = max(appeared_s, before.asked_s)
    end_s = appeared_s - lag_s
    window = Window(start_s=end_s - window_s, end_s=end_s)
    if before.window is not None and window.start_s < before.window.start_s:
        window = before.window  # a later reading never shows an earlier window
    return window, WindowDating(count=count, window=window, asked_s=asked_s)
