"""Which batch numbers of a spool are stored: a set of integers kept as inclusive ranges.

Decides what is acknowledged. Refuses to know: batches. Invariant: ranges are sorted, do not touch and start at 1 or more, so
a spool without gaps is one pair however long it runs: a mean enters with every number that it stands for, and what an agent no
longer has is closed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from swingbus.faults import InvalidInput

MAX_SEQUENCE = 2**40 - 1  # leaves room for the spool's number in one 63-bit key
MAX_RANGES = 4096  # more gaps than this come from an agent that thins without saying so, a broken spool or an attack


class SequenceSet:
    """A growing set of batch numbers."""

    def __init__(self, pairs: Iterable[int] = ()) -> None:
        """Take ranges first, last, first, last in any order; raise InvalidInput where they are none."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in parse_ranges(pairs):
            self.add_range(first, last)

    def __contains__(self, sequence: int) -> bool:
        return self.covers(sequence, sequence)

    def __len__(self) -> int:
        """Return how many ranges there are."""
        return len(self._firsts)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (first, last) in order."""
        return zip(self._firsts, self._lasts, strict=True)

    def covers(self, first: int, last: int) -> bool:
        """Tell whether every number from first to last is present."""
        at = bisect_right(self._firsts, first) - 1
        return at >= 0 and self._lasts[at] >= last

    def touches(self, first: int, last: int) -> bool:
        """Tell whether first to last overlaps or adjoins a range: adding it makes no further one."""
        at = bisect_right(self._firsts, last + 1) - 1
        return at >= 0 and self._lasts[at] >= first - 1

    def holes(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield what is absent from first to last, as ranges in order."""
        at = max(0, bisect_right(self._firsts, first) - 1)
        for begin, end in zip(self._firsts[at:], self._lasts[at:], strict=True):
            if begin > last:
                break
            if first < begin:
                yield first, begin - 1
            first = max(first, end + 1)
        if first <= last:
            yield first, last

    def add_range(self, first: int, last: int) -> None:
        """Add first to last inclusive, joining ranges that touch."""
        # The common case by far: the next number of the last range.
        if self._lasts and first == self._lasts[-1] + 1:
            self._lasts[-1] = last
            return
        left = bisect_right(self._firsts, first) - 1
        if left < 0 or self._lasts[left] < first - 1:
            left += 1
        right = left
        while right < len(self._firsts) and self._firsts[right] <= last + 1:
            first = min(first, self._firsts[right])
            last = max(last, self._lasts[right])
            right += 1
        self._firsts[left:right] = [first]
        self._lasts[left:right] = [last]

    def cumulative(self) -> int:
        """Return the greatest n with all of 1 to n present, 0 without any."""
        return self._lasts[0] if self._firsts and self._firsts[0] == 1 else 0

    def newest(self) -> int:
        """Return the greatest number present, 0 without any."""
        return self._lasts[-1] if self._lasts else 0

    def pairs(self) -> list[int]:
        """Return all ranges flat: first, last, first, last."""
        return [number for pair in self.ranges() for number in pair]

    def pairs_above(self, sequence: int, limit: int) -> list[int]:
        """Return the newest `limit` ranges that end above a number, flat, in order."""
        kept = [pair for pair in self.ranges() if pair[1] > sequence][-limit:]
        return [number for pair in kept for number in pair]


def parse_ranges(pairs: Iterable[int]) -> list[tuple[int, int]]:
    """Return inclusive ranges from first, last, first, last; raise InvalidInput where they are none."""
    flat = list(pairs)
    if len(flat) % 2:
        raise InvalidInput(f"ranges has {len(flat)} numbers: write first, last, first, last.", reason="BAD_RANGES")
    ranges = list(zip(flat[::2], flat[1::2], strict=True))
    for first, last in ranges:
        if not 1 <= first <= last <= MAX_SEQUENCE:
            raise InvalidInput(
                f"{first} to {last} is no range of sequences: they start at 1 and run upward.", reason="BAD_RANGES"
            )
    return ranges
