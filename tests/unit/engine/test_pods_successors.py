"""Whoever is brought by a flip may leave before it ends: the next of its workload takes the place, and no second miner goes for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swingbus_controller.domain.flips.flip import Direction, Flip, Phase
from tests.fakes.pod_site import PodAgent, PodSite

MakeSite = Callable[..., PodSite]


def quiet(site: PodSite, *, serving: int, mining: int, seconds: int = 200) -> None:
    """Wait until so many GPUs truly work for each, and nothing is under way."""

    def is_there() -> bool:
        return site.tenants() == {"miner": mining, "llm": serving} and site.is_quiet()

    assert site.run(seconds, is_there), f"{site.tenants()}\n{site.explain()}"
    site.assert_right()


def killed_count(site: PodSite) -> int:
    """Return how many miners were told to leave."""
    return len([call for call in site.cluster.log if call.startswith("delete miners/")])


def show_servers_late(site: PodSite, is_late: bool) -> None:
    """Let the samples of both nodes lag behind what serves there, so that flips verify for longer than a second; or no more."""
    for name in ("gpu1", "gpu2"):
        agent = site.agents[name]
        assert isinstance(agent, PodAgent)
        agent.shows_servers_late = is_late


def bound_in(site: PodSite, phase: Phase, workload: str, replicas: int = 1, gpu_count: int = 1) -> list[Flip]:
    """Deploy a workload and stop where its first pod is on its node and its flips are in a phase; return them."""
    show_servers_late(site, True)
    site.cluster.deploy(workload, replicas, gpu_count=gpu_count)
    first = site.cluster.pods_of(workload)[0]

    def flips() -> list[Flip]:
        return [flip for flip in site.state.open_flips() if flip.pod == first.ref]

    def is_there() -> bool:
        return first.ref in site.cluster.running and {flip.phase for flip in flips()} == {phase}

    assert site.run(60, is_there), site.explain()
    return flips()


def replace_pod(site: PodSite, workload: str, late_s: int) -> None:
    """Delete the first pod of a workload; its owner makes it again so many seconds later."""
    replicas = site.cluster.workloads[workload].replicas
    ref = site.cluster.pods_of(workload)[0].ref
    if late_s:
        site.cluster.workloads[workload].replicas = replicas - 1
    site.cluster.delete_by_hand(ref)
    site.run(late_s)
    site.cluster.deploy(workload, replicas)
    site.run(1)
    show_servers_late(site, False)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.VERIFYING])
@pytest.mark.parametrize("late_s", [0, 1, 2])
def test_a_pod_that_is_deleted_while_its_flip_goes_on_is_followed_by_the_next(
    pod_site: MakeSite, phase: Phase, late_s: int
) -> None:
    """Its owner makes it again, at once or a moment later: the flip goes on with that one, and one miner left for both."""
    site = pod_site()
    (flip,) = bound_in(site, phase, "web")
    replace_pod(site, "web", late_s)
    quiet(site, serving=1, mining=7)
    assert site.cluster.ready_count("web") == 1
    assert killed_count(site) == 1, site.cluster.log
    assert site.state.flips[flip.id].phase is Phase.ACTIVE
    assert not site.flips(Phase.ROLLED_BACK, Phase.FAILED)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.VERIFYING])
def test_a_big_pod_that_is_deleted_while_its_flips_go_on_is_followed_by_the_next(
    pod_site: MakeSite, phase: Phase
) -> None:
    """All four GPUs stay those of its successor: four miners left for both."""
    site = pod_site()
    bound_in(site, phase, "big", gpu_count=4)
    replace_pod(site, "big", 0)
    quiet(site, serving=4, mining=4)
    assert site.cluster.ready_count("big") == 1
    assert killed_count(site) == 4, site.cluster.log
    assert not site.flips(Phase.ROLLED_BACK, Phase.FAILED)


def test_what_the_pod_before_has_shown_is_not_its_successors(pod_site: MakeSite) -> None:
    """The first was ready; the second never gets ready: its flip does not end as if it were."""
    site = pod_site()
    (flip,) = bound_in(site, Phase.VERIFYING, "web")
    site.cluster.delete_by_hand(site.cluster.pods_of("web")[0].ref)
    site.run(1)
    show_servers_late(site, False)
    (second,) = [pod for pod in site.cluster.pods_of("web") if not pod.is_leaving]
    site.cluster.never_ready.add(second.name)
    assert site.run(20, lambda: second.ref in site.cluster.running), site.explain()
    site.run(10)
    there = site.state.flips[flip.id]
    assert (there.pod, there.phase, there.direction) == (second.ref, Phase.STARTING, Direction.FORWARD)
    site.assert_right()


def test_without_a_successor_the_miner_comes_back_and_no_other_leaves(pod_site: MakeSite) -> None:
    """The workload wants none any more: the flip goes back, as many miners work as before and one was told to leave."""
    site = pod_site()
    (flip,) = bound_in(site, Phase.VERIFYING, "web")
    site.cluster.deploy("web", 0)
    site.run(1)
    show_servers_late(site, False)
    quiet(site, serving=0, mining=8)
    assert killed_count(site) == 1
    assert not site.flips(Phase.FAILED)
    assert site.state.flips[flip.id].is_over


def test_a_pod_that_waited_longer_takes_the_place_before_the_successor(pod_site: MakeSite) -> None:
    """Dearer pods wait for a GPU: the place of one that is deleted while it comes is theirs, its successor waits in their stead."""
    site = pod_site()
    site.cluster.deploy("web", 7)
    quiet(site, serving=7, mining=1)
    bound_in(site, Phase.VERIFYING, "last")
    site.cluster.deploy("dear", 1, priority=10)
    site.run(2)
    replace_pod(site, "last", 0)
    quiet(site, serving=8, mining=0)
    assert site.cluster.ready_count("dear") == 1
    assert site.cluster.ready_count("last") == 0
    assert killed_count(site) == 8
    assert not site.cluster.evicted
