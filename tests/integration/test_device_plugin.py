"""The simulator's device plugin against a kubelet's sockets: what is offered, what a container gets, and restarts of either side."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from swingbus.kubelet.deviceplugin.v1beta1 import deviceplugin_service_pb2 as words
from swingbus_sim.device_plugin import DevicePlugin
from swingbus_sim.nvml.layout import GpuIdentity
from swingbus_sim.nvml.looking import SeenGpu, look_at_shelf
from swingbus_sim.nvml.shelf import Shelf
from swingbus_sim.ports import GpuHealth
from tests.fakes.gpu_host import GpuHost, gpu_uuid
from tests.fakes.kubelet import FakeKubelet, running_kubelet


@dataclass
class Rig:
    """A host of two GPUs, its plugin and a kubelet."""

    host: GpuHost
    kubelet: FakeKubelet
    plugin: DevicePlugin

    async def until(self, is_met: Callable[[], bool]) -> None:
        """Wait until it is so; give up after ten seconds."""
        async with asyncio.timeout(10):
            while not is_met():
                await asyncio.sleep(0.02)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """Return a rig whose plugin has registered."""
    host = GpuHost(tmp_path / "shelf", 2)
    async with running_kubelet() as kubelet, asyncio.TaskGroup() as group:
        plugin = DevicePlugin(host.shelf.path, folder=kubelet.device_plugins, period_s=0.02)
        running = group.create_task(plugin.run())
        rig = Rig(host, kubelet, plugin)
        await rig.until(lambda: len(kubelet.registered) == 1)
        yield rig
        running.cancel()
    host.close()


def offered(answer: words.ListAndWatchResponse | object) -> dict[str, str]:
    """Return health by id."""
    assert isinstance(answer, words.ListAndWatchResponse)
    return {device.ID: device.health for device in answer.devices}


async def test_lost_and_hung_gpus_are_unhealthy_and_one_that_is_gone_is_not_listed(rig: Rig) -> None:
    """The stream tells each change, and a shelf with one GPU less offers one less."""
    async with rig.kubelet.plugin() as plugin, asyncio.timeout(10):
        stream = plugin.ListAndWatch(words.Empty())
        assert offered(await stream.read()) == {gpu_uuid(0): "Healthy", gpu_uuid(1): "Healthy"}
        rig.host.change(1, health=GpuHealth.LOST)
        assert offered(await stream.read()) == {gpu_uuid(0): "Healthy", gpu_uuid(1): "Unhealthy"}
        rig.host.change(0, health=GpuHealth.HUNG)
        assert offered(await stream.read()) == {gpu_uuid(0): "Unhealthy", gpu_uuid(1): "Unhealthy"}
        rig.host.change(1, health=GpuHealth.OK)
        assert offered(await stream.read()) == {gpu_uuid(0): "Unhealthy", gpu_uuid(1): "Healthy"}
        identity = GpuIdentity(uuid=gpu_uuid(1), name="NVIDIA H100 80GB HBM3", bus_id="00000000:02:00.0")
        with Shelf.create(rig.host.shelf.path, [identity]) as smaller:
            assert offered(await stream.read()) == {gpu_uuid(1): "Unhealthy"}  # nothing was said of it yet
            smaller.publish(rig.host.readings[1:])
            assert offered(await stream.read()) == {gpu_uuid(1): "Healthy"}
        rig.host.shelf.path.unlink()
        assert offered(await stream.read()) == {gpu_uuid(1): "Unhealthy"}
        stream.cancel()


async def test_container_gets_its_uuids_and_the_way_to_its_host(rig: Rig) -> None:
    """Exactly the GPUs that were asked for, the stand-in to read them with, and the shelf, which any user may open."""
    async with rig.kubelet.plugin() as plugin:
        request = words.ContainerAllocateRequest(devices_ids=[gpu_uuid(1)])
        answer = await plugin.Allocate(words.AllocateRequest(container_requests=[request]))
    (container,) = answer.container_responses
    mounts = {mount.container_path: mount for mount in container.mounts}
    assert container.envs["NVIDIA_VISIBLE_DEVICES"] == gpu_uuid(1)
    shelf = mounts[container.envs["SWINGBUS_SIM_SHELF"]]
    library = mounts[container.envs["LD_LIBRARY_PATH"]]
    assert shelf.host_path == str(rig.host.shelf.path) and not shelf.read_only
    assert (Path(library.host_path) / "libnvidia-ml.so.1").exists() and library.read_only
    assert rig.host.shelf.path.stat().st_mode & 0o777 == 0o666
    assert container.envs["SWINGBUS_SIM_NVML_READ_ONLY"] == "1"


async def test_lost_gpu_is_not_given_to_a_container(rig: Rig) -> None:
    """The kubelet may have chosen before it heard of the loss: the pod is rejected, and the words name the GPU."""
    rig.host.change(0, health=GpuHealth.LOST)
    async with rig.kubelet.plugin() as plugin:
        request = words.ContainerAllocateRequest(devices_ids=[gpu_uuid(0)])
        with pytest.raises(grpc.aio.AioRpcError, match=gpu_uuid(0)):
            await plugin.Allocate(words.AllocateRequest(container_requests=[request]))


async def test_restarted_kubelet_hears_of_the_plugin_again(rig: Rig) -> None:
    """A kubelet removes every socket as it starts; the plugin makes its own anew and registers."""
    for count in (2, 3):
        await rig.kubelet.stop()
        await rig.kubelet.start()
        await rig.until(lambda count=count: len(rig.kubelet.registered) == count)  # type: ignore[misc]  # a loop's value
        async with rig.kubelet.plugin() as plugin, asyncio.timeout(10):
            stream = plugin.ListAndWatch(words.Empty())
            assert set(offered(await stream.read())) == {gpu_uuid(0), gpu_uuid(1)}
            stream.cancel()
    assert {(each.version, each.resource_name) for each in rig.kubelet.registered} == {("v1beta1", "nvidia.com/gpu")}


async def test_plugin_that_comes_before_its_kubelet_waits_for_it(tmp_path: Path) -> None:
    """Started side by side at boot, in either order."""
    host = GpuHost(tmp_path / "shelf", 1)
    async with running_kubelet() as kubelet:
        await kubelet.stop()
        (kubelet.device_plugins / "kubelet.sock").unlink(missing_ok=True)
        async with asyncio.TaskGroup() as group:
            plugin = DevicePlugin(host.shelf.path, folder=kubelet.device_plugins, period_s=0.02)
            running = group.create_task(plugin.run())
            await asyncio.sleep(0.2)
            await kubelet.start()
            await Rig(host, kubelet, plugin).until(lambda: bool(kubelet.registered))
            running.cancel()
        assert [path.name for path in kubelet.device_plugins.iterdir()] == ["kubelet.sock"]
    host.close()


async def test_program_serves_until_sigterm(tmp_path: Path) -> None:
    """`swingbus-sim device-plugin` registers, and leaves with 0 and no socket."""
    host = GpuHost(tmp_path / "shelf", 1)
    async with running_kubelet() as kubelet:
        program = (sys.executable, "-m", "swingbus_sim.main", "device-plugin", "--shelf", str(host.shelf.path))
        process = await asyncio.create_subprocess_exec(
            *program, "--folder", str(kubelet.device_plugins), stdout=subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(20):
                while not kubelet.registered:
                    await asyncio.sleep(0.05)
            process.terminate()
            async with asyncio.timeout(10):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert [path.name for path in kubelet.device_plugins.iterdir()] == ["kubelet.sock"]
    host.close()


def test_shelf_that_cannot_be_read_is_no_host_without_gpus(tmp_path: Path) -> None:
    """Missing, torn and silent are told apart."""
    assert look_at_shelf(tmp_path / "nowhere") is None
    (tmp_path / "torn").write_bytes(b"SWBSHELF")
    assert look_at_shelf(tmp_path / "torn") is None
    with Shelf.create(tmp_path / "shelf", [GpuIdentity(uuid="GPU-1", name="n", bus_id="b")]):
        assert look_at_shelf(tmp_path / "shelf") == (SeenGpu("GPU-1", None),)
