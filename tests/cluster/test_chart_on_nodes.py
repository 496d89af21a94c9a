"""The chart's workloads from our own images on real kubelets: the controller on a volume, an agent that reaches it by name."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from swingbus.bundle import format_bundle, load_bundle, parse_bundle
from swingbus_controller.main import main
from swingbus_sim.cluster import node
from swingbus_sim.cluster.loading import load_images
from swingbus_sim.cluster.processes import run, wait_until
from swingbus_sim.cluster.up import Cluster
from swingbus_sim.demo_kube.manifests import (
    controller_values,
    loaded_image,
)
from tests.cluster.charted import Site, give_volume, simulated_driver
from tests.cluster.conftest import CHARTED
from tests.cluster.gpus import NodeGpus, gpus_on_node
from tests.cluster.operations_page import commands_under
from tests.cluster.pods import make_namespace, wait_gone
from tests.cluster.rights import asked, covers, rights_of
from tests.fakes.cert_manager import CertManager, read_serial
from tools.images.build import Built

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(600)]
_CHART = Path(__file__).parents[2] / "charts" / "swingbus"
_NAMESPACE = CHARTED
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


def _values(site: Site, gpus: NodeGpus, images: Mapping[str, Built]) -> dict[str, Any]:
    first = site.cluster.real_nodes[0].name
    return {
        "certificates": {"create": True, "names": ["swingbus.example"]},
        "controller": {
            **controller_values(images["swingbus-controller"].recipe.image, _SITE, node=first),
            "certificates": {},
        },
        "agent": {
            "enabled": True,
            "image": loaded_image(images["swingbus-agent"].recipe.image),
            "nodes": [{"name": first}],
            "config": _AGENT,
            **simulated_driver(gpus),
        },
    }


@pytest.fixture(scope="module")
def site(
    real_cluster: Cluster, images: Mapping[str, Built], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Return the chart with both programs, installed and rolled out, and two GPUs on the first node."""
    folder = tmp_path_factory.mktemp("site")
    load_images(real_cluster, [images[name].archive for name in ("swingbus-agent", "swingbus-controller")])
    site = Site(real_cluster, _NAMESPACE)
    make_namespace(real_cluster.api, _NAMESPACE)
    give_volume(site, "/var/lib/controller-volume")
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
        f"helm test swingbus -n {_NAMESPACE}",
        f"certificate issue --namespace {_NAMESPACE} --operator YOU --role admin",
        "controller.service.type is ClusterIP. Set LoadBalancer or NodePort",
        "kubectl label namespace NAME swingbus.io/power-gate=enabled",
    ):
        assert words in site.notes, site.notes
    assert "No agent runs" not in site.notes and "networkPolicy.enabled is off" not in site.notes


def test_helm_test_asks_for_health_and_reasons(site: Site) -> None:
    """The release's own test runs as a pod, with a viewer's certificate, and sees services and the bank."""
    wait_until(lambda: _connected(site), what="a live agent", timeout_s=60, poll_s=0.5)
    told = site.helm_test()
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


def test_limit_that_is_changed_in_the_values_reaches_the_controller_that_runs(site: Site, tmp_path: Path) -> None:
    """By the kubelet that swaps the ConfigMap's files under it; a controller that only watches the site takes it from a new pod."""
    file = tmp_path / "site.toml"
    for limit_w, is_new in ((40_000, True), (31_000, False)):
        # The second node has its place too, for the tests that come: what is planned must know all that report.
        bank = _SITE[_SITE.index("[[bank]]") :].replace("real-1", site.cluster.real_nodes[1].name)
        text = (_SITE + bank).replace('authority = "observe"', 'authority = "advise"')
        file.write_text(text.replace("limit_w = 40000", f"limit_w = {limit_w}"))
        before = site.pod("controller")["metadata"]["name"]
        _upgrade(site, "--set-file", f"controller.site={file}")
        site.rolled_out("deployment/swingbus-controller")
        name = site.pod("controller")["metadata"]["name"]
        assert (name != before) == is_new
        site.kubectl("annotate", "--overwrite", "pod", name, f"looked-at={limit_w}")  # or it takes the kubelet a minute
        wait_until(lambda w=limit_w: site.limit_w() == w, what=f"{limit_w} W", timeout_s=120, poll_s=1.0)  # type: ignore[misc]


