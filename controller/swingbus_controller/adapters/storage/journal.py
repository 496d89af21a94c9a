"""The journal in SQLite: append-only, fsynced on return, fenced by epoch in the same transaction.

Decides: revisions and who may still write. Refuses to know: what entries mean. Invariant: an append commits only while its
holder's epoch is the newest in the file, whichever process asks.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from swingbus.faults import HistoryCompacted, Unreachable, WrongState
from swingbus_controller.adapters.storage.database import damaged, open_database
from swingbus_controller.ports.journal import JournaledEntry, JournalEntry

JOURNAL_VERSION = 1
_PAGE_ROWS = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS term (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, instance TEXT NOT NULL,
  compacted_revision INTEGER NOT NULL);
INSERT OR IGNORE INTO term VALUES (1, 0, '', 0);
CREATE TABLE IF NOT EXISTS entries (revision INTEGER PRIMARY KEY AUTOINCREMENT, epoch INTEGER NOT NULL, at_unix_s REAL NOT NULL,
  kind TEXT NOT NULL, subject TEXT NOT NULL, author TEXT NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL,
  facts TEXT NOT NULL, payload TEXT);
CREATE INDEX IF NOT EXISTS entries_by_kind ON entries (kind, revision);
"""
ENTRY_COLUMNS = "revision, epoch, at_unix_s, kind, subject, author, reason, message, facts, payload"


class SqliteJournal:
    """One file, one writing process at a time. Use it from one thread (the event loop's)."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; `was_created` tells whether there was none. Raises WrongState where it is damaged."""
        self.path = path
        self.was_created = not path.exists()
        self._db = open_database(path, _SCHEMA, version=JOURNAL_VERSION, check=True)
        self._epoch: int | None = None
        self._newest = self._read_newest()
        self._waiters: set[asyncio.Future[None]] = set()

    def close(self) -> None:
        """Close the file; later calls fail."""
        self._db.close()

    @property
    def epoch(self) -> int:
        """Return the epoch this process holds, 0 before it claimed one."""
        return self._epoch or 0

    def claim_epoch(self, instance: str, at_least: int) -> int:
        """Durably take a new epoch greater than any seen and than `at_least`; older holders can append no more."""
        with self._transaction():
            stored = int(self._db.execute("SELECT epoch FROM term").fetchone()[0])
            epoch = max(stored, at_least) + 1
            self._db.execute("UPDATE term SET epoch = ?, instance = ?", (epoch, instance))
        self._epoch = epoch
        return epoch

    def check_epoch(self) -> None:
        """Raise WrongState (FENCED) if another process has taken a newer epoch since."""
        stored, instance = self._db.execute("SELECT epoch, instance FROM term").fetchone()
        if self._epoch is not None and stored != self._epoch:
            raise self._fenced(int(stored), str(instance))

    def _fenced(self, epoch: int, instance: str) -> WrongState:
        return WrongState(
            f"controller instance {instance} took epoch {epoch}; this one (epoch {self._epoch}) must stop.",
            reason="FENCED",
            metadata={"epoch": str(self._epoch), "newer_epoch": str(epoch), "instance": instance},
        )

    def append(self, entries: Sequence[JournalEntry]) -> int:
        """Store all or none, durable on return; return the newest revision.

        Raises:
            WrongState: FENCED after a newer epoch, NO_EPOCH before the first. Unreachable: the disk refuses.
        """
        if self._epoch is None:
            raise WrongState("the journal takes no entries before an epoch is claimed.", reason="NO_EPOCH")
        if not entries:
            return self._newest
        rows = [_row(self._epoch, entry) for entry in entries]
        with self._transaction():
            stored, instance = self._db.execute("SELECT epoch, instance FROM term").fetchone()
            if stored != self._epoch:
                raise self._fenced(int(stored), str(instance))
            self._db.executemany(
                f"INSERT INTO entries ({ENTRY_COLUMNS.removeprefix('revision, ')}) VALUES (?,?,?,?,?,?,?,?,?)", rows
            )
            newest = self._read_newest()
        self._newest = newest
        for waiter in tuple(self._waiters):
            waiter.get_loop().call_soon_threadsafe(_wake, waiter)
        return newest

    def read(self, after_revision: int = 0, limit: int | None = None) -> Iterator[JournaledEntry]:
        """Yield entries after a revision in order. Raises HistoryCompacted where some of them are no longer kept."""
        self._refuse_compacted(after_revision)
        left = limit
        while left is None or left > 0:
            page = _PAGE_ROWS if left is None else min(_PAGE_ROWS, left)
            rows = self._db.execute(
                f"SELECT {ENTRY_COLUMNS} FROM entries WHERE revision > ? ORDER BY revision LIMIT ?",
                (after_revision, page),
            ).fetchall()
            for row in rows:
                yield read_entry(row, self.path)
            if len(rows) < page:
                return
            after_revision = int(rows[-1][0])
            left = None if left is None else left - len(rows)

    def find(
        self,
        *,
        after_revision: int = 0,
        before_revision: int | None = None,
        kinds: Sequence[str] = (),
        newest_first: bool = False,
        limit: int = 100,
    ) -> list[JournaledEntry]:
        """Return entries between two revisions (both exclusive), only of some kinds if any are named."""
        where = ["revision > ?"]
        parameters: list[Any] = [after_revision]
        if before_revision is not None:
            where.append("revision < ?")
            parameters.append(before_revision)
        if kinds:
            where.append(f"kind IN ({','.join('?' * len(kinds))})")
            parameters.extend(kinds)
        order = "DESC" if newest_first else "ASC"
        rows = self._db.execute(
            f"SELECT {ENTRY_COLUMNS} FROM entries WHERE {' AND '.join(where)} ORDER BY revision {order} LIMIT ?",
            (*parameters, limit),
        ).fetchall()
        return [read_entry(row, self.path) for row in rows]

    def newest_revision(self) -> int:
        """Return the newest revision, 0 in an empty journal."""
        return self._newest

    def compacted_revision(self) -> int:
        """Return the revision up to which entries may be missing, 0 where all are kept."""
        return int(self._db.execute("SELECT compacted_revision FROM term").fetchone()[0])

    def compact(self, *, before_unix_s: float) -> int:
        """Delete entries older than a moment that nobody rebuilds state from (no payload); return how many."""
        with self._transaction():
            last = self._db.execute(
                "SELECT MAX(revision) FROM entries WHERE at_unix_s < ? AND payload IS NULL", (before_unix_s,)
            ).fetchone()[0]
            if last is None:
                return 0
            gone = self._db.execute(
                "DELETE FROM entries WHERE revision <= ? AND at_unix_s < ? AND payload IS NULL", (last, before_unix_s)
            ).rowcount
            self._db.execute("UPDATE term SET compacted_revision = MAX(compacted_revision, ?)", (last,))
        return int(gone)

    async def wait_newer(self, after_revision: int) -> int:
        """Return the newest revision as soon as it is greater than `after_revision`."""
        while self._newest <= after_revision:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return self._newest

    def _refuse_compacted(self, after_revision: int) -> None:
        compacted = self.compacted_revision()
        if 0 < after_revision < compacted:
            raise HistoryCompacted(
                f"events after revision {after_revision} are not all kept (oldest complete: {compacted}); list, then watch.",
                metadata={"compacted_revision": str(compacted)},
            )

    def _read_newest(self) -> int:
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entries'").fetchone()
        return int(row[0]) if row else 0

    def _transaction(self) -> _Immediate:
        return _Immediate(self._db, self.path)


