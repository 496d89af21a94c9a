"""GPU servers as they truly are, cheap enough for thousands of GPUs: power changes only when something happens.

Decides each GPU's draw from the processes alive on it and the limit enforced on it. Knows no pods, agents or controllers. Between two
events power is constant, so energy is exact at any moment and nothing is stepped. Invariants: a limit that was written is enforced
0.1 to 1 s later, the last write wins; no GPU draws more than 1.5 % above what is enforced; a reboot forgets every limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from swingbus_sim.catalogue import GpuClass
from swingbus_sim.kwok_site.timeline import Timeline

MINING, INFERENCE = "mining", "inference"
OVER_LIMIT_RATIO = 0.015
_LIMIT_LAG_S = (0.1, 1.0)
_RIPPLE_W = 4.0  # fans hunt: without it a meter would read the same for ever, which is what a dead one does


class Gpu:
    """One GPU's true state."""

    __slots__ = ("enforced_w", "power_w", "processes", "requested_w", "writes")

    def __init__(self, gpu_class: GpuClass, limit_w: float) -> None:
        self.enforced_w = limit_w
        self.requested_w: float | None = None
        self.processes: dict[str, str] = {}  # tenant by the pod uid that each belongs to
        self.power_w = gpu_class.idle_w
        self.writes = 0

    @property
    def tenant(self) -> str | None:
        """Who draws: inference where both do, for it is the thirstier; None where nobody does."""
        tenants = self.processes.values()
        return INFERENCE if INFERENCE in tenants else MINING if tenants else None


class Server:
    """One node's server: its GPUs, what the rest of it draws, and the energy that went in.

    Args:
        boot_limit_w: what each GPU's limit is after a boot; the driver's default unless a host unit lowers it first.
    """

    def __init__(
        self,
        name: str,
        gpu_class: GpuClass,
        *,
        gpu_count: int,
        timeline: Timeline,
        random: Random,
        now_s: float,
        boot_limit_w: float | None = None,
    ) -> None:
        self.name = name
        self.gpu_class = gpu_class
        self.boot_limit_w = gpu_class.default_limit_w if boot_limit_w is None else boot_limit_w
        self.gpus = tuple(Gpu(gpu_class, self.boot_limit_w) for _ in range(gpu_count))
        self._timeline = timeline
        self._random = random
        self._ripple_w = 0.0
        self._energy_j = 0.0
        self._at_s = now_s
        self.power_w = 0.0
        self._recount()

    def energy_j(self, now_s: float) -> float:
        """Return all energy that went in until now."""
        if now_s > self._at_s:
            self._energy_j += self.power_w * (now_s - self._at_s)
            self._at_s = now_s
        return self._energy_j

    def breathe(self, now_s: float) -> None:
        """Let the fans hunt; to be called about once a second."""
        self.energy_j(now_s)
        self._ripple_w = self._random.uniform(-_RIPPLE_W, _RIPPLE_W)
        self._recount()

    def wanted_w(self, gpu: Gpu) -> float:
        """Return what a GPU would draw if no limit held it."""
        match gpu.tenant:
            case "inference":
                return self.gpu_class.inference_full_w
            case "mining":
                return self.gpu_class.mining_w
            case _:
                return self.gpu_class.idle_w

    def start(self, uid: str, tenant: str, gpus: Sequence[int], now_s: float) -> None:
        """Let a pod's process begin to work on GPUs."""
        for index in gpus:
            self.gpus[index].processes[uid] = tenant
        self._change(now_s)

    def end(self, uid: str, now_s: float) -> bool:
        """Let a pod's processes end; return whether there were any."""
        held = [gpu for gpu in self.gpus if gpu.processes.pop(uid, None) is not None]
        if held:
            self._change(now_s)
        return bool(held)

    def write_limit(self, index: int, limit_w: float, now_s: float) -> None:
        """Ask for a limit as the driver takes it: clipped to what the GPU can, enforced a moment later."""
        gpu, kind = self.gpus[index], self.gpu_class
        asked_w = min(kind.max_limit_w, max(kind.min_limit_w, limit_w))
        gpu.requested_w = asked_w
        gpu.writes += 1
        number = gpu.writes

        def enforce(at_s: float) -> None:
            if gpu.writes == number:  # a later write, or a reboot, took its place
                gpu.enforced_w = asked_w
                self._change(at_s)

        self._timeline.at(now_s + self._random.uniform(*_LIMIT_LAG_S), enforce)

    def reboot(self, now_s: float) -> None:
        """Kill every process and forget every limit."""
        for gpu in self.gpus:
            gpu.processes.clear()
            gpu.writes += 1
            gpu.requested_w = None
            gpu.enforced_w = self.boot_limit_w
        self._change(now_s)

    def _change(self, now_s: float) -> None:
        self.energy_j(now_s)
        self._recount()

    def _recount(self) -> None:
        for gpu in self.gpus:
            gpu.power_w = min(self.wanted_w(gpu), gpu.enforced_w * (1.0 + OVER_LIMIT_RATIO))
        self.power_w = self.gpu_class.host_w(sum(gpu.power_w for gpu in self.gpus)) + self._ripple_w