def _said(site: Site, node_name: str, words: str) -> bool:
    """Whether what hands a node's agent its certificate said something."""
    pods = json.loads(site.kubectl("get", "pods", "-lapp.kubernetes.io/component=agent", "-o", "json"))["items"]
    names = [pod["metadata"]["name"] for pod in pods if pod["spec"].get("nodeName") == node_name]
    return bool(names) and words in site.kubectl("logs", names[0], "-c", "join", "--ignore-errors")


def _upgrade(site: Site, *words: str) -> str:
    return site.helm("upgrade", "swingbus", str(_CHART), "-n", _NAMESPACE, "--reuse-values", *words)


def test_node_that_is_added_gets_its_certificate_by_the_upgrade(site: Site) -> None:
    """And what would end within the year told here is renewed; the authority stays, and its key is in no pod of the release."""
    second = site.cluster.real_nodes[1].name
    before = site.secret("swingbus-controller-certificates")
    nodes = json.dumps([{"name": plan.name} for plan in site.cluster.real_nodes])
    _upgrade(
        site, "--set-json", f"agent.nodes={nodes}", "--set", "certificates.days=400,certificates.renewWithinDays=370"
    )
    wait_until(lambda: _said(site, second, f": agent {second}, "), what="its certificate", timeout_s=60, poll_s=1.0)
    after = site.secret("swingbus-controller-certificates")
    assert after["ca.pem"] == before["ca.pem"] and after["server.pem"] != before["server.pem"]
    assert sorted(site.secret("swingbus-agent-bundles")) == sorted(
        f"{plan.name}.bundle.toml" for plan in site.cluster.real_nodes
    )
    pods = json.loads(site.kubectl("get", "pods", "-o", "json"))["items"]
    assert pods and not any("swingbus-authority" in json.dumps(pod["spec"]) for pod in pods)
    wait_until(lambda: _connected(site), what="the agent again", timeout_s=60, poll_s=0.5)


def test_job_of_certificates_has_the_rights_it_needs_and_no_others(site: Site) -> None:
    """By the API server's record of what it asked for since the installation; afterwards its rights are gone."""
    hooks = [each for each in yaml.safe_load_all(site.helm("get", "hooks", "swingbus", "-n", _NAMESPACE)) if each]
    (role,) = [each for each in hooks if each["kind"] == "Role"]
    rights = set(rights_of(role["rules"], role["metadata"]["name"], _NAMESPACE))
    requests = {each for each in asked(site.cluster.layout.audit_log) if each.namespace == _NAMESPACE}
    assert requests and not [each for each in requests if each.is_forbidden]
    assert {right for right in rights if not any(covers(right, each) for each in requests)} == set()
    assert {(each.verb, each.resource) for each in requests} == {(r.verb, r.resource) for r in rights}
    for kind in ("serviceaccount", "role", "rolebinding", "networkpolicy", "job"):
        assert site.kubectl("get", kind, "swingbus-certificates", "--ignore-not-found") == ""


_TIME_TO_ASK_S = 20.0


def _wait_refused(site: Site, node_name: str) -> None:
    """Wait until a node's agent is shut out; where it got in before the controller read the list it begins anew."""
    # A kubelet looks at a pod's volumes when it looks at the pod: now, not within its minute.
    name = site.pod("controller")["metadata"]["name"]
    first_seen_s: dict[str, float] = {}

    def is_refused() -> bool:
        site.kubectl("annotate", "--overwrite", "pod", name, f"looked-at={time.monotonic()}")
        agent = site.pod_on(node_name)
        if agent and "CERTIFICATE_REVOKED" in site.kubectl("logs", agent, "-c", "agent", "--ignore-errors"):
            return True
        # On a busy machine it takes its time to ask at all.
        waits_s = time.monotonic() - first_seen_s.setdefault(agent, time.monotonic())
        if agent and waits_s > _TIME_TO_ASK_S:
            site.kubectl("delete", "pod", agent, "--ignore-not-found")
        return False

    wait_until(is_refused, what="its refusal", timeout_s=150, poll_s=4.0)


