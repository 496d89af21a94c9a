"""Wrong input of operators: pools that contradict each other or the site file, caps that fit nothing, a node or a template that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from swingbus_sim.cluster import kwok
from tests.benchmarks.kube.cluster import CONTAINER, CONTAINER_LABEL, PRODUCT, PRODUCT_LABEL
from tests.benchmarks.kube.ours import MINERS, TEMPLATE
from tests.cluster.traps.site import (
    GRID,
    MINING_GPUS,
    MINING_NODES,
    PART_LABEL,
    PLAN,
    POOLS,
    QUIET,
    STILL,
    TrapSite,
    pool_body,
)
from tests.cluster.traps.work import ON_QUIET, delete, deployment, is_gated, make, pod, spec

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_two_pools_on_a_node_freeze_it_and_nothing_else(site: TrapSite) -> None:
    """Nobody is let go there and both pools' names are told; the other nodes work on. One pool less, and who waits is served."""
    both = pool_body("rival", is_mining=False, nodeSelector={CONTAINER_LABEL: CONTAINER, PART_LABEL: STILL})
    site.cluster.api.create(POOLS, both)
    try:
        message = site.wait_condition(STILL, "Ready", "PoolsOverlap", QUIET)
        assert "rival" in message and STILL in message
        site.wait_condition("rival", "Ready", "NoBank", "rival")
        make(site, pod("contested", spec(on=ON_QUIET)))
        site.wait_condition(STILL, "DemandServed", "PoolNotReady", "customers/contested")
        assert site.condition(GRID, "Ready")[0] == "True"
        contested = site.pod("contested")
        assert contested is not None and is_gated(contested)
    finally:
        site.cluster.api.delete(f"{POOLS}/rival")
    site.wait_working("contested")
    site.wait_condition(STILL, "Ready", "Ready")


@contextmanager
def other_pool(standing: TrapSite, changes: dict[str, Any]) -> Iterator[None]:
    """Have another pool under the quiet node's name: what it says of its place never changes, so it is made anew."""
    path = f"{POOLS}/{STILL}"
    api = standing.cluster.api
    api.delete(path)
    api.create(POOLS, pool_body(STILL, is_mining=False, **changes))
    try:
        yield
    finally:
        api.delete(path)
        api.create(POOLS, pool_body(STILL, is_mining=False))


@pytest.mark.parametrize(
    ("changes", "reason", "word"),
    [
        ({"site": "elsewhere"}, "SiteDiffers", "elsewhere"),
        ({"container": "another"}, "ContainerDiffers", "another"),
        ({"nodeSelector": {PART_LABEL: "none"}}, "NodeNotSelected", QUIET),
    ],
)
def test_pool_that_is_not_what_the_site_file_means_moves_nothing(
    site: TrapSite, changes: dict[str, Any], reason: str, word: str
) -> None:
    """Its reason says what differs; who serves there serves on. Right again, it works."""
    make(site, deployment("steady", 1, spec(on=ON_QUIET)))
    (steady,) = site.wait_working("steady")
    with other_pool(site, changes):
        site.wait_condition(STILL, "Ready", reason, word)
        assert site.working("steady")[0]["metadata"]["uid"] == steady["metadata"]["uid"]
    site.wait_condition(STILL, "Ready", "Ready")


def test_pool_that_is_deleted_and_made_again_is_taken_up(site: TrapSite) -> None:
    """Its miners are its own and go with it, by Kubernetes' own hand; made again, it mines again. Nothing starts in between."""
    site.wait_mining()
    site.cluster.api.delete(f"{POOLS}/{GRID}")
    site.wait(lambda: not site.pods(MINERS), "its miners are gone")
    site.wait_mining(0)
    site.cluster.api.create(POOLS, pool_body(GRID, is_mining=True))
    site.wait_mining(MINING_GPUS)
    site.wait_condition(GRID, "Ready", "Ready")


def test_caps_below_every_operating_point_let_nobody_in_and_say_so(site: TrapSite) -> None:
    """100 W per GPU is less than any point of this class: the pod waits with a reason; with caps that hold one it is served."""
    site.set_pool(STILL, caps={"inference": 100})
    try:
        make(site, pod("starved", spec(on=ON_QUIET)))
        told = site.wait_condition(STILL, "DemandServed", "NoFit", "caps.inference")
        assert "customers/starved" in told
    finally:
        site.set_pool(STILL, caps={"inference": 700})
    site.wait_working("starved")


def test_node_that_vanished_is_told_and_taken_back(site: TrapSite) -> None:
    """Its object is deleted: nothing is moved there, who wants it waits. It joins again under its name and serves."""
    site.cluster.api.delete(f"/api/v1/nodes/{QUIET}")
    try:
        site.wait_condition(STILL, "Ready", "NodeMissing", QUIET)
        make(site, pod("waits", spec(on=ON_QUIET)))
        site.wait(lambda: site.condition(STILL, "DemandServed")[0] == "False", "the pool says that it is not served")
        waits = site.pod("waits")
        assert waits is not None and is_gated(waits)
    finally:
        labels = {PRODUCT_LABEL: PRODUCT, CONTAINER_LABEL: CONTAINER, PART_LABEL: STILL}
        site.cluster.api.create("/api/v1/nodes", kwok.node(QUIET, gpu_count=PLAN.gpus_per_node, labels=labels))
    site.wait_working("waits")
    site.wait_condition(STILL, "Ready", "Ready")


def test_template_that_is_gone_is_named_and_mining_goes_on_where_it_runs(site: TrapSite) -> None:
    """A miner dies and cannot be made again: the pool names the template. Back, the slot is filled."""
    site.wait_mining()
    path = f"/api/v1/namespaces/{MINERS}/podtemplates"
    template = site.cluster.api.get(f"{path}/{TEMPLATE}")
    site.cluster.api.delete(f"{path}/{TEMPLATE}")
    try:
        delete(site, "Pod", f"miner-{MINING_NODES[0]}-0", MINERS)
        site.wait_condition(GRID, "Ready", "MinersNotMade", TEMPLATE)
        assert site.nodes.count("mining") == MINING_GPUS - 1
    finally:
        fresh = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": TEMPLATE}}
        site.cluster.api.create(path, {**fresh, "template": template["template"]})
    site.wait_mining(timeout_s=90.0)
    site.wait_condition(GRID, "Ready", "Ready")
