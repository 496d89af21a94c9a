"""Watches the site file: a changed limit is journaled and obeyed, everything else waits for a start and is told.

Decides when a file counts. Refuses to know where the file is and how it is read. Invariants: a file with faults, of another site, or just
being written changes nothing; what a file says is told once, not at every look.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from swingbus.clock import Clock
from swingbus.faults import SwingbusError
from swingbus_controller.app.commands import OPERATOR_LIMIT
from swingbus_controller.app.engine import SiteEngine
from swingbus_controller.domain.power.budget_events import LimitRemoved
from swingbus_controller.domain.site.site_changes import LimitChange, counting_now, limit_changes, needs_start
from swingbus_controller.domain.site.sitefile import SiteFile
from swingbus_controller.ports.journal import JournalEntry

log = structlog.get_logger()
AUTHOR = "site file"
LOOK_EVERY_S = 5.0


class SiteSource(Protocol):
    """Where the site file is.

    Attributes:
        taken: the text that the site was started with.
    """

    @property
    def taken(self) -> bytes: ...

    def text(self) -> bytes:
        """Return the file as it is now. Raises SwingbusError where it can't be read."""
        ...

    def parse(self, text: bytes) -> tuple[SiteFile, tuple[str, ...]]:
        """Return the site of a text, and parts besides it that changed since the start. Raises SwingbusError with every fault of it."""
        ...


class SiteWatch:
    """Follows one site's file for one engine."""

    def __init__(self, *, source: SiteSource, engine: SiteEngine, clock: Clock) -> None:
        self._source, self._engine, self._clock = source, engine, clock
        self._running = engine.state.site
        self._taken = source.taken  # the newest text that counts, or that was told to be no good
        self._last = b""  # what the look before saw
        self._told = ""

    def start(self) -> None:
        """Let the limits in force be those of the file that the site was started with; what the journal knows of older ones is stale."""
        self._record(self._changes(self._running))

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        while True:
            await self._clock.sleep(LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Look once. A file counts as soon as two looks saw the same: one that is just being written is not whole."""
        try:
            text = self._source.text()
        except SwingbusError as fault:
            self._tell("site_file_refused", str(fault))
            return
        last, self._last = self._last, text
        if text == self._taken or text != last:
            return
        self._taken, self._told = text, ""
        try:
            site, besides = self._source.parse(text)
        except SwingbusError as fault:
            self._tell("site_file_refused", str(fault))
            return
        if site.name != self._running.name:
            self._tell(
                "site_file_refused", f"it is the file of site {site.name}; this controller runs {self._running.name}"
            )
            return
        self._take(site, besides)

    def _take(self, site: SiteFile, besides: tuple[str, ...]) -> None:
        changes = self._changes(site)
        waiting = (*needs_start(self._running, site), *besides)
        counting = counting_now(changes, self._running, site, waiting)
        self._record(counting)
        log.info("site_file_changed", limits=[f"{each.feeder}/{each.name}" for each in counting], needs_start=waiting)
        if waiting:
            late = [f"{each.feeder}/{each.name}" for each in changes if each not in counting]
            words = f", and with them the limits {', '.join(late)}" if late else ""
            message = f"the site file has other {', '.join(waiting)} now; they count after the controller's next start{words}."
            self._tell("site_file_needs_start", message)

    def _changes(self, site: SiteFile) -> list[LimitChange]:
        state = self._engine.state
        others = {OPERATOR_LIMIT, *state.curtailments}
        return limit_changes(site, self._running.tree.feeders, state.ledger.limits, others=others)

    def _record(self, changes: list[LimitChange]) -> None:
        if changes:
            self._engine.recorder.record(*(self._entry(change) for change in changes))
            self._engine.replan()

    def _entry(self, change: LimitChange) -> JournalEntry:
        if change.limit is not None:
            return self._engine.limit_entry(change.feeder, change.limit, author=AUTHOR)
        gone = LimitRemoved(feeder=change.feeder, name=change.name, at_s=self._clock.boottime_s())
        return self._engine.recorder.budget(gone, author=AUTHOR)

    def _tell(self, kind: str, message: str) -> None:
        if message == self._told:
            return
        self._told = message
        (log.error if kind == "site_file_refused" else log.warning)(kind, message=message)
        recorder = self._engine.recorder
        recorder.record(recorder.entry(kind, "", message, author=AUTHOR))
