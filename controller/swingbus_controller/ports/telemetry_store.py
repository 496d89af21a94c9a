"""Where telemetry is kept: batches as they came, what is stored of each spool, and the intervals that bills are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from swingbus_controller.domain.fleet.intervals import BankInterval, BankPoint, MeterPoint, MeterTotals
from swingbus_controller.domain.fleet.sequences import SequenceSet


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch on its way to the disk, for the numbers from `first_sequence` to `sequence`; `payload` is the message as received."""

    spool_id: int
    sequence: int
    first_sequence: int
    inventory_id: int
    boot_id: str
    sample_boottime_ns: int
    sample_unix_s: float
    received_unix_s: float
    sample_count: int
    payload: bytes
    meter_points: tuple[MeterPoint, ...] = ()
    bank_points: tuple[BankPoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOutcome:
    """What one durable commit did: numbers taken already by the same batch, and by another one."""

    stored_count: int
    repeated_count: int
    conflicts: tuple[tuple[int, int], ...]  # (spool_id, sequence): the number belongs to another batch


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolState:
    """What is stored of one spool; numbers that were closed because its agent has them no more are among `stored`."""

    spool_id: int
    stored: SequenceSet
    sample_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LastBatch:
    """The newest batch of an agent with the inventory that it counts by, both as received."""

    agent: str
    spool_id: int
    spool_uid: str
    sequence: int
    inventory: bytes
    payload: bytes
    received_unix_s: float
    sample_count: int  # over the spool's whole life
    acked_sequence: int


class TelemetryStore(Protocol):
    """Durable when a call returns. Calls block: run them in a thread; writes one at a time."""

    def open_spool(self, agent: str, spool_uid: str) -> SpoolState: ...

    def close_numbers(self, spool_id: int, last: int) -> None:
        """Count every number of a spool up to `last` as done with: what was not stored will not come any more."""
        ...

    def keep_inventory(self, spool_id: int, payload: bytes) -> int:
        """Return the id of an inventory, the same id for the same bytes."""
        ...

    def write(self, batches: Sequence[BatchRecord]) -> WriteOutcome:
        """Store all or none, with the intervals of those that are new; a mean that holds more than its stored number replaces it."""
        ...

    def prune(self, *, before_unix_s: float, max_bytes: int, limit: int) -> int:
        """Delete at most `limit` of the oldest batches that are too old or too many; return how many."""
        ...


class TelemetryArchive(Protocol):
    """Reads of what is stored; safe beside a writer."""

    def last_batches(self) -> Iterable[LastBatch]: ...

    def verify(self, agent: str, spool_uid: str, ranges: Sequence[tuple[int, int]], missing_limit: int) -> Verified: ...

    def meter_totals(self, meter: str, from_unix_s: float, limit: int) -> Sequence[MeterTotals]: ...

    def bank_intervals(self, from_unix_s: float, until_unix_s: float) -> Sequence[BankInterval]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Which of the numbers asked for are there."""

    stored_count: int
    merged_count: int  # not there themselves, but in the mean of a later number that is
    sample_count: int
    missing: tuple[int, ...]


class EvidenceStore(Protocol):
    """Proofs kept for years, as JSON under a kind and a key."""

    def keep_evidence(self, kind: str, key: str, at_unix_s: float, body: Mapping[str, Any]) -> None:
        """Store or replace one proof."""
        ...

    def read_evidence(self, kind: str, key: str) -> Mapping[str, Any] | None: ...

    def list_evidence(self, kind: str, limit: int) -> Sequence[tuple[str, float, Mapping[str, Any]]]:
        """Return (key, at_unix_s, body), newest first."""
        ...
