"""What is seen of each pool now: pods, agents' reports, flips, plan and ledger gathered into plain facts.

Decides nothing. Remembers only since when a process runs that no pod names, and which miners were refused: both are learned again after a
restart. Invariant: an agent that is silent, or that obeys another epoch, is asked for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from swingbus_controller.app.cluster_sights import BankSight
from swingbus_controller.app.engine import SiteEngine
from swingbus_controller.domain.cluster.facts import ClusterPod, PodRef, Pool
from swingbus_controller.domain.cluster.pool_demand import Fit, find_fits, find_homeless
from swingbus_controller.domain.cluster.pool_facts import (
    BankFacts,
    CurtailmentFacts,
    FeederFacts,
    PoolFacts,
)
from swingbus_controller.domain.cluster.pool_words import GpuCounts
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.domain.fleet.orders import UnitHolding
from swingbus_controller.domain.flips.flip import Flip, WattState
from swingbus_controller.domain.flips.gpu_shares import blind_words, gpu_counts, unit_shares, unnamed_units
from swingbus_controller.domain.flips.no_more import PlanReasons
from swingbus_controller.domain.flips.placement import BankModel, Holdings
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.power.bank import BankState

# A process outlives its pod for a moment, and a kubelet's list is older than the GPU's: only what stays is told.
UNNAMED_AFTER_S = 15.0
# The mover asks for a refused miner again within half a minute: a refusal that was not heard again is over.
_REFUSED_FOR_S = 90.0
_HELD_UP_AFTER_S = 15.0
# Watches end and begin again all the time: only what does not begin again is told.
_UNSEEN_AFTER_S = 20.0


@dataclass(slots=True)
class PoolMemory:
    """What has to be remembered from one look to the next."""

    unnamed_since_s: dict[tuple[str, int], float] = field(default_factory=dict)
    no_miners: dict[str, tuple[float, str]] = field(default_factory=dict)
    plan_reasons: PlanReasons = field(default_factory=lambda: PlanReasons(None, None))
    gpus: dict[str, tuple[object, GpuCounts]] = field(default_factory=dict)
    unseen_since_s: dict[str, float] = field(default_factory=dict)

    def reasons_of(self, engine: SiteEngine) -> PlanReasons:
        """Return what the newest plan keeps out of banks."""
        if self.plan_reasons.plan is not engine.plan or self.plan_reasons.admission is not engine.admission:
            self.plan_reasons = PlanReasons(engine.plan, engine.admission)
        return self.plan_reasons

    def count_gpus(
        self, model: BankModel, holdings: Holdings | None, flips: Sequence[Flip], seen: tuple[UnitHolding, ...]
    ) -> GpuCounts:
        """Return a bank's GPUs by what they do; counted anew only when something has changed."""
        shown = (holdings, tuple(flips), seen)
        known = self.gpus.get(model.name)
        if known is None or known[0] != shown:
            known = (shown, gpu_counts(model, unit_shares(model, holdings, flips, seen)))
            self.gpus[model.name] = known
        return known[1]

    def note_no_miner(self, bank: str, words: str, now_s: float) -> None:
        """Take that a miner was refused."""
        self.no_miners[bank] = (now_s, words)

    def note_miner(self, bank: str) -> None:
        """Take that a miner was made."""
        self.no_miners.pop(bank, None)

    def why_no_miners(self, bank: str, now_s: float) -> str:
        """Return why miners could not be made a moment ago."""
        at_s, words = self.no_miners.get(bank, (-math.inf, ""))
        return words if now_s - at_s < _REFUSED_FOR_S else ""

    def unseen(self, troubles: Mapping[str, str], now_s: float) -> dict[str, str]:
        """Return the kinds of objects that have not been followed for a while, each with why."""
        self.unseen_since_s = {kind: self.unseen_since_s.get(kind, now_s) for kind in troubles}
        return {kind: words for kind, words in troubles.items() if now_s - self.unseen_since_s[kind] >= _UNSEEN_AFTER_S}

    def stay(self, bank: str, units: Mapping[int, str], now_s: float) -> tuple[str, ...]:
        """Return the words on those units that have been so for a while."""
        for key in [key for key in self.unnamed_since_s if key[0] == bank and key[1] not in units]:
            del self.unnamed_since_s[key]
        return tuple(
            words
            for unit, words in sorted(units.items())
            if now_s - self.unnamed_since_s.setdefault((bank, unit), now_s) >= UNNAMED_AFTER_S
        )


