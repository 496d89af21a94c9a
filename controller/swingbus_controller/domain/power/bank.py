"""Banks: what a grant must cover, what a bank can wake up to by itself, and the states a bank is in.

Decides: watts at the feeder for a set of operating points, and the ceiling C_b. Refuses to know: readings and time.
Invariant: a device counts at what is enforced on it, never at what it draws; a grant covers devices, host, cooling at
nameplate, losses and the start peak, so whatever follows minutes later is already paid for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from swingbus.faults import InvalidInput


class DeviceKind(Enum):
    """What counts as enforced differs between the two."""

    ASIC = "asic"
    GPU = "gpu"


class BankState(Enum):
    """Where a bank stands in the protocol; GROWING is ours (docs/adr/0001)."""

    ADOPTING = "adopting"  # our epoch has not yet settled a grant of this bank
    HELD = "held"  # its newest grant is proven by evidence
    GROWING = "growing"  # a higher grant is journaled, not yet proven
    SHRINKING = "shrinking"  # a lower grant is journaled, not yet proven: the higher one still counts
    DARK = "dark"  # its agent is silent; its machines may well run on
    DISOBEYING = "disobeying"  # its group draws more than everything it was ever granted
    ISOLATED = "isolated"  # its supply is open, read back, with zero current


@dataclass(frozen=True, slots=True, kw_only=True)
class CountingFactors:
    """How enforced watts become counted watts; `commissioned` ones were measured on this machine class.

    A GPU counts at enforced limit x `gpu_limit_ratio`; a running ASIC at max(boot_w, target x `asic_target_ratio`).
    """

    gpu_limit_ratio: float = 1.07
    asic_target_ratio: float = 1.10
    asic_boot_w: float = 0.0
    commissioned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """`count` devices at `device_w` each: a GPU's power limit, an ASIC's target; 0 W for an ASIC is asleep."""

    count: int
    device_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSpec:
    """The devices of one class behind one agent.

    Attributes:
        feeder: where it hangs; grants are watts here.
        device_ceiling_w: what one device is set to after its own reboot.
        device_floor_w: the lowest it can be set to without leaving the bank's control (a GPU's minimum limit, an
            ASIC's sleep draw).
        host_w, cooling_w: hosts, switches, pumps and fans at nameplate; `cooling_ratio` is cooling per device watt.
        losses_ratio: cable losses between the devices and the feeder.
        start_peak_w: extra watts while a batch of devices starts.
        safe_share_w: what the agent falls to when nobody renews (never above its grant).
        settle_min_s: shortest span of evidence: 10 s, 60 s on stock firmware.
        sleeps_by_software_only: nothing but firmware keeps a sleeping device asleep (K of the margin).
    """

    name: str
    agent: str
    feeder: str
    kind: DeviceKind
    device_count: int
    device_ceiling_w: float
    device_floor_w: float = 0.0
    factors: CountingFactors = field(default_factory=CountingFactors)
    host_w: float = 0.0
    cooling_w: float = 0.0
    cooling_ratio: float = 0.0
    losses_ratio: float = 0.0
    start_peak_w: float = 0.0
    safe_share_w: float = 0.0
    settle_min_s: float = 10.0
    sleeps_by_software_only: bool = True

    def __post_init__(self) -> None:
        if self.device_count < 1 or self.device_ceiling_w <= 0.0:
            raise InvalidInput(f"bank {self.name!r} needs devices with a ceiling above 0 W.", reason="BAD_BANK")
        extras = (self.host_w, self.cooling_w, self.cooling_ratio, self.losses_ratio, self.start_peak_w)
        if min(*extras, self.safe_share_w, self.device_floor_w) < 0.0:
            raise InvalidInput(f"bank {self.name!r}: watts and ratios are 0 or more.", reason="BAD_BANK")
        if self.settle_min_s < 0.0:
            raise InvalidInput(f"bank {self.name!r}: settle_min_s is 0 or more.", reason="BAD_BANK")


def counted_w(spec: BankSpec, device_w: float) -> float:
    """Return the watts one device counts at when `device_w` is enforced on it (a GPU limit, an ASIC target).

    An ASIC asleep (`device_w` 0) counts at its floor; waking or running it counts at no less than its boot draw.
    """
    if spec.kind is DeviceKind.GPU:
        return device_w * spec.factors.gpu_limit_ratio
    if device_w <= 0.0:
        return spec.device_floor_w
    return max(spec.factors.asic_boot_w, device_w * spec.factors.asic_target_ratio)


def feeder_w(spec: BankSpec, devices_w: float, *, is_starting: bool = False) -> float:
    """Return watts at the feeder for counted device watts: + host + cooling + losses + start peak."""
    peak_w = spec.start_peak_w if is_starting else 0.0
    at_devices_w = devices_w * (1.0 + spec.cooling_ratio) + spec.host_w + spec.cooling_w + peak_w
    return at_devices_w * (1.0 + spec.losses_ratio)


def grant_w(spec: BankSpec, points: Iterable[OperatingPoint], *, is_starting: bool = True) -> float:
    """Return the grant that these operating points need; devices not named rest (asleep, or at the GPU floor).

    >>> s19 = BankSpec(name="c1/s19", agent="c1", feeder="c1", kind=DeviceKind.ASIC, device_count=100,
    ...     device_ceiling_w=3250, device_floor_w=15, host_w=500, cooling_ratio=0.05)
    >>> round(grant_w(s19, [OperatingPoint(count=40, device_w=2794)]))
    130528
    """
    devices_w = 0.0
    count = 0
    for point in points:
        if point.count < 0:
            raise InvalidInput(f"bank {spec.name!r}: {point.count} devices is not a count.", reason="BAD_POINT")
        count += point.count
        devices_w += point.count * counted_w(spec, point.device_w)
    if count > spec.device_count:
        raise InvalidInput(
            f"bank {spec.name!r} has {spec.device_count} devices, {count} were planned.", reason="TOO_MANY_DEVICES"
        )
    devices_w += (spec.device_count - count) * rest_w(spec)
    return feeder_w(spec, devices_w, is_starting=is_starting)


def rest_w(spec: BankSpec) -> float:
    """Return what one resting device counts at: an ASIC asleep, a GPU at its lowest limit."""
    return counted_w(spec, spec.device_floor_w if spec.kind is DeviceKind.GPU else 0.0)


def idle_w(spec: BankSpec) -> float:
    """Return the grant of a bank whose devices all rest."""
    return feeder_w(spec, spec.device_count * rest_w(spec))


def ceiling_w(spec: BankSpec) -> float:
    """Return C_b: every device at its after-reboot default, host, cooling, starting at once."""
    return feeder_w(spec, spec.device_count * counted_w(spec, spec.device_ceiling_w), is_starting=True)


def largest_device_w(spec: BankSpec) -> float:
    """Return what the largest single device adds at the feeder when it wakes by itself."""
    return counted_w(spec, spec.device_ceiling_w) * (1.0 + spec.cooling_ratio) * (1.0 + spec.losses_ratio)


def runnable_count(spec: BankSpec, granted_w: float, device_w: float) -> int:
    """Return how many devices at `device_w` fit in a grant while the rest rest; the inverse of `grant_w`."""
    per_device_w = (counted_w(spec, device_w) - rest_w(spec)) * (1.0 + spec.cooling_ratio) * (1.0 + spec.losses_ratio)
    free_w = granted_w - grant_w(spec, ())
    if free_w < 0.0:
        return 0
    if per_device_w <= 0.0:
        return spec.device_count
    return min(spec.device_count, int(free_w / per_device_w + 1e-9))