def test_person_gets_her_bundle_by_her_own_rights_and_an_agent_is_shut_out(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the notes say; the running controller refuses who was revoked, and an upgrade does not let that one in again."""
    monkeypatch.chdir(tmp_path)
    place = ("--namespace", _NAMESPACE, "--kubeconfig", str(site.cluster.kubeconfig))
    assert main(["certificate", "issue", *place, "--operator", "dana", "--role", "admin"]) == 0
    assert load_bundle(tmp_path / "dana.bundle.toml").endpoint == f"{_HOST}:7443"
    first = site.cluster.real_nodes[0].name
    bundle = parse_bundle(site.secret("swingbus-agent-bundles")[f"{first}.bundle.toml"])
    assert main(["certificate", "deny", *place, "--serial", bundle.serial, "--reason", "stolen"]) == 0
    _wait_refused(site, first)
    _upgrade(site)
    assert site.secret("swingbus-agent-bundles")[f"{first}.bundle.toml"] == format_bundle(bundle)


def test_release_goes_over_to_certificates_of_cert_manager(site: Site) -> None:
    """Secrets as it makes them for controller, test and the first node: all go on; the second waits for its own, and says so."""
    first, second = (plan.name for plan in site.cluster.real_nodes)
    issuer = CertManager()
    issued = issuer.client(first, "swingbus:role:agent")

    def give(name: str, files: Mapping[str, str]) -> None:
        site.kubectl("create", "secret", "generic", name, *(f"--from-literal={k}={text}" for k, text in files.items()))

    give("controller-tls", issuer.server(["swingbus-controller", _HOST]))
    give(f"agent-tls-{first}", issued)
    give("test-tls", issuer.client("helm-test", "swingbus:role:viewer", is_rsa=False))
    _upgrade(
        site,
        *("--set", "certificates.create=false,controller.certificates.secretName=controller-tls"),
        *("--set", "agent.bundles.tlsSecretPrefix=agent-tls-,test.tlsSecretName=test-tls"),
        *("--set-json", f"agent.nodes={json.dumps([{'name': first}, {'name': second}])}"),
    )
    site.rolled_out("deployment/swingbus-controller")
    # An update goes on to the next node when one is ready, which the second can't be: both at once.
    site.kubectl("delete", "pods", "-lapp.kubernetes.io/component=agent", "--wait=false")
    wait_until(lambda: _connected(site), what="the first node's agent", timeout_s=90, poll_s=0.5)
    lacks = f"there is no bundle at /etc/swingbus/tls/{second}"
    wait_until(lambda: _said(site, second, lacks), what="what the second lacks", timeout_s=60, poll_s=1.0)
    # What the second waits for comes: it goes on by itself, without anybody touching it but to look sooner.
    give(f"agent-tls-{second}", issuer.client(second, "swingbus:role:agent"))

    def is_in() -> bool:
        site.kubectl("annotate", "--overwrite", "pod", site.pod_on(second), f"looked-at={time.monotonic()}")
        return site.metric("swingbus_agents", 'state="live"') == 2

    wait_until(is_in, what="the second node's agent", timeout_s=180, poll_s=2.0)
    told = site.helm_test()
    assert "Phase:          Succeeded" in told and told.count(" serving") == 4, told
    # Revoked by a list that is no part of the release.
    serial = read_serial(issued["tls.crt"])
    site.kubectl("create", "configmap", "swingbus-denied", f"--from-literal=denied.txt={serial}")
    _wait_refused(site, first)
