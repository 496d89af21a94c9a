"""A device plugin: offers the simulated GPUs of one host to a real kubelet, as NVIDIA's offers real ones.

Decides which GPUs are offered and how healthy they are (from the host's shelf), and what a container needs to see them. Refuses to know
pods, watts and who chose which GPU: the kubelet does. Invariants: what is offered is what the last look saw (a GPU that left the shelf
leaves the list, a lost, hung or silent one is unhealthy); after a kubelet's start the plugin is known to it again within a look.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import grpc
import structlog

from swingbus.kubelet.deviceplugin.v1beta1 import deviceplugin_service_pb2 as words
from swingbus.kubelet.deviceplugin.v1beta1 import deviceplugin_service_pb2_grpc as wire
from swingbus_sim.nvml.build import READ_ONLY_VARIABLE, build_library, driver_environment
from swingbus_sim.nvml.looking import look_at_shelf
from swingbus_sim.ports import GpuHealth

KUBELET_FOLDER = Path("/var/lib/kubelet/device-plugins")  # fixed by Kubernetes
RESOURCE = "nvidia.com/gpu"
_LIBRARY_IN_POD = Path("/opt/swingbus-sim/nvml")
_SHELF_IN_POD = Path("/run/swingbus-sim/shelf")
_REGISTER_TIMEOUT_S = 5.0
_log = structlog.get_logger()


class OfferedGpus(wire.DevicePluginServicer):
    """The plugin's side of the contract: the list as last seen, told to every stream when it changes."""

    def __init__(self, *, shelf: Path, library: Path) -> None:
        self._shelf = shelf
        self._library = library
        self._healths: Mapping[str, bool] = {}
        self._changed = asyncio.Condition()

    async def look(self) -> None:
        """Look at the shelf; one that cannot be read keeps its GPUs, all of them unhealthy."""
        seen = look_at_shelf(self._shelf)
        if seen is None:
            healths = dict.fromkeys(self._healths, False)
        else:
            healths = {gpu.uuid: gpu.health is GpuHealth.OK for gpu in seen}
        if healths != self._healths:
            _log.info("gpus_offered", healthy_count=sum(healths.values()), gpu_count=len(healths))
            async with self._changed:
                self._healths = healths
                self._changed.notify_all()

    async def GetDevicePluginOptions(
        self, request: words.Empty, context: grpc.aio.ServicerContext[words.Empty, words.DevicePluginOptions]
    ) -> words.DevicePluginOptions:
        """Ask for no further calls."""
        return words.DevicePluginOptions()

    async def ListAndWatch(
        self, request: words.Empty, context: grpc.aio.ServicerContext[words.Empty, words.ListAndWatchResponse]
    ) -> AsyncIterator[words.ListAndWatchResponse]:
        """Tell all GPUs now and whenever one changes."""
        while True:
            told = self._healths
            yield words.ListAndWatchResponse(
                devices=[
                    words.Device(ID=uuid, health="Healthy" if is_healthy else "Unhealthy")
                    for uuid, is_healthy in told.items()
                ]
            )
            async with self._changed:
                await self._changed.wait_for(partial(self._is_news, told))

    async def Allocate(
        self,
        request: words.AllocateRequest,
        context: grpc.aio.ServicerContext[words.AllocateRequest, words.AllocateResponse],
    ) -> words.AllocateResponse:
        """Return what makes each container see its host's simulated driver, and which GPUs are its own."""
        await self.look()  # the kubelet may have chosen before it heard of a loss
        for container in request.container_requests:
            if dead := [uuid for uuid in container.devices_ids if not self._healths.get(uuid, False)]:
                await context.abort(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"{', '.join(dead)} cannot be given to a container: lost, hung or not in {self._shelf}",
                )
        # As the device files of a real driver: whoever is given them may open them.
        self._shelf.chmod(0o666)
        return words.AllocateResponse(
            container_responses=[self._access(each.devices_ids) for each in request.container_requests]
        )

    def _is_news(self, told: Mapping[str, bool]) -> bool:
        return self._healths is not told

    def _access(self, uuids: Sequence[str]) -> words.ContainerAllocateResponse:
        variables = driver_environment(_SHELF_IN_POD, library=_LIBRARY_IN_POD, base={})
        return words.ContainerAllocateResponse(
            # A tenant may read its GPUs, never set their limits: on a real node that takes root.
            envs={**variables, READ_ONLY_VARIABLE: "1", "NVIDIA_VISIBLE_DEVICES": ",".join(uuids)},
            mounts=[
                words.Mount(container_path=str(_LIBRARY_IN_POD), host_path=str(self._library), read_only=True),
                words.Mount(container_path=str(_SHELF_IN_POD), host_path=str(self._shelf), read_only=False),
            ],
        )


class DevicePlugin:
    """Serves one host's GPUs beside one kubelet, through that kubelet's restarts."""

    def __init__(
        self,
        shelf: Path,
        *,
        library: Path | None = None,
        folder: Path = KUBELET_FOLDER,
        resource: str = RESOURCE,
        period_s: float = 0.5,
    ) -> None:
        """Build the driver stand-in where it is not there yet.

        Args:
            shelf: the host's shared file; may come later.
            library: the stand-in's directory; built now if not given.
            folder: where the kubelet's `kubelet.sock` is.
            resource: what pods ask for.
            period_s: between two looks at shelf and kubelet.
        """
        self._gpus = OfferedGpus(shelf=shelf.absolute(), library=library if library is not None else build_library())
        self._kubelet = folder / "kubelet.sock"
        self._socket = folder / f"swingbus-sim-{resource.replace('/', '-')}.sock"
        self._resource = resource
        self._period_s = period_s
        self._server: grpc.aio.Server | None = None
        self._known_to: tuple[int, int] | None = None

    async def run(self) -> None:
        """Serve until cancelled, then leave no socket behind."""
        try:
            while True:
                await self._gpus.look()
                await self._stay_known()
                await asyncio.sleep(self._period_s)
        finally:
            await self._stop()

    async def _stay_known(self) -> None:
        """Register with a kubelet that does not know us: a new one has removed every socket and made its own anew."""
        try:
            found = self._kubelet.stat()
        except FileNotFoundError:
            return
        kubelet = (found.st_ino, found.st_ctime_ns)
        if kubelet == self._known_to and self._socket.exists():
            return
        self._known_to = None
        await self._stop()
        self._server = grpc.aio.server()
        wire.add_DevicePluginServicer_to_server(self._gpus, self._server)
        self._server.add_insecure_port(f"unix:{self._socket}")
        await self._server.start()
        request = words.RegisterRequest(version="v1beta1", endpoint=self._socket.name, resource_name=self._resource)
        # Without an authority of ours gRPC sends the socket's path, which kubelet's side takes for no host name.
        options = (("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1))
        async with grpc.aio.insecure_channel(f"unix:{self._kubelet}", options=options) as channel:
            try:
                await wire.RegistrationStub(channel).Register(request, timeout=_REGISTER_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                _log.warning(
                    "registration_failed", kubelet=str(self._kubelet), message=error.details() or str(error.code())
                )
                return
        self._known_to = kubelet
        _log.info("plugin_registered", resource=self._resource, kubelet=str(self._kubelet))

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None
            self._socket.unlink(missing_ok=True)


async def serve(plugin: DevicePlugin) -> None:
    """Run a plugin until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(plugin.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.cancel)
