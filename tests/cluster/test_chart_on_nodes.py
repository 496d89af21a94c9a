"""The chart's workloads from our own images on real kubelets: the controller on a volume, an agent that reaches it by name."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from swingbus.bundle import format_bundle
from swingbus.faults import SwingbusError
from swingbus.rpc.roles import Role
from swingbus_controller.adapters.pki import CertificateAuthority
from swingbus_sim.cluster import node
from swingbus_sim.cluster.loading import load_images
from swingbus_sim.cluster.processes import run, wait_until
from swingbus_sim.cluster.up import Cluster
from swingbus_sim.demo_kube.manifests import (
    IMAGE_USER,
    certificates_secret,
    controller_values,
    controller_volume,
    loaded_image,
)
from swingbus_sim.nvml.build import build_library, driver_environment
from tests.cluster.gpus import NodeGpus, gpus_on_node
from tests.cluster.operations_page import commands_under
from tests.cluster.pods import make_namespace, wait_gone
from tools.images.build import Built

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(600)]
_CHART = Path(__file__).parents[2] / "charts" / "swingbus"
_NAMESPACE = "charted"
_HOST = f"swingbus-controller.{_NAMESPACE}.svc"
_SITE = """
[site]
name = "tx1"
authority = "observe"

[[feeder]]
name = "c1"
kind = "container"

[[feeder.limit]]
name = "contract"
limit_w = 40000
source = "contract"

[[class]]
name = "h100"
kind = "gpu"
ceiling_w = 700
floor_w = 200

[[class.point]]
name = "idle"
mode = "standby"
power_w = 200

[[bank]]
agent = "real-1"
bank = "h100"
class = "h100"
feeder = "c1"
device_count = 2
"""
_AGENT = """
[sampling]
gpu_period_s = 0.5

[pods]
miner_namespace = "mining"

[[bank]]
name = "h100"
kind = "gpu"
class = "h100"
runs = "pods"

[[bank.point]]
name = "full"
mode = "inference"
power_w = 700
"""
_LOOK = """
import json, os
found = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline").read().split("\\0")
        facts = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
    except OSError:
        continue
    if any("swingbus" in word for word in words) and "join" not in words:
        found[pid] = [" ".join(words), int(facts["Uid"].split()[1]), facts["CapEff"].strip()]
print(json.dumps({"processes": found, "token": os.path.exists("/var/run/secrets/kubernetes.io")}))
"""


class Site:
    """The chart as it stands on a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.api = cluster.api
        self.notes = ""

    def helm(self, *words: str) -> str:
        """Run helm on the release."""
        return run((str(self.cluster.tools.path("helm")), f"--kubeconfig={self.cluster.kubeconfig}", *words))

    def kubectl(self, *words: str) -> str:
        """Run kubectl in the release's namespace."""
        return self.cluster.kubectl("-n", _NAMESPACE, *words)

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

    def metric(self, name: str, *labels: str) -> float | None:
        """Return the controller's own word on something; None where it knows nothing of it."""
        pod = self.pod("controller")["metadata"]["name"]
        text = self.kubectl("get", "--raw", f"/api/v1/namespaces/{_NAMESPACE}/pods/{pod}:7444/proxy/metrics")
        for line in text.splitlines():
            words, _, value = line.rpartition(" ")
            told, _, shown = words.partition("{")
            if told == name and set(labels) <= set(shown.rstrip("}").split(",")):
                return float(value)
        return None


def _secrets(site: Site, folder: Path) -> None:
    """Make an authority as `swingbus-controller init` does, and give the cluster what the programs need of it: not the authority's key."""
    now = datetime.now(UTC)
    authority = CertificateAuthority.create(
        folder / "pki", server_names=[_HOST], endpoint=f"{_HOST}:7443", now=now, days=30
    )
    bundle = folder / "real-1.bundle.toml"
    bundle.write_text(format_bundle(authority.issue("real-1", Role.AGENT, now=now)))
    site.cluster.kubectl(*certificates_secret(_NAMESPACE, folder / "pki"))
    site.kubectl("create", "secret", "generic", "agent-bundles", f"--from-file={bundle}")
    viewer = folder / "bundle.toml"
    viewer.write_text(format_bundle(authority.issue("helm-test", Role.VIEWER, now=now)))
    site.kubectl("create", "secret", "generic", "test-bundle", f"--from-file={viewer}")


