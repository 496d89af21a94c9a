"""Places: which bank each waiting pod could go to, and who takes a place of inference that stands empty.

Decides nothing of watts: a place that stands empty has its watts, all others want a flip. `domain.cluster.placing` orders who waits; this
room feeds it with what is seen, and remembers who found no place and who has just left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from swingbus_controller.app.cluster_sights import BankSight
from swingbus_controller.app.pod_rooms import PodRooms
from swingbus_controller.domain.cluster.blocking import Blockings
from swingbus_controller.domain.cluster.facts import ClusterPod, PodRef
from swingbus_controller.domain.cluster.leaving import Leaving
from swingbus_controller.domain.cluster.placing import BankRoom, Placing, place_pods
from swingbus_controller.domain.cluster.pod_moves import UnitWish
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.domain.flips.flip import Direction
from swingbus_controller.domain.planning.points import Mode
from swingbus_controller.domain.site_state import SiteState

_HOLD_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Short:
    """Since when pods of several units of a class find no room, and when that was so last."""

    since_s: float
    last_s: float


class PodPlaces:
    """The places of one site.

    Attributes:
        placing: who waits in whose line, what is wanted, and how much of it each bank may take.
        waiting_count: pods that wait and fit some bank, whether it has room or not.
        vacancies: by bank and unit, the waiting pod that takes a place of inference there.
    """

    def __init__(
        self,
        *,
        state: SiteState,
        cluster: ClusterState,
        blockings: Blockings,
        resting_words: Callable[[ClusterPod], str],
    ) -> None:
        """Args:
        resting_words: why nobody of a pod's workload is let go just now, empty where nothing speaks against it.
        """
        self._state = state
        self._cluster = cluster
        self._blockings = blockings
        self._resting_words = resting_words
        self._rooms = PodRooms(state, cluster)
        self._leaving = Leaving()
        self._without_place: dict[str, list[UnitWish]] = {}  # wishes among which no place of inference stands empty
        self._short: dict[str, _Short] = {}  # by inference class
        self.placing = Placing()
        self.waiting_count = 0
        self.vacancies: dict[str, dict[int, PodRef]] = {}

    def has_none_empty(self, bank: str, wishes: list[UnitWish] | None) -> bool:
        """Tell whether these wishes are known to leave no place of inference empty."""
        return self._without_place.get(bank) is wishes

    def place(
        self,
        sights: Mapping[str, BankSight],
        wishes: Mapping[str, list[UnitWish]],
        waiting_owners: Mapping[str, int],
        now_s: float,
    ) -> None:
        """Work out anew who may go where, and who takes a place that stands empty.

        Args:
            sights, wishes: by bank, what is seen there and what its units are to be.
            waiting_owners: how many pods of each workload wait behind the gate.
        """
        named = {flip.pod for flip in self._state.open_flips() if flip.pod is not None}
        leavers: list[PodRef] = []
        for name, sight in sights.items():
            going = [pod for pod in sight.customers() if pod.is_leaving and pod.ref not in named]
            self._leaving.note(name, going, now_s)
            leavers += [pod.ref for pod in going]
        kept = self._leaving.kept_counts(waiting_owners, leavers, now_s)
        rooms: list[BankRoom] = []
        for name, sight in sights.items():
            is_resting = self._blockings.is_resting(name, now_s)
            room = self._rooms.room(sight, kept_count=kept.get(name, 0), is_resting=is_resting)
            if room is not None:
                rooms.append(room)
        waiting = [
            pod
            for pod in self._cluster.unbound()
            if pod.is_waiting and pod.ref not in named and not self._resting_words(pod)
        ]
        self.placing = place_pods(waiting, rooms, self._cluster.namespaces, holding=self._holding(now_s))
        self.waiting_count = len(waiting) - len(self.placing.unfit)
        open_banks = {room.bank for room in rooms}
        for name, sight in sights.items():
            if name not in open_banks:
                # Nobody is sent there, and whoever serves there is served: the rest of the demand is for other banks.
                inference_class = sight.model.device_class.inference_class
                used_count = sum(pod.gpu_count for pod in sight.customers() if not pod.is_leaving)
                self.placing.at_most[name] = used_count
                self.placing.demand[inference_class] = self.placing.demand.get(inference_class, 0) + used_count
        taken: set[PodRef] = set()
        for name, sight in sights.items():
            self.vacancies[name] = self._fill(sight, wishes.get(name, []), named, taken, now_s)
        if taken:
            left: dict[int, list[ClusterPod]] = {}
            for line in self.placing.line.values():
                if id(line) not in left:
                    left[id(line)] = [pod for pod in line if pod.ref not in taken]
            self.placing.line = {name: left[id(line)] for name, line in self.placing.line.items()}

    def _holding(self, now_s: float) -> set[PodRef]:
        """Return pods of several units for which a bank is held now: for ten minutes of every twenty in which some find no room.

        Else small pods take each GPU that gets free; for ever it would keep GPUs from them for a pod that may never fit. All of a class
        have the same ten minutes, and one that comes in place of another goes on with them: else two could take turns for ever.
        """
        unplaced = self.placing.unplaced
        for name in set(unplaced.values()):
            known = self._short.get(name)
            since_s = now_s if known is None or now_s - known.last_s >= _HOLD_S else known.since_s
            self._short[name] = _Short(since_s=since_s, last_s=now_s)
        return {ref for ref, name in unplaced.items() if (now_s - self._short[name].since_s) % (2 * _HOLD_S) < _HOLD_S}

    def _fill(
        self,
        sight: BankSight,
        wishes: list[UnitWish],
        named: Collection[PodRef],
        taken: set[PodRef],
        now_s: float,
    ) -> dict[int, PodRef]:
        """Let waiting pods into places of inference that stand empty: their watts are held, no flip is needed."""
        name = sight.model.name
        if self.has_none_empty(name, wishes):
            return {}
        empty = [wish.unit for wish in wishes if wish.tenant is Mode.INFERENCE and not wish.flip and wish.may_start]
        if not empty:
            self._without_place[name] = wishes
        if not empty or not sight.may_move or self._blockings.is_resting(name, now_s):
            return {}
        size = sight.model.device_class.unit_size
        places = sum(w.tenant is Mode.INFERENCE and not w.flip for w in wishes) * size
        # Whoever was let go a moment ago has no unit yet, and fills a place all the same.
        here = sum(pod.gpu_count for pod in sight.customers() if pod.ref not in named)
        filled: dict[int, PodRef] = {}
        for pod, units_count in self._half_placed(name, size):
            here += units_count * size
            for _ in range(min(units_count, len(empty)) if pod.is_waiting else 0):
                filled[empty.pop(0)] = pod.ref
        left_count = min(len(empty) * size, places - here)
        for pod in self.placing.line.get(name, ()):
            if pod.ref in taken:
                continue
            if pod.gpu_count > left_count:
                break
            left_count -= pod.gpu_count
            taken.add(pod.ref)
            for _ in range(pod.gpu_count // size):
                filled[empty.pop(0)] = pod.ref
        return filled

    @property
    def let_in(self) -> frozenset[PodRef]:
        """Return waiting pods that get a place of inference that stands empty."""
        return frozenset(ref for places in self.vacancies.values() for ref in places.values())

    def _half_placed(self, name: str, size: int) -> list[tuple[ClusterPod, int]]:
        """Return pods that flips bring to some of their units only, and how many places that stand empty they take besides."""
        by_flips: dict[PodRef, int] = {}
        for flip in self._state.open_flips(name):
            if flip.pod is not None and flip.aim.mode is Mode.INFERENCE and flip.direction is Direction.FORWARD:
                by_flips[flip.pod] = by_flips.get(flip.pod, 0) + flip.count
        pods = [(pod, count) for ref, count in by_flips.items() if (pod := self._cluster.pod(ref)) is not None]
        return [(pod, (pod.gpu_count - count) // size) for pod, count in pods if pod.gpu_count > count]
