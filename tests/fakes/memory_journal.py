"""A journal in memory with the contract of the one on disk, which can be copied, put back and killed between two records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from swingbus.faults import WrongState
from swingbus_controller.ports.journal import JournaledEntry, JournalEntry


class JournalFile:
    """What is on the disk of a memory journal: shared by all controllers that ever open it."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str]] = []
        self.epoch = 0
        self.instance = ""

    def copy(self, rows: int | None = None) -> JournalFile:
        """Return an old copy: only the first rows, and the epoch that they know."""
        old = JournalFile()
        old.rows = self.rows[:rows]
        old.epoch = max((epoch for epoch, _ in old.rows), default=0)
        return old


class MemoryJournal:
    """A journal with `SqliteJournal`'s contract and no disk: JSON in, JSON out, fenced by epoch."""

    def __init__(self, file: JournalFile) -> None:
        self.file = file
        self.was_created = not file.rows
        self._epoch: int | None = None
        self.crash_after: int | None = None
        self.crash_when: Callable[[JournalEntry], bool] | None = None

    def claim_epoch(self, instance: str, at_least: int) -> int:
        self.file.epoch = max(self.file.epoch, at_least) + 1
        self.file.instance = instance
        self._epoch = self.file.epoch
        return self.file.epoch

    def append(self, entries: Sequence[JournalEntry]) -> int:
        if self._epoch is None:
            raise WrongState("no epoch", reason="NO_EPOCH")
        if not entries:
            return len(self.file.rows)
        if self._epoch != self.file.epoch:
            raise WrongState("a newer controller took over", reason="FENCED")
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                raise Crashed
        for entry in entries:
            self.file.rows.append((self._epoch, json.dumps(_row(entry), allow_nan=False)))
        if self.crash_when is not None and any(self.crash_when(entry) for entry in entries):
            raise Crashed
        return len(self.file.rows)

    def read(self, after_revision: int = 0, limit: int | None = None) -> Iterator[JournaledEntry]:
        end = None if limit is None else after_revision + limit
        for number, (epoch, text) in enumerate(self.file.rows[after_revision:end], start=after_revision + 1):
            yield JournaledEntry(revision=number, epoch=epoch, entry=JournalEntry(**json.loads(text)))

    def newest_revision(self) -> int:
        return len(self.file.rows)

    async def wait_newer(self, after_revision: int) -> int:
        raise AssertionError("nobody watches in virtual time")


class Crashed(Exception):
    """The controller was killed while it wrote."""


def _row(entry: JournalEntry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "subject": entry.subject,
        "author": entry.author,
        "reason": entry.reason,
        "message": entry.message,
        "at_unix_s": entry.at_unix_s,
        "facts": dict(entry.facts),
        "payload": entry.payload,
    }
