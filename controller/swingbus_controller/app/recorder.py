"""What is put on the record: entries collected from ingest, thinned where one source talks too much, appended in groups.

Decides how often the same thing may be recorded. Refuses to know: what it means. Invariant: nothing that was noted is lost in
silence: what was thinned is counted, and the next entry of the same source says how many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from swingbus.clock import Clock
from swingbus_controller.ports.journal import Journal, JournalEntry

MAX_PENDING = 10_000


@dataclass(slots=True)
class _Allowance:
    left: float
    at_s: float
    suppressed_count: int = 0


class RecorderMetrics(Protocol):
    """What the recorder counts."""

    def events_suppressed(self, count: int) -> None: ...


class Recorder:
    """Appends to the journal, at most `burst` entries of one source at once and one per `refill_s` after that."""

    def __init__(
        self, journal: Journal, clock: Clock, metrics: RecorderMetrics, *, burst: int = 20, refill_s: float = 3.0
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._metrics = metrics
        self._burst = burst
        self._refill_s = refill_s
        self._pending: list[JournalEntry] = []
        self._allowances: dict[str, _Allowance] = {}

    def note(
        self,
        kind: str,
        *,
        subject: str,
        source: str,
        message: str,
        author: str = "controller",
        reason: str = "",
        facts: Mapping[str, str] | None = None,
    ) -> bool:
        """Put an entry up for the next flush; return False where its source has used its allowance up."""
        allowance = self._allowances.get(source)
        now_s = self._clock.boottime_s()
        if allowance is None:
            allowance = self._allowances[source] = _Allowance(left=float(self._burst), at_s=now_s)
        allowance.left = min(float(self._burst), allowance.left + (now_s - allowance.at_s) / self._refill_s)
        allowance.at_s = now_s
        if allowance.left < 1.0 or len(self._pending) >= MAX_PENDING:
            allowance.suppressed_count += 1
            self._metrics.events_suppressed(1)
            return False
        allowance.left -= 1.0
        entry = JournalEntry(
            kind=kind,
            subject=subject,
            author=author,
            reason=reason,
            message=message,
            at_unix_s=self._clock.now().timestamp(),
            facts=dict(facts or {}),
        )
        if allowance.suppressed_count:
            entry = replace(entry, facts={**entry.facts, "suppressed_before": str(allowance.suppressed_count)})
            allowance.suppressed_count = 0
        self._pending.append(entry)
        return True

    def flush(self) -> None:
        """Append what is pending, durable on return. Raises what the journal raises and then keeps the entries."""
        if self._pending:
            entries = tuple(self._pending)
            self._journal.append(entries)
            del self._pending[: len(entries)]
