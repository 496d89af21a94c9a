"""The model's physics: devices, writes that come late, meters that lag and freeze, and a network that loses and repeats.

Virtual time moves in steps of STEP_S. Nothing here knows the ledger. Devices draw at most what they count at, so with an
obedient site the true watts can pass a limit only by a decision of the protocol.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from typing import Any

STEP_S = 2.0
CEILING_W = 100.0  # one device after its own reboot
REST_W = 2.0  # its lowest setting
HOST_W = 20.0
WRITE_MAX_S = 8.0  # the firmware's longest known delay
GRID, UPPER, LOWER = "grid", "f1", "f2"
LOSSES = {GRID: 0.0, UPPER: 0.01, LOWER: 0.02, "c1": 0.0, "c2": 0.01, "c3": 0.0}
PARENTS: dict[str, str | None] = {GRID: None, UPPER: GRID, LOWER: GRID, "c1": UPPER, "c2": UPPER, "c3": LOWER}
HOMES = {"a": "c1", "b": "c2", "c": "c3", "d": "c3"}
READERS = {"c1": "a", "c2": "b", "c3": "c"}


def base_w(count: int) -> float:
    """Return the grant of a bank whose devices all rest."""
    return HOST_W + count * REST_W


def full_w(count: int) -> float:
    """Return the grant under which all of `count` devices run at their ceiling."""
    return HOST_W + count * CEILING_W


@dataclass(slots=True)
class Write:
    """One power setting on its way to a device; `land_s` None: lost."""

    bank: str
    device: int
    watts: float
    land_s: float | None


class Bank:
    """True devices: what they draw, and what obedient ones would draw after the same writes.

    An obedient device under load draws 99 % of what it counts at (room for the meter's error, no more), so that little
    of a wrong decision hides in slack.
    """

    __slots__ = ("is_dipping", "liars", "name", "set_w", "true_set_w")

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self.set_w = [REST_W] * count
        self.true_set_w = [REST_W] * count
        self.liars: set[int] = set()
        self.is_dipping = False  # pool loss or throttle: devices draw little for a while, without any command

    def land(self, write: Write) -> None:
        """Let a write take effect; a liar says that it went down and stays up."""
        self.set_w[write.device] = write.watts
        if write.device not in self.liars or write.watts > self.true_set_w[write.device]:
            self.true_set_w[write.device] = write.watts

    def true_w(self) -> float:
        """Return what the bank really draws."""
        return HOST_W * 0.99 + sum(self.true_set_w) * (0.2 if self.is_dipping else 0.99)

    def obedient_w(self) -> float:
        """Return what it would draw if every device did as told."""
        return HOST_W * 0.99 + sum(self.set_w) * (0.2 if self.is_dipping else 0.99)

    def full_w(self) -> float:
        """Return what it draws at its settings without a dip."""
        return HOST_W + sum(self.set_w)


class Meter:
    """A meter with lag, gain error and freeze; windows are stamped by whoever reads it."""

    def __init__(self, rng: random.Random) -> None:
        self.gain = rng.uniform(0.998, 1.002)
        self.lag_steps = rng.choice((0, 1))
        self.energy_j = 1e6
        self.frozen = False
        self.past: list[float] = []
        self.reading: tuple[float, float, float] | None = None

    def step(self, true_w: float, noise: float) -> None:
        """Measure one step of true watts."""
        self.past.append(true_w)
        if len(self.past) <= self.lag_steps or self.frozen:
            return
        mean_w = round(self.past[-1 - self.lag_steps] * (self.gain + noise), 2)
        start_j = self.energy_j
        self.energy_j += mean_w * STEP_S
        self.reading = (mean_w, start_j, self.energy_j)


class Network:
    """Messages that are lost, repeated, delayed and thereby reordered."""

    def __init__(self, rng: random.Random, loss: float) -> None:
        self._rng = rng
        self._loss = loss
        self._count = 0
        self._queue: list[tuple[float, int, str, Any]] = []
        self.cut: set[str] = set()

    def send(self, now_s: float, to: str, payload: Any, agent: str) -> None:
        """Put a message on its way between the controller and an agent."""
        chance = self._rng.random()
        if agent in self.cut or chance < self._loss:
            return
        copies = 2 if chance > 0.93 else 1
        for _ in range(copies):
            late_s = 0.0 if self._rng.random() < 0.8 else self._rng.choice((2.0, 4.0, 10.0, 30.0))
            self._count += 1
            heapq.heappush(self._queue, (now_s + late_s, self._count, to, payload))

    def arrived(self, now_s: float) -> list[tuple[str, Any]]:
        """Return what arrives now, (to, message)."""
        out: list[tuple[str, Any]] = []
        while self._queue and self._queue[0][0] <= now_s:
            _, _, to, payload = heapq.heappop(self._queue)
            out.append((to, payload))
        return out

    def under_way(self) -> list[tuple[str, Any]]:
        """Return all messages that may still arrive."""
        return [(to, payload) for _, _, to, payload in self._queue]
