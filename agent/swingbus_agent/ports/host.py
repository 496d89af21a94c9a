"""The host that the agent runs on."""

from __future__ import annotations

from typing import Protocol


class HostSource(Protocol):
    """Reads the host; quick enough for the event loop."""

    def read(self) -> tuple[float | None, ...]:
        """Return readings in the order of `domain.fields.HOST_FIELDS`; None where this host does not say."""
        ...
