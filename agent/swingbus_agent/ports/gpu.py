"""GPUs as the agent needs them: something to read, and (apart, and only where writing is switched on) one thing to set."""

from __future__ import annotations

from typing import Protocol

from swingbus_agent.domain.answers import Hung, Unavailable, Unsupported
from swingbus_agent.domain.gpu import GpuInventory, GpuRound


class GpuSource(Protocol):
    """Reads a host's GPUs. Every call comes back within the source's own deadlines, whatever the driver does."""

    async def inventory(self) -> GpuInventory | Unsupported | Unavailable | Hung:
        """Return which GPUs there are; cheap after the first call."""
        ...

    async def sample(self) -> GpuRound | Unsupported | Unavailable | Hung:
        """Return one round; one GPU that is lost or hung is told by its own sample, the others' are complete."""
        ...

    async def aclose(self) -> None:
        """Let go of the driver."""
        ...


class GpuActuator(Protocol):
    """Sets the one thing that Swingbus may set on a GPU."""

    async def set_power_limit(self, uuid: str, power_w: float) -> None:
        """Ask for a power limit; a later sample's `power_limit_enforced_w` is the evidence, the return is none.

        Raises:
            Forbidden: writing is off in the agent's file, or the driver refuses this user.
            NotFound: no such GPU here.
            InvalidInput: the limit is outside what this GPU takes.
            Unreachable: the GPU is lost or hung, or its driver cannot be asked now.
            TimedOut: no answer; the limit may or may not be set.
        """
        ...
