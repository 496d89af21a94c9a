"""What happens to pods on real nodes, with our controller and agents at work: on each event limits hold on physical watts, nothing is stuck
afterwards, and where somebody has to act the pool says why. The judge hears all of it.

The tests share one site, one after the other; each leaves it at two servers and six miners.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from swingbus_sim.cluster.layout import layout
from swingbus_sim.cluster.requirements import missing_for_nodes, prepare_for_nodes
from swingbus_sim.demo.controller import SERVER
from swingbus_sim.demo_kube.manifests import CUSTOMERS, MINERS
from tests.cluster.conftest import skip_nodes
from tests.cluster.pods_site import GPUS, PodsSite, with_image
from tools.images.build import Built

pytestmark = [
    pytest.mark.nodes,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]
CHAT = "chat"
ALL = 2 * GPUS
PODS = f"/api/v1/namespaces/{CUSTOMERS}/pods"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(images: Mapping[str, Built], say: Callable[[str], None]) -> AsyncIterator[PodsSite]:
    """Return the site with two servers ready and miners everywhere else."""
    prepare_for_nodes(say)
    if lacks := missing_for_nodes(layout("tests-pods-site").home):
        skip_nodes("; ".join(lacks))
    # Short, for the sockets in it.
    folder = Path(tempfile.mkdtemp(prefix="pods-"))
    made = PodsSite(folder, images["toy-miner"].archive.parent, say)
    try:
        await made.start()
        await made.pods.protect(CHAT, 1)
        await made.serve(CHAT, 2, timeout_s=180.0)
        await made.settle(inference=2, mining=ALL - 2)
        yield made
    finally:
        await made.close()
        shutil.rmtree(folder, ignore_errors=True)


async def at_rest(site: PodsSite) -> None:
    """Wait until the site is as each test finds it."""
    await site.serve(CHAT, 2, timeout_s=180.0)
    await site.settle(inference=2, mining=ALL - 2)


def name_of(pod: Mapping[str, Any]) -> str:
    """Return a pod's name."""
    return str(pod["metadata"]["name"])


async def test_demand_comes_and_goes(site: PodsSite) -> None:
    """Six servers: four miners leave, four gates are lifted, no miner is pushed out by the scheduler. Back to two, miners come again."""
    before = {name_of(pod) for pod in await site.ready(CHAT)}
    await site.serve(CHAT, 6)
    await site.settle(inference=6, mining=2)
    assert before <= {name_of(pod) for pod in await site.ready(CHAT)}, "who served was left alone"
    events = await asyncio.to_thread(site.pods.up.api.get, f"/api/v1/namespaces/{MINERS}/events")
    assert not [e for e in events["items"] if e["reason"] == "Preempted"]
    await at_rest(site)


async def test_pod_deleted_by_hand_is_replaced_in_its_place(site: PodsSite) -> None:
    """The replacement is the same demand: it gets the same watts, and no other miner leaves."""
    miners = {pod["metadata"]["uid"] for pod in await site.miners()}
    victim = (await site.ready(CHAT))[0]
    await asyncio.to_thread(site.pods.up.api.delete, f"{PODS}/{name_of(victim)}")

    async def replaced() -> bool:
        names = {name_of(pod) for pod in await site.ready(CHAT)}
        return len(names) == 2 and name_of(victim) not in names

    await site.until(replaced, "another pod serves in its place")
    await site.settle(inference=2, mining=ALL - 2)
    assert {pod["metadata"]["uid"] for pod in await site.miners()} == miners


async def test_container_that_dies_starts_again_in_place(site: PodsSite) -> None:
    """No gate, no flip: the same pod, the same GPU, the same limit."""
    (process,) = [p for p in site.working(0) + site.working(1) if p.kind == "inference"][:1]
    names = {name_of(pod) for pod in await site.ready(CHAT)}
    os.kill(process.pid, signal.SIGKILL)

    def back() -> bool:
        working = [p for p in site.working(0) + site.working(1) if p.kind == "inference"]
        return len(working) == 2 and process.pid not in {p.pid for p in working}

    await site.until(back, "the container works again")
    await at_rest(site)
    assert {name_of(pod) for pod in await site.ready(CHAT)} == names


async def test_node_drained_by_somebody_is_left_to_them(site: PodsSite) -> None:
    """`kubectl drain`: pods leave by eviction, nothing of ours is sent there again, the pool says why; uncordoned it works again."""
    node = site.pods.up.real_nodes[0].name
    drain = ("drain", node, "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--timeout=50s")
    await asyncio.to_thread(site.pods.up.kubectl, *drain)

    async def moved() -> bool:
        return not site.working(0) and len(await site.ready(CHAT)) == 2

    await site.until(moved, "the drained node is empty and both servers are ready elsewhere", timeout_s=150.0)
    ready = await site.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "NodeCordoned"), ready
    assert node in ready["message"]
    await asyncio.to_thread(site.pods.up.kubectl, "uncordon", node)
    await at_rest(site)


async def test_pod_pushed_in_by_the_scheduler_is_taken_as_it_is(site: PodsSite) -> None:
    """A pod of a namespace that is not enrolled preempts a miner: its GPU stays at the limit that it had, and the pool names it."""
    stranger = with_image("stranger", 1, "swingbus.invalid/toy-inference:0.1.0")["spec"]["template"]
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stranger", "namespace": "default"},
        "spec": {**stranger["spec"], "priorityClassName": "", "restartPolicy": "Always"},
    }
    await asyncio.to_thread(site.pods.apply, body)
    await site.until(lambda: site.tenants()["inference"] == 3, "the stranger works")

    async def named() -> bool:
        gate = await site.condition("GateEnforced")
        return gate.get("status") == "False" and "stranger" in gate.get("message", "")

    await site.until(named, "the pool names who runs without a gate")
    await asyncio.to_thread(site.pods.up.api.delete, "/api/v1/namespaces/default/pods/stranger")
    await at_rest(site)


