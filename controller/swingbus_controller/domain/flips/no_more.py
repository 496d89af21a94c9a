"""Why no more pods come into a bank now, from the newest plan and what became of its moves.

Decides which obstacle is told. Refuses to know pods. Invariant: no figure that moves with every sample is told.
"""

from __future__ import annotations

from swingbus_controller.domain.cluster.facts import Pool, PoolMode
from swingbus_controller.domain.cluster.pool_facts import Bar, Barred
from swingbus_controller.domain.flips.admission import Admission, Refusal, RefusalCode
from swingbus_controller.domain.planning.explain import WhyNotCode, one_more_kw, why_not
from swingbus_controller.domain.planning.plan import PLANNABLE, BankView, Plan
from swingbus_controller.domain.planning.points import Mode

_UNDECIDED = Barred(bar=Bar.ARRIVING, words="the next plan gives them a place")


class PlanReasons:
    """What keeps more pods out of each bank under one plan; looked at once for each bank."""

    def __init__(self, plan: Plan | None, admission: Admission | None) -> None:
        self.plan = plan
        self.admission = admission
        self._views = {} if plan is None else {view.bank: view for view in plan.view.banks}
        self._refused: dict[str, Refusal] = {}
        for refusal in () if admission is None else admission.refused:
            if refusal.move.to_mode is Mode.INFERENCE:
                self._refused.setdefault(refusal.move.bank, refusal)
        self._known: dict[tuple[str, str, str], Barred] = {}

    def of(self, bank: str, pool: Pool) -> Barred:
        """Return what keeps more pods out of a bank; `ARRIVING` where nothing does."""
        key = (bank, pool.uid, pool.revision)
        if key not in self._known:
            self._known[key] = self._look(bank, pool)
        return self._known[key]

    def _look(self, bank: str, pool: Pool) -> Barred:
        view = self._views.get(bank)
        if self.plan is None or view is None:
            return Barred(bar=Bar.UNAVAILABLE, words=f"bank {bank} was not taken over yet: its agent has to report")
        if pool.mode is PoolMode.DRAIN:
            return Barred(bar=Bar.POOL_NOT_READY, words="spec.mode is Drain: pods leave and none is let in")
        if view.availability not in PLANNABLE:
            return _unavailable(view)
        points = {point.name for point in view.points if point.mode is Mode.INFERENCE}
        if points and points <= view.barred_points:
            return _capped(view, pool)
        refused = self._refused.get(bank)
        told = None if refused is None else _of_refusal(refused, view, pool)
        return told or _of_plan(self.plan, view, pool)


def _unavailable(view: BankView) -> Barred:
    why = f" ({view.note})" if view.note else ""
    if view.availability in PLANNABLE:
        return Barred(
            bar=Bar.SETTLING, words=f"bank {view.bank} may not grow before its last change is proven by the meter{why}"
        )
    return Barred(bar=Bar.UNAVAILABLE, words=f"bank {view.bank} is {view.availability.value.replace('_', ' ')}{why}")


def _of_refusal(refused: Refusal, view: BankView, pool: Pool) -> Barred | None:
    match refused.code:
        case RefusalCode.NO_WATTS:
            return Barred(bar=Bar.NO_WATTS, words=refused.detail)
        case RefusalCode.DWELL:
            return _dwell(pool)
        case RefusalCode.PINNED:
            return _pinned(view)
        case RefusalCode.UNAVAILABLE:
            return _unavailable(view)
        case RefusalCode.TOO_MANY_FLIPS:
            return Barred(bar=Bar.FLIP_LIMIT, words=refused.detail)
        case _:
            return None


def _of_plan(plan: Plan, view: BankView, pool: Pool) -> Barred:
    full = next(
        (s.reason for s in plan.shortfalls if s.inference_class == view.inference_class and "is full" in s.reason), ""
    )
    match why_not(plan, view.bank, Mode.INFERENCE).code:
        case WhyNotCode.UNSUPPORTED:
            return Barred(bar=Bar.NO_FIT, words=f"bank {view.bank} has no operating point for inference")
        case WhyNotCode.ALL_THERE:
            return Barred(
                bar=Bar.FULL, words="every GPU that fits serves already; add nodes, or wait until somebody leaves"
            )
        case WhyNotCode.PINNED:
            return _pinned(view)
        case WhyNotCode.DWELL:
            return _dwell(pool)
        case WhyNotCode.UNAVAILABLE:
            return _unavailable(view)
        case WhyNotCode.PLANNED | WhyNotCode.NO_DEMAND:
            return _UNDECIDED
        case WhyNotCode.FEEDER_FULL:
            _, feeder = one_more_kw(plan, view)
            name = "a feeder" if feeder is None else f"feeder {feeder.feeder}"
            return Barred(bar=Bar.NO_WATTS, words=f"{name} is full")
    if full:
        return Barred(bar=Bar.NO_WATTS, words=full)
    words = f"the plan does not pay for it: see swingctl plan why-not {view.bank} inference"
    return Barred(bar=Bar.NOT_WORTH, words=words)


def _capped(view: BankView, pool: Pool) -> Barred:
    cap = "none" if pool.inference_cap_w is None else f"{pool.inference_cap_w:.0f} W"
    words = f"spec.caps.inference ({cap}) is below every operating point of inference that the site file gives bank {view.bank}: raise it"
    return Barred(bar=Bar.NO_FIT, words=words)


def _pinned(view: BankView) -> Barred:
    return Barred(bar=Bar.PINNED, words=f"bank {view.bank} is {view.pinned_reason}; swingctl pin list shows until when")


def _dwell(pool: Pool) -> Barred:
    words = f"the other GPUs have mined for less than spec.timing.dwellMining ({pool.dwell_mining_s:.0f} s); they come when it is over"
    return Barred(bar=Bar.DWELL, words=words)
