"""The conditions of a pool but DemandServed and Ready: each a pure function of what is known of it.

Decides whether each holds and which one of its reasons is told: what, where, and what to do next. Invariant: a message holds no figure
that moves with every sample, or the status would be written for ever.
"""

from __future__ import annotations

from datetime import UTC, datetime

from swingbus_controller.domain.cluster.facts import ClusterPod, OnBlocked
from swingbus_controller.domain.cluster.pool_facts import Blindness, PoolFacts
from swingbus_controller.domain.cluster.pool_words import PoolCondition, Truth
from swingbus_controller.domain.cluster.wording import kilowatts, some

_NO_BANK = "no bank of the site file names this pool"


def within_limit(facts: PoolFacts) -> PoolCondition:
    """Return the condition WithinLimit."""
    name = "WithinLimit"
    if not facts.banks:
        return PoolCondition(type=name, truth=Truth.UNKNOWN, reason="NoBank", message=_NO_BANK)
    if over := [bank for bank in facts.banks if bank.is_overdrawing]:
        banks = some([bank.bank for bank in over], "bank", "banks")
        words = f"by the meter, {banks} draws more than was ever granted: swingctl events list says who; where it goes on, cut its supply"
        return PoolCondition(type=name, truth=Truth.FALSE, reason="DrawsTooMuch", message=words)
    if full := [feeder for feeder in facts.feeders if feeder.excess_w > 0.0]:
        told = (f"{f.feeder} (limit {_limit(f.limit_w)})" for f in full)
        words = (
            f"what may be drawn is above the limit of feeder {', '.join(told)}; load is being shed. Where that lasts, swingctl feeder list "
            "shows what holds it up"
        )
        return PoolCondition(type=name, truth=Truth.FALSE, reason="OverLimit", message=words)
    limit = next((f"{f.feeder} to {_limit(f.limit_w)}" for f in facts.feeders if f.limit_w is not None), "none")
    words = f"all that may be drawn fits the limits above it; the nearest: {limit}"
    return PoolCondition(type=name, truth=Truth.TRUE, reason="WithinLimit", message=words)


def _limit(watts: float | None) -> str:
    return "none" if watts is None else kilowatts(watts)


def drain_blocked(facts: PoolFacts) -> PoolCondition:
    """Return the condition DrainBlocked."""
    if not facts.blocked:
        return PoolCondition(
            type="DrainBlocked", truth=Truth.FALSE, reason="NothingBlocked", message="no budget keeps a pod"
        )
    if facts.pool.on_blocked is OnBlocked.DELETE and (kept := _not_deleted(facts)):
        return kept
    several = [str(ref) for ref, blocked in facts.blocked.items() if blocked.is_for_ever]
    if several:
        until = "; at evictDeadline it is deleted" if facts.pool.on_blocked is OnBlocked.DELETE else ""
        words = (
            f"{some(several, 'pod', 'pods')}: several disruption budgets select it, and such a pod is never evicted{until}; make their "
            "selectors differ"
        )
        return PoolCondition(type="DrainBlocked", truth=Truth.TRUE, reason="SeveralBudgets", message=words)
    by_budget: dict[str, list[str]] = {}
    for ref, blocked in sorted(facts.blocked.items(), key=lambda pair: pair[0].key):
        budget = f"budget {ref.namespace}/{blocked.budget}" if blocked.budget else f"a budget in {ref.namespace}"
        by_budget.setdefault(f"{budget} ({blocked.detail})" if blocked.detail else budget, []).append(str(ref))
    told = "; ".join(f"{budget} keeps {some(pods, 'pod', 'pods')}" for budget, pods in by_budget.items())
    words = f"{told}. Add replicas, or give the budget an integer minAvailable below the replicas: gated pods count as unhealthy"
    return PoolCondition(type="DrainBlocked", truth=Truth.TRUE, reason="BudgetKeepsPods", message=words)


def _not_deleted(facts: PoolFacts) -> PoolCondition | None:
    refused = {ref: blocked for ref, blocked in facts.blocked.items() if blocked.why_not_deleted}
    if not refused:
        return None
    pods = sorted(refused, key=lambda ref: ref.key)
    first = refused[pods[0]]
    budget = f"budget {pods[0].namespace}/{first.budget}" if first.budget else "a budget"
    words = (
        f"{budget} keeps {some([str(ref) for ref in pods], 'pod', 'pods')}, the pool says onBlocked: Delete, and we may not delete: "
        f"{first.why_not_deleted}. Set controller.mayDeletePods=true in the chart's values, or onBlocked to Cap or Wait"
    )
    return PoolCondition(type="DrainBlocked", truth=Truth.TRUE, reason="DeleteForbidden", message=words)


