"""Places of inference that nobody has or asks for: their watts go where somebody earns with them, but for what is configured to be kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from swingbus_controller.domain.fleet.orders import Mode
from swingbus_controller.domain.flips.flip import Flip, Phase
from swingbus_controller.domain.planning.policy import Policy
from swingbus_controller.domain.site.sitefile import SiteFile
from tests.fakes.pod_site import POOL, PodAgent, PodSite, make_pod_site

MakeSite = Callable[..., PodSite]
# So full that serving GPUs keep a machine of the other container from mining.
FULL_W = 40_000.0
NOT_MINING = replace(POOL, is_mining_enabled=False)


def site_file(*, has_caps: bool = True, **policy: Any) -> SiteFile:
    """Return a full site whose GPUs and prices are as restless as by default: idle capacity is worth keeping for its own sake."""
    site = make_pod_site(limit_w=FULL_W, has_caps=has_caps)
    restless = {name: getattr(Policy(), name) for name in ("power_price_variance", "inference_margin_variance")}
    return replace(site, policy=replace(site.policy, **restless, **policy))


def serving_count(site: PodSite) -> int:
    """Return how many places of inference there are, whoever is there."""
    held = [site.state.holdings[bank] for bank in ("gpu1/gpus", "gpu2/gpus")]
    return sum(p.count for holdings in held for p in holdings.placements if p.point.startswith("serve"))


def asics_count(site: PodSite) -> int:
    """Return how many machines truly mine."""
    return site.count("edge1/asics", Mode.MINING)


def served(site: PodSite, count: int) -> None:
    """Have so many pods served."""
    site.cluster.deploy("web", count)
    assert site.run(300, lambda: site.tenants()["llm"] == count and site.is_quiet()), site.explain()


@pytest.mark.parametrize("left", [0, 3])
@pytest.mark.parametrize("has_caps", [True, False])
def test_watts_of_places_that_nobody_asks_for_go_to_mining(pod_site: MakeSite, left: int, has_caps: bool) -> None:
    """A pool that does not mine: when pods are gone and their dwell is over, a machine elsewhere mines with their watts."""
    site = pod_site(site_file(has_caps=has_caps), pool=NOT_MINING)
    before = asics_count(site)
    served(site, 8)
    assert asics_count(site) == before - 1
    site.cluster.deploy("web", left)

    def is_back() -> bool:
        return (serving_count(site), asics_count(site)) == (left, before) and site.is_quiet()

    assert site.run(200, is_back), site.explain()
    assert site.cluster.ready_count("web") == left
    assert not site.cluster.evicted
    assert not site.flips(Phase.FAILED)
    site.assert_right()


def test_places_that_are_configured_to_be_kept_ready_stay(pod_site: MakeSite) -> None:
    """Half as many again as are asked for: of eight, four pods stay and two places beside them; the other two rest."""
    site = pod_site(site_file(demand_headroom_ratio=0.5), pool=NOT_MINING)
    served(site, 8)
    site.cluster.deploy("web", 4)
    assert site.run(200, lambda: serving_count(site) == 6 and site.is_quiet()), site.explain()
    site.run(120)
    assert (serving_count(site), site.cluster.ready_count("web")) == (6, 4)
    assert not site.cluster.evicted
    site.assert_right()


def test_a_limit_is_changed_where_nobody_is_and_the_next_pod_starts_there(pod_site: MakeSite) -> None:
    """Inside their dwell places that stand empty only lower their limits: that is proven with nobody at work there, and nothing fails."""
    site = pod_site(site_file(), pool=replace(NOT_MINING, dwell_inference_s=600.0))
    served(site, 2)
    site.cluster.deploy("web", 0)

    def points() -> set[str]:
        held = [site.state.holdings[bank] for bank in ("gpu1/gpus", "gpu2/gpus")]
        return {p.point for holdings in held for p in holdings.placements}

    assert site.run(60, lambda: points() == {"standby", "serve-capped"} and site.is_quiet()), site.explain()
    assert serving_count(site) == 2
    site.cluster.deploy("web", 2)

    def is_served() -> bool:
        return points() == {"standby", "serve"} and site.tenants()["llm"] == 2 and site.is_quiet()

    assert site.run(100, is_served), site.explain()
    assert not site.flips(Phase.FAILED, Phase.ROLLED_BACK)
    site.assert_right()


def test_who_serves_keeps_its_limit_and_its_place_while_others_beside_it_stand_empty(pod_site: MakeSite) -> None:
    """Pods go one by one, so that empty places are lowered one by one, then given up: no GPU of one that stays is, nobody is evicted."""
    pool = replace(POOL, dwell_inference_s=60.0, dwell_mining_s=60.0)
    site = pod_site(site_file(), pool=pool)
    served(site, 8)
    for left in range(7, 0, -1):
        site.cluster.deploy("web", left)
        for _ in range(25):
            site.step()
            for pod in site.cluster.pods_of("web"):
                held = {gpu for gpu, name in site.cluster.holders(pod.node) if name == f"{pod.namespace}/{pod.name}"}
                lowered = {
                    int(unit) for flip in caps(site) if flip.bank == f"{pod.node}/gpus" for unit in flip.unit_ids
                }
                assert pod.is_leaving or not held & lowered, site.explain()
    assert site.cluster.ready_count("web") == 1
    assert not site.cluster.evicted
    assert not site.flips(Phase.FAILED, Phase.ROLLED_BACK)
    site.assert_right()


def test_a_limit_is_not_proven_where_a_pod_is_and_does_not_work(pod_site: MakeSite) -> None:
    """A pod has the GPUs and its process is in no sample: its change of limit is not taken for done."""
    site = pod_site()
    served(site, 8)
    agents = [agent for agent in site.agents.values() if isinstance(agent, PodAgent)]
    for agent in agents:
        agent.shows_servers_late = True
    site.curtail(site.true_w()["grid"] - 25_000.0, notice_s=60.0, duration_s=300.0)
    assert site.run(60, lambda: bool(caps(site))), site.explain()
    site.run(8)
    assert {flip.phase for flip in caps(site)} == {Phase.VERIFYING}
    for agent in agents:
        agent.shows_servers_late = False
    assert site.run(5, lambda: not caps(site)), site.explain()
    assert not site.flips(Phase.FAILED, Phase.ROLLED_BACK)
    site.assert_right()


def caps(site: PodSite) -> list[Flip]:
    """Return changes of limits that are under way."""
    return [flip for flip in site.state.open_flips() if not flip.is_mode_flip]