def see_pools(
    engine: SiteEngine, cluster: ClusterState, memory: PoolMemory, *, now_s: float, now_unix_s: float
) -> list[tuple[PoolFacts, Mapping[PodRef, Fit]]]:
    """Return what is seen of every pool of this site, and of those that its banks name."""
    state, desk = engine.state, engine.desk
    named = {sight.model.declared.pool for sight in desk.sights.values()}
    pools = [p for p in cluster.pools.values() if p.site == state.site.name or p.name in named]
    waiting = tuple(sorted((pod for pod in cluster.unbound() if pod.is_waiting), key=lambda pod: pod.rank))
    arriving = _arriving(engine, now_s)
    in_line = _in_line(engine, waiting)
    resting = {pod.ref: words for pod in waiting if (words := engine.desk.resting_words(pod))}
    banks_of = {pool.name: _banks(engine, pool, memory, now_s) for pool in pools}
    fits_of = {name: find_fits(waiting, banks) for name, banks in banks_of.items()}
    homeless = find_homeless(waiting, list(fits_of.values()))
    feeders_of = {pool.name: _feeders_of(engine, pool, banks_of[pool.name]) for pool in pools}
    # The grid connection is above all of them, and sums up every bank: once is enough.
    feeders = {name: _feeder(engine, name, now_s) for above in feeders_of.values() for name in above}
    unseen = memory.unseen(cluster.troubles(), now_s)
    below = "" if state.authority is Authority.CONTROL else state.authority.value
    seen: list[tuple[PoolFacts, Mapping[PodRef, Fit]]] = []
    for pool in pools:
        flips = [flip for bank in banks_of[pool.name] for flip in state.open_flips(bank.bank)]
        here = {pod.ref for bank in banks_of[pool.name] for pod in bank.pods}
        facts = PoolFacts(
            pool=pool,
            epoch=state.ledger.epoch,
            now_unix_s=now_unix_s,
            banks=banks_of[pool.name],
            feeders=tuple(feeders[name] for name in feeders_of[pool.name]),
            curtailments=_curtailments(engine, feeders_of[pool.name]),
            granted_w=sum(_granted_w(engine, bank.bank) for bank in banks_of[pool.name]),
            reserved_w=sum(_reserved_w(flip) for flip in flips),
            waiting=waiting,
            arriving=arriving,
            in_line=in_line,
            resting=resting,
            homeless=homeless,
            namespaces=cluster.namespaces,
            blocked={
                ref: blocked
                for ref, blocked in desk.blockings.blocked.items()
                if ref in here and desk.blockings.is_blocked(ref, now_s)
            },
            below_control=below,
            unseen=unseen,
        )
        seen.append((facts, fits_of[pool.name]))
    return seen


def _banks(engine: SiteEngine, pool: Pool, memory: PoolMemory, now_s: float) -> tuple[BankFacts, ...]:
    found = [
        _bank(engine, sight, pool, memory, now_s)
        for sight in engine.desk.sights.values()
        if sight.model.declared.pool == pool.name
    ]
    return tuple(sorted(found, key=lambda bank: bank.bank))


