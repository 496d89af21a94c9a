"""GPUs whose driver calls hang: kept away from the child that serves the others, and tried again by a process of their own.

Decides when to try again (10 s, doubling to 10 minutes by default) and when a GPU may come back. Knows nothing of readings.
Invariant: at most one probe per GPU at a time, and none while an earlier one is stuck in the kernel.
"""

from __future__ import annotations

from asyncio.subprocess import Process
from collections.abc import Mapping
from dataclasses import dataclass

from swingbus_agent.adapters.nvml.link import end_process, start_process

_LONGEST_WAIT_S = 600.0


@dataclass(slots=True, kw_only=True)
class _Held:
    probe_name: str
    since_boottime_ns: int
    wait_s: float
    next_probe_s: float
    probe: Process | None = None
    probe_ends_s: float = 0.0
    is_stuck: bool = False


class Quarantine:
    """The GPUs that are kept apart."""

    def __init__(self, *, first_wait_s: float, deadline_s: float, environment: Mapping[str, str] | None) -> None:
        """`first_wait_s` until the first probe, `deadline_s` for a probe to answer in."""
        self._first_wait_s = first_wait_s
        self._deadline_s = deadline_s
        self._environment = environment
        self._held: dict[str, _Held] = {}

    def __contains__(self, uuid: object) -> bool:
        return uuid in self._held

    def since_boottime_ns(self, uuid: str) -> int:
        """Return since when this GPU hangs."""
        return self._held[uuid].since_boottime_ns

    def add(self, uuid: str, *, probe_name: str, since_boottime_ns: int, now_s: float) -> None:
        """Keep a GPU apart; `probe_name` is its bus id, or its number if it hung before it could tell."""
        self._held[uuid] = _Held(
            probe_name=probe_name,
            since_boottime_ns=since_boottime_ns,
            wait_s=self._first_wait_s,
            next_probe_s=now_s + self._first_wait_s,
        )

    async def review(self, now_s: float) -> tuple[str, ...]:
        """Start and judge probes without waiting for them; return the GPUs that answer again and may come back."""
        back = [uuid for uuid, held in list(self._held.items()) if await self._review_one(held, now_s)]
        for uuid in back:
            del self._held[uuid]
        return tuple(back)

    async def aclose(self) -> None:
        """End the probes."""
        for held in self._held.values():
            if held.probe is not None:
                await end_process(held.probe)
        self._held.clear()

    async def _review_one(self, held: _Held, now_s: float) -> bool:
        if held.probe is None:
            if now_s >= held.next_probe_s:
                held.probe_ends_s = now_s + self._deadline_s
                try:
                    held.probe = await start_process(
                        "probe", held.probe_name, environment=self._environment, is_talking=False
                    )
                except OSError:  # no memory or no process numbers: the GPU stays apart until there are
                    self._try_later(held, now_s)
            return False
        code = held.probe.returncode
        if code is None:
            if now_s >= held.probe_ends_s and not held.is_stuck:
                held.is_stuck = not await end_process(held.probe)
                if not held.is_stuck:
                    self._try_later(held, now_s)
            return False
        if held.is_stuck or code not in (0, 1):  # killed at last, or it crashed: no answer either way
            held.is_stuck = False
            self._try_later(held, now_s)
            return False
        return True  # 0: it answers; 1: the driver calls it lost now, which is an answer too

    def _try_later(self, held: _Held, now_s: float) -> None:
        held.probe = None
        held.wait_s = min(held.wait_s * 2, _LONGEST_WAIT_S)
        held.next_probe_s = now_s + held.wait_s
