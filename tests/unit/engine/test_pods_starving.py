"""A big pod that is first in line, small ones that keep coming behind it, and GPUs that get free one at a time: it gets its node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.fakes.pod_site import GPUS, POOL, PodSite

MakeSite = Callable[..., PodSite]
EVERY_S = 25


def full_site(pod_site: MakeSite, *, is_spread: bool, dwell_s: float, priority: int) -> PodSite:
    """Return a site whose GPUs all serve, on each node a workload of its own or one workload on both; a big pod is first in line."""
    site = pod_site(pool=replace(POOL, dwell_mining_s=dwell_s, dwell_inference_s=dwell_s))
    if is_spread:
        site.cluster.deploy("one", 2 * GPUS)
    else:
        for name, node in (("one", "gpu1"), ("two", "gpu2")):
            site.cluster.deploy(name, GPUS, selector={"kubernetes.io/hostname": node})
    assert site.run(300, lambda: site.tenants()["llm"] == 2 * GPUS and site.is_quiet()), site.explain()
    site.cluster.deploy("big", 1, gpu_count=GPUS, priority=priority)
    site.run(5)
    return site


@pytest.mark.parametrize("priority", [0, 10])
@pytest.mark.parametrize("dwell_s", [10.0, 60.0])
@pytest.mark.parametrize("is_spread", [False, True])
def test_small_pods_that_keep_coming_do_not_starve_a_big_one(
    pod_site: MakeSite, is_spread: bool, dwell_s: float, priority: int
) -> None:
    """A workload is made smaller by one pod every 25 s, a small pod comes every 5 s: the big one is served within ten minutes."""
    site = full_site(pod_site, is_spread=is_spread, dwell_s=dwell_s, priority=priority)
    left, coming = site.cluster.workloads["one"].replicas, 0

    def is_served() -> bool:
        return site.cluster.ready_count("big") == 1

    for second in range(600):
        if second % EVERY_S == 0 and left > 0:
            left -= 1
            site.cluster.deploy("one", left)
        if second % 5 == 0:
            coming += 1
            site.cluster.deploy("late", coming)
        if site.run(1, is_served):
            break
    assert is_served(), site.explain()
    assert not site.cluster.evicted
    site.assert_right()
