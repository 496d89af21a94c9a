"""The desk of one site's cluster: joins pods with flips, round by round; the engine asks it, the mover carries its calls out.

Decides nothing itself: `domain.cluster` and `domain.flips` do. Remembers only what a restart may forget: who was refused when. Invariants:
what it changes of flips and placements is recorded first; nothing is moved for a bank that is frozen, nor before the cluster was listed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from swingbus_controller.app.cluster_sights import BankSight, ViewSource, see_bank
from swingbus_controller.app.flipping import FlipRunner
from swingbus_controller.app.pod_following import PodFollowing
from swingbus_controller.app.pod_places import PodPlaces
from swingbus_controller.app.recording import Recorder
from swingbus_controller.domain.cluster.blocking import Blockings
from swingbus_controller.domain.cluster.facts import ClusterPod, PodRef, PoolMode
from swingbus_controller.domain.cluster.gathering import Gathering, Wanted
from swingbus_controller.domain.cluster.pod_moves import (
    DeleteMiner,
    EvictPod,
    MakeMiner,
    PodMove,
    UnitWish,
    pod_moves,
)
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.flips.flip import Direction, Flip, Phase
from swingbus_controller.domain.flips.parties import parties_of
from swingbus_controller.domain.flips.placement import BankModel
from swingbus_controller.domain.flips.pods_seen import PodsSeen
from swingbus_controller.domain.flips.unit_roles import Swap, find_limit_swaps, find_swaps, swap_roles, unit_wishes
from swingbus_controller.domain.planning.market import MarketView, Quote
from swingbus_controller.domain.planning.plan import Askers, BankView, Party
from swingbus_controller.domain.planning.points import Mode
from swingbus_controller.domain.planning.policy import FlipTimes
from swingbus_controller.domain.site_state import SiteState, payload

log = structlog.get_logger()
SOURCE = "pods"
# After the eviction's deadline a flip leaves its pod this long to end by itself.
_LEAVING_GRACE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMoves:
    """The calls that are due on one bank's node."""

    sight: BankSight
    moves: tuple[PodMove, ...]


