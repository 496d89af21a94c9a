"""Pods as the agent needs them: which devices the node's kubelet has given to whom."""

from __future__ import annotations

from typing import Protocol

from swingbus_agent.domain.answers import Hung, Unavailable
from swingbus_agent.domain.pod_holding import HeldDevice


class PodLister(Protocol):
    """Asks the kubelet of this node. Not knowing is told apart from nobody: it is never an empty list."""

    async def list_held(self) -> tuple[HeldDevice, ...] | Unavailable | Hung:
        """Return every device that a pod holds, within the lister's own deadline; never raises."""
        ...

    async def aclose(self) -> None:
        """Let go of the kubelet."""
        ...
