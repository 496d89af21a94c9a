"""Leaving: the last of these tests, for it takes away what the others stand on."""

from __future__ import annotations

import pytest

from swingbus_sim.cluster.processes import run
from tests.benchmarks.kube.ours import MINERS, SYSTEM
from tests.cluster.pods import lift_by_hand
from tests.cluster.traps.site import CUSTOMERS, PLAN, STILL, TrapSite
from tests.cluster.traps.work import ON_QUIET, deployment, is_gated, make, pod, spec

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
FULL = PLAN.gpus_per_node


def test_leaving_in_the_pages_order_leaves_no_pod_gated(site: TrapSite) -> None:
    """Our controller still runs: no new gates, old ones lifted by hand, then guard, rights, pools, definition go. Servers serve on."""
    make(site, deployment("stays", FULL, spec(on=ON_QUIET)))
    serving = {each["metadata"]["uid"] for each in site.wait_working("stays", FULL)}
    make(site, pod("gated", spec(on=ON_QUIET)))
    site.wait_condition(STILL, "DemandServed", "Full", "customers/gated")

    site.cluster.kubectl("delete", "mutatingadmissionpolicybinding", "swingbus-inject-gate")
    for each in site.pods():
        if is_gated(each):
            lift_by_hand(site.cluster, CUSTOMERS, each["metadata"]["name"])
    helm = (str(site.cluster.tools.path("helm")), f"--kubeconfig={site.cluster.kubeconfig}")
    run((*helm, "uninstall", "swingbus", "-n", SYSTEM, "--wait"), timeout_s=120.0)
    site.cluster.kubectl("delete", "crd", "capacitypools.swingbus.io", "--timeout=60s")

    site.wait(lambda: not site.pods(MINERS), "the pools' miners are gone")
    site.wait_mining(0)
    assert {each["metadata"]["uid"] for each in site.working("stays")} == serving
    make(site, pod("free", {**spec(), "nodeSelector": {"kubernetes.io/hostname": PLAN.nodes[0]}}))
    site.wait_working("free")
    assert not [each for each in site.pods(CUSTOMERS) if is_gated(each)]