def _volume(site: Site, folder: str) -> None:
    """Give the controller's claim a folder of the first node's own disk, as a storage class would."""
    plan = site.cluster.real_nodes[0]
    owner = (f"--owner={IMAGE_USER}", f"--group={IMAGE_USER}", "--mode=0700")
    run((*node.entry(site.cluster.processes, plan), "install", "--directory", *owner, folder))
    site.api.create("/api/v1/persistentvolumes", controller_volume(_NAMESPACE, Path(folder)))


def _values(site: Site, gpus: NodeGpus, images: Mapping[str, Built]) -> dict[str, Any]:
    library = build_library()
    seen = driver_environment(Path("/run/swingbus-sim/shelf"), library=Path("/opt/swingbus-sim/nvml"), base={})
    first = site.cluster.real_nodes[0].name
    return {
        "controller": controller_values(images["swingbus-controller"].recipe.image, _SITE, node=first),
        "test": {"bundleSecretName": "test-bundle"},
        "agent": {
            "enabled": True,
            "image": loaded_image(images["swingbus-agent"].recipe.image),
            "nodes": [{"name": first}],
            "config": _AGENT,
            "bundles": {"secretName": "agent-bundles"},
            "extraEnv": [{"name": name, "value": value} for name, value in seen.items()],
            "extraVolumes": [
                {"name": "nvml", "hostPath": {"path": str(library)}},
                {"name": "shelf", "hostPath": {"path": str(gpus.host.shelf.path), "type": "File"}},
            ],
            "extraVolumeMounts": [
                {"name": "nvml", "mountPath": "/opt/swingbus-sim/nvml", "readOnly": True},
                {"name": "shelf", "mountPath": "/run/swingbus-sim/shelf"},
            ],
        },
    }


