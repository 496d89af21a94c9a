"""The telemetry ring in SQLite: one blob per batch as received, what is stored of each spool, quarter-hours, evidence.

Decides: what is durable. Refuses to know: what a batch says. Invariant: a batch, its numbers in the spool's set and its share of
the intervals are one transaction, so that a batch sent twice counts once. Columnar on purpose: a row per sample would cost
60 times more (see `docs/controller.md`). Writes come from one thread at a time; each read opens its own connection.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

from swingbus.faults import NotFound, Unreachable
from swingbus_controller.adapters.storage.database import BUSY_TIMEOUT_S, damaged, open_database
from swingbus_controller.domain.fleet.intervals import BankInterval, BankPoint, MeterTotals, interval_start_s
from swingbus_controller.domain.fleet.sequences import MAX_SEQUENCE, SequenceSet
from swingbus_controller.ports.telemetry_store import BatchRecord, LastBatch, SpoolState, Verified, WriteOutcome

_VERSION = 1
_SPOOL_SHIFT = 40  # row id = spool << 40 | sequence: the blob table needs no second index by number
_PAGE_BYTES = 16_384  # a batch of 200 devices is 13 kB: one page, not a chain of four
_CHECKPOINT_PAGES = 4000  # 64 MB of WAL: a quarter less CPU per batch than checkpoints at every commit
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spools (spool_id INTEGER PRIMARY KEY, agent TEXT NOT NULL, spool_uid TEXT NOT NULL,
  ranges TEXT NOT NULL, sample_count INTEGER NOT NULL, newest_unix_s REAL NOT NULL, UNIQUE (agent, spool_uid));
CREATE TABLE IF NOT EXISTS inventories (inventory_id INTEGER PRIMARY KEY, spool_id INTEGER NOT NULL, digest BLOB NOT NULL,
  payload BLOB NOT NULL, UNIQUE (spool_id, digest));
CREATE TABLE IF NOT EXISTS batches (id INTEGER PRIMARY KEY, inventory_id INTEGER NOT NULL, received_unix_s REAL NOT NULL,
  sample_unix_s REAL NOT NULL, sample_boottime_ns INTEGER NOT NULL, boot_id TEXT NOT NULL, sample_count INTEGER NOT NULL,
  payload BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS batches_by_age ON batches (received_unix_s);
CREATE TABLE IF NOT EXISTS means (id INTEGER PRIMARY KEY, first_sequence INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS meter_intervals (meter TEXT NOT NULL, start_unix_s INTEGER NOT NULL, covered_s REAL NOT NULL,
  weighted_ws REAL NOT NULL, max_power_w REAL, first_unix_s REAL, first_energy_j REAL, last_unix_s REAL, last_energy_j REAL,
  PRIMARY KEY (meter, start_unix_s)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bank_intervals (start_unix_s INTEGER NOT NULL, agent TEXT NOT NULL, bank TEXT NOT NULL,
  sum_power_w REAL NOT NULL, sample_count INTEGER NOT NULL, first_unix_s REAL NOT NULL, last_unix_s REAL NOT NULL,
  PRIMARY KEY (start_unix_s, agent, bank)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS evidence (kind TEXT NOT NULL, key TEXT NOT NULL, at_unix_s REAL NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS evidence_by_time ON evidence (kind, at_unix_s);
"""
_INSERT = "INSERT INTO batches VALUES (?,?,?,?,?,?,?,?)"
_ADD_METER = """
INSERT INTO meter_intervals VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET
  covered_s = covered_s + excluded.covered_s, weighted_ws = weighted_ws + excluded.weighted_ws,
  max_power_w = MAX(COALESCE(max_power_w, excluded.max_power_w), COALESCE(excluded.max_power_w, max_power_w)),
  first_energy_j = CASE WHEN first_unix_s IS NULL OR excluded.first_unix_s < first_unix_s
    THEN excluded.first_energy_j ELSE first_energy_j END,
  first_unix_s = MIN(COALESCE(first_unix_s, excluded.first_unix_s), COALESCE(excluded.first_unix_s, first_unix_s)),
  last_energy_j = CASE WHEN last_unix_s IS NULL OR excluded.last_unix_s > last_unix_s
    THEN excluded.last_energy_j ELSE last_energy_j END,
  last_unix_s = MAX(COALESCE(last_unix_s, excluded.last_unix_s), COALESCE(excluded.last_unix_s, last_unix_s))
"""
_ADD_BANK = """
INSERT INTO bank_intervals VALUES (?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET
  sum_power_w = sum_power_w + excluded.sum_power_w, sample_count = sample_count + excluded.sample_count,
  first_unix_s = MIN(first_unix_s, excluded.first_unix_s), last_unix_s = MAX(last_unix_s, excluded.last_unix_s)
"""


