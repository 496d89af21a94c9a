"""What the agent's loops need of its miners."""

from __future__ import annotations

from typing import Protocol

from swingbus_agent.domain.miner import (
    Hung,
    MinerCapabilities,
    MinerIdentity,
    MinerOutcome,
    MinerProfile,
    Unavailable,
    Unsupported,
    WriteOutcome,
)


class MinerDriver(Protocol):
    """Reads and commands miners by their configured names.

    Every call returns within the driver's own deadline, never raises for anything a miner or the network does, and may run
    beside any number of others; a miner that hangs delays nobody else. An unknown name raises `swingbus.faults.NotFound`.
    """

    def capabilities(self, miner: str) -> MinerCapabilities:
        """Return which verbs this miner's firmware has."""
        ...

    async def read(self, miner: str) -> MinerOutcome:
        """Look at the miner now."""
        ...

    async def identify(self, miner: str) -> MinerIdentity | Unavailable | Hung:
        """Ask who answers at the miner's address."""
        ...

    async def profiles(self, miner: str) -> tuple[MinerProfile, ...] | Unsupported | Unavailable | Hung:
        """Return the miner's own table of operating points, least watts first."""
        ...

    async def sleep(self, miner: str) -> WriteOutcome:
        """Ask the miner to stop hashing and drop to standby watts."""
        ...

    async def wake(self, miner: str) -> WriteOutcome:
        """Ask the miner to start hashing again."""
        ...

    async def set_profile(self, miner: str, profile: str) -> WriteOutcome:
        """Ask the miner to run at one of its own profiles."""
        ...

    async def set_power_limit(self, miner: str, power_w: float) -> WriteOutcome:
        """Ask the miner to stay within `power_w` watts; some firmwares restart mining for it."""
        ...
