"""What the agent must not forget: small records, each whole or not there."""

from __future__ import annotations

from typing import Protocol


class StateStore(Protocol):
    """Named records. `save` returns after the record is on disk; a crash leaves the old one or the new one."""

    def load(self, name: str) -> bytes | None:
        """Return a record, None where there is none. Raises Unreachable where it cannot be read."""
        ...

    async def save(self, name: str, record: bytes) -> None:
        """Store a record durably. Raises Unreachable (disk full, rights)."""
        ...