class ClusterDesk:
    """Pods of one site."""

    def __init__(
        self,
        *,
        state: SiteState,
        cluster: ClusterState,
        recorder: Recorder,
        report_of: Callable[[str], tuple[orders.AgentReport, orders.BankReport] | None],
    ) -> None:
        self._state = state
        self._cluster = cluster
        self._recorder = recorder
        self._report_of = report_of
        self._models = [model for model in state.models.values() if model.declared.is_in_cluster]
        self.sights: dict[str, BankSight] = {}
        self._shown: dict[str, tuple[object, ...]] = {}
        self.blockings = Blockings()
        self.places = PodPlaces(
            state=state, cluster=cluster, blockings=self.blockings, resting_words=self.resting_words
        )
        self._wishes: dict[str, list[UnitWish]] = {}
        # What was worked out last, and from what: most rounds change nothing at most banks.
        self._wished: dict[str, tuple[tuple[object, ...], list[UnitWish]]] = {}
        self._in_place: dict[str, tuple[BankSight, list[UnitWish]]] = {}
        self._at_rest: dict[str, tuple[BankSight, list[UnitWish]]] = {}  # sight and wishes that ask for no move
        self._moves: dict[str, tuple[BankSight, list[UnitWish], list[ClusterPod], tuple[PodMove, ...]]] = {}
        self._waiting_owners: Counter[str] = Counter()
        self._ready: dict[str, frozenset[PodRef]] = {}
        self._ended_miners: dict[str, list[PodRef]] = {}
        self._rejected: dict[str, frozenset[PodRef]] = {}
        self._looked_s = 0.0
        self._viewed: dict[str, tuple[ViewSource, BankView]] = {}
        self._parties_of: tuple[list[ClusterPod], tuple[Party, ...]] | None = None
        self._begun: dict[str, deque[float]] = {}  # by pool, when its last flips began
        self._gathering = Gathering()
        self._flips: FlipRunner | None = None
        self._following: PodFollowing | None = None

    def join(self, flips: FlipRunner) -> None:
        """Take the runner whose flips move the pods."""
        self._flips = flips
        self._following = PodFollowing(
            state=self._state,
            cluster=self._cluster,
            recorder=self._recorder,
            flips=flips,
            blockings=self.blockings,
            resting_words=self.resting_words,
        )

    # What flips ask.

    def pods_of(self, bank: str) -> PodsSeen | None:
        """Return what the pods of a bank show, None where its workloads are the agent's own."""
        sight = self.sights.get(bank)
        if sight is not None:
            return sight.shown
        return PodsSeen() if self._state.models[bank].declared.is_in_cluster else None

    def keeps_waiting(self, flip: Flip) -> bool:
        """Tell whether a flip has to keep its place for a pod that nobody would make again: once let go it may start at any moment."""
        if flip.phase is not Phase.STARTING or flip.direction is Direction.UNDO or flip.pod is None:
            return False
        pod = self._cluster.pod(flip.pod)
        return pod is not None and not pod.owner_uid and not (pod.is_gated or pod.is_leaving or pod.is_over)

    def times_of(self, bank: str, times: FlipTimes) -> FlipTimes:
        """Return how long a flip of this bank may take: pods may refuse to go for as long as their pool bears it."""
        sight = self.sights.get(bank)
        if sight is None or sight.pool is None:
            return times
        return replace(times, draining_s=max(times.draining_s, sight.pool.evict_deadline_s + _LEAVING_GRACE_S))

    # The round.

    def look(self, now_s: float) -> None:
        """Take in what is there now; called once a round, before flips are moved on."""
        may_write = self._cluster.permit_left_s() > 0
        changed = [model.name for model in self._models if self._see(model, now_s, may_write=may_write)]
        self._looked_s = now_s
        if not self._cluster.is_synced:
            return
        self.blockings.forget_gone(self._cluster)
        for name in changed:
            self._note_starts_and_ends(name, self.sights[name], now_s)
        self._note_failures(now_s)
        self._waiting_owners = Counter(p.owner_uid for p in self._cluster.unbound() if p.is_gated and p.owner_uid)
        for name, sight in self.sights.items():
            if name in self._state.holdings:
                self._swap(name, sight)
        if self._following is not None:
            self._following.follow(self.places.placing.line, now_s)
        self.places.place(self.sights, self._wishes, self._waiting_owners, now_s)
        placing = self.places.placing
        wanted = Wanted(places=placing.demand, at_most=placing.at_most, waiting_count=self.places.waiting_count)
        self._gathering = self._gathering.look(wanted, now_s)

    def _see(self, model: BankModel, now_s: float, *, may_write: bool) -> bool:
        """Look at a bank; tell whether it shows anything else than the last time."""
        name, ledger = model.name, self._state.ledger
        heard = self._report_of(name)
        is_fresh = heard is not None and heard[0].epoch == ledger.epoch and ledger.is_live(name, now_s)
        report = None if heard is None else heard[1]
        # Of a report only who holds which unit is seen here, and that is the same in most of them.
        holdings = None if report is None else report.unit_holdings
        shown = (self._cluster.version_of(model.declared.node), is_fresh, may_write, holdings)
        # The newest of equals is kept: until the next report it is the same object, which is compared in no time.
        before, self._shown[name] = self._shown.get(name), shown
        if before == shown:
            return False
        self.sights[name] = see_bank(
            model, self._state.site, self._cluster, report, is_fresh=is_fresh, may_write=may_write
        )
        return True

    def _note_starts_and_ends(self, name: str, sight: BankSight, now_s: float) -> None:
        """Take in who has become ready, and miners that are over: nobody but us takes those away, and they hold their names."""
        if begun := sight.shown.ready - self._ready.get(name, sight.shown.ready):
            for pod in sight.pods:
                if pod.ref in begun:
                    # A miner that starts says nothing of customers' pods, nor they of miners.
                    self.blockings.note_started(_miners_of(name) if self._is_ours(pod) else name)
                    self.blockings.note_started(_workload(pod.owner_uid))
        self._ready[name] = sight.shown.ready
        here = self._cluster.pods_on(sight.model.declared.node)
        # Also who was let into a place that stood empty, which no flip follows. Each counts once, none of an earlier run.
        rejected = {pod.ref: pod.failure for pod in here if pod.is_rejected and not self._is_ours(pod)}
        for ref in rejected.keys() - self._rejected.get(name, rejected.keys()):
            self.blockings.note_rejected(name, ref, rejected[ref], now_s)
        self._rejected[name] = frozenset(rejected)
        # Who was asked to leave ends too, most with an error: that says nothing of whether the next would run.
        ended = [pod for pod in here if pod.is_over and not pod.is_leaving and self._is_ours(pod)]
        self._ended_miners[name] = [pod.ref for pod in ended]
        for pod in ended:
            self.blockings.note_rejected(_miners_of(name), pod.ref, pod.failure or "it ended", now_s)

    def _note_failures(self, now_s: float) -> None:
        """Take in pods that were let go and did not get ready in time: the next of their workload would most likely do the same."""
        for flip in self._state.open_flips():
            if flip.pod is None or flip.direction is not Direction.UNDO or flip.aim.mode is not Mode.INFERENCE:
                continue
            pod, cause = self._cluster.pod(flip.pod), flip.undo_cause or ""
            if pod is not None and pod.owner_uid and cause.startswith((Phase.STARTING.value, Phase.VERIFYING.value)):
                self.blockings.note_rejected(_workload(pod.owner_uid), pod.ref, cause, now_s)

    def resting_words(self, pod: ClusterPod) -> str:
        """Return why nobody of a pod's workload is let go just now, empty where nothing speaks against it."""
        known = self.blockings.rejected.get(_workload(pod.owner_uid))
        if known is None or not self.blockings.is_resting(_workload(pod.owner_uid), self._looked_s):
            return ""
        return f"{known.count} of its workload did not get ready ({known.reason}); the next is let go after a rest"

    def _is_ours(self, pod: ClusterPod) -> bool:
        pool = self._cluster.pools.get(pod.miner_pool)
        return pod.slot is not None and pool is not None and pod.namespace == pool.miner_namespace

    def _swap(self, name: str, sight: BankSight) -> None:
        holdings, flips = self._state.holdings[name], self._state.open_flips(name)
        wishes = self._wishes[name] = self._unit_wishes(name, sight)
        known = self._in_place.get(name)
        if known is not None and known[0] is sight and known[1] is wishes:
            return
        pods = {u: pod.ref for pod in sight.pods if not pod.is_leaving for u in sight.units.get(pod.key, ())}
        swaps = find_swaps(
            wishes, sight.tenants, held_units=sight.held_units, fixed_units=holdings.charged_units(), pods=pods
        )
        if swaps and self._flips is not None:
            held, changed = swap_roles(holdings, flips, swaps)
            self._recorder.record(*self._flips.swapped_entries(changed, held))
            self._wishes[name] = self._unit_wishes(name, sight)
        elif limits := self._limit_swaps(sight, wishes):
            held, _ = swap_roles(holdings, (), limits)
            words = f"{name}: units swapped roles, the lower limit is where nobody serves"
            self._recorder.record(
                self._recorder.entry("units_swapped", f"banks/{name}", words, payload=payload("holdings", held))
            )
            self._wishes[name] = self._unit_wishes(name, sight)
        else:
            self._in_place[name] = (sight, wishes)

    def _limit_swaps(self, sight: BankSight, wishes: Sequence[UnitWish]) -> list[Swap]:
        if not sight.may_move or any(not sight.units.get(pod.key) for pod in sight.customers()):
            return []  # who is on the way may be given any of the free ones
        name = sight.model.name
        holdings, flips = self._state.holdings[name], self._state.open_flips(name)
        return find_limit_swaps(
            sight.model.points,
            holdings,
            empty_units=[w.unit for w in wishes if w.may_start and w.tenant is Mode.INFERENCE and w.pod is None],
            serving_units=[unit for unit, tenant in sight.tenants.items() if tenant is Mode.INFERENCE],
            fixed_units=holdings.charged_units() | {int(unit) for flip in flips for unit in flip.unit_ids},
        )

    def _unit_wishes(self, name: str, sight: BankSight) -> list[UnitWish]:
        holdings, flips = self._state.holdings[name], self._state.open_flips(name)
        vacancies, is_locked_out = self.places.vacancies.get(name), name in self._state.lockouts
        asked = (holdings, flips, sight.free_units, vacancies, is_locked_out)
        known = self._wished.get(name)
        if known is None or known[0] != asked:
            wishes = unit_wishes(
                sight.model,
                holdings,
                flips,
                free_units=sight.free_units,
                vacancies=vacancies,
                is_locked_out=is_locked_out,
            )
            known = self._wished[name] = (asked, wishes)
        return known[1]

    # What the planner asks.

    @property
    def has_news(self) -> bool:
        """Tell whether other pods want a place than when `take_news` was called last, and no more of them are just coming."""
        return self._gathering.is_due

    def is_gathering(self, now_s: float) -> bool:
        """Tell whether the first of several pods may have come a moment ago."""
        return self._gathering.is_young(now_s)

    def take_news(self) -> None:
        """Note that a plan is made for who is there now."""
        self._gathering = self._gathering.planned()

    def market(self, view: MarketView) -> MarketView:
        """Return the market with the demand that pods are, in place of any signal."""
        if not self._models:
            return view
        demand = dict(view.inference_demand_gpus)
        for model in self._models:
            demand.pop(model.device_class.inference_class, None)
        if self._cluster.is_synced:
            for inference_class, count in self.places.placing.demand.items():
                demand[inference_class] = Quote(value=float(count), source=SOURCE)
        return replace(view, inference_demand_gpus=demand)

    def paced(self, flips: Sequence[Flip], now_s: float) -> list[Flip]:
        """Return those of new flips that their pools' `maxFlipsPerMinute` lets begin now; the others come with a later plan.

        Flips that bring one pod begin together or not at all; sheds never wait.
        """
        kept: list[Flip] = []
        stopped: set[PodRef] = set()
        for flip in flips:
            sight = self.sights.get(flip.bank)
            if sight is None or sight.pool is None or flip.is_safety or not flip.is_mode_flip:
                kept.append(flip)
                continue
            begun = self._begun.setdefault(sight.pool.name, deque())
            while begun and now_s - begun[0] >= 60.0:
                begun.popleft()
            if flip.pod in stopped or len(begun) >= sight.pool.flips_per_minute:
                stopped.update({flip.pod} if flip.pod is not None else ())
                continue
            begun.append(now_s)
            kept.append(flip)
        return [flip for flip in kept if flip.pod is None or flip.pod not in stopped]

    def bank_view(self, view: BankView, now_s: float) -> BankView:
        """Return a bank as the planner is to see it, where pods are its workloads; as last time where nothing has changed."""
        sight = self.sights.get(view.bank)
        if sight is None:
            return view
        if sight.customers() or not self.places.has_none_empty(view.bank, self._wishes.get(view.bank)):
            return self.bank_view_anew(view, sight, now_s)
        # Nobody here is asked to go, so time and budgets change nothing: the same sight and wishes show the same.
        source = ViewSource(view=view, sight=sight, wishes=self._wishes.get(view.bank))
        known = self._viewed.get(view.bank)
        if known is None or not known[0].is_same(source):
            known = self._viewed[view.bank] = (source, self.bank_view_anew(view, sight, now_s))
        return known[1]

    def bank_view_anew(self, view: BankView, sight: BankSight, now_s: float) -> BankView:
        """Return the same, whatever was shown before."""
        pool = sight.pool
        if not sight.may_move or pool is None:
            return replace(view, pinned_reason=view.pinned_reason or sight.frozen)
        bars = {
            Mode.MINING: not pool.is_mining_enabled or pool.mode is PoolMode.DRAIN,
            Mode.INFERENCE: pool.mode is PoolMode.DRAIN,
        }
        caps_w = {Mode.MINING: pool.mining_cap_w, Mode.INFERENCE: pool.inference_cap_w}
        barred = {
            point.name
            for point in sight.model.device_class.points
            if bars.get(point.mode, False) or point.power_w > (caps_w.get(point.mode) or float("inf"))
        }
        return replace(
            view,
            dwell_s={Mode.MINING: pool.dwell_mining_s, Mode.INFERENCE: pool.dwell_inference_s},
            barred_points=frozenset(barred),
            parties_out=self._parties_out(sight, now_s),
        )

    def askers(self) -> dict[str, Askers]:
        """Return who asks for inference in each bank whose workloads are pods."""
        found: dict[str, Askers] = {}
        known: dict[tuple[int, int], Askers] = {}  # most banks have the same line
        for name, sight in self.sights.items():
            at_most = self.places.placing.at_most.get(name, 0)
            parties = self._parties_in(sight) if sight.may_move else ()
            key = (at_most, id(parties))
            if key not in known:
                known[key] = Askers(at_most=at_most, parties=parties)
            found[name] = known[key]
        return found

    def _parties_in(self, sight: BankSight) -> tuple[Party, ...]:
        uninvited = self._uninvited(sight) if sight.customers() else []
        line = self.places.placing.line.get(sight.model.name, [])
        if self._parties_of is None or self._parties_of[0] is not line:
            # Most banks have the same pods in line, in one list (`place_pods`): who they are is said once for all of them.
            parties = tuple(Party(name=pod.ref.token, count=pod.gpu_count) for pod in line)
            known = () if self._parties_of is None else self._parties_of[1]
            self._parties_of = (line, known if known == parties else parties)
        return (*uninvited, *self._parties_of[1]) if uninvited else self._parties_of[1]

    def _uninvited(self, sight: BankSight) -> list[Party]:
        """Who runs here without a place of inference (let go by somebody else, or left over) gets one first."""
        named = {flip.pod for flip in self._state.open_flips(sight.model.name)}
        roles = {wish.unit: wish for wish in self._wishes.get(sight.model.name, ())}
        uninvited: list[Party] = []
        for pod in sight.customers():
            held = sorted(sight.units.get(pod.key, frozenset()) & roles.keys())
            misplaced = tuple(str(unit) for unit in held if roles[unit].tenant is not Mode.INFERENCE)
            if misplaced and not pod.is_leaving and pod.ref not in named:
                count = len(misplaced) * sight.model.device_class.unit_size
                uninvited.append(Party(name=pod.ref.token, count=count, unit_ids=misplaced))
        return uninvited

    def _parties_out(self, sight: BankSight, now_s: float) -> tuple[Party, ...]:
        name, size = sight.model.name, sight.model.device_class.unit_size
        # Nobody has them: their pods are gone, even where the GPUs are not seen free yet. Those seen free come first.
        empty = [
            wish
            for wish in self._wishes.get(name, ())
            if wish.tenant is Mode.INFERENCE and not wish.flip and wish.pod is None
            if wish.unit not in sight.shown.present_units
        ]
        # A place that somebody without a pod works on, or that nobody can say anything of, is not ours to give: nor does anybody leave
        # another place for it.
        unclear = [wish for wish in empty if not wish.may_start and wish.unit in sight.reasons]
        empty = [wish for wish in empty if wish not in unclear]
        named = {flip.pod for flip in self._state.open_flips(name)}
        unseen = [
            p for p in sight.customers() if not p.is_leaving and p.ref not in named and not sight.units.get(p.key)
        ]
        coming_count = sum(pod.gpu_count for pod in unseen) // size
        idle = [wish.unit for wish in sorted(empty, key=lambda wish: not wish.may_start)][coming_count:]
        # Who leaves by itself comes first: nobody else has to.
        leavers = sorted(
            (pod for pod in sight.customers() if pod.is_leaving or (not unclear and self._may_evict(pod, now_s))),
            key=lambda pod: (pod.is_leaving, pod.rank),
            reverse=True,
        )
        held = {pod.ref.token: sorted(sight.units.get(pod.key, ())) for pod in leavers}
        return parties_of(held, idle, size, leaving={pod.ref.token for pod in leavers if pod.is_leaving})

    def _may_evict(self, pod: ClusterPod, now_s: float) -> bool:
        """A workload that waits for more pods is not made smaller: its budget counts those that wait as missing, and would refuse."""
        return not self._has_waiting_siblings(pod) and not self.blockings.is_blocked(pod.ref, now_s)

    def _has_waiting_siblings(self, pod: ClusterPod) -> bool:
        return pod.owner_uid in self._waiting_owners

    # What the mover asks.

    def due_moves(self, now_unix_s: float) -> list[NodeMoves]:
        """Return every call that is due now."""
        due: list[NodeMoves] = []
        for name, sight in self.sights.items():
            if not sight.may_move or sight.node is None or name not in self._state.holdings:
                continue
            wishes = self._unit_wishes(name, sight)
            ended = self._ended_miners.get(name, ())
            resting = self._at_rest.get(name)
            is_same = resting is not None and resting[0] is sight and resting[1] is wishes
            if is_same and not ended and not sight.is_anybody_under_way:
                continue
            named = {wish.pod for wish in wishes if wish.pod is not None}
            coming = [pod for ref in named if (pod := self._cluster.pod(ref)) is not None and pod.is_waiting]
            known = self._moves.get(name)
            if known is None or known[0] is not sight or known[1] is not wishes or known[2] != coming:
                moves = pod_moves(
                    wishes,
                    [sight.as_node_pod(pod) for pod in (*sight.pods, *coming)],
                    unit_size=sight.model.device_class.unit_size,
                    gpu_count=sight.node.gpu_count,
                )
                known = self._moves[name] = (sight, wishes, coming, moves)
            if not named and not known[3]:
                self._at_rest[name] = (sight, wishes)
            kept: list[PodMove] = [DeleteMiner(ref) for ref in ended]
            kept += [move for move in known[3] if not self._is_put_off(name, move)]
            kept += self._overdue(sight, now_unix_s)
            if kept:
                due.append(NodeMoves(sight=sight, moves=tuple(dict.fromkeys(kept))))
        return due

    def _is_put_off(self, name: str, move: PodMove) -> bool:
        match move:
            case EvictPod(pod=ref):
                return self._is_spared(ref)
            case MakeMiner():
                return self.blockings.is_resting(_miners_of(name), self._looked_s)
            case _:
                return False

    def _is_spared(self, ref: PodRef) -> bool:
        pod = self._cluster.pod(ref)
        return pod is None or self._has_waiting_siblings(pod) or (pod.is_under_way and not pod.owner_uid)

    def _overdue(self, sight: BankSight, now_unix_s: float) -> list[EvictPod]:
        """Return who was let go and found no node in time, where somebody would make it again."""
        pool = sight.pool
        if pool is None or not sight.is_anybody_under_way:
            return []
        return [
            EvictPod(pod.ref, pod.flip)
            for pod in sight.pods
            if pod.is_under_way
            and not pod.is_leaving
            and pod.owner_uid
            and pod.slot is None
            and pod.lifted_unix_s is not None
            and now_unix_s - pod.lifted_unix_s > pool.lift_deadline_s
        ]


def _workload(owner_uid: str) -> str:
    """Return what rests where pods of one workload do not get ready: others may come there."""
    return f"workload {owner_uid}"


def _miners_of(bank: str) -> str:
    """Return what rests where miners do not start: customers may start there all the same."""
    return f"miners of {bank}"
