"""Which waiting pods are a pool's, and why those that wait on do: the condition DemandServed.

Decides whose pod it is and which reason is told. Refuses to know plans: why no more come into a bank is given. Invariants: a pod that fits
a pool's nodes is counted there; one that fits nowhere at every pool that serves its namespace, so that somebody tells its owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from swingbus_controller.domain.cluster.facts import ClusterPod, PodRef, why_not_on
from swingbus_controller.domain.cluster.pool_facts import BankFacts, Bar, Barred, PoolFacts
from swingbus_controller.domain.cluster.pool_words import PoolCondition, Truth
from swingbus_controller.domain.cluster.wording import some

# Who is on its way is no news for this long; then somebody should look.
_SOON_S = 60.0
_MOST_REASONS = 4
_ORDER = {bar: at for at, bar in enumerate(Bar)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Which banks a pod could run in, whatever is free there; `why` not, where in none."""

    banks: tuple[BankFacts, ...] = ()
    why: str = ""


def find_fits(pods: Iterable[ClusterPod], banks: Sequence[BankFacts]) -> dict[PodRef, Fit]:
    """Return where each pod could run. Pods of one workload ask for the same, so each wish is looked at once."""
    known: dict[object, Fit] = {}
    fits: dict[PodRef, Fit] = {}
    for pod in pods:
        wish = (pod.gpu_count, frozenset(pod.node_selector.items()), pod.tolerations, pod.only_nodes)
        if wish not in known:
            known[wish] = _fit(pod, banks)
        fits[pod.ref] = known[wish]
    return fits


def _fit(pod: ClusterPod, banks: Sequence[BankFacts]) -> Fit:
    why = "no node of this pool is in the site file"
    found: list[BankFacts] = []
    for bank in banks:
        if pod.gpu_count % bank.unit_size or pod.gpu_count > bank.device_count:
            why = f"it asks for {pod.gpu_count} GPUs; {bank.node} has {bank.device_count}, in units of {bank.unit_size}"
        elif bank.cluster_node is None:
            why = f"there is no node {bank.node}"
        elif reason := why_not_on(pod, bank.cluster_node):
            why = reason
        else:
            found.append(bank)
    return Fit(banks=tuple(found), why="" if found else why)


def find_homeless(pods: Iterable[ClusterPod], fits: Sequence[Mapping[PodRef, Fit]]) -> frozenset[PodRef]:
    """Return pods that fit no pool.

    Args:
        fits: what `find_fits` said, pool by pool.
    """
    return frozenset(pod.ref for pod in pods if all(each[pod.ref].why for each in fits))


def waiting_here(facts: PoolFacts, fits: Mapping[PodRef, Fit]) -> list[ClusterPod]:
    """Return waiting pods that this pool is there for, first in line first."""
    return [
        pod
        for pod in facts.waiting
        if (labels := facts.namespaces.get(pod.namespace)) is not None
        and facts.pool.serves(labels)
        and (pod.ref in facts.homeless or not fits[pod.ref].why)
    ]


def demand_served(facts: PoolFacts, waiting: Sequence[ClusterPod], fits: Mapping[PodRef, Fit]) -> PoolCondition:
    """Return the condition DemandServed.

    Args:
        waiting: what `waiting_here` said.
    """
    if not waiting:
        return _condition(Truth.TRUE, "Served", "nobody waits behind the gate")
    reasons = _Reasons(facts)
    barred = [(pod, reasons.of(pod, fits[pod.ref])) for pod in waiting]
    late = [pair for pair in barred if pair[1].bar is not Bar.ARRIVING or _is_late(pair[0], facts)]
    if not late:
        return _condition(Truth.TRUE, Bar.ARRIVING, f"on the way: {_pods(waiting)}")
    told: dict[Barred, list[ClusterPod]] = {}
    for pod, why in late:
        told.setdefault(why, []).append(pod)
    # Who should have come by now is told last: nobody knows why.
    order = sorted(told, key=lambda why: (why.bar is Bar.ARRIVING, _ORDER[why.bar]))
    reason = "Overdue" if order[0].bar is Bar.ARRIVING else order[0].bar.value
    words = [f"{_pods(told[why])}: {why.words}" for why in order[:_MOST_REASONS]]
    if len(order) > _MOST_REASONS:
        words.append(f"{len(order) - _MOST_REASONS} more reasons")
    return _condition(Truth.FALSE, reason, "; ".join(words))


def _is_late(pod: ClusterPod, facts: PoolFacts) -> bool:
    return facts.now_unix_s - pod.made_unix_s > _SOON_S


class _Reasons:
    """Why pods wait; what hinders those that fit the same banks is looked at once."""

    def __init__(self, facts: PoolFacts) -> None:
        self._facts = facts
        self._known: dict[tuple[int, int, bool], Barred] = {}

    def of(self, pod: ClusterPod, fit: Fit) -> Barred:
        """Return why a pod waits; `ARRIVING` where it will not for long."""
        if pod.gang:
            words = f"{pod.gang}, and pods that only start together are not supported yet: take them out of the enrolled namespace"
            return Barred(bar=Bar.GANG_UNSUPPORTED, words=words)
        if pod.queue:
            words = f"queue {pod.queue} holds quota while we hold the gate: take the queue's label away, or leave the namespace unenrolled"
            return Barred(bar=Bar.QUEUE_UNSUPPORTED, words=words)
        held_up = self._facts.arriving.get(pod.ref)
        if held_up is not None:
            return Barred(bar=Bar.NO_WATTS if held_up else Bar.ARRIVING, words=held_up or "a flip brings them")
        if fit.why:
            return Barred(bar=Bar.NO_FIT, words=f"{fit.why}; correct the pod, or label a node so that it fits")
        has_place = pod.ref in self._facts.in_line
        key = (id(fit), pod.gpu_count, has_place)
        if key not in self._known:
            found = (_why_not_here(pod.gpu_count, has_place, self._facts, bank) for bank in fit.banks)
            self._known[key] = min(found, key=lambda each: _ORDER[each.bar])
        hindered = self._known[key]
        resting = self._facts.resting.get(pod.ref, "")
        # A node that rejects pods makes their workload rest too: the node is told, since it is what has to be mended.
        if resting and hindered.bar is Bar.ARRIVING:
            return Barred(bar=Bar.NOT_READY, words=f"{resting}: look at its events and its image")
        return hindered


def _why_not_here(gpu_count: int, has_place: bool, facts: PoolFacts, bank: BankFacts) -> Barred:
    if bank.frozen or facts.below_control:
        return Barred(bar=Bar.POOL_NOT_READY, words="nothing is moved here: see condition Ready")
    if bank.is_resting:
        return Barred(bar=Bar.NODE_RESTS, words=f"node {bank.node} could not start pods and is left alone for a while")
    if bank.barred is not None and bank.barred.bar is not Bar.ARRIVING:
        return bank.barred
    if gpu_count > bank.unit_size and not has_place:
        return Barred(bar=Bar.FULL, words=f"no node has {gpu_count} GPUs that inference does not hold already")
    return Barred(bar=Bar.ARRIVING, words="they fit and nothing seems to be in the way: see swingctl plan show")


def _pods(pods: Iterable[ClusterPod]) -> str:
    found = list(pods)
    return f"{some([str(pod.ref) for pod in found], 'pod', 'pods')} ({sum(pod.gpu_count for pod in found)} GPUs)"


def _condition(truth: Truth, reason: str, message: str) -> PoolCondition:
    return PoolCondition(type="DemandServed", truth=truth, reason=str(reason), message=message)
