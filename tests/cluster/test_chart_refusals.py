"""What a cluster lacks is told by `helm install` before anything is changed, with the next step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from swingbus.faults import SwingbusError
from swingbus_sim.cluster.processes import run
from swingbus_sim.cluster.up import Cluster
from tests.cluster.chart import AGENT, CHART, CONTROLLER, without
from tests.cluster.pods import make_namespace

pytestmark = pytest.mark.cluster
_NAMESPACE = "refused"
_DEFINITION = "capacitypools.swingbus.io"


class Release:
    """A release that shall not come to be."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self._values = folder / "values.json"

    def install(self, *words: str, **values: Any) -> str:
        """Run a real `helm install`; its refusal is raised."""
        self._values.write_text(json.dumps(values))
        helm = (str(self.cluster.tools.path("helm")), f"--kubeconfig={self.cluster.kubeconfig}")
        return run((*helm, "install", "swb", str(CHART), "-n", _NAMESPACE, "-f", str(self._values), *words))

    def secret(self, name: str, *keys: str) -> None:
        """Make a Secret with these keys."""
        self.kubectl("create", "secret", "generic", name, *(f"--from-literal={key}=x" for key in keys))

    def kubectl(self, *words: str, input_text: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return self.cluster.kubectl("-n", _NAMESPACE, *words, input_text=input_text)

    def objects(self) -> list[str]:
        """Return what there is of any release of the chart."""
        kinds = "clusterroles,roles,deployments,daemonsets,services,networkpolicies,validatingadmissionpolicies,priorityclasses"
        found = self.cluster.kubectl("get", kinds, "-A", "-l", "app.kubernetes.io/name=swingbus", "-o", "name")
        return [*found.split(), *self.kubectl("get", "secrets", "-l", "owner=helm", "-o", "name").split()]


@pytest.fixture(scope="module")
def namespace(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a namespace that has all that both programs need, once (a namespace takes seconds to go); return a folder."""
    folder = tmp_path_factory.mktemp("refused")
    make_namespace(cluster.api, _NAMESPACE)
    made = Release(cluster, folder)
    made.secret("controller-certificates", "ca.pem", "server.pem", "denied.txt")
    made.secret("half-tls", "tls.crt", "ca.crt")
    made.secret("agent-bundles", *(f"{each['name']}.bundle.toml" for each in _nodes(made)))
    yield folder
    cluster.kubectl("delete", "namespace", _NAMESPACE)


@pytest.fixture
def release(cluster: Cluster, namespace: Path) -> Iterator[Release]:
    """Return a release that shall be refused; afterwards nothing of it is there."""
    made = Release(cluster, namespace)
    yield made
    assert made.objects() == []


@contextmanager
def _definition(release: Release, *versions: str, owner: str = "") -> Iterator[None]:
    """Let the cluster have a definition of CapacityPool, of a release `namespace/name` or of nobody."""
    namespace, _, name = owner.partition("/")
    marks = {"meta.helm.sh/release-namespace": namespace, "meta.helm.sh/release-name": name} if owner else {}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    body = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": _DEFINITION, "annotations": marks},
        "spec": {
            "group": "swingbus.io",
            "scope": "Cluster",
            "names": {"kind": "CapacityPool", "plural": "capacitypools", "singular": "capacitypool"},
            "versions": [
                {"name": version, "served": True, "storage": version == versions[0], "schema": schema}
                for version in versions
            ],
        },
    }
    release.cluster.kubectl("apply", "-f", "-", input_text=json.dumps(body))
    try:
        yield
    finally:
        release.cluster.kubectl("delete", "crd", _DEFINITION)


def _nodes(release: Release) -> list[dict[str, str]]:
    names = release.cluster.kubectl("get", "nodes", "-o", "name").split()
    return [{"name": name.removeprefix("node/")} for name in names]


_NO_CLASS = {"create": False, "name": "gone"}
_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no certificates": (
        {"controller": {**CONTROLLER, "certificates": {"secretName": "gone"}}},
        "controller.certificates.secretName: there is no Secret gone in namespace refused: make it first",
    ),
    "certificates without a key": (
        {"controller": {**CONTROLLER, "certificates": {"secretName": "agent-bundles"}}},
        "the Secret agent-bundles in namespace refused has no key ca.pem",
    ),
    "half of cert-manager's Secret": (
        {"controller": {**CONTROLLER, "certificates": {"secretName": "half-tls"}}},
        "controller.certificates.secretName: the Secret half-tls in namespace refused has no key tls.key",
    ),
    "no Secret of cert-manager's for the test": (
        {"controller": CONTROLLER, "test": {"tlsSecretName": "half-tls"}},
        "test.tlsSecretName: the Secret half-tls in namespace refused has no key tls.key",
    ),
    "no ConfigMap": (
        {"controller": {**without(CONTROLLER, "site"), "siteConfigMap": "my-site"}},
        "there is no ConfigMap my-site with the key site.toml in namespace refused: kubectl create configmap",
    ),
    "a ConfigMap without its key": (
        {"controller": {**without(CONTROLLER, "site"), "siteConfigMap": "kube-root-ca.crt"}},
        "there is no ConfigMap kube-root-ca.crt with the key site.toml",
    ),
    "no claim": (
        {"controller": {**CONTROLLER, "persistence": {"existingClaim": "my-claim"}}},
        "there is no PersistentVolumeClaim my-claim in namespace refused",
    ),
    "no storage class": (
        {"controller": {**CONTROLLER, "persistence": {"storageClassName": "fast"}}},
        "this cluster has no StorageClass fast",
    ),
    "no bundle for the test": (
        {"controller": CONTROLLER, "test": {"bundleSecretName": "agent-bundles"}},
        "test.bundleSecretName: the Secret agent-bundles in namespace refused has no key bundle.toml",
    ),
    "no bundles": (
        {"agent": {**AGENT, "bundles": {"secretName": "gone"}}},
        "agent.bundles.secretName: there is no Secret gone",
    ),
    "no such nodes": ({"agent": AGENT}, "agent.nodes: none of gpu-1, gpu-2 is a node of this cluster"),
    "no class for the controller": (
        {"controller": {**CONTROLLER, "priorityClass": _NO_CLASS}},
        "controller.priorityClass.create is off, and this cluster has no PriorityClass gone: make it, name another",
    ),
    "no class for the agents": (
        {"agent": {**AGENT, "priorityClass": _NO_CLASS}},
        "agent.priorityClass.create is off, and this cluster has no PriorityClass gone",
    ),
    "no class for miners": (
        {"miners": {"priorityClass": _NO_CLASS}},
        "miners.priorityClass.create is off, and this cluster has no PriorityClass gone",
    ),
    "no definition": ({"crds": {"install": False}}, "crds.install is off, and this cluster has no definition"),
}


@pytest.mark.parametrize("case", _CASES)
def test_what_is_missing_is_told_before_anything_is_changed(release: Release, case: str) -> None:
    """By name and place, with what to do."""
    values, words = _CASES[case]
    with pytest.raises(SwingbusError) as refused:
        release.install(**values)
    assert words in str(refused.value)


def test_definition_of_another_version_or_owner_is_left_alone(release: Release) -> None:
    """One that this chart can't work with; one of another release; one of nobody, which a release may be given."""
    for context, words in (
        (_definition(release, "v1beta1"), "serves v1beta1, this chart works with v1alpha1"),
        (
            _definition(release, "v1alpha1", owner="other/swb"),
            "belongs to release other/swb, not to release refused/swb",
        ),
        (
            _definition(release, "v1alpha1"),
            "belongs to no release of helm, not to release refused/swb: set crds.install=false",
        ),
    ):
        with context, pytest.raises(SwingbusError) as refused:
            release.install()
        assert words in str(refused.value)


@pytest.mark.parametrize("program", ["controller", "agent", "miners"])
def test_class_of_another_value_is_refused(release: Release, program: str) -> None:
    """The API server would say so too, but in the middle of an install."""
    release.cluster.kubectl("create", "priorityclass", "taken", "--value=-77")
    values = {"controller": CONTROLLER, "agent": AGENT, "miners": {}}[program]
    try:
        with pytest.raises(SwingbusError) as refused:
            release.install(**{program: {**values, "priorityClass": {"name": "taken"}}})
    finally:
        release.cluster.kubectl("delete", "priorityclass", "taken")
    assert "the PriorityClass taken of this cluster has -77, which never changes: keep that value" in str(refused.value)
    assert f"{program}.priorityClass.value is " in str(refused.value)


def test_namespace_that_is_enrolled_is_refused(release: Release) -> None:
    """The controller's own pods would wait behind the gate that only it can lift."""
    release.cluster.kubectl("label", "namespace", _NAMESPACE, "swingbus.io/power-gate=enabled")
    try:
        with pytest.raises(SwingbusError, match="namespace refused is enrolled"):
            release.install()
    finally:
        release.cluster.kubectl("label", "namespace", _NAMESPACE, "swingbus.io/power-gate-")


@pytest.mark.parametrize(
    ("version", "words"),
    [("1.29.9", "chart requires kubeVersion: >=1.30.0-0"), ("1.35.2", "can't inject the gate.*set gate.inject=false")],
)
def test_kubernetes_that_is_too_old_is_refused(release: Release, version: str, words: str) -> None:
    """Too old for the chart; too old for what is asked of it. Rendered for such a cluster, for none is at hand."""
    helm = str(release.cluster.tools.path("helm"))
    with pytest.raises(SwingbusError, match=words):
        run((helm, "template", "swb", str(CHART), "--kube-version", version))


def test_node_without_a_bundle_is_named(release: Release) -> None:
    """Its agent's pod would stay at its first step."""
    release.secret("few-bundles", "other.bundle.toml")
    node = _nodes(release)[0]["name"]
    with pytest.raises(
        SwingbusError, match=f"the Secret few-bundles in namespace refused has no key {node}.bundle.toml"
    ):
        release.install(agent={**AGENT, "nodes": [{"name": node}], "bundles": {"secretName": "few-bundles"}})


def test_node_without_cert_managers_secret_is_named(release: Release) -> None:
    """The same of one Secret for each node."""
    node = _nodes(release)[0]["name"]
    agent = {**AGENT, "nodes": [{"name": node}], "bundles": {"tlsSecretPrefix": "agent-"}, "endpoint": "c.example:443"}
    with pytest.raises(SwingbusError, match=f"agent.bundles.tlsSecretPrefix: there is no Secret agent-{node} in"):
        release.install(agent=agent)


def test_deny_list_that_would_not_count_is_refused(release: Release) -> None:
    """Of two the Secret's own counts."""
    release.kubectl("create", "configmap", "swingbus-denied", "--from-literal=denied.txt=0a1b")
    try:
        with pytest.raises(SwingbusError, match=r"the Secret controller-certificates has a denied\.txt of its own"):
            release.install(controller=CONTROLLER)
    finally:
        release.kubectl("delete", "configmap", "swingbus-denied")


def test_with_all_that_is_needed_nothing_is_refused(release: Release) -> None:
    """The same values, tried by the API server; notes name nodes that are not here or offer no GPU."""
    nodes = _nodes(release)
    agent = {**AGENT, "nodes": [*nodes, {"name": "later"}], "config": ""}
    told = release.install("--dry-run=server", controller=CONTROLLER, agent=agent)
    assert "agent.nodes: later is no node of this cluster now; its agent starts when it is." in told
    assert f"agent.nodes: {nodes[0]['name']} offers no" not in told
    other = release.install("--dry-run=server", controller=CONTROLLER, agent=agent, gate={"resource": "amd.com/gpu"})
    assert f"agent.nodes: {nodes[0]['name']} offers no amd.com/gpu yet" in other