async def test_force_deleted_pod_holds_its_watts_until_its_process_is_gone(site: PodsSite) -> None:
    """Kubelet dead, object gone, process alive: the API says the GPU is free, nobody is sent there. The kubelet is back: all is well."""
    victim = (await site.ready(CHAT))[0]
    node = victim["spec"]["nodeName"]
    number = [plan.name for plan in site.pods.up.real_nodes].index(node)
    before = {pod["metadata"]["uid"] for pod in await site.pods.pods(CUSTOMERS)}
    working = len(site.working(number))
    await site.pods.kill_kubelet(number)
    try:
        await asyncio.to_thread(site.pods.up.api.delete, f"{PODS}/{name_of(victim)}", grace_s=0)
        await asyncio.sleep(15.0)
        assert len(site.working(number)) == working, "its process works on"
        newcomers = [pod for pod in await site.pods.pods(CUSTOMERS) if pod["metadata"]["uid"] not in before]
        assert newcomers, "its workload made another"
        assert node not in {pod["spec"].get("nodeName") for pod in newcomers}, (
            "nobody is sent where the kubelet is dead"
        )
    finally:
        await site.pods.start_kubelet(number)
    await at_rest(site)


async def test_missing_image_gives_its_place_back_and_says_why(site: PodsSite) -> None:
    """Lifted, bound, never ready: the flip is undone, the pod goes back behind the gate, and its workload rests before the next try."""
    await asyncio.to_thread(site.pods.apply, with_image("ghost", 1, "swingbus.invalid/no-such-image:1"))

    async def told() -> bool:
        served = await site.condition("DemandServed")
        return served.get("status") == "False" and "did not get ready" in served.get("message", "")

    await site.until(told, "the pool says that it did not get ready", timeout_s=150.0)
    await site.until(lambda: site.tenants() == {"mining": ALL - 2, "inference": 2}, "its GPU mines again")
    await asyncio.to_thread(site.pods.up.kubectl, "delete", "deployment", "ghost", "-n", CUSTOMERS)
    await at_rest(site)


async def test_plugin_that_comes_back_with_a_gpu_less_takes_it_out_of_use(site: PodsSite) -> None:
    """The GPU that is gone is given to nobody, the others work; mended, it is used again."""
    free = min((0, 1), key=lambda n: sum(p.kind == "inference" for p in site.working(n)))
    plan = site.pods.up.real_nodes[free]
    host = site.pods.hosts[free]
    await site.inject(kind="gpu_lost", targets=[f"{host}-gpu{GPUS - 1}"], for_s=45)
    await asyncio.to_thread(site.pods.up.processes.end, f"device-plugin-{plan.name}")
    await asyncio.to_thread(site.pods.up.processes.restart, f"device-plugin-{plan.name}")

    async def fewer() -> bool:
        node = await asyncio.to_thread(site.pods.up.api.get, f"/api/v1/nodes/{plan.name}")
        return int(node["status"]["allocatable"].get("nvidia.com/gpu", 0)) == GPUS - 1

    await site.until(fewer, "the node offers one GPU less")
    await site.serve(CHAT, 4, timeout_s=150.0)
    await at_rest(site)


async def test_node_that_reboots_comes_back_within_its_limits(site: PodsSite) -> None:
    """All is killed, limits are at their default, pods that are bound start at once: the agent brings the limits down first."""
    victim = (await site.ready(CHAT))[0]
    number = [plan.name for plan in site.pods.up.real_nodes].index(victim["spec"]["nodeName"])
    await site.cut_power(number)
    await site.until(lambda: not site.working(number), "nothing works there")
    await site.inject(kind="gpu_limits_lost", targets=[site.pods.hosts[number]])
    await site.boot(number)
    await site.until(lambda: len(site.working(number)) > 0, "the node works again", timeout_s=150.0)
    await at_rest(site)
    assert max(await site.enforced_w(number)) <= 700.0


async def test_controller_killed_decides_again_within_15_seconds(site: PodsSite) -> None:
    """On the same volume: the lease is its own, flips go on, and a pod that came meanwhile is served."""
    await site.story.controller.kill()
    await site.pods.serve(CHAT, 4)
    log = site.run.processes.log(SERVER)
    lines_before = len(log.read_text(errors="replace").splitlines())
    began_s = site.run.now()
    await site.story.controller.come_back()

    def holds() -> bool:
        return any("lease_acquired" in line for line in log.read_text(errors="replace").splitlines()[lines_before:])

    await site.until(holds, "the lease is held again", timeout_s=15.0)
    print(f"killed to holding the lease again: {site.run.now() - began_s:.1f} s")
    await site.until(lambda: _ready_count(site, 4), "four ready after the restart", timeout_s=120.0)
    await at_rest(site)


async def _ready_count(site: PodsSite, count: int) -> bool:
    return len(await site.ready(CHAT)) == count


async def test_judge_finds_no_fault_in_any_of_it(site: PodsSite) -> None:
    """Not one authorised watt-second over any limit, through all of the tests before this one."""
    verdict = await site.verdict()
    assert verdict["over_cap_ws"]["authorised"] == 0, verdict
    assert verdict["false_confirmations"] == 0, verdict
