"""Decide what the spool sends, thins and drops. Pure: it sees numbers and sizes, never payloads or disks.

Sequences are given out once, in order. A session sends every stored batch exactly once: the newest at once, everything
that is older as backlog, oldest first, at a capped rate and inside the controller's credit. Only an acknowledgement (or a
refusal for ever) deletes. When the spool is over its bounds it first merges old rounds into means (10 s, then 60 s) and
only then drops the oldest. Invariant: a batch that is on its way is neither merged nor dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

TARGET_RATIO = 0.9  # thinning stops here, so that it does not run at every append
BUCKETS_S = (10.0, 60.0)  # width of a merged batch at level 1 and 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """One row of the spool; `level` 0 is a round as sampled, 1 and 2 are means."""

    sequence: int
    size_bytes: int
    level: int
    sample_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When the spool is too big or too old."""

    max_bytes: int
    max_age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Replace these batches by their mean, stored under the last one's sequence at `level`."""

    sequences: tuple[int, ...]
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Delete these batches for ever and count them."""

    sequences: tuple[int, ...]
    reason: str  # full or old


def plan_relief(
    batches: Sequence[StoredBatch],
    *,
    bounds: Bounds,
    now_s: float,
    busy: Collection[int] = (),
    unmergeable: Collection[int] = (),
) -> tuple[Merge | Drop, ...]:
    """Return what brings the spool back into its bounds, oldest batches first.

    `batches` in order of sequence; `busy` are on their way and stay untouched; `unmergeable` may only be dropped (other boot or
    shape than their neighbours). The size after a merge is not known
    beforehand, so this returns one kind of step at a time: call again after carrying it out, until nothing comes back.
    """
    too_old = tuple(
        b.sequence for b in batches if now_s - b.sample_unix_s > bounds.max_age_s and b.sequence not in busy
    )
    if too_old:
        return (Drop(sequences=too_old, reason="old"),)
    total = sum(batch.size_bytes for batch in batches)
    if total <= bounds.max_bytes:
        return ()
    excess = total - int(bounds.max_bytes * TARGET_RATIO)
    # The newest tenth stays as sampled: it is what a person looks at first after an outage.
    reach = batches[: max(1, len(batches) * 9 // 10)]
    whole = {*busy, *unmergeable}
    for level, width_s in enumerate(BUCKETS_S, start=1):
        merges = _merges(reach, level=level, width_s=width_s, busy=whole, excess_bytes=excess)
        if merges:
            return merges
    dropped: list[int] = []
    for batch in batches:
        if excess <= 0:
            break
        if batch.sequence not in busy:
            dropped.append(batch.sequence)
            excess -= batch.size_bytes
    return (Drop(sequences=tuple(dropped), reason="full"),) if dropped else ()


def _merges(
    batches: Sequence[StoredBatch], *, level: int, width_s: float, busy: Collection[int], excess_bytes: int
) -> tuple[Merge, ...]:
    merges: list[Merge] = []
    group: list[StoredBatch] = []

    def close() -> int:
        saved = 0
        if len(group) > 1:
            merges.append(Merge(sequences=tuple(each.sequence for each in group), level=level))
            saved = sum(each.size_bytes for each in group) - max(each.size_bytes for each in group)
        group.clear()
        return saved

    for batch in batches:
        fits = batch.level < level and batch.sequence not in busy
        is_same = bool(group) and batch.sample_unix_s // width_s == group[0].sample_unix_s // width_s
        if group and not (fits and is_same):
            excess_bytes -= close()
            if excess_bytes <= 0:
                return tuple(merges)
        if fits:
            group.append(batch)
    close()
    return tuple(merges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """What the controller has stored: everything up to `up_to`, and `ranges` (inclusive) above it."""

    up_to: int
    ranges: tuple[tuple[int, int], ...] = ()

    def covers(self, sequence: int) -> bool:
        """Tell whether this sequence is stored at the controller."""
        return sequence <= self.up_to or any(first <= sequence <= last for first, last in self.ranges)


def parse_ranges(flat: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return (first, last) pairs from the wire's flat list; a trailing or reversed one is left out, never guessed."""
    pairs = zip(flat[0::2], flat[1::2], strict=False)
    return tuple((first, last) for first, last in pairs if first <= last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """Where one session stands. Batches above `live_from` are live, the others backlog behind `cursor`."""

    credit: int
    live_from: int  # newest sequence when the session began
    live_cursor: int  # greatest live sequence sent
    cursor: int = 0  # greatest backlog sequence sent
    in_flight: frozenset[int] = frozenset()

    @property
    def room(self) -> int:
        """Batches that may still go out without an acknowledgement."""
        return max(0, self.credit - len(self.in_flight))


def begin_sending(*, credit: int, newest_sequence: int) -> Sending:
    """Start a session: the newest stored batch goes first, then live ones, then the backlog."""
    return Sending(
        credit=max(1, credit), live_from=newest_sequence, live_cursor=newest_sequence - 1 if newest_sequence else 0
    )


def sent(sending: Sending, sequence: int) -> Sending:
    """Note that a batch went out."""
    in_flight = sending.in_flight | {sequence}
    if sequence >= sending.live_from:
        return replace(sending, live_cursor=max(sending.live_cursor, sequence), in_flight=in_flight)
    return replace(sending, cursor=max(sending.cursor, sequence), in_flight=in_flight)


def settled(sending: Sending, acknowledged: Acknowledged, rejected: Iterable[int] = ()) -> Sending:
    """Take acknowledged and refused batches off the way."""
    refused = frozenset(rejected)
    return replace(
        sending,
        in_flight=frozenset(s for s in sending.in_flight if not acknowledged.covers(s) and s not in refused),
    )


def is_rolled_back(*, newest_sequence: int, acknowledged: Acknowledged) -> bool:
    """Tell whether the controller has more than this spool ever gave out: the file is an old copy, start a new one."""
    highest = max([acknowledged.up_to, *(last for _, last in acknowledged.ranges)])
    return highest > newest_sequence
