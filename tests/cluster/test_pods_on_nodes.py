"""The agent's driver of pods on a real kubelet: it keeps what every driver promises, and a real kubelet is as its manual says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from swingbus.clock import SystemClock
from swingbus_agent.adapters.pod_workloads.driver import PodWorkloads
from swingbus_agent.adapters.pod_workloads.kubelet import KubeletPods
from swingbus_agent.domain.pod_holding import PodTenants
from swingbus_agent.domain.workload import GpuUnit, WorkloadPhase
from swingbus_agent.ports.workload import WorkloadDriver
from swingbus_sim.cluster.up import Cluster
from swingbus_sim.ports import GpuHealth
from tests.cluster.gpus import RESOURCE, NodeGpus, gpus_on_node, make_gpu_pod, make_working_pod
from tests.cluster.pods import exists, is_running, make_namespace, wait_gone, wait_pod
from tests.fakes.gpu_host import gpu_uuid
from tests.fakes.workload_rigs import PROMISES, UNITS, Promise, name_of, until

pytestmark = pytest.mark.nodes
_MINERS, _CUSTOMERS = "pods-miners", "pods-customers"
_TENANTS = PodTenants(resource=RESOURCE, miner_namespace=_MINERS, mining_workload="miner", inference_workload="server")
_TOLD_S = 1.5  # plugin's look, then kubelet's


class RealPodRig:
    """Two units of one GPU each on a real node; pods come through the API server, and a unit is chosen by leaving no other."""

    lingering = "miner"
    is_stop_a_note = True

    def __init__(self, gpus: NodeGpus) -> None:
        self.gpus = gpus
        self.api = gpus.cluster.api
        self.clock = SystemClock()
        self.lister = KubeletPods(gpus.pod_resources(), timeout_s=5.0, clock=self.clock)
        self.driver: WorkloadDriver = PodWorkloads(
            units=[
                GpuUnit(name=name, number=number, gpu_indices=(number,), gpu_uuids=(gpu_uuid(number),))
                for number, name in enumerate(UNITS)
            ],
            kubelet=self.lister,
            tenants=_TENANTS,
            now_s=self.clock.boottime_s,
        )
        self._paths: dict[str, list[str]] = {unit: [] for unit in UNITS}

    async def come(self, unit: str, workload: str) -> None:
        number = UNITS.index(unit)
        namespace = _MINERS if workload == "miner" else _CUSTOMERS
        kind = "mining" if workload == "miner" else "inference"
        pod = make_working_pod(f"{workload}-{number}", self.gpus.plan.name, 1, kind)
        await self.bring(number, namespace, pod)

    async def bring(self, number: int, namespace: str, pod: dict[str, object], *, is_waited_for: bool = True) -> str:
        """Create a pod that gets this GPU, and return its path."""
        others = [other for other in range(len(UNITS)) if other != number and not self._paths[UNITS[other]]]
        for other in others:
            self.gpus.host.change(other, health=GpuHealth.LOST)
        await asyncio.sleep(_TOLD_S)
        metadata = pod["metadata"]
        assert isinstance(metadata, dict)
        path = f"/api/v1/namespaces/{namespace}/pods/{metadata['name']}"
        self._paths[UNITS[number]].append(path)
        self.api.create(path.rpartition("/")[0], pod)
        if is_waited_for:
            await asyncio.to_thread(wait_pod, self.api, path, is_running, what="running")
        else:
            await asyncio.sleep(_TOLD_S)
        for other in others:
            self.gpus.host.change(other, health=GpuHealth.OK)
        return path

    async def leave(self, unit: str) -> None:
        for path in self._paths[unit]:
            if exists(self.api, path):
                self.api.delete(path)
            await asyncio.to_thread(wait_gone, self.api, path, timeout_s=60.0)
        self._paths[unit].clear()


@pytest.fixture(scope="module")
def gpus(real_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeGpus]:
    """Return two GPUs on the second node."""
    for name in (_MINERS, _CUSTOMERS):
        make_namespace(real_cluster.api, name)
    with gpus_on_node(real_cluster, 2, tmp_path_factory.mktemp("pods"), gpu_count=2) as gpus:
        yield gpus
        for name in (_MINERS, _CUSTOMERS):
            real_cluster.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
async def rig(gpus: NodeGpus) -> AsyncIterator[RealPodRig]:
    """Return a rig on the node and take its pods away."""
    rig = RealPodRig(gpus)
    yield rig
    for unit in UNITS:
        await rig.leave(unit)
    await rig.lister.aclose()


async def _until_working(rig: RealPodRig, index: int, *, count: int) -> None:
    """Wait until so many processes work on a GPU."""
    async with asyncio.timeout(60):
        while len(rig.gpus.working_on(index)) != count:
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("promise", PROMISES, ids=name_of)
async def test_driver_keeps_what_every_driver_promises(rig: RealPodRig, promise: Promise) -> None:
    """The same suite as on the fake kubelet."""
    await promise(rig)


async def test_dead_kubelet_is_unknown_while_a_force_deleted_pod_works_on(rig: RealPodRig) -> None:
    """The API has forgotten the pod, its process lives: the unit is held. Back again, the kubelet says what is there."""
    await rig.come(UNITS[0], "miner")
    await until(rig.driver, UNITS[0], WorkloadPhase.READY)
    kubelet = f"kubelet-{rig.gpus.plan.name}"
    rig.gpus.cluster.processes.end(kubelet)
    rig.api.delete(f"/api/v1/namespaces/{_MINERS}/pods/miner-0", grace_s=0)
    await asyncio.to_thread(wait_gone, rig.api, f"/api/v1/namespaces/{_MINERS}/pods/miner-0")

    for unit in UNITS:
        status = (await rig.driver.observe())[unit]
        assert status.phase is WorkloadPhase.UNKNOWN and status.has_process
    await _until_working(rig, 0, count=1)

    rig.gpus.cluster.processes.restart(kubelet)
    await until(rig.driver, UNITS[0], WorkloadPhase.IDLE, timeout_s=60.0)
    await _until_working(rig, 0, count=0)
    await asyncio.to_thread(rig.gpus.wait_counts, 2, 2)


async def test_init_container_holds_a_gpu_that_no_kubelet_lists(rig: RealPodRig) -> None:
    """Its process works on the GPU while the list names nobody: idle is not free."""
    pod = make_working_pod("preparing", rig.gpus.plan.name, 1)
    (container,) = pod["spec"]["containers"]
    pod["spec"]["initContainers"] = [{**container, "name": "prepare"}]
    pod["spec"]["containers"] = [{key: value for key, value in container.items() if key != "resources"}]
    await rig.bring(0, _CUSTOMERS, pod, is_waited_for=False)
    await _until_working(rig, 0, count=1)

    status = (await rig.driver.observe())[UNITS[0]]

    assert status.phase is WorkloadPhase.IDLE and status.holders == ()
    assert len(rig.gpus.working_on(0)) == 1


async def test_pod_that_ended_holds_nothing_though_its_object_stays(rig: RealPodRig) -> None:
    """Since 1.34 a kubelet leaves out pods that have ended; the object is there until somebody deletes it."""
    pod = make_gpu_pod("brief", rig.gpus.plan.name, 1, "python3", "-c", "import time; time.sleep(4)")
    pod["spec"]["restartPolicy"] = "Never"
    path = await rig.bring(0, _CUSTOMERS, pod)
    assert (await until(rig.driver, UNITS[0], WorkloadPhase.READY)).holders == (f"{_CUSTOMERS}/brief",)

    await until(rig.driver, UNITS[0], WorkloadPhase.IDLE, timeout_s=30.0)

    assert exists(rig.api, path)


async def test_kubelet_answers_well_within_the_deadline_and_more_often_than_it_likes(rig: RealPodRig) -> None:
    """A second is plenty (readings of GPUs wait for this answer), also where calls in a row exceed the kubelet's limit."""
    took = []
    for _ in range(40):
        began = time.monotonic()
        assert isinstance(await rig.lister.list_held(), tuple)
        took.append(time.monotonic() - began)
    assert sorted(took)[20] < 0.3
