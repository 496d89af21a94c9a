"""Watches the site file: a changed limit is journaled and obeyed, everything else waits for a start and is told.

Decides what of a file counts now. Refuses to know where the file is and how it is read. Invariants: a file with faults changes nothing;
what a file says is told once, not at every look.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from swingbus.clock import Clock
from swingbus.faults import SwingbusError
from swingbus_controller.app.commands import OPERATOR_LIMIT
from swingbus_controller.app.engine import SiteEngine
from swingbus_controller.domain.power.budget_events import LimitRemoved
from swingbus_controller.domain.site.site_changes import LimitChange, limit_changes, needs_start
from swingbus_controller.domain.site.sitefile import SiteFile

log = structlog.get_logger()
AUTHOR = "site file"
LOOK_EVERY_S = 5.0


class SiteSource(Protocol):
    """Where the site file is."""

    def text(self) -> bytes:
        """Return the file as it is now. Raises SwingbusError where it can't be read."""
        ...

    def parse(self) -> tuple[SiteFile, tuple[str, ...]]:
        """Return the site, and parts besides it that changed since the start. Raises SwingbusError with every fault of the file."""
        ...


class SiteWatch:
    """Follows one site's file for one engine."""

    def __init__(self, *, source: SiteSource, engine: SiteEngine, clock: Clock) -> None:
        self._source, self._engine, self._clock = source, engine, clock
        self._running = engine.state.site
        self._seen = source.text()
        self._told = ""

    def reconcile(self, site: SiteFile) -> list[LimitChange]:
        """Let the limits in force be those of a site file; return what changed. What the journal knows of older files is out of date."""
        engine, now_s = self._engine, self._clock.boottime_s()
        changes = limit_changes(
            site,
            self._running.tree.feeders,
            engine.state.ledger.limits,
            others={OPERATOR_LIMIT, *engine.state.curtailments},
        )
        if changes:
            engine.recorder.record(
                *(
                    engine.limit_entry(change.feeder, change.limit, author=AUTHOR)
                    if change.limit is not None
                    else engine.recorder.budget(
                        LimitRemoved(feeder=change.feeder, name=change.name, at_s=now_s), author=AUTHOR
                    )
                    for change in changes
                )
            )
            engine.replan()
        return changes

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        while True:
            await self._clock.sleep(LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Look once."""
        try:
            text = self._source.text()
            if text == self._seen:
                return
            site, besides = self._source.parse()
        except SwingbusError as fault:
            # Half written, or wrong: what runs goes on, and the next look may find it mended.
            self._tell("site_file_refused", str(fault))
            return
        self._seen, self._told = text, ""
        changes = self.reconcile(site)
        waiting = (*needs_start(self._running, site), *besides)
        log.info("site_file_changed", limits=[f"{each.feeder}/{each.name}" for each in changes], needs_start=waiting)
        if waiting:
            self._tell(
                "site_file_needs_start",
                f"the site file has other {', '.join(waiting)} now; they count after the controller's next start. Limits count already.",
            )

    def _tell(self, kind: str, message: str) -> None:
        if message == self._told:
            return
        self._told = message
        log.warning(kind, message=message)
        recorder = self._engine.recorder
        recorder.record(recorder.entry(kind, "", message, author=AUTHOR))
