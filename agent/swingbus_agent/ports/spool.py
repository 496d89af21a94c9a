"""A durable backlog of encoded rounds, and the two-way translation that it needs to thin them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from swingbus_agent.domain.readings import Inventory, Round
from swingbus_agent.domain.spool_policy import Acknowledged


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledBatch:
    """One stored batch; `inventory_id` names the inventory by which it is laid out."""

    sequence: int
    first_sequence: int  # the numbers from here to `sequence` were merged into it
    inventory_id: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolState:
    """What a session's first message and the metrics need."""

    spool_uid: str
    oldest_sequence: int  # the oldest that a stored batch stands for; 0 if empty
    newest_sequence: int  # greatest ever given out
    batch_count: int
    size_bytes: int
    thinned_count: int  # batches merged away since the spool began
    dropped_count: int  # rounds lost since the spool began, each of a dropped mean counted
    rejected_count: int  # batches that the controller refused for ever


class RoundCodec(Protocol):
    """Turns rounds into bytes and back."""

    def encode_round(self, round_: Round, sequence: int, first_sequence: int) -> bytes: ...

    def decode_round(self, payload: bytes) -> Round: ...

    def encode_inventory(self, inventory: Inventory) -> bytes: ...

    def decode_inventory(self, payload: bytes) -> Inventory: ...


class Spool(Protocol):
    """Numbers rounds and keeps each until it is acknowledged. Every method returns after its change is on disk."""

    async def announce(self, inventory: Inventory) -> str:
        """Make this inventory the layout of the rounds to come; return its id."""
        ...

    async def append(self, round_: Round) -> int:
        """Store a round; return its sequence."""
        ...

    async def state(self) -> SpoolState: ...

    async def read(self, after_sequence: int, before_sequence: int, limit: int) -> Sequence[SpooledBatch]:
        """Return batches with `after_sequence` < sequence < `before_sequence` in order, laid out by the present inventory."""
        ...

    async def acknowledge(self, acknowledged: Acknowledged, rejected: Collection[int] = ()) -> None:
        """Delete what the controller has, a mean only with every number in it; count and delete what it refuses for ever."""
        ...

    async def relieve(self, now_unix_s: float, busy: Collection[int]) -> tuple[int, int]:
        """Thin, then drop, until the spool is inside its bounds; return how many batches were merged away, and how many rounds dropped."""
        ...

    async def restart(self) -> None:
        """Set the file aside and begin a new spool, because the controller knows more of it than it does itself."""
        ...

    async def aclose(self) -> None: ...
