"""The durable record: every decision is in it before its first side effect, and operators' events are the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One thing that happened or was decided."""

    kind: str  # stable noun_verb word
    subject: str  # resource name
    author: str  # certificate name, or "controller"
    reason: str
    message: str
    at_unix_s: float
    facts: Mapping[str, str] = field(default_factory=dict)
    payload: Mapping[str, Any] | None = None  # JSON-able; what a fold needs to rebuild state


@dataclass(frozen=True, slots=True, kw_only=True)
class JournaledEntry:
    """An entry with its revision."""

    revision: int
    epoch: int
    entry: JournalEntry


class Journal(Protocol):
    """Append-only, fsynced, fenced by epoch."""

    def claim_epoch(self, instance: str, at_least: int) -> int:
        """Durably take a new epoch greater than any seen and than `at_least`; every older holder's appends fail from now on."""
        ...

    def append(self, entries: Sequence[JournalEntry]) -> int:
        """Store all or none, durable on return; return the newest revision. Raises WrongState (reason FENCED) after a newer epoch."""
        ...

    def read(self, after_revision: int = 0, limit: int | None = None) -> Iterator[JournaledEntry]: ...

    def newest_revision(self) -> int: ...

    async def wait_newer(self, after_revision: int) -> int:
        """Return the newest revision as soon as it is greater than `after_revision`."""
        ...