def read_entry(row: tuple[Any, ...], path: Path) -> JournaledEntry:
    """Return what a row of ENTRY_COLUMNS says. Raises WrongState where it is damaged."""
    revision, epoch, at_unix_s, kind, subject, author, reason, message, facts, payload = row
    try:
        entry = JournalEntry(
            kind=kind,
            subject=subject,
            author=author,
            reason=reason,
            message=message,
            at_unix_s=at_unix_s,
            facts=json.loads(facts),
            payload=None if payload is None else json.loads(payload),
        )
    except ValueError as error:
        raise damaged(path, error) from error
    return JournaledEntry(revision=int(revision), epoch=int(epoch), entry=entry)


class _Immediate:
    """A write transaction: commits on success, rolls back on any fault, turns SQLite's faults into ours."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise self._unreachable(error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
            except sqlite3.Error as fault:
                self._roll_back()
                raise self._unreachable(fault) from fault
            return
        self._roll_back()
        if isinstance(error, sqlite3.OperationalError):
            raise self._unreachable(error) from error
        if isinstance(error, sqlite3.DatabaseError):
            raise damaged(self._path, error) from error

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _unreachable(self, error: sqlite3.Error) -> Unreachable:
        return Unreachable(
            f"the journal {self._path} cannot be written: {error}; check the disk and its free space.",
            reason="JOURNAL_UNREACHABLE",
            metadata={"path": str(self._path)},
        )


def _row(epoch: int, entry: JournalEntry) -> tuple[Any, ...]:
    payload = None if entry.payload is None else json.dumps(entry.payload, separators=(",", ":"), allow_nan=False)
    return (
        epoch,
        entry.at_unix_s,
        entry.kind,
        entry.subject,
        entry.author,
        entry.reason,
        entry.message,
        json.dumps(dict(entry.facts), separators=(",", ":")),
        payload,
    )


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
