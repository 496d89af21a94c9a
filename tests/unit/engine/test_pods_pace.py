"""A pool's `maxFlipsPerMinute` in virtual time: demand is served no faster, and it is served."""

from __future__ import annotations

from dataclasses import replace

from tests.fakes.pod_site import POOL, settled_pod_site


def test_pool_flips_no_faster_than_it_allows() -> None:
    """Four are wanted, two may flip a minute: two come, and two a minute later."""
    site = settled_pod_site(pool=replace(POOL, flips_per_minute=8), mining=5)
    site.run(70)  # what brought the miners up is a minute ago
    site.cluster.state.see_pool(replace(POOL, flips_per_minute=2, generation=2))
    site.cluster.deploy("chat", 4)
    began_s = site.clock.s
    assert site.run(60, lambda: site.cluster.ready_count("chat") == 2), site.explain()
    site.run(max(0.0, began_s + 55.0 - site.clock.s))
    assert site.cluster.ready_count("chat") == 2, "no third within the minute"
    assert site.run(60, lambda: site.cluster.ready_count("chat") == 4), site.explain()
    site.verdicts.assert_clean()
    site.close()
