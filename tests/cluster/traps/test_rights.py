"""The controller's rights are enough and no more, by the API server's own record of what it asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swingbus_sim.cluster.processes import run
from tests.benchmarks.kube.ours import CHART, MINERS, SYSTEM
from tests.cluster.rights import asked, covers, granted
from tests.cluster.traps.site import STILL, TrapSite
from tests.cluster.traps.work import ON_GRID, ON_QUIET, budget, delete, deployment, make, scale, spec

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
_PAGE = Path(__file__).parents[3] / "docs" / "kubernetes.md"
# The head of the page's table of what is granted though these flows do not need it, each with its reason.
_KEPT = "| not used in every run |"


def documented() -> set[tuple[str, str]]:
    """Return (verb, resource) of what the page keeps although not every run needs it."""
    table = _PAGE.read_text(encoding="utf-8").partition(_KEPT)[2].partition("\n\n")[0]
    return set(re.findall(r"^\| `(\w+) (\S+)` \|", table, re.MULTILINE))


def test_every_right_is_used_and_none_is_missing(site: TrapSite) -> None:
    """Both ways through a flip, a drain, a budget that says no: all that was asked for is allowed, all that is allowed was asked for."""
    # Tests before this one may have taken rights away: what is refused from here on counts, from the controller's start.
    known_bytes = site.cluster.layout.audit_log.stat().st_size
    site.controller.stop()
    site.controller.start()
    site.wait_mining()
    make(site, deployment("comes", 2, spec(on=ON_GRID)))
    site.wait_working("comes", 2)
    scale(site, "comes", 0)
    site.wait_mining()
    make(site, deployment("stays", 2, spec(on=ON_QUIET)))
    site.wait_working("stays", 2)
    try:
        site.set_pool(STILL, mode="Drain")
        site.wait(lambda: any(seen.ending_s for seen in site.lives("stays") if seen.bound_s), "one is asked to leave")
        site.set_pool(STILL, mode="Auto")
        site.wait_working("stays", 2)
        make(site, budget("stays", minAvailable=2))
        site.set_pool(STILL, mode="Drain")
        site.wait_condition(STILL, "DrainBlocked", "BudgetKeepsPods", "customers/stays")
    finally:
        site.set_pool(STILL, mode="Auto")
        delete(site, "PodDisruptionBudget", "stays")
    log = site.cluster.layout.audit_log
    rights, requests = set(granted(site.cluster.api, SYSTEM, "swingbus-controller")), asked(log)
    assert {right.namespace for right in rights} == {"", MINERS, SYSTEM}
    refused = sorted({(r.verb, r.resource, r.namespace) for r in asked(log, after_bytes=known_bytes) if r.is_forbidden})
    assert not refused, f"asked for without a right: {refused}"
    unused = {right for right in rights if not any(covers(right, request) for request in requests)}
    assert {(right.verb, right.resource) for right in unused} <= documented(), sorted(unused)
    assert documented() <= {(right.verb, right.resource) for right in rights}


# Below the test of what is asked for without a right: this one asks so.


def test_pod_that_a_budget_keeps_is_deleted_where_the_chart_allows_it(site: TrapSite) -> None:
    """onBlocked: Delete. Without controller.mayDeletePods both pods serve on and the pool names the value; with it they leave for good."""
    program = (str(site.cluster.tools.path("helm")), f"--kubeconfig={site.cluster.kubeconfig}")
    upgrade = (*program, "upgrade", "swingbus", str(CHART), "-n", SYSTEM, "--reset-values")
    make(site, deployment("overruled", 2, spec(on=ON_QUIET)))
    first = {each["metadata"]["uid"] for each in site.wait_working("overruled", 2)}
    make(site, budget("overruled", minAvailable=2))
    site.set_pool(STILL, inference={"onBlocked": "Delete"}, mode="Drain")
    try:
        message = site.wait_condition(STILL, "DrainBlocked", "DeleteForbidden", "customers/overruled")
        assert "controller.mayDeletePods=true" in message and 'cannot delete resource "pods"' in message, message
        assert {each["metadata"]["uid"] for each in site.working("overruled")} == first
        run((*upgrade, "--set", "controller.mayDeletePods=true"), timeout_s=120.0)
        site.wait(lambda: not site.working("overruled"), "both have left", timeout_s=120.0)
        assert {seen.uid for seen in site.lives("overruled") if seen.ending_s} >= first
        site.wait_condition(STILL, "DrainBlocked", "NothingBlocked")
        told = site.events("DeletedOverBudget")
        assert len(told) == 2 and all("customers/overruled kept it" in each for each in told), told
    finally:
        site.set_pool(STILL, inference={"onBlocked": "Cap"}, mode="Auto")
        delete(site, "PodDisruptionBudget", "overruled")
        run(upgrade, timeout_s=120.0)
    site.wait_working("overruled", 2, timeout_s=120.0)
