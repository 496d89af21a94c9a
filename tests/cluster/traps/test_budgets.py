"""Disruption budgets and rolling updates: what gated replicas do to both, and what the pool says of it."""

from __future__ import annotations

import pytest

from swingbus.faults import OverBudget
from tests.cluster.traps.site import PLAN, STILL, TrapSite
from tests.cluster.traps.work import (
    ON_GRID,
    ON_QUIET,
    budget,
    delete,
    deployment,
    evict,
    make,
    place,
    scale,
    spec,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
FULL = PLAN.gpus_per_node


def allowed(site: TrapSite, name: str) -> int:
    """Return how many disruptions a budget allows, -1 before it was counted."""
    status = site.cluster.api.get(f"{place('PodDisruptionBudget')}/{name}").get("status", {})
    return int(status.get("disruptionsAllowed", -1)) if status.get("expectedPods") else -1


def test_gated_replica_blocks_max_unavailable_and_nobody_of_ours_pushes(site: TrapSite) -> None:
    """Four serve, a fifth is gated: `maxUnavailable: 1` allows nothing, a drain gets 429. Our own drain leaves such a workload alone."""
    make(site, deployment("capped", FULL, spec(on=ON_QUIET)))
    first, *_ = site.wait_working("capped", FULL)
    make(site, budget("capped", maxUnavailable=1))
    site.wait(lambda: allowed(site, "capped") == 1, "the budget was counted")
    scale(site, "capped", FULL + 1)
    site.wait(lambda: allowed(site, "capped") == 0, "the gated replica counts as missing")
    with pytest.raises(OverBudget, match="capped"):
        evict(site, first["metadata"]["name"])
    # What the page tells users to write counts only who serves: one may go. Ours is not the hand that takes it.
    delete(site, "PodDisruptionBudget", "capped")
    make(site, budget("capped", minAvailable=FULL - 1))
    site.wait(lambda: allowed(site, "capped") == 1, "an integer minAvailable allows one")
    site.set_pool(STILL, mode="Drain")
    try:
        site.wait_condition(STILL, "DemandServed", "PoolNotReady", "Drain")
        assert not [seen for seen in site.lives("capped") if seen.ending_s]
        # Without the gated sibling there is nothing to spare it for.
        scale(site, "capped", FULL)
        site.wait(lambda: any(seen.ending_s for seen in site.lives("capped") if seen.bound_s), "one is asked to leave")
    finally:
        site.set_pool(STILL, mode="Auto")
    site.wait_working("capped", FULL, timeout_s=120.0)


def test_budget_that_keeps_a_pod_is_named_until_it_lets_go(site: TrapSite) -> None:
    """A draining pool asks, the budget says no: DrainBlocked names budget and pod, the pod serves on (onBlocked: Cap)."""
    make(site, deployment("kept", 2, spec(on=ON_QUIET)))
    site.wait_working("kept", 2)
    make(site, budget("kept", minAvailable=2))
    site.wait(lambda: allowed(site, "kept") == 0, "the budget was counted")
    site.set_pool(STILL, mode="Drain")
    try:
        message = site.wait_condition(STILL, "DrainBlocked", "BudgetKeepsPods", "customers/kept")
        assert "minAvailable" in message
        assert len(site.working("kept")) == 2
        delete(site, "PodDisruptionBudget", "kept")
        delete(site, "Deployment", "kept")
        site.wait_condition(STILL, "DrainBlocked", "NothingBlocked")
    finally:
        site.set_pool(STILL, mode="Auto")


def rolled(site: TrapSite, name: str, replicas: int) -> bool:
    """Return whether a deployment's newest template has all its replicas ready, and no older one has any."""
    status = site.cluster.api.get(f"{place('Deployment')}/{name}").get("status", {})
    counts = [status.get(key, 0) for key in ("updatedReplicas", "readyReplicas", "replicas")]
    return counts == [replicas] * 3 and status.get("observedGeneration", 0) > 1


def change_template(site: TrapSite, name: str) -> None:
    """Let a deployment roll."""
    template = {"metadata": {"annotations": {"traps/changed": "yes"}}}
    site.cluster.api.merge(f"{place('Deployment')}/{name}", {"spec": {"template": template}})


def test_rolling_update_without_surge_goes_through_on_a_full_node(site: TrapSite) -> None:
    """One leaves, its place goes to the next: no GPU more is ever needed."""
    make(site, deployment("rolls", FULL, spec(on=ON_QUIET), surge=0, unavailable=2))
    site.wait_working("rolls", FULL)
    change_template(site, "rolls")
    site.wait(lambda: rolled(site, "rolls", FULL), "the update is done", timeout_s=120.0)
    site.wait_working("rolls", FULL)


def test_rolling_update_with_a_surge_waits_where_nothing_is_left(site: TrapSite) -> None:
    """The surge pod gets no watts on a full node: it waits, is told why, and everybody who serves goes on serving."""
    make(site, deployment("surges", FULL, spec(on=ON_QUIET), surge=1, unavailable=0))
    serving = {each["metadata"]["uid"] for each in site.wait_working("surges", FULL)}
    change_template(site, "surges")
    site.wait_condition(STILL, "DemandServed", "Full", "customers/surges")
    assert {each["metadata"]["uid"] for each in site.working("surges")} == serving


def test_rolling_update_with_a_surge_goes_through_where_miners_can_leave(site: TrapSite) -> None:
    """Where there are watts for one more, a miner makes room for the surge, and comes back."""
    site.wait_mining()
    make(site, deployment("moves", 2, spec(on=ON_GRID), surge=1, unavailable=0))
    site.wait_working("moves", 2)
    change_template(site, "moves")
    site.wait(lambda: rolled(site, "moves", 2), "the update is done", timeout_s=120.0)
    scale(site, "moves", 0)
    site.wait_mining()
