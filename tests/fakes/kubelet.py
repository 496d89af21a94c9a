"""A kubelet's two sockets without a kubelet: real gRPC servers that keep state, hang, and restart as the real one does."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from swingbus.kubelet.deviceplugin.v1beta1 import deviceplugin_service_pb2 as plugin_words
from swingbus.kubelet.deviceplugin.v1beta1 import deviceplugin_service_pb2_grpc as plugin_wire
from swingbus.kubelet.podresources.v1 import podresources_service_pb2 as words
from swingbus.kubelet.podresources.v1 import podresources_service_pb2_grpc as wire

GPU = "nvidia.com/gpu"


class FakeKubelet(wire.PodResourcesListerServicer, plugin_wire.RegistrationServicer):
    """Change `pods` and the next List says so; in the folder everything lies where the real one has it."""

    def __init__(self, folder: Path) -> None:
        self.device_plugins = folder / "device-plugins"
        self.pod_resources = folder / "pod-resources" / "kubelet.sock"
        self.pods: dict[tuple[str, str], words.PodResources] = {}
        self.may_answer = asyncio.Event()  # cleared: List never comes back
        self.may_answer.set()
        self.refuses = False  # List is answered with an error, as when too many ask
        self.refusals_left = 0  # so many more of them are
        self.list_count = 0
        self.registered: list[plugin_words.RegisterRequest] = []
        self._servers: list[grpc.aio.Server] = []

    async def start(self) -> None:
        """Remove what an earlier kubelet left in the plugins' folder, and listen."""
        self.device_plugins.mkdir(exist_ok=True)
        self.pod_resources.parent.mkdir(exist_ok=True)
        for left in self.device_plugins.iterdir():
            left.unlink()
        for path, add in (
            (self.device_plugins / "kubelet.sock", plugin_wire.add_RegistrationServicer_to_server),
            (self.pod_resources, wire.add_PodResourcesListerServicer_to_server),
        ):
            server = grpc.aio.server()
            add(self, server)
            server.add_insecure_port(f"unix:{path}")
            await server.start()
            self._servers.append(server)

    async def stop(self) -> None:
        """End; pods go on without it, so `pods` stays."""
        for server in self._servers:
            await server.stop(grace=None)
        self._servers.clear()
        self.pod_resources.unlink(missing_ok=True)

    def hold(
        self, namespace: str, pod: str, *ids: str, container: str = "main", resource: str = GPU, claim_driver: str = ""
    ) -> None:
        """Let a container of a pod hold devices (again for more of them), or a claim of a DRA driver."""
        found = self.pods.setdefault((namespace, pod), words.PodResources(name=pod, namespace=namespace))
        devices = [words.ContainerDevices(resource_name=resource, device_ids=[each]) for each in ids]
        claims = [words.ClaimResource(driver_name=claim_driver, pool_name="node", device_name="gpu-0")]
        dynamic = [words.DynamicResource(claim_name="claim", claim_namespace=namespace, claim_resources=claims)]
        found.containers.append(
            words.ContainerResources(name=container, devices=devices, dynamic_resources=dynamic if claim_driver else [])
        )

    def let_go(self, namespace: str, pod: str) -> None:
        """Forget a pod, as a kubelet does whose pod has ended or was force-deleted."""
        del self.pods[namespace, pod]

    async def List(
        self,
        request: words.ListPodResourcesRequest,
        context: grpc.aio.ServicerContext[words.ListPodResourcesRequest, words.ListPodResourcesResponse],
    ) -> words.ListPodResourcesResponse:
        """Return all pods."""
        self.list_count += 1
        if self.refuses or self.refusals_left > 0:
            self.refusals_left -= 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")
        await self.may_answer.wait()
        return words.ListPodResourcesResponse(pod_resources=list(self.pods.values()))

    async def Register(
        self,
        request: plugin_words.RegisterRequest,
        context: grpc.aio.ServicerContext[plugin_words.RegisterRequest, plugin_words.Empty],
    ) -> plugin_words.Empty:
        """Note a plugin."""
        self.registered.append(request)
        return plugin_words.Empty()

    @asynccontextmanager
    async def plugin(self) -> AsyncIterator[plugin_wire.DevicePluginAsyncStub]:
        """Call the plugin that registered last, as the kubelet does."""
        options = (("grpc.default_authority", "localhost"),)
        socket = self.device_plugins / self.registered[-1].endpoint
        async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
            yield plugin_wire.DevicePluginStub(channel)


@asynccontextmanager
async def running_kubelet() -> AsyncIterator[FakeKubelet]:
    """Return a kubelet that listens, in a folder with a short name: a socket's path holds 107 characters."""
    with tempfile.TemporaryDirectory(prefix="kubelet-") as folder:
        kubelet = FakeKubelet(Path(folder))
        await kubelet.start()
        try:
            yield kubelet
        finally:
            kubelet.may_answer.set()
            await kubelet.stop()