def _bank(engine: SiteEngine, sight: BankSight, pool: Pool, memory: PoolMemory, now_s: float) -> BankFacts:
    state, name = engine.state, sight.model.name
    holdings, flips = state.holdings.get(name), state.open_flips(name)
    report = engine.report_of(name)
    bank_state = state.ledger.state(name, now_s)
    is_silent = bank_state is BankState.DARK or report is None or report.epoch != state.ledger.epoch
    seen: tuple[UnitHolding, ...] = () if is_silent or report is None else report.unit_holdings
    lockout = state.lockouts.get(name)
    rejected = engine.desk.blockings.rejected.get(name)
    return BankFacts(
        bank=name,
        agent=sight.model.declared.agent,
        node=sight.model.declared.node,
        device_count=sight.model.declared.device_count,
        unit_size=sight.model.device_class.unit_size,
        gpus=memory.count_gpus(sight.model, holdings, flips, seen),
        cluster_node=sight.node,
        frozen=sight.frozen,
        pods=sight.pods,
        is_silent=is_silent,
        blind=blind_words(seen),
        unnamed=memory.stay(name, unnamed_units(seen, flips), now_s),
        is_overdrawing=bank_state is BankState.DISOBEYING,
        barred=memory.reasons_of(engine).of(name, pool),
        lockout="" if lockout is None else f"{lockout.author}: {lockout.reason}",
        failed_flips=() if holdings is None else tuple(charge.flip for charge in holdings.charges),
        rejected=rejected,
        is_resting=engine.desk.blockings.is_resting(name, now_s),
        no_miners=memory.why_no_miners(name, now_s) if pool.is_mining_enabled else "",
    )


def _in_line(engine: SiteEngine, waiting: Sequence[ClusterPod]) -> frozenset[PodRef]:
    """Return pods of more than one unit that a bank has room for.

    Who asks for one unit is in the line of every bank it fits, and nobody asks whether it is: thousands of places are passed over.
    """
    if all(pod.gpu_count == 1 for pod in waiting):
        return frozenset()
    sizes = {name: model.device_class.unit_size for name, model in engine.state.models.items()}
    lines = engine.desk.places.placing.line.items()
    return frozenset(pod.ref for bank, line in lines for pod in line if pod.gpu_count > sizes[bank])


def _arriving(engine: SiteEngine, now_s: float) -> dict[PodRef, str]:
    """Return who is brought by a flip or an empty place, each with what holds its flip up."""
    found = dict.fromkeys(engine.desk.places.let_in, "")
    for flip in engine.state.open_flips():
        if flip.pod is None:
            continue
        is_held_up = flip.watts is WattState.ASKED and now_s - flip.since_s > _HELD_UP_AFTER_S
        found[flip.pod] = _watts_missing(engine, flip) if is_held_up else ""
    return found


def _watts_missing(engine: SiteEngine, flip: Flip) -> str:
    refusal = engine.flips.refusals.get(flip.id, "").partition(":")[0]
    why = f" ({refusal})" if refusal else ""
    return f"its flip waits for watts{why}; swingctl flip show {flip.id} tells how far it is"


def _granted_w(engine: SiteEngine, bank: str) -> float:
    newest = engine.state.ledger.newest_grant(bank)
    return 0.0 if newest is None else newest.grant_w


def _reserved_w(flip: Flip) -> float:
    return max(0.0, flip.claim_delta_w) if flip.watts in (WattState.ASKED, WattState.HELD) else 0.0


def _feeder(engine: SiteEngine, name: str, now_s: float) -> FeederFacts:
    ledger = engine.state.ledger
    limit_w = ledger.limit_w(name, now_s)
    if not math.isfinite(limit_w):
        return FeederFacts(feeder=name, limit_w=None)
    excess_w = -ledger.headroom_w(name, now_s) if ledger.has_excess(name, now_s) else 0.0
    return FeederFacts(feeder=name, limit_w=limit_w, excess_w=excess_w)


def _feeders_of(engine: SiteEngine, pool: Pool, banks: tuple[BankFacts, ...]) -> tuple[str, ...]:
    """Return the pool's container and all above it, then what lies between it and its banks."""
    tree = engine.state.site.tree
    hung_on = [engine.state.models[bank.bank].declared.feeder for bank in banks]
    starts = [name for name in (pool.container, *hung_on) if name in tree.feeders]
    return tuple(dict.fromkeys(name for start in starts for name, _ in tree.path(start)))


def _curtailments(engine: SiteEngine, above: tuple[str, ...]) -> tuple[CurtailmentFacts, ...]:
    return tuple(
        CurtailmentFacts(
            id=order.id,
            feeder=order.feeder,
            limit_w=order.limit_w,
            state=order.state.value,
            until_unix_s=order.end_unix_s,
        )
        for order in engine.state.open_curtailments()
        if order.feeder in above
    )
