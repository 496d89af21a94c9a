"""Machines of the site in virtual time: what they draw, how late they obey, and how they lie."""

from __future__ import annotations

from dataclasses import dataclass, field

from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.fleet.orders import Mode
from swingbus_controller.domain.site.sitefile import SiteBank

ASIC_WRITE_S, BOOT_S, GPU_WRITE_S = 2.0, 6.0, 1.0
ATTEMPT_S = 4.0


@dataclass
class Device:
    """One machine. `enforced_w` is the ASIC's target or the GPU's limit; it stays while nobody changes it."""

    name: str
    unit: int
    is_gpu: bool
    rated_w: float
    floor_w: float
    mode: Mode = Mode.MINING
    enforced_w: float = 0.0
    boot_until_s: float = -1.0
    restarted_s: float = 0.0
    due_s: float | None = None
    next_mode: Mode = Mode.STANDBY
    next_w: float = 0.0
    attempts: int = 0
    attempted_s: float = -1e9
    ignores_sleep: bool = False
    woke: bool = False
    extra_w: float = 0.0
    is_hung: bool = False
    ignores_limit: bool = False

    def land(self, now_s: float) -> None:
        """Let a write that is due take hold."""
        if self.due_s is None or now_s < self.due_s:
            return
        self.due_s = None
        if self.is_hung or (self.ignores_sleep and self.next_mode is Mode.STANDBY and not self.is_gpu):
            return
        if self.is_gpu:
            if not self.ignores_limit:
                self.enforced_w = self.next_w
            return
        if self.mode is Mode.STANDBY and self.next_mode is Mode.MINING:
            self.boot_until_s = now_s + BOOT_S
        self.mode, self.enforced_w = self.next_mode, self.next_w

    def write(self, mode: Mode, watts: float, now_s: float) -> None:
        """Send a write; nothing else is sent before it has landed."""
        if self.due_s is None and now_s - self.attempted_s >= ATTEMPT_S:
            self.due_s = now_s + (GPU_WRITE_S if self.is_gpu else ASIC_WRITE_S)
            self.next_mode, self.next_w = mode, watts
            self.attempts += 1
            self.attempted_s = now_s


@dataclass
class Unit:
    """What runs on one unit of GPUs."""

    number: int
    workload: str = ""
    phase: str = "idle"  # idle, starting, ready, stopping, failed
    since_s: float = -1e9
    reason: str = ""


@dataclass
class Lease:
    """A durable grant."""

    epoch: int
    generation: int
    watts: float


@dataclass
class Bank:
    """One bank's machines and what its agent keeps of it."""

    site: SiteBank
    name: str
    devices: list[Device]
    units: list[Unit]
    counting: orders.BankCounting | None = None
    order: orders.BankOrder | None = None
    lease: Lease | None = None
    lease_until_s: float = -1.0
    is_lost: bool = True
    fallen_w: float | None = None
    applied_s: float | None = None
    broken: set[str] = field(default_factory=set)
    slow: dict[str, float] = field(default_factory=dict)
    fitted_w: dict[int, float] = field(
        default_factory=dict
    )  # limit by unit: the order's, or less where the grant is less

    @property
    def is_gpu(self) -> bool:
        return bool(self.units)

    def device_w(self, device: Device, now_s: float) -> float:
        """Return what a machine truly draws."""
        if not self.is_gpu:
            if device.mode is not Mode.MINING:
                return device.floor_w
            if now_s < device.boot_until_s:
                return 1900.0
            return device.enforced_w * 1.02 + device.extra_w
        unit = self.units[device.unit]
        if unit.phase in ("ready", "starting", "stopping"):
            return min(device.enforced_w, 0.97 * device.enforced_w) + device.extra_w
        return min(80.0, device.enforced_w)

    def reported_w(self, device: Device, now_s: float) -> float:
        """Return what a machine says it draws: nothing of what it hides."""
        return self.device_w(device, now_s) - device.extra_w

    def true_w(self, now_s: float) -> float:
        """Return what the bank truly draws at its feeder."""
        spec = self.site.spec
        devices_w = sum(self.device_w(d, now_s) for d in self.devices)
        return (devices_w * (1.0 + 0.9 * spec.cooling_ratio) + 0.9 * (spec.host_w + spec.cooling_w)) * (
            1.0 + spec.losses_ratio
        )

    def counted_device_w(self, mode: Mode, enforced_w: float) -> float:
        """Return what one machine counts at."""
        count = self.counting
        assert count is not None
        if self.is_gpu:
            return enforced_w * count.gpu_limit_ratio
        if mode is Mode.STANDBY:
            return count.rest_w
        return max(count.asic_boot_w, enforced_w * count.asic_target_ratio)

    def counted_w(self) -> float:
        """Return what the bank counts at as read back, pending raises included."""
        count = self.counting
        assert count is not None
        devices_w = 0.0
        for device in self.devices:
            watts = self.counted_device_w(device.mode, device.enforced_w)
            if device.due_s is not None:
                watts = max(watts, self.counted_device_w(device.next_mode, device.next_w))
            devices_w += count.device_ceiling_w if device.is_hung else watts
        return (devices_w * (1.0 + count.cooling_ratio) + count.fixed_w) * (1.0 + count.losses_ratio)
