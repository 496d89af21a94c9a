"""What each unit of a bank does, for people: by evidence where there is some, and told as unknown where there is none.

Decides what a unit counts as. Refuses to know watts. Invariant: every unit counts once; one that nobody is seen on and that nobody can say
to be free is unknown, never standby.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum

from swingbus_controller.domain.cluster.pool_facts import Blindness, why_blind
from swingbus_controller.domain.cluster.pool_words import GpuCounts
from swingbus_controller.domain.fleet.orders import UnitHolding
from swingbus_controller.domain.flips.flip import Flip
from swingbus_controller.domain.flips.placement import BankModel, Holdings
from swingbus_controller.domain.planning.points import Mode


class Share(StrEnum):
    """What a unit counts as."""

    INFERENCE = "inference"
    MINING = "mining"
    STANDBY = "standby"
    FLIPPING = "flipping"
    UNKNOWN = "unknown"


_TENANTS = {Mode.INFERENCE: Share.INFERENCE, Mode.MINING: Share.MINING}


def unit_shares(
    model: BankModel, holdings: Holdings | None, flips: Iterable[Flip], seen: Iterable[UnitHolding]
) -> list[Share]:
    """Return what each unit counts as, in order.

    Args:
        seen: who holds what, as a live agent says; empty where none is heard.
    """
    charged = frozenset[int]() if holdings is None else holdings.charged_units()
    moving = {int(unit) for flip in flips if flip.is_mode_flip and not flip.is_over for unit in flip.unit_ids}
    by_unit = {holding.unit: holding for holding in seen}
    tenants = {name: _TENANTS[mode] for mode, name in model.device_class.workloads.items() if name and mode in _TENANTS}
    return [
        Share.UNKNOWN if unit in charged else _share(by_unit.get(unit), unit in moving, tenants)
        for unit in range(model.unit_count)
    ]


def _share(holding: UnitHolding | None, is_moving: bool, tenants: Mapping[str, Share]) -> Share:
    if holding is None or why_blind(holding.reason) is not None:
        return Share.UNKNOWN
    if is_moving:
        return Share.FLIPPING
    if holding.holders:
        return tenants.get(holding.workload, Share.UNKNOWN)
    return Share.UNKNOWN if holding.has_process else Share.STANDBY


def gpu_counts(model: BankModel, shares: Iterable[Share]) -> GpuCounts:
    """Return a bank's GPUs by what they do."""
    units = Counter(shares)
    size = model.device_class.unit_size
    return GpuCounts(
        total=model.declared.device_count,
        inference=units[Share.INFERENCE] * size,
        mining=units[Share.MINING] * size,
        standby=units[Share.STANDBY] * size,
        flipping=units[Share.FLIPPING] * size,
        unknown=units[Share.UNKNOWN] * size,
    )


def blind_words(seen: Iterable[UnitHolding]) -> dict[Blindness, str]:
    """Return by kind why the agent cannot tell who holds units, one unit's words for all."""
    found: dict[Blindness, str] = {}
    for holding in seen:
        kind = why_blind(holding.reason)
        if kind is not None:
            found.setdefault(kind, holding.reason)
    return found


def unnamed_units(seen: Iterable[UnitHolding], flips: Iterable[Flip]) -> dict[int, str]:
    """Return units outside flips on which something runs that no pod names, with the agent's words.

    A flip waits for its own units to be left; what lingers there is its business until it ends.
    """
    moving = {int(unit) for flip in flips if not flip.is_over for unit in flip.unit_ids}
    return {
        h.unit: h.reason
        for h in seen
        if h.has_process and not h.holders and h.unit not in moving and why_blind(h.reason) is None
    }
