"""Rooms: how many pods each bank could take now, worked out anew only where something changed.

Decides nothing: `domain.cluster.placing` does, from these. Remembers only what it came from last.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from swingbus_controller.app.cluster_sights import BankSight
from swingbus_controller.domain.cluster.facts import ClusterNode, PodRef, Pool, PoolMode
from swingbus_controller.domain.cluster.placing import BankRoom
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.domain.flips.flip import Direction, Flip
from swingbus_controller.domain.flips.placement import Holdings
from swingbus_controller.domain.planning.points import Mode
from swingbus_controller.domain.site_state import SiteState


@dataclass(frozen=True, slots=True)
class _Known:
    sight: BankSight
    holdings: Holdings
    flips: tuple[Flip, ...]
    promised_count: int
    room: BankRoom

    def is_of(self, sight: BankSight, holdings: Holdings, flips: tuple[Flip, ...], promised_count: int) -> bool:
        """Tell whether nothing has changed. All of them are replaced, never changed: the same object says the same."""
        is_same = self.sight is sight and self.holdings is holdings and self.flips is flips
        return is_same and self.promised_count == promised_count


class PodRooms:
    """The rooms of one site."""

    def __init__(self, state: SiteState, cluster: ClusterState) -> None:
        self._state = state
        self._cluster = cluster
        self._known: dict[str, _Known] = {}

    def room(self, sight: BankSight, *, kept_count: int, is_resting: bool) -> BankRoom | None:
        """Return the room of a bank, None where nobody is sent.

        Args:
            kept_count: GPUs that are kept for who may come again. They are no miner's meanwhile, that is all: who waits may have them.
            is_resting: nobody starts there for a while.
        """
        name = sight.model.name
        holdings = self._state.holdings.get(name)
        if not sight.may_move or sight.node is None or sight.pool is None or holdings is None:
            return None
        if sight.pool.mode is not PoolMode.AUTO:
            return None
        flips = self._state.open_flips(name)
        promised_count = self._promised_count(sight, flips) if flips else 0
        known = self._known.get(name)
        if known is None or not known.is_of(sight, holdings, flips, promised_count):
            room = _room(sight, sight.node, sight.pool, holdings, promised_count)
            known = self._known[name] = _Known(sight, holdings, flips, promised_count, room)
        if not kept_count and not is_resting:
            return known.room
        free_count = 0 if is_resting else known.room.free_count
        return replace(known.room, used_count=known.room.used_count + kept_count, free_count=free_count)

    def _promised_count(self, sight: BankSight, flips: tuple[Flip, ...]) -> int:
        """Return GPUs of pods that flips bring and that are not here yet."""
        here = {pod.ref for pod in sight.customers() if not pod.is_leaving}
        coming: Counter[PodRef] = Counter()
        for flip in flips:
            if flip.pod is not None and flip.aim.mode is Mode.INFERENCE and flip.direction is Direction.FORWARD:
                coming[flip.pod] += flip.count
        # One that is gone has its place kept for a moment: nobody leaves another place for that.
        return sum(
            count if (pod := self._cluster.pod(ref)) is None else pod.gpu_count
            for ref, count in coming.items()
            if ref not in here
        )


def _room(sight: BankSight, node: ClusterNode, pool: Pool, holdings: Holdings, promised_count: int) -> BankRoom:
    size, declared_count = sight.model.device_class.unit_size, sight.model.declared.device_count
    staying = [each for each in sight.customers() if not each.is_leaving]
    here = {each.ref for each in staying}
    used_count = sum(each.gpu_count for each in staying) + promised_count
    usable_count = declared_count - len(holdings.charged_units()) * size
    free_count = max(0, min(usable_count, node.gpu_count) - used_count)
    mining_count = sum(each.gpu_count for each in sight.pods if not each.is_leaving and each.ref not in here)
    return BankRoom(
        bank=sight.model.name,
        inference_class=sight.model.device_class.inference_class,
        unit_size=size,
        device_count=declared_count,
        node=node,
        pool=pool,
        used_count=used_count,
        free_count=free_count,
        idle_count=max(0, free_count - mining_count),
    )