class SqliteTelemetry:
    """One file: the store and the archive of `ports/telemetry_store.py`, and the evidence."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises WrongState where it is damaged, Unreachable where the disk refuses."""
        self.path = path
        self._db = open_database(
            path, _SCHEMA, version=_VERSION, check=False, page_bytes=_PAGE_BYTES, checkpoint_pages=_CHECKPOINT_PAGES
        )
        try:
            # The page size is fixed by now; a freelist page is reused before the file grows.
            self._page_bytes = int(self._db.execute("PRAGMA page_size").fetchone()[0])
            self._spools = {
                int(spool_id): (SequenceSet(json.loads(ranges)), int(samples))
                for spool_id, ranges, samples in self._db.execute("SELECT spool_id, ranges, sample_count FROM spools")
            }
        except (sqlite3.DatabaseError, ValueError) as error:
            self._db.close()
            raise damaged(path, error) from error

    def close(self) -> None:
        """Close the file; later writes fail."""
        self._db.close()

    def open_spool(self, agent: str, spool_uid: str) -> SpoolState:
        """Return what is stored of a spool, registering it at its first call."""
        with self._faults():
            self._db.execute("INSERT OR IGNORE INTO spools VALUES (NULL, ?, ?, '[]', 0, 0)", (agent, spool_uid))
            spool_id = int(
                self._db.execute(
                    "SELECT spool_id FROM spools WHERE agent = ? AND spool_uid = ?", (agent, spool_uid)
                ).fetchone()[0]
            )
        stored, samples = self._spools.setdefault(spool_id, (SequenceSet(), 0))
        return SpoolState(spool_id=spool_id, stored=SequenceSet(stored.pairs()), sample_count=samples)

    def close_numbers(self, spool_id: int, last: int) -> None:
        """Add every number up to `last` to what is done with, durable on return."""
        stored, sample_count = self._spools[spool_id]
        closed = SequenceSet(stored.pairs())
        closed.add_range(1, last)
        with self._faults():
            self._db.execute("UPDATE spools SET ranges = ? WHERE spool_id = ?", (json.dumps(closed.pairs()), spool_id))
        self._spools[spool_id] = (closed, sample_count)

    def keep_inventory(self, spool_id: int, payload: bytes) -> int:
        """Store an inventory as received and return its id; the same bytes keep their id."""
        digest = sha256(payload).digest()
        with self._faults():
            self._db.execute("INSERT OR IGNORE INTO inventories VALUES (NULL, ?, ?, ?)", (spool_id, digest, payload))
            row = self._db.execute(
                "SELECT inventory_id FROM inventories WHERE spool_id = ? AND digest = ?", (spool_id, digest)
            ).fetchone()
        return int(row[0])

    def write(self, batches: Sequence[BatchRecord]) -> WriteOutcome:
        """Store all or none, durable on return; batches that are new also enter the intervals and the spool's set."""
        meters: dict[tuple[str, int], MeterTotals] = {}
        banks: dict[tuple[int, str, str], BankInterval] = {}
        grown: dict[int, _Grown] = {}
        conflicts: list[tuple[int, int]] = []
        stored_count = repeated_count = 0
        db = self._db
        with self._faults():
            db.execute("BEGIN IMMEDIATE")
            try:
                for batch in batches:
                    key = batch.spool_id << _SPOOL_SHIFT | batch.sequence
                    spool = grown.get(batch.spool_id)
                    if spool is None:
                        spool = grown[batch.spool_id] = _Grown(*self._spools[batch.spool_id])
                    if batch.sequence in spool.stored:
                        if not self._is_same(key, batch):
                            conflicts.append((batch.spool_id, batch.sequence))
                            continue
                        # A mean may come under a number that was stored alone, its acknowledgement lost: it holds more, and replaces it.
                        if spool.stored.covers(batch.first_sequence, batch.sequence):
                            repeated_count += 1
                            continue
                        self._delete([(key,)])
                    db.execute(
                        _INSERT,
                        (
                            key,
                            batch.inventory_id,
                            batch.received_unix_s,
                            batch.sample_unix_s,
                            batch.sample_boottime_ns,
                            batch.boot_id,
                            batch.sample_count,
                            batch.payload,
                        ),
                    )
                    if batch.first_sequence < batch.sequence:
                        db.execute("INSERT INTO means VALUES (?,?)", (key, batch.first_sequence))
                    stored_count += 1
                    spool.add(batch)
                    _add_points(batch, meters, banks)
                for spool_id, spool in grown.items():
                    db.execute(
                        "UPDATE spools SET ranges = ?, sample_count = ?, newest_unix_s = MAX(newest_unix_s, ?) WHERE spool_id = ?",
                        (json.dumps(spool.stored.pairs()), spool.sample_count, spool.newest_unix_s, spool_id),
                    )
                db.executemany(_ADD_METER, [_meter_row(meter, total) for (meter, _), total in meters.items()])
                db.executemany(_ADD_BANK, [_bank_row(interval) for interval in banks.values()])
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        # Memory follows the disk, never the other way round.
        self._spools.update({spool_id: (spool.stored, spool.sample_count) for spool_id, spool in grown.items()})
        return WriteOutcome(
            stored_count=stored_count,
            repeated_count=repeated_count,
            conflicts=tuple(conflicts),
        )

    def _is_same(self, key: int, batch: BatchRecord) -> bool:
        row = self._db.execute("SELECT boot_id, sample_boottime_ns FROM batches WHERE id = ?", (key,)).fetchone()
        # No row: the ring has let go of it since; its number was acknowledged, so it is a repeat.
        return row is None or bool(row == (batch.boot_id, batch.sample_boottime_ns))

    def prune(self, *, before_unix_s: float, max_bytes: int, limit: int) -> int:
        """Delete at most `limit` batches, oldest first: those received before a moment, then while the ring is too large."""
        with self._faults():
            pages, free = (
                int(self._db.execute(f"PRAGMA {what}").fetchone()[0]) for what in ("page_count", "freelist_count")
            )
            is_large = (pages - free) * self._page_bytes > max_bytes
            horizon_s = float("inf") if is_large else before_unix_s
            # The newest batch of each spool stays, whatever its age: a restart rebuilds the fleet from it.
            oldest = self._db.execute(
                "SELECT id FROM batches WHERE received_unix_s < ? ORDER BY received_unix_s LIMIT ?", (horizon_s, limit)
            ).fetchall()
            kept = {self._newest_key(spool_id) for spool_id in self._spools}
            gone = [row for row in oldest if row[0] not in kept]
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._delete(gone)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        return len(gone)

    def _delete(self, keys: Sequence[tuple[int]]) -> None:
        self._db.executemany("DELETE FROM batches WHERE id = ?", keys)
        self._db.executemany("DELETE FROM means WHERE id = ?", keys)

    def _newest_key(self, spool_id: int) -> int | None:
        # Not from the set of numbers: the newest of those may have been closed without a batch.
        low = spool_id << _SPOOL_SHIFT
        row = self._db.execute(
            "SELECT MAX(id) FROM batches WHERE id BETWEEN ? AND ?", (low, low + MAX_SEQUENCE)
        ).fetchone()
        return None if row[0] is None else int(row[0])

    def last_batches(self) -> Iterator[LastBatch]:
        """Yield the newest batch of each agent's newest spool, in agent order."""
        with self._reader() as db:
            rows = db.execute(
                "SELECT agent, spool_id, spool_uid, ranges, sample_count, MAX(newest_unix_s) FROM spools "
                "WHERE newest_unix_s > 0 GROUP BY agent ORDER BY agent"
            ).fetchall()
            for agent, spool_id, spool_uid, ranges, sample_count, _ in rows:
                low = spool_id << _SPOOL_SHIFT
                row = db.execute(
                    "SELECT id, b.payload, i.payload, received_unix_s FROM batches b JOIN inventories i USING (inventory_id) "
                    "WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
                    (low, low + MAX_SEQUENCE),
                ).fetchone()
                if row is None:
                    continue
                yield LastBatch(
                    agent=agent,
                    spool_id=spool_id,
                    spool_uid=spool_uid,
                    sequence=int(row[0]) - low,
                    payload=row[1],
                    inventory=row[2],
                    received_unix_s=row[3],
                    sample_count=sample_count,
                    acked_sequence=SequenceSet(json.loads(ranges)).cumulative(),
                )

    def verify(self, agent: str, spool_uid: str, ranges: Sequence[tuple[int, int]], missing_limit: int) -> Verified:
        """Look numbers up in the batches themselves, not in the set that acknowledgements come from."""
        stored_count = merged_count = sample_count = 0
        missing: list[int] = []
        with self._reader() as db:
            row = db.execute(
                "SELECT spool_id FROM spools WHERE agent = ? AND spool_uid = ?", (agent, spool_uid)
            ).fetchone()
            if row is None:
                raise NotFound(
                    f"agent {agent!r} has no spool {spool_uid!r} here; the agent's own check shows its spool.",
                    reason="NO_SUCH_SPOOL",
                )
            low = int(row[0]) << _SPOOL_SHIFT
            for first, last in ranges:
                there = SequenceSet()
                for key, samples in db.execute(
                    "SELECT id, sample_count FROM batches WHERE id BETWEEN ? AND ? ORDER BY id",
                    (low + first, low + last),
                ):
                    stored_count += 1
                    sample_count += samples
                    there.add_range(key - low, key - low)
                absent_count = _count(there.holes(first, last))
                # A mean may lie above the range that it reaches into.
                for key, begin in db.execute(
                    "SELECT id, first_sequence FROM means JOIN batches USING (id) WHERE id BETWEEN ? AND ? AND first_sequence <= ?",
                    (low + first, low + MAX_SEQUENCE, last),
                ):
                    there.add_range(begin, key - low)
                merged_count += absent_count - _count(there.holes(first, last))
                for begin, end in there.holes(first, last):
                    missing.extend(range(begin, min(end + 1, begin + missing_limit - len(missing))))
        return Verified(
            stored_count=stored_count, merged_count=merged_count, sample_count=sample_count, missing=tuple(missing)
        )

    def meter_totals(self, meter: str, from_unix_s: float, limit: int) -> list[MeterTotals]:
        """Return quarter-hours of a meter that start at or after a moment, in order."""
        with self._reader() as db:
            rows = db.execute(
                "SELECT start_unix_s, covered_s, weighted_ws, max_power_w, first_unix_s, first_energy_j, last_unix_s, "
                "last_energy_j FROM meter_intervals WHERE meter = ? AND start_unix_s >= ? ORDER BY start_unix_s LIMIT ?",
                (meter, from_unix_s, limit),
            ).fetchall()
        return [
            MeterTotals(
                start_unix_s=row[0],
                covered_s=row[1],
                weighted_ws=row[2],
                max_power_w=row[3],
                first_unix_s=row[4],
                first_energy_j=row[5],
                last_unix_s=row[6],
                last_energy_j=row[7],
            )
            for row in rows
        ]

    def bank_intervals(self, from_unix_s: float, until_unix_s: float) -> list[BankInterval]:
        """Return the quarter-hours of all banks that start within [from, until)."""
        with self._reader() as db:
            rows = db.execute(
                "SELECT start_unix_s, agent, bank, sum_power_w, sample_count, first_unix_s, last_unix_s FROM bank_intervals "
                "WHERE start_unix_s >= ? AND start_unix_s < ? ORDER BY start_unix_s, agent, bank",
                (from_unix_s, until_unix_s),
            ).fetchall()
        return [
            BankInterval(
                start_unix_s=row[0],
                agent=row[1],
                bank=row[2],
                sum_power_w=row[3],
                sample_count=row[4],
                first_unix_s=row[5],
                last_unix_s=row[6],
            )
            for row in rows
        ]

    def keep_evidence(self, kind: str, key: str, at_unix_s: float, body: Mapping[str, Any]) -> None:
        """Store or replace one proof, durable on return."""
        text = json.dumps(body, separators=(",", ":"), allow_nan=False)
        with closing(self._connect()) as db, self._faults():
            db.execute("INSERT OR REPLACE INTO evidence VALUES (?,?,?,?)", (kind, key, at_unix_s, text))

    def read_evidence(self, kind: str, key: str) -> Mapping[str, Any] | None:
        """Return one proof, None where there is none."""
        with self._reader() as db:
            row = db.execute("SELECT body FROM evidence WHERE kind = ? AND key = ?", (kind, key)).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def list_evidence(self, kind: str, limit: int) -> list[tuple[str, float, Mapping[str, Any]]]:
        """Return (key, at_unix_s, body) of one kind, newest first."""
        with self._reader() as db:
            rows = db.execute(
                "SELECT key, at_unix_s, body FROM evidence WHERE kind = ? ORDER BY at_unix_s DESC LIMIT ?",
                (kind, limit),
            ).fetchall()
        return [(key, at_unix_s, json.loads(body)) for key, at_unix_s, body in rows]

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        db.execute("PRAGMA synchronous=FULL")
        return db

    def _reader(self) -> _Reading:
        return _Reading(self)

    def _faults(self) -> _Faults:
        return _Faults(self.path)


