"""How many watts the devices of a bank count at. Pure; the same sum as the controller's, with the factors that it sent.

A device counts at what is enforced on it and read back, never at what it draws; one of which nothing is known counts at its
ceiling. Feeder watts = (devices x (1 + cooling) + fixed) x (1 + losses).
"""

from __future__ import annotations

from collections.abc import Iterable

from swingbus_agent.domain.orders import BankCounting, Mode
from swingbus_agent.domain.readings import Kind


def device_counted_w(counting: BankCounting, kind: Kind, mode: Mode, enforced_w: float | None) -> float:
    """Return what one device counts at.

    Args:
        counting: the site's factors.
        kind: GPU or ASIC.
        mode: what it is seen or ordered to do; UNKNOWN counts as running.
        enforced_w: the limit or target in force; None where it is not known.

    >>> c = BankCounting(bank="b", gpu_limit_ratio=1.07, asic_target_ratio=1.1, asic_boot_w=0, rest_w=25,
    ...     device_ceiling_w=3500, cooling_ratio=0, losses_ratio=0, fixed_w=0)
    >>> device_counted_w(c, Kind.ASIC, Mode.STANDBY, 2794.0), round(device_counted_w(c, Kind.ASIC, Mode.MINING, 1000.0))
    (25, 1100)
    """
    if kind is Kind.GPU:
        return counting.device_ceiling_w if enforced_w is None else enforced_w * counting.gpu_limit_ratio
    if mode in (Mode.STANDBY, Mode.OFF):
        return counting.rest_w
    if enforced_w is None or mode is Mode.UNKNOWN:
        return max(counting.device_ceiling_w, 0.0 if enforced_w is None else enforced_w * counting.asic_target_ratio)
    return max(counting.asic_boot_w, enforced_w * counting.asic_target_ratio)


def feeder_w(counting: BankCounting, devices_w: Iterable[float]) -> float:
    """Return watts at the feeder for devices that count at `devices_w`."""
    return (sum(devices_w) * (1.0 + counting.cooling_ratio) + counting.fixed_w) * (1.0 + counting.losses_ratio)


def overhead_ratio(counting: BankCounting) -> float:
    """Return watts at the feeder per counted device watt, less 1."""
    return (1.0 + counting.cooling_ratio) * (1.0 + counting.losses_ratio) - 1.0


def base_w(counting: BankCounting) -> float:
    """Return what the bank counts at without any device."""
    return counting.fixed_w * (1.0 + counting.losses_ratio)
