"""Journals on a disk, made quickly, and what is in them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from swingbus_controller.adapters.storage.journal import SqliteJournal
from swingbus_controller.domain.power.budget_events import LimitSet
from swingbus_controller.domain.power.limits import Limit
from swingbus_controller.domain.site_state import budget_payload
from swingbus_controller.ports.journal import JournalEntry


def entry(
    kind: str = "bank_placed", *, site: str = "north", author: str = "controller", **payload: object
) -> JournalEntry:
    """Return an entry."""
    return JournalEntry(
        kind=kind,
        subject=f"sites/{site}/feeders/grid",
        author=author,
        reason="r",
        message="m" * 100,
        at_unix_s=1_795_000_000.0,
        payload=payload or None,
    )


def limit_set(watts: float) -> JournalEntry:
    """Return what a person set."""
    limit = Limit(name="operator", limit_w=watts, source="operator dana")
    return entry("limit_set", author="dana", **budget_payload(LimitSet(feeder="grid", limit=limit, at_s=1.0)))


def fill(data: Path, *entries: JournalEntry) -> None:
    """Append entries under a new epoch, as a controller that then ends."""
    data.mkdir(exist_ok=True)
    with closing(SqliteJournal(data / "journal.sqlite")) as journal:
        journal.claim_epoch("one", 0)
        journal.append(entries)


def kinds(path: Path) -> list[str]:
    """Return the kinds of a journal's entries."""
    with closing(SqliteJournal(path)) as journal:
        return [each.entry.kind for each in journal.read()]


def everything(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder, but for the lock and what SQLite keeps while a file is open."""
    beside = ("journal.lock", "-shm", "-wal")
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(beside)}
