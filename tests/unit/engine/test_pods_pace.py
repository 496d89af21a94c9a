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


def test_pods_that_come_one_after_the_other_are_planned_for_together() -> None:
    """While a pod more comes in each round, 50 ms apart: the first is planned for at once, the others together, soon after."""
    site = settled_pod_site(mining=8)

    def planned_in(rounds: int, *, coming_count: int) -> list[int]:
        planned = site.engine.plan
        assert site.run(10, lambda: site.engine.plan is not planned)
        site.run(2)
        newest, here_count, seen = site.engine.plan, len(site.cluster.pods_of("chat")), []
        for number in range(1, rounds + 1):
            site.cluster.deploy("chat", here_count + min(number, coming_count))
            site.clock.s += 0.05
            site.cluster.step()
            site.engine.tick(site.clock.s, site.clock.now().timestamp())
            if site.engine.plan is not newest:
                newest = site.engine.plan
                seen.append(number)
        return seen

    assert planned_in(12, coming_count=1) == [1]
    site.run(30)
    assert planned_in(12, coming_count=3) == [1, 4]
    assert len({flip.pod for flip in site.state.open_flips()}) == 3
    site.run(30)
    assert len(planned_in(20, coming_count=20)) in (3, 4)
    site.close()


def test_pods_that_come_in_one_round_wait_for_one_more() -> None:
    """A scaled workload's first pods: those on their way are planned for with them, at the next look that shows no more."""
    site = settled_pod_site(mining=8)

    def round_plans() -> bool:
        before = site.engine.plan
        site.clock.s += 0.05
        site.cluster.step()
        site.engine.tick(site.clock.s, site.clock.now().timestamp())
        return site.engine.plan is not before

    planned = site.engine.plan
    assert site.run(10, lambda: site.engine.plan is not planned)
    site.run(2)
    site.cluster.deploy("chat", 2)
    assert not round_plans()
    site.cluster.deploy("chat", 5)
    assert not round_plans()
    assert round_plans()
    assert len({flip.pod for flip in site.state.open_flips()}) == 5
    site.close()
