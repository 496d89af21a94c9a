"""What a pool's status says: counts, watts, conditions; and the condition Ready, which sums up what keeps it from its work.

Decides which trouble is told as Ready's reason: the one to mend first. Invariant: equal facts give equal words, and watts are rounded, so
that a status is written on change only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from swingbus_controller.domain.cluster.blocking import REJECTIONS_UNTIL_FAILED
from swingbus_controller.domain.cluster.facts import ClusterPod, PodRef
from swingbus_controller.domain.cluster.pool_conditions import (
    agents_reporting,
    curtailed,
    drain_blocked,
    gate_enforced,
    within_limit,
)
from swingbus_controller.domain.cluster.pool_demand import Fit, demand_served, waiting_here
from swingbus_controller.domain.cluster.pool_facts import Blindness, PoolFacts
from swingbus_controller.domain.cluster.pool_words import GpuCounts, PoolCondition, PoolWords, Truth
from swingbus_controller.domain.cluster.wording import some

_ROUND_TO_W = 100
# The scheduler finds no place for a moment whenever a miner is still leaving.
_UNSCHEDULABLE_AFTER_S = 5.0
_Trouble = tuple[str, str]  # reason, message


def pool_words(facts: PoolFacts, fits: Mapping[PodRef, Fit]) -> PoolWords:
    """Return what is said of a pool.

    Args:
        fits: where each waiting pod could run in this pool.
    """
    waiting = waiting_here(facts, fits)
    limit_w = next((feeder.limit_w for feeder in facts.feeders if feeder.limit_w is not None), None)
    return PoolWords(
        generation=facts.pool.generation,
        epoch=facts.epoch,
        gpus=_sum(facts),
        waiting_pods=len(waiting),
        waiting_gpus=sum(pod.gpu_count for pod in waiting),
        oldest_unix_s=min((pod.made_unix_s for pod in waiting), default=None),
        limit_w=None if limit_w is None else _rounded(limit_w),
        granted_w=_rounded(facts.granted_w),
        reserved_w=_rounded(facts.reserved_w),
        conditions=(
            ready(facts),
            within_limit(facts),
            demand_served(facts, waiting, fits),
            drain_blocked(facts),
            agents_reporting(facts),
            gate_enforced(facts),
            curtailed(facts),
        ),
    )


def _rounded(watts: float) -> int:
    return round(watts / _ROUND_TO_W) * _ROUND_TO_W


def _sum(facts: PoolFacts) -> GpuCounts:
    each = [bank.gpus for bank in facts.banks]
    return GpuCounts(
        total=sum(gpus.total for gpus in each),
        inference=sum(gpus.inference for gpus in each),
        mining=sum(gpus.mining for gpus in each),
        standby=sum(gpus.standby for gpus in each),
        flipping=sum(gpus.flipping for gpus in each),
        unknown=sum(gpus.unknown for gpus in each),
    )


def ready(facts: PoolFacts) -> PoolCondition:
    """Return the condition Ready."""
    troubles = list(_troubles(facts))
    if not troubles:
        nodes = some([bank.node for bank in facts.banks], "node", "nodes")
        return PoolCondition(type="Ready", truth=Truth.TRUE, reason="Ready", message=f"pods are moved on {nodes}")
    reason, message = troubles[0]
    others = [other for other, _ in troubles[1:] if other != reason]
    if others:
        message += f". Besides: {', '.join(dict.fromkeys(others))}"
    return PoolCondition(type="Ready", truth=Truth.FALSE, reason=reason, message=message)


def _troubles(facts: PoolFacts) -> Iterator[_Trouble]:
    """Yield what keeps a pool from its work, what to mend first before the rest."""
    if facts.below_control:
        yield (
            "AuthorityTooLow",
            f"the site runs under authority {facts.below_control}: nothing is moved; swingctl authority set raises it",
        )
    if facts.unseen:
        kinds = ", ".join(facts.unseen)
        yield "ClusterUnseen", f"what is known of {kinds} is old: {next(iter(facts.unseen.values()))}"
    if not facts.banks:
        words = f'no bank of the site file has pool = "{facts.pool.name}": name it there, with its node, and restart the controller'
        yield "NoBank", words
    yield from _frozen(facts)
    if locked := [bank for bank in facts.banks if bank.lockout]:
        told = "; ".join(f"{bank.bank} by {bank.lockout}" for bank in locked[:3])
        yield (
            "LockedOut",
            f"hands are inside: {told}. Nobody works there until swingctl lockout lift says that they are out",
        )
    if refused := [bank for bank in facts.banks if Blindness.GPUS_UNSUPPORTED in bank.blind]:
        nodes = some([bank.node for bank in refused], "node", "nodes")
        yield "GpusUnsupported", f"{nodes}: {refused[0].blind[Blindness.GPUS_UNSUPPORTED]}"
    yield from _rejecting(facts)
    if without := [bank for bank in facts.banks if bank.no_miners]:
        yield "MinersNotMade", without[0].no_miners
    yield from _stranded(facts)
    if failed := [flip for bank in facts.banks for flip in bank.failed_flips]:
        words = (
            f"{some(failed, 'flip', 'flips')} failed: their GPUs stay counted in full and unused until they are read back where they "
            "shall be; swingctl flip show says what happened"
        )
        yield "FlipsFailed", words


def _frozen(facts: PoolFacts) -> Iterator[_Trouble]:
    told: dict[str, list[str]] = {}
    for bank in facts.banks:
        if bank.frozen:
            reason, _, words = bank.frozen.partition(": ")
            told.setdefault(reason, []).append(words)
    for reason, each in told.items():
        yield reason, each[0] + (f" (the same at {len(each) - 1} more nodes)" if len(each) > 1 else "")


def _rejecting(facts: PoolFacts) -> Iterator[_Trouble]:
    for bank in facts.banks:
        if bank.rejected is not None and bank.rejected.count >= REJECTIONS_UNTIL_FAILED:
            words = (
                f"node {bank.node} could not start {bank.rejected.count} pods in a row ({bank.rejected.reason}); it is tried again more "
                "and more seldom. Look at its kubelet and device plugin"
            )
            yield "NodeRejectsPods", words


def _stranded(facts: PoolFacts) -> Iterator[_Trouble]:
    """Yield pods that were let go and have no node: an owner would make them again, gated; without one only a person can help."""
    late = [
        (bank.node, pod)
        for bank in facts.banks
        for pod in bank.pods
        if pod.slot is None and pod.is_under_way and not pod.is_leaving and _age_s(pod, facts) > _UNSCHEDULABLE_AFTER_S
    ]
    orphans = [
        (node, pod) for node, pod in late if not pod.owner_uid and _age_s(pod, facts) > facts.pool.lift_deadline_s
    ]
    if orphans:
        told = some([f"{pod.ref} (node {node})" for node, pod in orphans], "pod", "pods")
        words = (
            f"{told} was let go, found no place, and nobody would make it again: its watts stay reserved. Delete it, or make room on "
            f"its node{_because(orphans[0][1])}"
        )
        yield "ReserveKept", words
    elif unplaced := [(node, pod) for node, pod in late if pod.unschedulable]:
        told = some([f"{pod.ref} (node {node})" for node, pod in unplaced], "pod", "pods")
        words = (
            f"{told} was let go and the scheduler finds no place{_because(unplaced[0][1])}. After spec.timing.liftDeadline it is evicted "
            "and waits again"
        )
        yield "PodUnschedulable", words


def _because(pod: ClusterPod) -> str:
    return f" ({pod.unschedulable})" if pod.unschedulable else ""


def _age_s(pod: ClusterPod, facts: PoolFacts) -> float:
    return 0.0 if pod.lifted_unix_s is None else facts.now_unix_s - pod.lifted_unix_s
