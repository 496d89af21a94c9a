"""A bank is held for a pod that does not fit yet: what gets free there one by one is not given away, but not for ever."""

from __future__ import annotations

from swingbus_controller.app.pod_places import _HOLD_S
from tests.fakes.pod_site import GPUS, PodSite, settled_pod_site


def full_site() -> PodSite:
    """Return a site whose nodes each serve one workload on all their GPUs, with a large pod first in line and small ones behind it."""
    site = settled_pod_site(mining=5)
    for name, node in (("one", "gpu1"), ("two", "gpu2")):
        site.cluster.deploy(name, GPUS, selector={"kubernetes.io/hostname": node})
    assert site.run(200, lambda: site.tenants()["llm"] == 2 * GPUS and site.is_quiet()), site.explain()
    site.cluster.deploy("big", 1, gpu_count=GPUS, priority=10)
    site.cluster.deploy("late", GPUS)
    site.run(5)
    return site


def let_go_one_by_one(site: PodSite, count: int) -> None:
    """Scale the workloads of both nodes down, a pod of each every half minute."""
    for left in range(GPUS - 1, GPUS - 1 - count, -1):
        for name in ("one", "two"):
            site.cluster.deploy(name, left)
        site.run(30)


def test_gpus_that_get_free_one_by_one_are_kept_together_on_one_node() -> None:
    """On one node the small ones come as places get free; the other is held until the large one fits."""
    site = full_site()
    let_go_one_by_one(site, GPUS)
    assert site.run(120, lambda: site.cluster.ready_count("big") == 1), site.explain()
    assert site.run(120, lambda: site.cluster.ready_count("late") == GPUS), site.explain()
    assert not site.cluster.evicted
    site.verdicts.assert_clean()
    site.close()


def test_nobody_waits_for_ever_behind_a_pod_that_never_fits() -> None:
    """Half of a node stays taken: after ten minutes its other half is given to those who fit."""
    site = full_site()
    site.cluster.deploy("one", GPUS // 2)
    site.run(60)
    assert site.cluster.ready_count("late") == 0
    assert site.run(_HOLD_S + 60, lambda: site.cluster.ready_count("late") == GPUS // 2), site.explain()
    assert site.cluster.ready_count("big") == 0
    site.verdicts.assert_clean()
    site.close()


def test_pods_that_never_fit_do_not_take_turns() -> None:
    """A second one comes when the first's ten minutes are over: those that fit are not kept waiting for it at once."""
    site = full_site()
    site.cluster.deploy("late", 0)
    site.cluster.deploy("one", GPUS // 2)
    site.run(_HOLD_S + 60)
    site.cluster.deploy("second", 1, gpu_count=GPUS, priority=10)
    site.run(5)
    site.cluster.deploy("late", 1)
    assert site.run(60, lambda: site.cluster.ready_count("late") == 1), site.explain()
    assert site.cluster.ready_count("big") == site.cluster.ready_count("second") == 0
    site.verdicts.assert_clean()
    site.close()


def test_pod_that_never_fits_and_is_made_again_gets_no_new_ten_minutes() -> None:
    """It is deleted and made anew just before its ten minutes are over: those that fit come when they are."""
    site = full_site()
    site.cluster.deploy("late", 0)
    site.cluster.deploy("one", GPUS // 2)
    site.run(_HOLD_S - 30)
    site.cluster.deploy("big", 0)
    site.run(5)
    site.cluster.deploy("big", 1, gpu_count=GPUS, priority=10)
    site.run(5)
    site.cluster.deploy("late", 1)
    site.run(10)
    assert site.cluster.ready_count("late") == 0
    assert site.run(60, lambda: site.cluster.ready_count("late") == 1), site.explain()
    site.verdicts.assert_clean()
    site.close()
