"""The controller is killed after each record and after each call of a change of tenants, and comes back from its journal.

Whatever was done is seen and not done again, whatever was not is done: one miner leaves or comes, one pod is let go or evicted.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swingbus_controller.domain.cluster.facts import PodRef
from swingbus_controller.domain.flips.flip import Phase, WattState
from tests.fakes.pod_site import PodSite

MakeSite = Callable[..., PodSite]
Kill = Callable[[PodSite, int], None]


def after_record(site: PodSite, number: int) -> None:
    """Kill the controller when so many more records are durable."""
    left = [number]

    def is_it(entry: object) -> bool:
        left[0] -= 1
        return left[0] < 0

    site.journal.crash_when = is_it


def after_call(site: PodSite, number: int) -> None:
    """Kill the controller when so many more calls were carried out, before it hears of the last."""
    left = [number]

    def is_it(what: str) -> bool:
        left[0] -= 1
        return left[0] < 0

    site.cluster.dies_after = is_it


def miners(site: PodSite) -> set[PodRef]:
    """Return the miners that there are, each life of them."""
    return {pod.ref for node in ("gpu1", "gpu2") for pod in site.cluster.miners_on(node)}


def ends(site: PodSite, *, serving: int, mining: int) -> None:
    """Let the change end; a controller that was killed comes back after three seconds."""
    down_s = 0
    for _ in range(300):
        site.step()
        if site.deciding is None:
            down_s += 1
            if down_s > 3:
                site.cluster.dies_after = None
                site.start_controller()
            continue
        if site.tenants() == {"miner": mining, "llm": serving} and site.is_quiet() and site.clock.s > 10_200:
            break
    assert site.deciding is not None
    assert site.tenants() == {"miner": mining, "llm": serving}, site.explain()
    assert site.is_quiet(), site.explain()
    assert not site.flips(Phase.FAILED), site.explain()
    site.assert_right()


def serve_one(site: PodSite) -> None:
    """Have one pod served, long enough for its dwell to be over."""
    site.cluster.deploy("web", 1)
    assert site.run(100, lambda: site.tenants() == {"miner": 7, "llm": 1} and site.is_quiet()), site.explain()
    site.run(15)


def to_inference(site: PodSite, kill: Kill, number: int) -> None:
    """A pod comes: one miner leaves for it, and that one only; the pod is let go and neither evicted nor made again."""
    before = miners(site)
    kill(site, number)
    site.cluster.deploy("web", 1)
    chosen = site.cluster.pods_of("web")[0].ref
    ends(site, serving=1, mining=7)
    assert len(before & miners(site)) == 7
    assert site.cluster.state.pod(chosen) is not None
    assert not site.cluster.evicted


def by_scale_down(site: PodSite, kill: Kill, number: int) -> None:
    """A pod goes by itself: one miner comes in its place, the seven others live on."""
    serve_one(site)
    before = miners(site)
    kill(site, number)
    site.cluster.deploy("web", 0)
    ends(site, serving=0, mining=8)
    assert before < miners(site)
    assert len(miners(site)) == 8
    assert not site.cluster.evicted


def by_eviction(site: PodSite, kill: Kill, number: int) -> None:
    """Inference pays no more: the pod is evicted once, its successor waits behind the gate, one miner comes."""
    serve_one(site)
    before = miners(site)
    kill(site, number)
    site.market.inference = 0.0
    ends(site, serving=0, mining=8)
    assert before < miners(site)
    assert len(miners(site)) == 8
    assert len(site.cluster.evicted) == 1
    assert [pod.is_gated for pod in site.cluster.pods_of("web")] == [True]


# How many records and calls each flow has.
FLOWS = ((to_inference, 10, 2), (by_scale_down, 8, 1), (by_eviction, 8, 2))
STEPS = [
    pytest.param(flow, kill, number, id=f"{flow.__name__}-{kill.__name__}-{number}")
    for flow, records_count, calls_count in FLOWS
    for kill, count in ((after_record, records_count), (after_call, calls_count))
    for number in range(count)
]


@pytest.mark.parametrize(("flow", "kill", "number"), STEPS)
def test_killed_at_each_step_a_change_ends_once(
    pod_site: MakeSite, flow: Callable[[PodSite, Kill, int], None], kill: Kill, number: int
) -> None:
    """Each flow, killed after each of its records and calls."""
    site = pod_site()
    flow(site, kill, number)
    assert site.controllers == 2, "it was not killed: the flow has fewer steps than this table says"


@pytest.mark.parametrize(("flow", "records_count", "calls_count"), FLOWS)
def test_the_table_of_steps_leaves_none_out(
    pod_site: MakeSite, flow: Callable[[PodSite, Kill, int], None], records_count: int, calls_count: int
) -> None:
    """After the last step that the table names a flow has no other."""
    for kill, count in ((after_record, records_count), (after_call, calls_count)):
        site = pod_site()
        flow(site, kill, count)
        assert site.controllers == 1


def test_killed_before_its_agent_heard_of_the_watts_they_are_asked_for_anew(pod_site: MakeSite) -> None:
    """The agent holds what it held, and nobody can say who works on the GPU when the controller is back: nobody comes without its watts."""
    site = pod_site()
    site.journal.crash_when = lambda entry: entry.kind == "flip_draining"
    site.cluster.deploy("web", 1)
    chosen = site.cluster.pods_of("web")[0].ref
    assert site.run(20, lambda: site.deciding is None)
    site.start_controller()
    (flip,) = site.state.open_flips()
    (unit,) = flip.unit_ids
    for ref, run in list(site.cluster.running.items()):
        if run.node == site.banks[flip.bank].site.node and run.gpus == (int(unit),):
            site.cluster.force_delete(ref, lingers_s=8.0)

    def is_let_go() -> bool:
        pod = site.cluster.state.pod(chosen)
        return pod is not None and not pod.is_gated

    assert site.run(100, is_let_go), site.explain()
    (flip,) = site.state.open_flips()
    assert flip.watts is WattState.HELD, flip.story()
    ends(site, serving=1, mining=7)