def agents_reporting(facts: PoolFacts) -> PoolCondition:
    """Return the condition AgentsReporting."""
    name = "AgentsReporting"
    if not facts.banks:
        return PoolCondition(type=name, truth=Truth.UNKNOWN, reason="NoBank", message=_NO_BANK)
    if silent := [bank for bank in facts.banks if bank.is_silent]:
        words = (
            f"{some([f'{bank.agent} (node {bank.node})' for bank in silent], 'agent', 'agents')} not heard: what the GPUs there "
            "may draw stays counted and nothing is moved there; look at the agent's pod and at swingctl agent list"
        )
        return PoolCondition(type=name, truth=Truth.FALSE, reason="AgentSilent", message=words)
    if blind := [bank for bank in facts.banks if Blindness.KUBELET_SILENT in bank.blind]:
        words = (
            f"{some([bank.node for bank in blind], 'node', 'nodes')}: nobody can say who holds the GPUs, so none counts as free: "
            f"{blind[0].blind[Blindness.KUBELET_SILENT]}"
        )
        return PoolCondition(type=name, truth=Truth.FALSE, reason="KubeletSilent", message=words)
    words = f"{len(facts.banks)} of {len(facts.banks)} agents report"
    return PoolCondition(type=name, truth=Truth.TRUE, reason="AllReport", message=words)


def gate_enforced(facts: PoolFacts) -> PoolCondition:
    """Return the condition GateEnforced: whether whoever works on the pool's GPUs was let go by us."""
    name = "GateEnforced"
    uninvited = [(bank.node, pod) for bank in facts.banks for pod in bank.pods if not _was_let_go(pod, facts)]
    if uninvited:
        statics = [pair for pair in uninvited if pair[1].owner_kind == "Node"]
        told = [f"{pod.ref} (node {node})" for node, pod in statics or uninvited]
        words = (
            f"{some(told, 'pod', 'pods')} run without having been let go by Swingbus; they are charged at the agent. "
            + (
                "They are static: no policy holds them; take GPUs out of the node's manifests"
                if statics
                else "Enrol the namespace and delete them, so that they come back behind the gate"
            )
        )
        reason = "StaticPods" if statics else "UngatedPods"
        return PoolCondition(type=name, truth=Truth.FALSE, reason=reason, message=words)
    if unnamed := [(bank.node, words) for bank in facts.banks for words in bank.unnamed]:
        words = (
            f"something that no pod names works on {len(unnamed)} units of GPUs. Node {unnamed[0][0]}: {unnamed[0][1]}. Find it with "
            "nvidia-smi on the node; its GPUs are used for nothing else"
        )
        return PoolCondition(type=name, truth=Truth.FALSE, reason="UnnamedProcess", message=words)
    words = "every pod on these GPUs was let go, or made, by Swingbus"
    return PoolCondition(type=name, truth=Truth.TRUE, reason="AllLetGo", message=words)


def _was_let_go(pod: ClusterPod, facts: PoolFacts) -> bool:
    if pod.slot is not None and pod.miner_pool == facts.pool.name:
        return True
    return not pod.node or pod.lifted_unix_s is not None or bool(pod.flip)


def curtailed(facts: PoolFacts) -> PoolCondition:
    """Return the condition Curtailed."""
    now = [order for order in facts.curtailments if order.state != "SCHEDULED"]
    if now:
        is_met = all(order.state == "CURTAILED" for order in now)
        told = (f"{o.id}: feeder {o.feeder} to {kilowatts(o.limit_w)} until {_time(o.until_unix_s)}" for o in now)
        words = "; ".join(told)
        reason = "Met" if is_met else "Shedding"
        return PoolCondition(type="Curtailed", truth=Truth.TRUE, reason=reason, message=words)
    if facts.curtailments:
        told = (f"{o.id}: feeder {o.feeder} to {kilowatts(o.limit_w)}" for o in facts.curtailments)
        words = f"announced, not begun: {'; '.join(told)}"
        return PoolCondition(type="Curtailed", truth=Truth.FALSE, reason="Announced", message=words)
    return PoolCondition(
        type="Curtailed", truth=Truth.FALSE, reason="NotCurtailed", message="no curtailment is ordered"
    )


def _time(at_unix_s: float) -> str:
    return datetime.fromtimestamp(at_unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
