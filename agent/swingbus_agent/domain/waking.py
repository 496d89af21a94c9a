"""Who woke up without being asked: alone it is named, together with others it is a disturbance of the supply.

Decides that much only; pure. Invariant: nobody is named before it is known who woke with it.
"""

from __future__ import annotations

from collections.abc import Iterable

from swingbus_agent.domain.views import Notice

TOGETHER_COUNT = 3  # as many devices that wake within TOGETHER_S are a disturbance, not liars
TOGETHER_S = 5.0


class Wakers:
    """The devices of one bank that woke lately."""

    def __init__(self) -> None:
        self._wakes: list[tuple[float, str]] = []

    def note(self, device: str, now_s: float) -> None:
        """Note a device that woke."""
        self._wakes.append((now_s, device))

    def name(self, now_s: float) -> Iterable[Notice]:
        """Return what is worth telling of those whose company is known by now."""
        due = [(woke_s, device) for woke_s, device in self._wakes if now_s - woke_s >= TOGETHER_S]
        for woke_s, device in due:
            near = {other for at_s, other in self._wakes if abs(at_s - woke_s) <= TOGETHER_S}
            if len(near) < TOGETHER_COUNT:
                yield Notice(
                    kind="device_self_woke",
                    device=device,
                    message=f"{device} woke up without being asked and is put back to rest; look at its firmware or its schedule",
                )
            else:
                yield Notice(
                    kind="device_woke_with_others",
                    device=device,
                    message=f"{device} woke up together with {len(near) - 1} others: a disturbance of the supply, not its own doing",
                )
        self._wakes = [
            (woke_s, device)
            for woke_s, device in self._wakes
            if (woke_s, device) not in due or now_s - woke_s < 2 * TOGETHER_S
        ]
        named = {device for _, device in due}
        self._wakes = [(woke_s, device) for woke_s, device in self._wakes if device not in named]
