"""Reads kubelet's PodResources socket: implements the port `PodLister`.

Decides what an answer, an error and silence mean. Knows nothing of banks and tenants. Invariants: every call comes back within the
deadline; whatever is not a whole answer is Unavailable or Hung, with the next step. The kubelet leaves out init containers that have to end
before the pod starts, and (since 1.34) pods that have ended: who is not listed may still have a process.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import grpc
import grpc.aio

from swingbus.clock import Clock
from swingbus.kubelet.podresources.v1 import podresources_service_pb2 as words
from swingbus.kubelet.podresources.v1 import podresources_service_pb2_grpc as wire
from swingbus.rpc.channel import MESSAGE_MAX_BYTES
from swingbus_agent.domain.answers import Hung, Unavailable
from swingbus_agent.domain.pod_holding import HeldDevice

_OPTIONS = (
    # Else the socket's path would be sent as host name, which the kubelet's side refuses.
    ("grpc.default_authority", "localhost"),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    # A kubelet that restarts is back within seconds: gRPC's own pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
# A kubelet lets ten calls through at once and a hundred a second, of all callers together: a monitor's burst is soon over.
_REFUSED_PAUSES_S = (0.05, 0.1)


class Door(Protocol):
    """Another way to the kubelet's socket, for an agent that may not open it."""

    why_not: str  # why the last connection did not get there; empty where it did

    async def path(self) -> Path:
        """Return the socket to connect to instead."""
        ...


class KubeletPods:
    """The pods of this node as its kubelet tells them."""

    def __init__(self, socket: Path, *, timeout_s: float, clock: Clock, door: Door | None = None) -> None:
        """Nothing is opened before the first call.

        Args:
            socket: kubelet's PodResources socket; only root may open it.
            timeout_s: the deadline of one answer.
            clock: says since when the kubelet hangs.
            door: the way there without root.
        """
        self._socket = socket
        self._door = door
        self._timeout_s = timeout_s
        self._clock = clock
        self._channel: grpc.aio.Channel | None = None
        self._hung_since_ns: int | None = None

    async def list_held(self) -> tuple[HeldDevice, ...] | Unavailable | Hung:
        """Ask for every device that a pod holds (see the port)."""
        if self._channel is None:
            try:
                socket = self._socket if self._door is None else await self._door.path()
            except OSError as error:
                return Unavailable(reason=f"kubelet cannot be asked at {self._socket}: no way there: {error}")
            self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        lister = wire.PodResourcesListerStub(self._channel)
        for pause_s in (*_REFUSED_PAUSES_S, None):
            began_ns = self._clock.boottime_ns()
            try:
                answer = await lister.List(words.ListPodResourcesRequest(), timeout=self._timeout_s)
                break
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or pause_s is None:
                    return self._failed(error, began_ns)
            await self._clock.sleep(pause_s)
        self._hung_since_ns = None
        return tuple(_held(answer))

    async def aclose(self) -> None:
        """Close the connection (see the port)."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    def _failed(self, error: grpc.aio.AioRpcError, began_ns: int) -> Unavailable | Hung:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            if self._hung_since_ns is None:
                self._hung_since_ns = began_ns
            return Hung(
                since_boottime_ns=self._hung_since_ns,
                reason=f"kubelet takes calls at {self._socket} but does not answer within {self._timeout_s:g} s; look at its log",
            )
        self._hung_since_ns = None
        why = (self._door.why_not if self._door is not None else "") or error.details() or error.code().name
        match error.code():
            case grpc.StatusCode.UNAVAILABLE:
                step = "is kubelet running, is its pod-resources folder mounted here, and is this user root?"
            case grpc.StatusCode.UNIMPLEMENTED:
                step = "this kubelet does not speak PodResources v1 (it is older than 1.20); raise it"
            case _:
                step = "it is asked again at the next look"
        return Unavailable(reason=f"kubelet cannot be asked at {self._socket}: {why}; {step}")


def _held(answer: words.ListPodResourcesResponse) -> Iterator[HeldDevice]:
    for pod in answer.pod_resources:
        for container in pod.containers:
            for devices in container.devices:
                for device in devices.device_ids:
                    yield HeldDevice(
                        namespace=pod.namespace, pod=pod.name, resource=devices.resource_name, device=device
                    )
            for claim in container.dynamic_resources:
                for each in claim.claim_resources:
                    yield HeldDevice(
                        namespace=pod.namespace,
                        pod=pod.name,
                        resource="",
                        device=each.device_name,
                        claim_driver=each.driver_name,
                    )
