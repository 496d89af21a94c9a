"""Decide what the spool sends, thins and drops. Pure: it sees numbers and sizes, never payloads or disks.

Sequences are given out once, in order. A session sends every stored batch exactly once: the newest at once, everything
that is older as backlog, oldest first, at a capped rate and inside the controller's credit. Only an acknowledgement (or a
refusal for ever) deletes. When the spool is over its bounds it first merges old rounds into means (10 s, then 60 s) and
only then drops the oldest. Invariants: a batch that is on its way is neither merged nor dropped; a mean stands for an unbroken run of
numbers, so that what was dropped or stored between two batches is never taken for merged; it is done with only when the controller
holds the whole run, for it may hold the last round of it alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

TARGET_RATIO = 0.9  # thinning stops here, so that it does not run at every append
BUCKETS_S = (10.0, 60.0)  # width of a merged batch at level 1 and 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """One row of the spool; `level` 0 is a round as sampled, 1 and 2 are means."""

    sequence: int
    first_sequence: int  # the numbers from here to `sequence` were merged into it
    size_bytes: int
    level: int
    sample_unix_s: float

    @property
    def round_count(self) -> int:
        """Return how many rounds it stands for."""
        return self.sequence - self.first_sequence + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When the spool is too big or too old."""

    max_bytes: int
    max_age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Replace these batches by their mean, stored under the last one's sequence at `level`; it stands for all from `first_sequence` on."""

    sequences: tuple[int, ...]
    first_sequence: int
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Delete these batches for ever and count the rounds that they stand for."""

    sequences: tuple[int, ...]
    round_count: int
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
    too_old = [b for b in batches if now_s - b.sample_unix_s > bounds.max_age_s and b.sequence not in busy]
    if too_old:
        return (_drop(too_old, "old"),)
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
    dropped: list[StoredBatch] = []
    for batch in batches:
        if excess <= 0:
            break
        if batch.sequence not in busy:
            dropped.append(batch)
            excess -= batch.size_bytes
    return (_drop(dropped, "full"),) if dropped else ()


def _drop(batches: Sequence[StoredBatch], reason: str) -> Drop:
    return Drop(
        sequences=tuple(b.sequence for b in batches), round_count=sum(b.round_count for b in batches), reason=reason
    )


def _merges(
    batches: Sequence[StoredBatch], *, level: int, width_s: float, busy: Collection[int], excess_bytes: int
) -> tuple[Merge, ...]:
    merges: list[Merge] = []
    group: list[StoredBatch] = []

    def close() -> int:
        saved = 0
        if len(group) > 1:
            sequences = tuple(each.sequence for each in group)
            merges.append(Merge(sequences=sequences, first_sequence=group[0].first_sequence, level=level))
            saved = sum(each.size_bytes for each in group) - max(each.size_bytes for each in group)
        group.clear()
        return saved

    for batch in batches:
        fits = batch.level < level and batch.sequence not in busy
        is_next = (
            bool(group)
            and batch.sample_unix_s // width_s == group[0].sample_unix_s // width_s
            and batch.first_sequence == group[-1].sequence + 1
        )
        if group and not (fits and is_next):
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

    def covers(self, first: int, last: int) -> bool:
        """Tell whether every sequence from `first` to `last` is stored at the controller."""
        return last <= self.up_to or any(begin <= first and last <= end for begin, end in self.ranges)


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
    in_flight: Mapping[int, int] = field(default_factory=dict)  # sequence -> the first one that it stands for

    @property
    def room(self) -> int:
        """Batches that may still go out without an acknowledgement."""
        return max(0, self.credit - len(self.in_flight))


def begin_sending(*, credit: int, newest_sequence: int) -> Sending:
    """Start a session: the newest stored batch goes first, then live ones, then the backlog."""
    return Sending(
        credit=max(1, credit), live_from=newest_sequence, live_cursor=newest_sequence - 1 if newest_sequence else 0
    )


def sent(sending: Sending, sequence: int, first_sequence: int) -> Sending:
    """Note that a batch went out."""
    in_flight = {**sending.in_flight, sequence: first_sequence}
    if sequence >= sending.live_from:
        return replace(sending, live_cursor=max(sending.live_cursor, sequence), in_flight=in_flight)
    return replace(sending, cursor=max(sending.cursor, sequence), in_flight=in_flight)


def settled(sending: Sending, acknowledged: Acknowledged, rejected: Iterable[int] = ()) -> Sending:
    """Take acknowledged and refused batches off the way."""
    refused = frozenset(rejected)
    return replace(
        sending,
        in_flight={
            sequence: first
            for sequence, first in sending.in_flight.items()
            if not acknowledged.covers(first, sequence) and sequence not in refused
        },
    )


def is_rolled_back(*, newest_sequence: int, acknowledged: Acknowledged) -> bool:
    """Tell whether the controller has more than this spool ever gave out: the file is an old copy, start a new one."""
    highest = max([acknowledged.up_to, *(last for _, last in acknowledged.ranges)])
    return highest > newest_sequence
