"""One GPU server as it truly is: caps that bite late, bursts that come together, limits that a reboot forgets.

Decides each GPU's draw from the workloads alive on it and the enforced limit. Refuses to know the driver's wire format: it reads
requests from a `GpuShelf` and publishes readings to it. Invariant: over 100 ms no GPU draws more than 1.05 x its enforced limit,
save in the cap's own lag.
"""

from __future__ import annotations

import math
from random import Random

from swingbus_sim.catalogue import GpuClass
from swingbus_sim.ports import GpuHealth, GpuProcess, GpuReading, GpuShelf

_THROTTLE_IDLE = 0x1
_THROTTLE_POWER_CAP = 0x4
_XID_OFF_THE_BUS = 79
_XID_HUNG = 62
_RAMP_S = 0.25
_PROCESS_PERIOD_S = 0.5
_PUBLISH_PERIOD_S = 0.2
_OVER_CAP_RATIO = 0.015
_CAP_GRIP = 0.8  # share of the way to the cap that one step of 100 ms takes once it is enforced


class SimulatedGpu:
    """One GPU's true state."""

    __slots__ = (
        "average_w",
        "cap_due_s",
        "cap_next_w",
        "disobedient_w",
        "disobeys_cause",
        "disobeys_since_s",
        "energy_j",
        "enforced_w",
        "health",
        "kind",
        "last_request_w",
        "load_ratio",
        "lost_limit_w",
        "memory_used_bytes",
        "name",
        "potential_w",
        "power_w",
        "temperature_c",
    )

    def __init__(self, *, name: str, gpu_class: GpuClass) -> None:
        self.name = name
        self.health = GpuHealth.OK
        self.enforced_w = gpu_class.default_limit_w
        self.cap_next_w: float | None = None
        self.cap_due_s = 0.0
        self.last_request_w: float | None = None
        self.lost_limit_w: float | None = None
        self.kind: str | None = None
        self.load_ratio = 0.0
        self.memory_used_bytes = 0
        self.power_w = gpu_class.idle_w
        self.average_w = gpu_class.idle_w
        self.energy_j = 0.0
        self.temperature_c = 34.0
        self.potential_w = gpu_class.idle_w
        self.disobedient_w = 0.0
        self.disobeys_since_s: float | None = None
        self.disobeys_cause = ""


