"""Workloads as the agent needs them: started and stopped by name, seen as they are.

Programs of the agent's own file are started and ended; where pods are the workloads both are only noted, and who holds a unit is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from swingbus_agent.domain.workload import WorkloadStatus


class WorkloadDriver(Protocol):
    """Runs at most one workload on each unit. Nothing here waits for a workload: `observe` moves everything on."""

    async def start(self, unit: str, workload: str) -> None:
        """Start a workload of the agent's file; again for what already runs there does nothing.

        A program that cannot be started shows as FAILED in `observe`.

        Raises:
            NotFound: no such unit or no such name.
            WrongState: something else still holds the unit.
        """
        ...

    async def stop(self, unit: str, *, grace_s: float | None = None) -> None:
        """Tell what runs on the unit to end, and end it after `grace_s` (default: its own); a failure is forgotten.

        A shorter grace than one that already runs takes its place; a longer one does not.

        Raises:
            NotFound: no such unit.
        """
        ...

    async def observe(self) -> Mapping[str, WorkloadStatus]:
        """Look at every unit: who lives, who is ready, who must be killed now. To be called about once a second."""
        ...
