"""The controller of a demo with pods: a pod of the chart's own Deployment, from our image, under its service account, on a volume.

When it is killed its process gets SIGKILL on its node, and then its object is taken away, so that it is another pod that goes on from the
volume: a process killed alone would be started again in the same pod, and a pod deleted alone would be asked to stop first. Programs on the
host reach whichever runs by one port, a relay to the chart's Service.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swingbus_sim.cluster import node
from swingbus_sim.cluster.layout import NodePlan
from swingbus_sim.cluster.processes import wait_until
from swingbus_sim.cluster.relaying import start_relay
from swingbus_sim.demo.controller import SERVER, free_port
from swingbus_sim.demo.processes import Processes
from swingbus_sim.demo_kube.manifests import (
    CONTROLLER,
    IMAGE_USER,
    SYSTEM,
    certificates_secret,
    controller_values,
    controller_volume,
    own_image,
)
from swingbus_sim.demo_kube.pods import PodSide

_PODS = f"/api/v1/namespaces/{SYSTEM}/pods"
_OURS = "labelSelector=app.kubernetes.io%2Fcomponent%3Dcontroller"
_RUNS_WITHIN_S = 60.0


@dataclass(slots=True)
class ControllerPod:
    """The controller of one run.

    Args:
        pods: the cluster; its chart is changed to run the controller.
        processes: the run's; what follows a pod's log is one of them.
        folder: the run's. The volume is its folder `controller`, which outlives the cluster.
        lives: (name, uid) of each pod that it was, oldest first.
    """

    pods: PodSide
    processes: Processes
    folder: Path
    lives: list[tuple[str, str]] = field(default_factory=list)
    _port: int = 0

    @property
    def _node(self) -> NodePlan:
        # The last: the kubelet of the first is killed.
        return self.pods.up.real_nodes[-1]

    def take_port(self) -> int:
        """Take one that is free, for the relay."""
        self._port = free_port()
        return self._port

    async def start(self) -> None:
        """Install it and let the relay lead to it."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        volume = self.folder / "controller"
        volume.mkdir(mode=0o700)
        os.chown(volume, IMAGE_USER, IMAGE_USER)
        self.pods.apply(controller_volume(SYSTEM, volume))
        up = self.pods.up
        up.kubectl(*certificates_secret(SYSTEM, self.folder / "pki"))
        site = (self.folder / "site.toml").read_text()
        self.pods.install({"controller": controller_values(own_image(CONTROLLER), site, node=self._node.name)})
        service = up.api.get(f"/api/v1/namespaces/{SYSTEM}/services/{CONTROLLER}")["spec"]
        start_relay(
            up.processes,
            "controller-relay",
            host=service["clusterIP"],
            port=service["ports"][0]["port"],
            port_file=up.layout.run / "controller-port",
            own_port=self._port,
        )
        self._follow_next()

    async def kill(self) -> None:
        """Kill its process, then take its object away."""
        await asyncio.to_thread(self._kill)

    def _kill(self) -> None:
        path = f"{_PODS}/{self.lives[-1][0]}"
        (container,) = self.pods.up.api.get(path)["status"]["containerStatuses"]
        _, _, identity = container["containerID"].rpartition("/")
        node.kill_container(self.pods.up.processes, self.pods.up.tools, self._node, identity)
        self.pods.up.api.delete(path, grace_s=0)

    async def come_back(self) -> None:
        """Wait for the pod that the Deployment has made by itself."""
        # What followed the former pod's log has ended with it.
        self.processes.stop(SERVER)
        await asyncio.to_thread(self._follow_next)

    def _follow_next(self) -> None:
        """Wait until a pod runs that did not before; from then on its log is written down."""
        wait_until(self._has_come, what="the controller's pod runs", timeout_s=_RUNS_WITHIN_S, poll_s=0.2)
        kubectl = (str(self.pods.up.tools.path("kubectl")), f"--kubeconfig={self.pods.up.kubeconfig}", "-n", SYSTEM)
        self.processes.start(SERVER, (*kubectl, "logs", "--follow", self.lives[-1][0]))

    def _has_come(self) -> bool:
        known = {uid for _, uid in self.lives}
        found = [(name, uid) for name, uid in self._running() if uid not in known]
        self.lives += found
        return bool(found)

    def _running(self) -> Iterator[tuple[str, str]]:
        items: list[dict[str, Any]] = self.pods.up.api.get(f"{_PODS}?{_OURS}")["items"]
        for pod in items:
            containers = pod["status"].get("containerStatuses", [])
            if any("running" in container["state"] for container in containers):
                yield pod["metadata"]["name"], pod["metadata"]["uid"]
