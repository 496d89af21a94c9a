"""The backlog on disk: one SQLite file, write-ahead log, synchronous FULL, touched by one thread.

Decides nothing about what to thin or drop (`domain.spool_policy` does). Invariants: a sequence is on disk before it is
returned, so it is never given out twice, not even after a power cut; nothing but an acknowledgement, a refusal for ever or
the bounds deletes; a mean, and from which number on it stands for, are one transaction. A file that SQLite cannot trust is set
aside beside the new one, never deleted.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from swingbus.faults import InvalidInput, Unreachable
from swingbus_agent.domain.merging import can_merge, merge_rounds, remap_round
from swingbus_agent.domain.readings import Inventory, Round
from swingbus_agent.domain.spool_policy import Acknowledged, Bounds, Drop, Merge, StoredBatch, plan_relief
from swingbus_agent.ports.spool import RoundCodec, SpooledBatch, SpoolState

_T = TypeVar("_T")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inventories (inventory_id TEXT PRIMARY KEY, payload BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
  sequence INTEGER PRIMARY KEY, inventory_id TEXT NOT NULL, level INTEGER NOT NULL,
  sample_unix_s REAL NOT NULL, size_bytes INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS means (
  sequence INTEGER PRIMARY KEY REFERENCES batches ON DELETE CASCADE, first_sequence INTEGER NOT NULL);
"""
# A table of its own: a spool of an older agent needs no rebuilding, and a column behind the payload would be slow to reach.
_BATCHES = "batches LEFT JOIN means USING (sequence)"
_FIRST = "ifnull(first_sequence, sequence)"
_COUNTS = ("thinned", "dropped", "rejected")
_AGE_CHECK_S = 30.0  # between two looks for history that is too old
_RELIEF_STEPS = 64  # per call; the rest waits for the next call


