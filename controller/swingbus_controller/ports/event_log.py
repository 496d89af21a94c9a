"""What readers of the record need: look back, and wait for more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from swingbus_controller.ports.journal import JournaledEntry


class EventLog(Protocol):
    """The journal as its readers see it."""

    @property
    def epoch(self) -> int:
        """The epoch that this controller holds, 0 before it claimed one."""
        ...

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
        ...

    def newest_revision(self) -> int: ...

    def compacted_revision(self) -> int:
        """Return the revision up to which entries may be missing, 0 where all are kept."""
        ...

    async def wait_newer(self, after_revision: int) -> int:
        """Return the newest revision as soon as it is greater than `after_revision`."""
        ...
