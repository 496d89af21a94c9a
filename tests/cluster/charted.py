"""A release of the chart on real nodes: how it is asked, a volume for its controller, simulated GPUs for its agents."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from swingbus.faults import SwingbusError
from swingbus_sim.cluster import node
from swingbus_sim.cluster.processes import run
from swingbus_sim.cluster.up import Cluster
from swingbus_sim.demo_kube.manifests import IMAGE_USER, controller_volume
from swingbus_sim.nvml.build import build_library, driver_environment
from tests.cluster.gpus import NodeGpus


class Site:
    """The chart as it stands on a cluster."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.api = cluster.api
        self.notes = ""

    def helm(self, *words: str) -> str:
        """Run helm on the release."""
        return run((str(self.cluster.tools.path("helm")), f"--kubeconfig={self.cluster.kubeconfig}", *words))

    def helm_test(self) -> str:
        """Run the release's own test and return all that helm and the test's pod said."""
        helm = (str(self.cluster.tools.path("helm")), f"--kubeconfig={self.cluster.kubeconfig}")
        words = ("test", "swingbus", "-n", self.namespace, "--timeout=90s")
        done = subprocess.run((*helm, *words), capture_output=True, text=True, timeout=100, check=False)
        told = done.stdout + done.stderr
        assert done.returncode == 0, told
        return told

    def kubectl(self, *words: str, input_text: str | None = None) -> str:
        """Run kubectl in the release's namespace."""
        return self.cluster.kubectl("-n", self.namespace, *words, input_text=input_text)

    def rolled_out(self, workload: str) -> None:
        """Wait until a workload stands; else say what its pods say."""
        try:
            self.kubectl("rollout", "status", workload, "--timeout=55s")
        except SwingbusError as error:
            pods = ("describe", "pods", "-lapp.kubernetes.io/name=swingbus")
            logs = ("logs", workload, "--all-containers", "--tail=40")
            pytest.fail(f"{error}\n{self.kubectl(*pods)}\n{self.kubectl(*logs)}", pytrace=False)

    def pod(self, component: str) -> dict[str, Any]:
        """Return a program's one pod that is not on its way out."""
        found = json.loads(self.kubectl("get", "pods", f"-lapp.kubernetes.io/component={component}", "-o", "json"))
        (pod,) = [each for each in found["items"] if "deletionTimestamp" not in each["metadata"]]
        return dict(pod)

    def pod_on(self, node_name: str) -> str:
        """Return the name of a node's agent that is not on its way out, empty where there is none."""
        pods = json.loads(self.kubectl("get", "pods", "-lapp.kubernetes.io/component=agent", "-o", "json"))["items"]
        names = [
            pod["metadata"]["name"]
            for pod in pods
            if pod["spec"].get("nodeName") == node_name and "deletionTimestamp" not in pod["metadata"]
        ]
        return names[0] if names else ""

    def secret(self, name: str) -> dict[str, str]:
        """Return a Secret's files."""
        data = self.api.get(f"/api/v1/namespaces/{self.namespace}/secrets/{name}")["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def limit_w(self) -> float:
        """Return the site's limit as the running controller has it, asked in its own pod by the viewer of `helm test`."""
        ask = ("exec", "-i", "deployment/swingbus-controller", "--", "/usr/local/bin/swingctl", "--bundle=/dev/stdin")
        words = (*ask, "--endpoint=localhost:7443", "site", "show", "--output=json")
        told = self.kubectl(*words, input_text=self.secret("swingbus-test-bundle")["bundle.toml"])
        return float(json.loads(told)["site"]["limit_w"])

    def metric(self, name: str, *labels: str) -> float | None:
        """Return the controller's own word on something; None where it knows nothing of it."""
        pod = self.pod("controller")["metadata"]["name"]
        text = self.kubectl("get", "--raw", f"/api/v1/namespaces/{self.namespace}/pods/{pod}:7444/proxy/metrics")
        for line in text.splitlines():
            words, _, value = line.rpartition(" ")
            told, _, shown = words.partition("{")
            if told == name and set(labels) <= set(shown.rstrip("}").split(",")):
                return float(value)
        return None


def give_volume(site: Site, folder: str, *, size: str = "1Gi") -> None:
    """Give the controller's claim a folder of the first node's own disk, as a storage class would."""
    plan = site.cluster.real_nodes[0]
    owner = (f"--owner={IMAGE_USER}", f"--group={IMAGE_USER}", "--mode=0700")
    run((*node.entry(site.cluster.processes, plan), "install", "--directory", *owner, folder))
    volume = controller_volume(site.namespace, Path(folder))
    volume["spec"]["capacity"] = {"storage": size}
    site.api.create("/api/v1/persistentvolumes", volume)


def simulated_driver(gpus: NodeGpus) -> dict[str, Any]:
    """Return agents' values for the simulator's driver, which lies where no real one would."""
    library = build_library()
    seen = driver_environment(Path("/run/swingbus-sim/shelf"), library=Path("/opt/swingbus-sim/nvml"), base={})
    return {
        "extraEnv": [{"name": name, "value": value} for name, value in seen.items()],
        "extraVolumes": [
            {"name": "nvml", "hostPath": {"path": str(library)}},
            {"name": "shelf", "hostPath": {"path": str(gpus.host.shelf.path), "type": "File"}},
        ],
        "extraVolumeMounts": [
            {"name": "nvml", "mountPath": "/opt/swingbus-sim/nvml", "readOnly": True},
            {"name": "shelf", "mountPath": "/run/swingbus-sim/shelf"},
        ],
    }