class SqliteSpool:
    """A spool in `folder`; call `open` before anything else."""

    def __init__(self, folder: Path, *, codec: RoundCodec, bounds: Bounds) -> None:
        self._path = folder / "spool.sqlite3"
        self._codec = codec
        self._bounds = bounds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")
        self._database: sqlite3.Connection | None = None
        self._uid = ""
        self._newest = 0
        self._size_bytes = 0
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._inventory: Inventory | None = None
        self._aged_unix_s = 0.0
        self._inventory_id = ""

    async def open(self) -> str:
        """Open or create the file; return what was wrong with an old one ("" if nothing was)."""
        return await self._do(self._open)

    async def announce(self, inventory: Inventory) -> str:
        return await self._do(lambda: self._announce(inventory))

    async def append(self, round_: Round) -> int:
        return await self._do(lambda: self._append(round_))

    async def state(self) -> SpoolState:
        return await self._do(self._state)

    async def read(self, after_sequence: int, before_sequence: int, limit: int) -> Sequence[SpooledBatch]:
        return await self._do(lambda: self._read(after_sequence, before_sequence, limit))

    async def acknowledge(self, acknowledged: Acknowledged, rejected: Collection[int] = ()) -> None:
        await self._do(lambda: self._acknowledge(acknowledged, rejected))

    async def relieve(self, now_unix_s: float, busy: Collection[int]) -> tuple[int, int]:
        if self._size_bytes <= self._bounds.max_bytes:
            if abs(now_unix_s - self._aged_unix_s) < min(_AGE_CHECK_S, self._bounds.max_age_s / 10):
                return 0, 0
            self._aged_unix_s = now_unix_s
            if not await self._do(lambda: self._has_old(now_unix_s)):
                return 0, 0
        return await self._do(lambda: self._relieve(now_unix_s, busy))

    async def restart(self) -> None:
        await self._do(self._restart)

    async def aclose(self) -> None:
        if self._database is not None:
            await self._do(self._close)
        self._thread.shutdown(wait=True)

    async def _do(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise Unreachable(
                f"{self._path}: the spool cannot be written or read: {error}; free disk space or mend the disk",
                reason="SPOOL_FAILED",
            ) from error

    # Everything below runs in the spool's own thread.

    @property
    def _db(self) -> sqlite3.Connection:
        if self._database is None:
            raise Unreachable(f"{self._path}: the spool is not open", reason="SPOOL_FAILED")
        return self._database

    def _open(self) -> str:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._connect()
            return ""
        except (sqlite3.DatabaseError, ValueError) as error:
            if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
                raise
            aside = self._set_aside()
            self._connect()
            return f"{self._path} was damaged ({error}); it was set aside as {aside.name}, a new spool begins; look at the disk"

    def _connect(self) -> None:
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5)
        self._database = database
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("PRAGMA cache_size=-512")
        complaint = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if complaint != "ok":
            raise sqlite3.DatabaseError(complaint)
        database.execute("PRAGMA foreign_keys=ON")
        database.executescript(_SCHEMA)
        facts = dict(database.execute("SELECT name, value FROM facts").fetchall())
        newest = database.execute("SELECT coalesce(max(sequence), 0) FROM batches").fetchone()[0]
        if "spool_uid" not in facts and newest:
            raise ValueError("the spool's identity is gone")
        self._uid = facts.get("spool_uid") or uuid4().hex
        self._newest = max(int(facts.get("newest_sequence", "0")), newest)
        self._counts = {name: int(facts.get(name, "0")) for name in _COUNTS}
        self._size_bytes = database.execute("SELECT coalesce(sum(size_bytes), 0) FROM batches").fetchone()[0]
        with _transaction(database):
            self._remember("spool_uid", self._uid)
            self._remember("newest_sequence", str(self._newest))

    def _set_aside(self) -> Path:
        self._close()
        aside = self._path.with_name(f"spool.damaged-{uuid4().hex[:8]}.sqlite3")
        self._path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        return aside

    def _restart(self) -> None:
        aside = self._path.with_name(f"spool.rolled-back-{self._uid[:8]}-{uuid4().hex[:8]}.sqlite3")
        inventory = self._inventory
        self._close()
        self._path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._connect()
        if inventory is not None:
            self._announce(inventory)

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _remember(self, name: str, value: str) -> None:
        self._db.execute(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
        )

    def _announce(self, inventory: Inventory) -> str:
        payload = self._codec.encode_inventory(inventory)
        self._inventory_id = hashlib.sha256(payload).hexdigest()[:16]
        self._inventory = inventory
        with _transaction(self._db):
            self._db.execute("INSERT OR IGNORE INTO inventories VALUES (?, ?)", (self._inventory_id, payload))
            self._db.execute(
                "DELETE FROM inventories WHERE inventory_id != ? AND inventory_id NOT IN (SELECT inventory_id FROM batches)",
                (self._inventory_id,),
            )
        return self._inventory_id

    def _append(self, round_: Round) -> int:
        sequence = self._newest + 1
        payload = self._codec.encode_round(round_, sequence, sequence)
        with _transaction(self._db):
            self._db.execute(
                "INSERT INTO batches VALUES (?, ?, 0, ?, ?, ?)",
                (sequence, self._inventory_id, round_.sample_unix_s, len(payload), payload),
            )
            self._remember("newest_sequence", str(sequence))
        self._newest = sequence
        self._size_bytes += len(payload)
        return sequence

    def _state(self) -> SpoolState:
        oldest, count = self._db.execute(f"SELECT ifnull(min({_FIRST}), 0), count(*) FROM {_BATCHES}").fetchone()
        return SpoolState(
            spool_uid=self._uid,
            oldest_sequence=oldest,
            newest_sequence=self._newest,
            batch_count=count,
            size_bytes=self._size_bytes,
            thinned_count=self._counts["thinned"],
            dropped_count=self._counts["dropped"],
            rejected_count=self._counts["rejected"],
        )

    def _read(self, after_sequence: int, before_sequence: int, limit: int) -> list[SpooledBatch]:
        rows = self._db.execute(
            f"SELECT sequence, {_FIRST}, inventory_id, payload FROM {_BATCHES} WHERE sequence > ? AND sequence < ? "
            "ORDER BY sequence LIMIT ?",
            (after_sequence, before_sequence, limit),
        ).fetchall()
        return [
            SpooledBatch(
                sequence=sequence,
                first_sequence=first,
                inventory_id=self._inventory_id,
                payload=self._present(sequence, first, layout, payload),
            )
            for sequence, first, layout, payload in rows
        ]

    def _present(self, sequence: int, first_sequence: int, inventory_id: str, payload: bytes) -> bytes:
        """Return the batch laid out by the present inventory."""
        if inventory_id == self._inventory_id or self._inventory is None:
            return payload
        row = self._db.execute("SELECT payload FROM inventories WHERE inventory_id = ?", (inventory_id,)).fetchone()
        if row is None:
            return payload
        before = self._codec.decode_inventory(row[0])
        return self._codec.encode_round(
            remap_round(self._codec.decode_round(payload), before, self._inventory), sequence, first_sequence
        )

    def _acknowledge(self, acknowledged: Acknowledged, rejected: Collection[int]) -> None:
        with _transaction(self._db):
            for sequence in rejected:  # first: the controller may count them as done
                if self._delete("sequence = ?", (sequence,)):
                    self._count("rejected", 1)
            self._delete("sequence <= ?", (acknowledged.up_to,))
            for first, last in acknowledged.ranges:
                # A mean whose last round alone is there stays: the controller has not got the others.
                self._delete(
                    "sequence BETWEEN ? AND ? AND NOT EXISTS "
                    "(SELECT 1 FROM means WHERE means.sequence = batches.sequence AND first_sequence < ?)",
                    (first, last, first),
                )

    def _delete(self, condition: str, parameters: tuple[int, ...]) -> int:
        freed = self._db.execute(
            f"SELECT coalesce(sum(size_bytes), 0) FROM batches WHERE {condition}", parameters
        ).fetchone()[0]
        deleted = self._db.execute(f"DELETE FROM batches WHERE {condition}", parameters).rowcount
        self._size_bytes -= freed
        return deleted

    def _count(self, name: str, more: int) -> None:
        self._counts[name] += more
        self._remember(name, str(self._counts[name]))

    def _has_old(self, now_unix_s: float) -> bool:
        row = self._db.execute("SELECT sample_unix_s FROM batches ORDER BY sequence LIMIT 1").fetchone()
        return row is not None and now_unix_s - float(row[0]) > self._bounds.max_age_s

    def _relieve(self, now_unix_s: float, busy: Collection[int]) -> tuple[int, int]:
        merged = dropped = 0
        unmergeable: set[int] = set()  # what turned out to be of another boot, shape or inventory
        for _ in range(_RELIEF_STEPS):
            rows = self._db.execute(
                f"SELECT sequence, {_FIRST}, size_bytes, level, sample_unix_s FROM {_BATCHES} ORDER BY sequence"
            )
            batches = [
                StoredBatch(sequence=s, first_sequence=f, size_bytes=b, level=n, sample_unix_s=t)
                for s, f, b, n, t in rows
            ]
            steps = plan_relief(batches, bounds=self._bounds, now_s=now_unix_s, busy=busy, unmergeable=unmergeable)
            if not steps:
                break
            for step in steps:
                if isinstance(step, Drop):
                    with _transaction(self._db):
                        for sequence in step.sequences:
                            self._delete("sequence = ?", (sequence,))
                        self._count("dropped", step.round_count)
                    dropped += step.round_count
                elif not self._merge(step):
                    unmergeable.update(step.sequences)
                else:
                    merged += len(step.sequences) - 1
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        return merged, dropped

    def _merge(self, step: Merge) -> bool:
        marks = ",".join("?" * len(step.sequences))
        rows = self._db.execute(
            f"SELECT sequence, inventory_id, payload FROM batches WHERE sequence IN ({marks}) ORDER BY sequence",
            step.sequences,
        ).fetchall()
        if len(rows) < 2 or len({layout for _, layout, _ in rows}) != 1:
            return False
        try:
            rounds = [self._codec.decode_round(payload) for _, _, payload in rows]
        except InvalidInput:
            return False  # stays as it is: the controller refuses it by name, or age drops it
        if not can_merge(rounds):
            return False
        sequence, layout, _ = rows[-1]
        mean = merge_rounds(rounds)
        payload = self._codec.encode_round(mean, sequence, step.first_sequence)
        with _transaction(self._db):
            self._delete(f"sequence IN ({marks})", step.sequences)
            self._db.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)",
                (sequence, layout, step.level, mean.sample_unix_s, len(payload), payload),
            )
            self._db.execute("INSERT INTO means VALUES (?, ?)", (sequence, step.first_sequence))
            self._count("thinned", len(rows) - 1)
        self._size_bytes += len(payload)
        return True


def _is_damage(error: sqlite3.Error) -> bool:
    text = str(error)
    return "malformed" in text or "not a database" in text or "no such column" in text


class _transaction:
    """Commit all or nothing; `sqlite3`'s own context manager does not begin one."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: object) -> None:
        if kind is None:
            self._database.execute("COMMIT")
        elif self._database.in_transaction:
            self._database.execute("ROLLBACK")
