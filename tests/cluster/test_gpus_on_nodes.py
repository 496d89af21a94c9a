"""Simulated GPUs on a real node: what a real kubelet makes of the device plugin, through losses and restarts of either side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from swingbus_sim.cluster.processes import wait_until
from swingbus_sim.cluster.up import Cluster
from swingbus_sim.nvml.layout import GpuIdentity
from swingbus_sim.nvml.shelf import Shelf
from swingbus_sim.ports import GpuHealth
from tests.cluster.gpus import NodeGpus, gpus_on_node, make_gpu_pod, make_working_pod
from tests.cluster.pods import is_running, make_namespace, wait_gone, wait_pod
from tests.fakes.gpu_host import gpu_uuid

pytestmark = pytest.mark.nodes
_NAMESPACE = "gpus"
_PODS = f"/api/v1/namespaces/{_NAMESPACE}/pods"
_ALL = {gpu_uuid(index) for index in range(4)}
_ASK_DRIVER = """
import ctypes
driver, count, uuid, device = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_uint(), ctypes.create_string_buffer(96), ctypes.c_void_p()
assert driver.nvmlInit_v2() == 0 and driver.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
assert driver.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) == 0
assert driver.nvmlDeviceGetUUID(device, uuid, 96) == 0
print(count.value, uuid.value.decode())
"""


@pytest.fixture(scope="module")
def gpus(real_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeGpus]:
    """Return four GPUs on the first node."""
    make_namespace(real_cluster.api, _NAMESPACE)
    with gpus_on_node(real_cluster, 1, tmp_path_factory.mktemp("gpus"), gpu_count=4) as gpus:
        yield gpus
        real_cluster.api.delete(f"/api/v1/namespaces/{_NAMESPACE}")


def _start(gpus: NodeGpus, name: str, gpu_count: int) -> set[str]:
    """Start a pod and return the GPUs that it was given."""
    gpus.cluster.api.create(_PODS, make_gpu_pod(name, gpus.plan.name, gpu_count))
    wait_pod(gpus.cluster.api, f"{_PODS}/{name}", is_running, what="running")
    return _given(gpus, name)


def _given(gpus: NodeGpus, name: str) -> set[str]:
    return set(_run(gpus, name, "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])").strip().split(","))


def _run(gpus: NodeGpus, name: str, code: str) -> str:
    return gpus.cluster.kubectl("exec", f"--namespace={_NAMESPACE}", name, "--", "python3", "-c", code)


def _end(gpus: NodeGpus, *names: str) -> None:
    for name in names:
        gpus.cluster.api.delete(f"{_PODS}/{name}")
    for name in names:
        wait_gone(gpus.cluster.api, f"{_PODS}/{name}")


def test_pod_gets_as_many_gpus_as_it_asks_and_no_two_the_same(gpus: NodeGpus) -> None:
    """The kubelet hands out each UUID once; a pod reads its host's driver as any user, without rights."""
    assert gpus.counts() == (4, 4)
    one, two = _start(gpus, "one", 1), _start(gpus, "two", 2)

    assert (len(one), len(two)) == (1, 2) and one | two < _ALL and not one & two
    assert _run(gpus, "one", _ASK_DRIVER).split() == ["4", gpu_uuid(0)]
    _end(gpus, "one", "two")


def test_work_shows_on_the_pods_own_gpus_and_ends_with_it(gpus: NodeGpus) -> None:
    """A process in a pod is seen on exactly the GPUs it was given, by its number on the host, and no longer than it lives."""
    api = gpus.cluster.api
    api.create(_PODS, make_working_pod("works", gpus.plan.name, 2))
    wait_pod(api, f"{_PODS}/works", is_running, what="running")
    wait_until(lambda: bool(gpus.host.shelf.processes()), what="work on a GPU", timeout_s=20)

    working = {gpu_uuid(index): gpus.working_on(index) for index in range(4) if gpus.working_on(index)}

    assert set(working) == _given(gpus, "works")
    (pid,) = {pid for pids in working.values() for pid in pids}
    assert b"swingbus_sim.workloads" in Path(f"/proc/{pid}/cmdline").read_bytes()
    _end(gpus, "works")
    assert gpus.host.shelf.processes() == ()


def test_lost_gpu_lowers_allocatable_and_one_that_is_gone_the_capacity(gpus: NodeGpus) -> None:
    """Lost: still there, nobody may have it. Gone: the node has one less, until it is back."""
    gpus.host.change(3, health=GpuHealth.LOST)
    gpus.wait_counts(4, 3)
    gpus.host.change(3, health=GpuHealth.OK)
    gpus.wait_counts(4, 4)

    path, readings = gpus.host.shelf.path, gpus.host.readings
    identities = [GpuIdentity(uuid=gpu_uuid(n), name="NVIDIA H100 80GB HBM3", bus_id=f"0:{n}") for n in range(4)]
    with Shelf.create(path, identities[:3]) as shelf:
        shelf.publish(readings[:3])
        gpus.wait_counts(3, 3)
    gpus.host.shelf.close()
    gpus.host.shelf = Shelf.create(path, identities)
    gpus.host.shelf.publish(readings)
    gpus.wait_counts(4, 4)


def test_plugin_that_dies_takes_its_gpus_along_and_brings_them_back(gpus: NodeGpus) -> None:
    """Without a plugin no pod can be given a GPU; those that hold one keep it, and it is not given twice afterwards."""
    held = _start(gpus, "before", 2)
    gpus.cluster.processes.end(gpus.plugin)
    gpus.wait_counts(4, 0)

    gpus.start_plugin()
    gpus.wait_counts(4, 4)

    assert _given(gpus, "before") == held
    assert _start(gpus, "after", 2) == _ALL - held
    _end(gpus, "before", "after")


def test_restarted_kubelet_knows_gpus_and_who_holds_them(gpus: NodeGpus) -> None:
    """A kubelet removes the plugin's socket as it starts; the plugin comes back by itself, the pods' GPUs stay theirs."""
    held = _start(gpus, "kept", 3)
    kubelet = f"kubelet-{gpus.plan.name}"
    gpus.cluster.processes.end(kubelet)
    gpus.cluster.processes.restart(kubelet)
    log = gpus.cluster.processes.log(gpus.plugin)
    wait_until(lambda: log.read_text().count("plugin_registered") >= 3, what="registered anew", timeout_s=30)
    gpus.wait_counts(4, 4)

    assert _start(gpus, "next", 1) == _ALL - held
    assert _given(gpus, "kept") == held
    _end(gpus, "kept", "next")