@pytest.fixture(scope="module")
def site(
    real_cluster: Cluster, images: Mapping[str, Built], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Return the chart with both programs, installed and rolled out, and two GPUs on the first node."""
    folder = tmp_path_factory.mktemp("site")
    load_images(real_cluster, [images[name].archive for name in ("swingbus-agent", "swingbus-controller")])
    site = Site(real_cluster)
    make_namespace(real_cluster.api, _NAMESPACE)
    _secrets(site, folder)
    _volume(site, "/var/lib/controller-volume")
    with gpus_on_node(real_cluster, 1, folder, gpu_count=2) as gpus:
        gpus.host.shelf.path.chmod(0o666)  # as the device files of a real driver
        values = folder / "values.json"
        values.write_text(json.dumps(_values(site, gpus, images)))
        site.notes = site.helm("install", "swingbus", str(_CHART), "-n", _NAMESPACE, "-f", str(values))
        try:
            site.rolled_out("deployment/swingbus-controller")
            site.rolled_out("daemonset/swingbus-agent")
            yield site
        finally:
            site.helm("uninstall", "swingbus", "-n", _NAMESPACE, "--wait")
            real_cluster.kubectl("delete", "crd", "capacitypools.swingbus.io")
            site.kubectl("delete", "pvc/swingbus-controller")
            real_cluster.kubectl("delete", "pv/swingbus-controller", f"namespace/{_NAMESPACE}", "--wait=false")


def _connected(site: Site) -> bool:
    return site.metric("swingbus_agents", 'state="live"') == 1


def test_agent_reaches_the_controller_by_its_service_name(site: Site) -> None:
    """Mutual TLS is the only way in, so a live agent is one whose certificate was believed; its GPUs' watts arrive."""
    wait_until(lambda: _connected(site), what="a live agent", timeout_s=60, poll_s=0.5)
    bank = ("swingbus_bank_power_watts", 'agent="real-1"', 'bank="h100"')
    wait_until(lambda: (site.metric(*bank) or 0) > 1000, what="the GPUs' watts", timeout_s=30, poll_s=0.5)
    logs = site.kubectl("logs", "daemonset/swingbus-agent")
    assert "bundle_refused" not in logs and "spool_damaged" not in logs


def test_notes_say_the_next_step(site: Site) -> None:
    """How to see that it stands, how to ask it, and what is missing for agents from outside."""
    for words in (
        f"kubectl -n {_NAMESPACE} rollout status deployment/swingbus-controller",
        f"helm test swingbus -n {_NAMESPACE} --logs",
        "controller.service.type is ClusterIP. Set LoadBalancer or NodePort",
        "kubectl label namespace NAME swingbus.io/power-gate=enabled",
    ):
        assert words in site.notes, site.notes
    assert "No agent runs" not in site.notes and "networkPolicy.enabled is off" not in site.notes


def test_helm_test_asks_for_health_and_reasons(site: Site) -> None:
    """The release's own test runs as a pod, with a viewer's certificate, and sees services and the bank."""
    wait_until(lambda: _connected(site), what="a live agent", timeout_s=60, poll_s=0.5)
    told = site.helm("test", "swingbus", "-n", _NAMESPACE, "--timeout=90s", "--logs")
    assert "Phase:          Succeeded" in told
    assert told.count(" serving") == 4 and "real-1/h100" in told, told


def _rights(site: Site) -> dict[str, tuple[int, str]]:
    """Return user and capabilities of each of our programs on the node, by its command."""
    agent = site.pod("agent")["metadata"]["name"]
    seen = json.loads(site.kubectl("exec", agent, "-c", "agent", "--", "/usr/bin/python3", "-c", _LOOK))
    assert seen["token"] is False
    return {words: (user, capabilities) for words, user, capabilities in seen["processes"].values()}


def test_programs_have_the_rights_that_the_chart_says(site: Site) -> None:
    """The controller is nobody; of the agent what measures is nobody without any right, and there is no token."""
    rights = _rights(site)
    main = {words: own for words, own in rights.items() if "swingbus-agent run" in words}
    assert list(main.values()) == [(65532, "0000000000000000")], rights
    controller = {own for words, own in rights.items() if "swingbus-controller run" in words}
    assert controller == {(65532, "0000000000000000")}, rights
    # The key is the agent's alone, on the host, where it outlives the pod.
    plan = site.cluster.real_nodes[0]
    stat = ("stat", "--format=%u %a", "/var/lib/swingbus-agent/bundle/bundle.toml")
    assert run((*node.entry(site.cluster.processes, plan), *stat)).split() == ["65532", "600"]


def test_controller_goes_on_from_its_volume(site: Site) -> None:
    """A new pod of the same release finds the journal, and the agent finds the new pod by the same name."""
    wait_until(lambda: _connected(site), what="a live agent", timeout_s=60, poll_s=0.5)
    before = site.metric("swingbus_journal_revision")
    assert before is not None and before > 0
    name = site.pod("controller")["metadata"]["name"]
    site.kubectl("delete", "pod", name)
    wait_gone(site.api, f"/api/v1/namespaces/{_NAMESPACE}/pods/{name}")
    site.rolled_out("deployment/swingbus-controller")
    wait_until(lambda: (site.metric("swingbus_journal_revision") or 0) > before, what="its journal", timeout_s=30)
    wait_until(lambda: _connected(site), what="the agent again", timeout_s=60, poll_s=0.5)


def _as_the_page_says(site: Site, folder: Path, heading: str) -> str:
    """Run the commands of docs/operations.md for a cluster in this release's namespace; return what they print."""
    script = commands_under(heading, "In a cluster").replace("swingbus-system", _NAMESPACE)
    environment = {**os.environ, **site.cluster.environment()}
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_journal_is_backed_up_and_put_back_as_the_page_says(site: Site, tmp_path: Path) -> None:
    """Root is read-only and the image has neither shell nor tar: the page's own commands bring a copy out and in again."""
    wait_until(lambda: _connected(site), what="a live agent", timeout_s=60, poll_s=0.5)
    _as_the_page_says(site, tmp_path, "Back up")
    backup = tmp_path / "journal.backup"
    with closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (revision,) = copy.execute("SELECT max(revision) FROM entries").fetchone()
    try:
        said = _as_the_page_says(site, tmp_path, "Put back")
    finally:  # else the claim can't go either
        site.kubectl("delete", "pod", "swingbus-restore", "--ignore-not-found", "--now")
        site.kubectl("scale", "deployment/swingbus-controller", "--replicas=1")
    assert f"restored the journal of site tx1 to event {revision} of" in said, said
    assert "is kept: /var/lib/swingbus/data/journal.sqlite.replaced-" in said, said
    site.rolled_out("deployment/swingbus-controller")
    wait_until(lambda: _connected(site), what="the agent again", timeout_s=60, poll_s=0.5)
    # Its epoch is on the axis of Unix seconds from now on.
    assert (site.metric("swingbus_controller_epoch") or 0) > 1_700_000_000


def test_agent_goes_on_from_its_state_folder(site: Site) -> None:
    """A new pod joins again over the folder that is no longer root's, and connects."""
    wait_until(lambda: _connected(site), what="a live agent", timeout_s=60, poll_s=0.5)
    name = site.pod("agent")["metadata"]["name"]
    site.kubectl("delete", "pod", name)
    wait_gone(site.api, f"/api/v1/namespaces/{_NAMESPACE}/pods/{name}")
    site.rolled_out("daemonset/swingbus-agent")
    assert site.pod("agent")["metadata"]["name"] != name
    wait_until(lambda: _connected(site), what="the agent again", timeout_s=60, poll_s=0.5)
    assert "state_lost" not in site.kubectl("logs", "daemonset/swingbus-agent")


def test_writing_agent_has_one_right_more_in_its_child_alone(site: Site) -> None:
    """What measures has none as before; what sets limits is root with SYS_ADMIN and nothing else."""
    site.helm("upgrade", "swingbus", str(_CHART), "-n", _NAMESPACE, "--reuse-values", "--set", "agent.writes=true")
    site.rolled_out("daemonset/swingbus-agent")
    wait_until(lambda: _connected(site), what="the agent again", timeout_s=60, poll_s=0.5)
    rights = _rights(site)
    main = [own for words, own in rights.items() if "swingbus-agent run" in words]
    children = [own for words, own in rights.items() if "swingbus_agent.adapters.privileged" in words]
    assert main == [(65532, "0000000000000000")], rights
    assert children and set(children) == {(0, f"{1 << 21:016x}")}, rights


def test_node_without_a_bundle_runs_no_agent_and_says_why(site: Site) -> None:
    """One that is listed but was given no certificate stays at its first step; the others go on."""
    second = site.cluster.real_nodes[1].name
    nodes = json.dumps([{"name": plan.name} for plan in site.cluster.real_nodes])
    options = ("-n", _NAMESPACE, "--reuse-values", "--set-json", f"agent.nodes={nodes}")
    site.helm("upgrade", "swingbus", str(_CHART), *options)

    def said() -> bool:
        pods = json.loads(site.kubectl("get", "pods", "-lapp.kubernetes.io/component=agent", "-o", "json"))["items"]
        names = [pod["metadata"]["name"] for pod in pods if pod["spec"].get("nodeName") == second]
        return bool(names) and "cannot read the bundle /etc/swingbus/bundle.toml" in site.kubectl(
            "logs", names[0], "-c", "join", "--ignore-errors"
        )

    wait_until(said, what="why there is no agent", timeout_s=60, poll_s=1.0)
