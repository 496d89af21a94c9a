"""The kubelet's contract as we carry it: its names on the wire, its numbers, and room for what it says besides."""

from __future__ import annotations

from swingbus.kubelet.deviceplugin.v1beta1 import deviceplugin_service_pb2 as plugin
from swingbus.kubelet.podresources.v1 import podresources_service_pb2 as resources


def _field(number: int, content: bytes) -> bytes:
    """Return a length-delimited field as it stands on the wire."""
    return bytes((number << 3 | 2, len(content))) + content


def test_services_are_called_as_kubelet_calls_them() -> None:
    """A method's path is made of these names: another package and nobody answers."""
    named = {
        f"/{service.full_name}/{method.name}"
        for file in (plugin.DESCRIPTOR, resources.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    }
    assert named == {
        "/v1.PodResourcesLister/List",
        "/v1beta1.Registration/Register",
        "/v1beta1.DevicePlugin/GetDevicePluginOptions",
        "/v1beta1.DevicePlugin/ListAndWatch",
        "/v1beta1.DevicePlugin/Allocate",
    }


def test_pods_are_read_from_kubelets_bytes_and_the_rest_is_passed_over() -> None:
    """Bytes laid out by Kubernetes' published numbers, with CPUs and topology that we do not carry."""
    topology = _field(3, _field(1, b"\x08\x01"))
    devices = _field(2, _field(1, b"nvidia.com/gpu") + _field(2, b"GPU-a") + _field(2, b"GPU-b") + topology)
    cpus = _field(3, b"\x01\x02")
    claim = _field(
        5, _field(2, b"c") + _field(3, b"ns") + _field(4, _field(2, b"gpu.nvidia.com") + _field(4, b"gpu-0"))
    )
    pod = _field(1, b"p") + _field(2, b"ns") + _field(3, _field(1, b"main") + devices + cpus + claim)

    found = resources.ListPodResourcesResponse.FromString(_field(1, pod)).pod_resources[0]

    assert (found.namespace, found.name, found.containers[0].name) == ("ns", "p", "main")
    held = found.containers[0].devices[0]
    assert (held.resource_name, list(held.device_ids)) == ("nvidia.com/gpu", ["GPU-a", "GPU-b"])
    named = found.containers[0].dynamic_resources[0].claim_resources[0]
    assert (named.driver_name, named.device_name) == ("gpu.nvidia.com", "gpu-0")


def test_device_and_its_mount_stand_where_kubelet_reads_them() -> None:
    """The plugin's answers, byte for byte."""
    assert plugin.Device(ID="GPU-a", health="Healthy").SerializeToString() == _field(1, b"GPU-a") + _field(
        2, b"Healthy"
    )
    mount = plugin.Mount(container_path="/c", host_path="/h", read_only=True)
    answer = plugin.ContainerAllocateResponse(envs={"K": "v"}, mounts=[mount])
    assert answer.SerializeToString() == (
        _field(1, _field(1, b"K") + _field(2, b"v")) + _field(2, _field(1, b"/c") + _field(2, b"/h") + b"\x18\x01")
    )
    request = plugin.RegisterRequest(version="v1beta1", endpoint="e", resource_name="r")
    assert request.SerializeToString() == _field(1, b"v1beta1") + _field(2, b"e") + _field(3, b"r")