class GpuHost:
    """One server: its GPUs, its own overhead and its shelf towards the driver stand-in."""

    def __init__(
        self,
        *,
        name: str,
        gpu_class: GpuClass,
        gpu_count: int,
        shelf: GpuShelf,
        random: Random,
        rides_through_s: float,
        boot_s: float,
    ) -> None:
        self.name = name
        self.gpu_class = gpu_class
        self.gpus = tuple(SimulatedGpu(name=f"{name}-gpu{i}", gpu_class=gpu_class) for i in range(gpu_count))
        self.shelf = shelf
        self.rides_through_s = rides_through_s
        self.boot_s = boot_s
        self.power_w = gpu_class.host_w(gpu_class.idle_w * gpu_count)
        self.potential_w = self.power_w
        self.is_up = True
        self.inlet_c = 24.0
        self._random = random
        self._up_at_s = 0.0
        self._dark_since_s: float | None = None
        self._processes_due_s = 0.0
        self._publish_due_s = random.uniform(0.0, _PUBLISH_PERIOD_S)

    # -- what the scenario does to it ---------------------------------------------------------------------------------

    def reset_driver(self, now_s: float, cause: str) -> None:
        """Forget every requested limit, as a driver reload or a reboot does."""
        for gpu in self.gpus:
            if gpu.last_request_w is not None and gpu.last_request_w < self.gpu_class.default_limit_w:
                gpu.lost_limit_w = gpu.last_request_w
                gpu.disobeys_cause = cause
            gpu.enforced_w = self.gpu_class.default_limit_w
            gpu.cap_next_w = None
            gpu.last_request_w = None
            gpu.health = GpuHealth.OK
        self.shelf.clear_requests()

    def feed(self, now_s: float, *, is_powered: bool) -> None:
        """Take or lose the supply; batteries carry the server over `rides_through_s`."""
        if is_powered:
            if not self.is_up and self._dark_since_s is not None:
                self._up_at_s = now_s + self.boot_s
            self._dark_since_s = None
            if not self.is_up and now_s >= self._up_at_s:
                self.is_up = True
            return
        if self._dark_since_s is None:
            self._dark_since_s = now_s
        if self.is_up and now_s - self._dark_since_s > self.rides_through_s:
            self.is_up = False
            self.reset_driver(now_s, "outage")

    # -- physics ------------------------------------------------------------------------------------------------------

    def step(self, now_s: float, dt_s: float, *, is_spiking: bool, is_powered: bool) -> None:
        """Advance by `dt_s`, ending at `now_s`; `is_spiking` is the site-wide burst that inference GPUs share."""
        if now_s >= self._processes_due_s:
            self._processes_due_s = now_s + _PROCESS_PERIOD_S
            self._see_processes()
        self._see_requests(now_s)
        c = self.gpu_class
        gpus_w = potential_w = 0.0
        gauss = self._random.gauss
        follow = 1.0 - math.exp(-dt_s / _RAMP_S)
        for gpu in self.gpus:
            if gpu.cap_next_w is not None and now_s >= gpu.cap_due_s:
                gpu.enforced_w = gpu.cap_next_w
                gpu.cap_next_w = None
            if not self.is_up:
                gpu.power_w = 0.0
            else:
                wanted_w = self._wanted_w(gpu)
                if is_spiking and gpu.kind == "inference":
                    wanted_w *= 1.15
                cap_w = gpu.enforced_w * (1.0 + _OVER_CAP_RATIO * (2.0 if is_spiking else 0.5))
                if gpu.power_w > cap_w:
                    gpu.power_w += (min(cap_w, wanted_w) - gpu.power_w) * _CAP_GRIP
                else:
                    moved_w = gpu.power_w + (wanted_w - gpu.power_w) * (1.0 if is_spiking else follow)
                    gpu.power_w = min(cap_w, moved_w * (1.0 + gauss(0.0, 0.004)))
            gpu.average_w += (gpu.power_w - gpu.average_w) * min(1.0, dt_s / 1.0)
            gpu.energy_j += gpu.power_w * dt_s
            gpu.temperature_c += (self.inlet_c + 6.0 + gpu.power_w * 0.058 - gpu.temperature_c) * min(1.0, dt_s / 15.0)
            gpu.potential_w = gpu.enforced_w if self.is_up and gpu.health is not GpuHealth.LOST else gpu.power_w
            if gpu.cap_next_w is not None:
                gpu.potential_w = max(gpu.potential_w, gpu.enforced_w)
            if gpu.lost_limit_w is not None and _is_capped_again(gpu):
                gpu.lost_limit_w = None
                gpu.disobeys_cause = ""
            if gpu.lost_limit_w is not None:
                gpu.disobedient_w = max(0.0, gpu.power_w - gpu.lost_limit_w)
                if gpu.disobeys_since_s is None:
                    gpu.disobeys_since_s = now_s
            else:
                gpu.disobedient_w = 0.0
                gpu.disobeys_since_s = None
            gpus_w += gpu.power_w
            potential_w += gpu.potential_w
        if not is_powered:
            self.power_w = 0.0  # its battery carries it; the feeder sees nothing
            self.potential_w = c.host_w(potential_w)
        elif self.is_up:
            self.power_w = c.host_w(gpus_w)
            self.potential_w = c.host_w(potential_w)
        else:
            self.power_w = self.potential_w = c.host_base_w * 0.4 / c.supply_efficiency_ratio
        if now_s >= self._publish_due_s:
            self._publish_due_s += _PUBLISH_PERIOD_S
            self.shelf.publish([self._reading(gpu) for gpu in self.gpus])

    def tenant_watts(self) -> tuple[float, float]:
        """Return the server's wall watts that serve (mining, inference), overhead shared by GPU draw."""
        total_w = sum(g.power_w for g in self.gpus)
        if total_w <= 0.0 or self.power_w <= 0.0:
            return 0.0, 0.0
        share = self.power_w / total_w
        mining_w = sum(g.power_w for g in self.gpus if g.kind == "mining")
        inference_w = sum(g.power_w for g in self.gpus if g.kind == "inference")
        return mining_w * share, inference_w * share

    def _wanted_w(self, gpu: SimulatedGpu) -> float:
        """Return the draw that the workload would have without a cap."""
        c = self.gpu_class
        if gpu.health is GpuHealth.LOST:
            return c.idle_w * 0.5
        if gpu.kind is None or gpu.load_ratio <= 0.0:
            return c.idle_w
        if gpu.kind == "mining":
            return c.idle_w + (c.mining_w - c.idle_w) * gpu.load_ratio
        # A busy GPU at small batch burns most of its power for little work.
        low = c.inference_small_batch_ratio
        return c.idle_w + (c.inference_full_w - c.idle_w) * (low + (1.0 - low) * gpu.load_ratio)

    def _see_processes(self) -> None:
        by_gpu: dict[int, GpuProcess] = {}
        for process in self.shelf.processes():
            seen = by_gpu.get(process.gpu)
            if seen is None or process.load_ratio > seen.load_ratio:
                by_gpu[process.gpu] = process
        for index, gpu in enumerate(self.gpus):
            found = by_gpu.get(index)
            gpu.kind = found.kind if found is not None else None
            gpu.load_ratio = found.load_ratio if found is not None else 0.0
            gpu.memory_used_bytes = found.memory_used_bytes if found is not None else 0

    def _see_requests(self, now_s: float) -> None:
        c = self.gpu_class
        for gpu, requested_w in zip(self.gpus, self.shelf.requested_limits_w(), strict=True):
            if requested_w is None or requested_w == gpu.last_request_w:
                continue
            gpu.last_request_w = requested_w
            gpu.cap_next_w = max(c.min_limit_w, min(c.max_limit_w, requested_w))
            gpu.cap_due_s = now_s + self._random.uniform(0.1, 1.0)

    def _reading(self, gpu: SimulatedGpu) -> GpuReading:
        c = self.gpu_class
        health = gpu.health if self.is_up else GpuHealth.LOST
        busy = gpu.load_ratio if gpu.kind is not None else 0.0
        is_capped = gpu.power_w > gpu.enforced_w * 0.97
        clock_share = 0.25 + 0.75 * min(1.0, gpu.power_w / c.default_limit_w) if busy > 0.0 else 0.17
        return GpuReading(
            health=health,
            power_average_w=gpu.average_w,
            power_instant_w=gpu.power_w,
            energy_j=gpu.energy_j,
            enforced_limit_w=gpu.enforced_w,
            requested_limit_w=gpu.last_request_w if gpu.last_request_w is not None else c.default_limit_w,
            default_limit_w=c.default_limit_w,
            min_limit_w=c.min_limit_w,
            max_limit_w=c.max_limit_w,
            temperature_c=gpu.temperature_c,
            memory_temperature_c=gpu.temperature_c + 7.0,
            sm_clock_mhz=int(c.sm_clock_mhz * clock_share),
            memory_clock_mhz=c.memory_clock_mhz,
            utilisation_ratio=busy,
            memory_used_bytes=gpu.memory_used_bytes,
            memory_total_bytes=c.memory_total_bytes,
            throttle_reasons=_THROTTLE_POWER_CAP if is_capped else (_THROTTLE_IDLE if busy == 0.0 else 0),
            ecc_corrected_count=0,
            ecc_uncorrected_count=0,
            remapped_rows_count=0,
            pcie_replay_count=0,
            nvlink_error_count=0,
            xid={GpuHealth.OK: 0, GpuHealth.LOST: _XID_OFF_THE_BUS, GpuHealth.HUNG: _XID_HUNG}[gpu.health],
            recovery_action={GpuHealth.OK: 0, GpuHealth.LOST: 2, GpuHealth.HUNG: 1}[gpu.health],
        )


def _is_capped_again(gpu: SimulatedGpu) -> bool:
    """Tell whether a GPU that lost its limit has been given one that is enforced and holds."""
    return gpu.last_request_w is not None and gpu.cap_next_w is None and gpu.power_w <= gpu.enforced_w * 1.05