class _Grown:
    """What a spool comes to be by one write."""

    def __init__(self, stored: SequenceSet, sample_count: int) -> None:
        self.stored = SequenceSet(stored.pairs())
        self.sample_count = sample_count
        self.newest_unix_s = 0.0

    def add(self, batch: BatchRecord) -> None:
        self.stored.add_range(batch.first_sequence, batch.sequence)
        self.sample_count += batch.sample_count
        self.newest_unix_s = max(self.newest_unix_s, batch.received_unix_s)


class _Faults:
    """Turns SQLite's faults into ours at the door."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, sqlite3.OperationalError):
            raise Unreachable(
                f"the telemetry ring {self._path} cannot be used: {error}; check the disk and its free space.",
                reason="TELEMETRY_UNREACHABLE",
                metadata={"path": str(self._path)},
            ) from error
        if isinstance(error, sqlite3.DatabaseError):
            raise damaged(self._path, error) from error


class _Reading(_Faults):
    """A connection of its own for one read."""

    def __init__(self, store: SqliteTelemetry) -> None:
        super().__init__(store.path)
        self._store = store
        self._db: sqlite3.Connection | None = None

    def __enter__(self) -> sqlite3.Connection:  # type: ignore[override]  # a reader gives its connection
        self._db = self._store._connect()
        return self._db

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._db is not None:
            self._db.close()
        super().__exit__(kind, error, trace)


def _count(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in ranges)


def _add_points(
    batch: BatchRecord,
    meters: dict[tuple[str, int], MeterTotals],
    banks: dict[tuple[int, str, str], BankInterval],
) -> None:
    for point in batch.meter_points:
        start_s = interval_start_s(point.end_unix_s)
        total = meters.get((point.meter, start_s)) or MeterTotals(start_unix_s=start_s)
        meters[point.meter, start_s] = total.with_point(point)
    for sample in batch.bank_points:
        key = (interval_start_s(sample.at_unix_s), sample.agent, sample.bank)
        banks[key] = _with_bank_point(banks.get(key), key[0], sample)


def _with_bank_point(interval: BankInterval | None, start_s: int, point: BankPoint) -> BankInterval:
    if interval is None:
        interval = BankInterval(
            agent=point.agent,
            bank=point.bank,
            start_unix_s=start_s,
            sum_power_w=0.0,
            sample_count=0,
            first_unix_s=point.at_unix_s,
            last_unix_s=point.at_unix_s,
        )
    return BankInterval(
        agent=point.agent,
        bank=point.bank,
        start_unix_s=start_s,
        sum_power_w=interval.sum_power_w + point.power_w,
        sample_count=interval.sample_count + 1,
        first_unix_s=min(interval.first_unix_s, point.at_unix_s),
        last_unix_s=max(interval.last_unix_s, point.at_unix_s),
    )


def _meter_row(meter: str, total: MeterTotals) -> tuple[Any, ...]:
    return (
        meter,
        total.start_unix_s,
        total.covered_s,
        total.weighted_ws,
        total.max_power_w,
        total.first_unix_s,
        total.first_energy_j,
        total.last_unix_s,
        total.last_energy_j,
    )


def _bank_row(interval: BankInterval) -> tuple[Any, ...]:
    return (
        interval.start_unix_s,
        interval.agent,
        interval.bank,
        interval.sum_power_w,
        interval.sample_count,
        interval.first_unix_s,
        interval.last_unix_s,
    )
