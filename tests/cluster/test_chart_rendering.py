"""The chart's workloads as rendered: refused with what is missing, and taken by a real API server under strict validation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from swingbus import __version__
from swingbus.faults import SwingbusError
from swingbus_agent.settings import load_settings
from swingbus_sim.cluster.up import Cluster
from tests.cluster.chart import AGENT, CONTROLLER, template, without
from tests.cluster.pods import make_namespace

pytestmark = pytest.mark.cluster
_NAMESPACE, _RESTRICTED = "rendered", "rendered-restricted"


_OWN: dict[str, Any] = {**CONTROLLER, "certificates": {}}


def _made(**values: Any) -> dict[str, Any]:
    """Return values of a release whose certificates the chart's job makes."""
    return {"certificates": {"create": True}, "controller": _OWN, **values}


class Chart:
    """The chart, rendered with values and shown to an API server that keeps nothing of it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self.folder = folder

    def render(self, **values: Any) -> str:
        """Return what helm renders; its refusal is raised."""
        return template(self._cluster, self.folder, _NAMESPACE, **values)

    def objects(self, **values: Any) -> dict[str, dict[str, Any]]:
        """Return the objects of this namespace by kind and name, as the API server would keep them."""
        own = [
            part
            for part in self.render(**values).split("\n---\n")
            if any(f"/{name}.yaml" in part for name in ("controller", "agent", "certificates", "check"))
        ]
        words = ("apply", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-")
        answer = json.loads(self._cluster.kubectl(*words, input_text="\n---\n".join(own)))
        items = answer["items"] if answer["kind"] == "List" else [answer]
        return {f"{item['kind']}/{item['metadata']['name']}": item for item in items}

    def try_restricted(self, pod: dict[str, Any]) -> None:
        """Show a pod to a namespace that takes restricted ones only; its refusal is raised."""
        words = ("create", "-n", _RESTRICTED, "--dry-run=server", "-f", "-")
        self._cluster.kubectl(*words, input_text=json.dumps(pod))


@pytest.fixture(scope="module")
def chart(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chart]:
    """Return the chart and a namespace to try it in."""
    for name in (_NAMESPACE, _RESTRICTED):
        make_namespace(cluster.api, name)
    cluster.kubectl("label", "namespace", _RESTRICTED, "pod-security.kubernetes.io/enforce=restricted")
    yield Chart(cluster, tmp_path_factory.mktemp("chart"))
    for name in (_NAMESPACE, _RESTRICTED):
        cluster.api.delete(f"/api/v1/namespaces/{name}")


def _pod(workload: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def test_programs_are_off_until_they_are_asked_for(chart: Chart) -> None:
    """The gate alone installs with no value at all, and brings no workload."""
    rendered = chart.render()
    assert "kind: MutatingAdmissionPolicy" in rendered
    assert not {"kind: Deployment", "kind: DaemonSet", "kind: Service", "kind: Secret"} & set(rendered.splitlines())


def _classes(rendered: str) -> dict[str, dict[str, Any]]:
    found = [each for each in yaml.safe_load_all(rendered) if each and each["kind"] == "PriorityClass"]
    assert len({each["metadata"]["name"] for each in found}) == len(found)
    return {each["metadata"]["name"]: each for each in found}


def test_each_program_that_runs_has_a_class_of_its_own(chart: Chart) -> None:
    """And none that does not run; agents before the controller, both before everybody else and behind the cluster's own."""
    assert set(_classes(chart.render())) == {"swingbus-miner"}
    assert set(_classes(chart.render(controller=CONTROLLER))) == {"swingbus-miner", "swingbus-controller"}
    found = _classes(chart.render(controller=CONTROLLER, agent=AGENT))
    values = [found[name]["value"] for name in ("swingbus-miner", "swingbus-controller", "swingbus-agent")]
    assert values == sorted(values) and values[1] > 100_000_000 and values[2] <= 1_000_000_000
    assert {name: each["preemptionPolicy"] for name, each in found.items()} == {
        "swingbus-miner": "Never",
        "swingbus-controller": "PreemptLowerPriority",
        "swingbus-agent": "PreemptLowerPriority",
    }
    objects = chart.objects(controller=CONTROLLER, agent=AGENT)
    assert _pod(objects["Deployment/swingbus-controller"])["priorityClassName"] == "swingbus-controller"
    assert _pod(objects["DaemonSet/swingbus-agent"])["priorityClassName"] == "swingbus-agent"


def test_class_may_be_the_cluster_s_own_or_none(chart: Chart) -> None:
    """One that is there is named and not made; an empty name leaves the cluster's default."""
    own = {"create": False, "name": "system-cluster-critical"}
    for given, named in ((own, "system-cluster-critical"), ({"name": ""}, None)):
        values = {**CONTROLLER, "priorityClass": given}
        assert set(_classes(chart.render(controller=values))) == {"swingbus-miner"}
        pod = _pod(chart.objects(controller=values)["Deployment/swingbus-controller"])
        assert pod.get("priorityClassName") == named


@pytest.mark.parametrize(
    ("program", "missing", "words"),
    [
        ("controller", ("image", "repository"), "controller.image.repository is missing.*make images"),
        (
            "controller",
            ("certificates", "secretName"),
            "the controller has no certificates: set certificates.create=true",
        ),
        ("controller", ("site",), "no site file: set controller.site"),
        ("agent", ("image", "repository"), "agent.image.repository is missing"),
        ("agent", ("bundles", "secretName"), "agents have no certificates: set certificates.create=true"),
        ("agent", ("nodes",), "agent.nodes is empty"),
    ],
)
def test_missing_value_is_told_with_the_next_step(
    chart: Chart, program: str, missing: tuple[str, ...], words: str
) -> None:
    """There is no default image, key or site that could stand in."""
    values = {"controller": CONTROLLER, "agent": AGENT}[program]
    with pytest.raises(SwingbusError, match=words):
        chart.render(**{program: without(values, *missing)})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"controller": {**CONTROLLER, "siteConfigMap": "mine"}}, "are both set: keep one"),
        ({"controller": {**CONTROLLER, "replicas": 2}}, "replicas"),
        (
            {"controller": {**CONTROLLER, "site": "[kubernetes]\n[site]\n"}},
            'namespace "swingbus-system".*in "rendered"',
        ),
        (
            {"controller": {**CONTROLLER, "site": '[kubernetes]\nnamespace = "other"\n'}},
            'write namespace = "rendered"',
        ),
        ({"controller": {"persistence": {"emptyDir": True}}}, "emptyDir"),
        ({"controller": {"image": {"digest": "sha256:12"}}}, "digest"),
        ({"controller": {"service": {"port": 0}}}, "port"),
        ({"controller": {"priorityClassName": "high"}}, "priorityClassName"),
        ({"controller": {"priorityClass": {"value": 1_000_000_001}}}, "priorityClass/value"),
        (
            {"controller": {**CONTROLLER, "priorityClass": {"name": "system-cluster-critical"}}},
            "set controller.priorityClass.create=false",
        ),
        (
            {"controller": CONTROLLER, "agent": {**AGENT, "priorityClass": {"name": "swingbus-controller"}}},
            "controller.priorityClass and agent.priorityClass would both make swingbus-controller",
        ),
        ({"agent": {**AGENT, "nodes": [{"name": "gpu-1"}, {"name": "gpu-1"}]}}, "gpu-1 twice"),
        ({"agent": {**AGENT, "bundles": {"secretName": "b", "onHost": True}}}, "are both set: keep one"),
        ({"agent": {**AGENT, "bundles": {"tlsSecretPrefix": "b-", "onHost": True}}}, "are both set: keep one"),
        ({"agent": {**AGENT, "bundles": {"tlsSecretPrefix": "b-"}}}, "agent.endpoint is missing"),
        ({"agent": {**AGENT, "bundles": {"onHost": True}, "endpoint": "c:1"}}, "agent.endpoint is of no use"),
        ({"agent": {**AGENT, "endpoint": "https://c:1"}}, "endpoint"),
        ({"certificates": {"create": True}}, "controller.enabled is off"),
        (_made(controller=CONTROLLER), "certificates.create and controller.certificates.secretName are both set"),
        (_made(agent=AGENT), "certificates.create and agent.bundles.secretName are both set"),
        (_made(certificates={"create": True, "days": 60}), "renewWithinDays must be less than certificates.days"),
        (_made(certificates={"create": True, "names": ["http://x"]}), "names"),
        (_made(test={"bundleSecretName": "a", "tlsSecretName": "b"}), "are both set: keep one"),
        ({"agent": {**AGENT, "config": "writes = true\n"}}, "sets `writes`, which the chart writes"),
        ({"agent": {**AGENT, "config": "[node]\nrun_as_user = 0\n"}}, r"has a table \[node\]"),
        ({"agent": {"user": 0}}, "user"),
        ({"agent": {"nodes": [{"name": "gpu-1", "banks": 2}]}}, "banks"),
        ({"agents": {}}, "agents"),
    ],
)
def test_wrong_value_is_refused(chart: Chart, values: dict[str, Any], words: str) -> None:
    """Unknown keys at every level, contradictions, and what would undo a rule of ours."""
    with pytest.raises(SwingbusError, match=words):
        chart.render(**values)


def test_controller_is_one_restricted_pod_on_a_volume_that_stays(chart: Chart) -> None:
    """Recreate, nobody, nothing writable but its volume; the claim outlives the release."""
    found = chart.objects(controller=CONTROLLER)
    deployment = found["Deployment/swingbus-controller"]
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]) == (1, {"type": "Recreate"})
    pod = _pod(deployment)
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
    assert container["image"] == f"example.invalid/swingbus-controller:{__version__}"
    assert not [volume for volume in pod["volumes"] if "emptyDir" in volume or "hostPath" in volume]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "swingbus-controller"}
    claim = found["PersistentVolumeClaim/swingbus-controller"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    service = found["Service/swingbus-controller"]["spec"]
    assert service["ports"][0]["port"] == 7443
    assert service["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert found["ConfigMap/swingbus-controller-site"]["data"] == {"site.toml": CONTROLLER["site"]}


def test_controller_takes_what_is_there_already(chart: Chart) -> None:
    """A claim, a ConfigMap with the site file, an image by digest; and metrics may be off, with their probe."""
    digest = f"sha256:{'a' * 64}"
    own = {
        **CONTROLLER,
        "site": "",
        "siteConfigMap": "my-site",
        "persistence": {"existingClaim": "my-claim"},
        "image": {"repository": "example.invalid:5000/c", "digest": digest},
        "metrics": {"enabled": False},
    }
    found = chart.objects(controller=own, imagePullSecrets=["pull"])
    assert set(found) == {"Service/swingbus-controller", "Deployment/swingbus-controller"}
    pod = _pod(found["Deployment/swingbus-controller"])
    (container,) = pod["containers"]
    assert container["image"] == f"example.invalid:5000/c@{digest}" and "livenessProbe" not in container
    assert {"name": "SWINGBUS_METRICS_LISTEN", "value": "off"} in container["env"]
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "my-claim"}
    assert pod["volumes"][1]["configMap"]["name"] == "my-site"


def test_controller_that_moves_pods_holds_its_lease_where_its_rights_are(chart: Chart) -> None:
    """The site file names the release's own namespace; other tables' keys of that name are none of our business."""
    site = '[kubernetes]\n# ours\nnamespace = "rendered"\n\n[site]\nname = "tx1"\n[other]\nnamespace = "x"\n'
    pod = _pod(chart.objects(controller={**CONTROLLER, "site": site})["Deployment/swingbus-controller"])
    assert pod["serviceAccountName"] == "swingbus-controller"
    assert pod.get("automountServiceAccountToken", True) is True


def _site_mark(chart: Chart, site: str) -> str:
    deployment = chart.objects(controller={**CONTROLLER, "site": site})["Deployment/swingbus-controller"]
    mark: str = deployment["spec"]["template"]["metadata"]["annotations"]["swingbus.io/site"]
    return mark


def test_changed_site_file_makes_a_new_pod(chart: Chart) -> None:
    """Else the controller would go on with the one it read at its start."""
    marks = [_site_mark(chart, site) for site in ("a = 1\n", "a = 2\n", "a = 1\n")]
    assert marks[0] == marks[2] != marks[1]


def test_changed_limit_needs_no_new_pod_where_the_controller_obeys_it(chart: Chart) -> None:
    """Above authority observe it takes limits from the file while it runs; everything else of a feeder still wants a start."""
    site = '[site]\nauthority = "{}"\n[[feeder.limit]]\nname = "contract"\nlimit_w = {}\n'
    assert _site_mark(chart, site.format("control", 10)) == _site_mark(chart, site.format("control", 20))
    assert _site_mark(chart, site.format("advise", 10)) == _site_mark(chart, site.format("advise", 20))
    assert _site_mark(chart, site.format("observe", 10)) != _site_mark(chart, site.format("observe", 20))
    assert _site_mark(chart, site.format("control", 10)) != _site_mark(
        chart, site.format("control", "10\nwindow_s = 60")
    )


def test_agent_has_what_it_needs_and_no_way_to_the_api(chart: Chart) -> None:
    """No token, no rights, named mounts; root with three capabilities, and SYS_ADMIN only where it may write."""
    found = chart.objects(agent=AGENT)
    pod = _pod(found["DaemonSet/swingbus-agent"])
    assert pod["hostPID"] is True and not pod.get("hostNetwork", False)
    assert pod["automountServiceAccountToken"] is False
    assert found["ServiceAccount/swingbus-agent"]["automountServiceAccountToken"] is False
    (agent,), (join,) = pod["containers"], pod["initContainers"]
    for container in (agent, join):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert "privileged" not in container["securityContext"]
    assert agent["securityContext"]["capabilities"]["add"] == ["CHOWN", "SETGID", "SETUID"]
    folders = {volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    assert folders == {"/var/lib/swingbus-agent", "/var/lib/kubelet/pod-resources"}
    assert "bundles" not in [mount["name"] for mount in agent["volumeMounts"]]
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [term["matchFields"][0]["values"] for term in terms] == [["gpu-1"], ["gpu-2"]]

    writing = _pod(chart.objects(agent={**AGENT, "writes": True})["DaemonSet/swingbus-agent"])
    added = writing["containers"][0]["securityContext"]["capabilities"]["add"]
    assert added == ["CHOWN", "SETGID", "SETUID", "SYS_ADMIN"]


def test_bundle_that_is_on_the_host_needs_no_secret(chart: Chart) -> None:
    """No key in the cluster, and nothing that runs before the agent."""
    pod = _pod(chart.objects(agent={**AGENT, "bundles": {"onHost": True}})["DaemonSet/swingbus-agent"])
    assert "initContainers" not in pod
    assert [volume["name"] for volume in pod["volumes"]] == ["config", "state", "pod-resources"]


def _arguments(workload: dict[str, Any]) -> list[str]:
    spec = _pod(workload)
    found: list[str] = (spec.get("initContainers") or spec["containers"])[0]["args"]
    return found


def test_job_makes_what_the_release_needs(chart: Chart) -> None:
    """For each agent that takes its bundle from the cluster, and for the test unless it has one of its own; at every name that is told."""
    agent = {**AGENT, "bundles": {}}
    told = {"create": True, "names": ["c.example", "2001:db8::"], "days": 90, "renewWithinDays": 30}
    objects = chart.objects(**_made(agent=agent, certificates=told))
    job = objects["Job/swingbus-certificates"]
    host = f"swingbus-controller.{_NAMESPACE}.svc"
    assert _arguments(job) == [
        "certificate",
        "provide",
        f"--namespace={_NAMESPACE}",
        f"--endpoint={host}:7443",
        f"--name={host}",
        "--name=c.example",
        "--name=2001:db8::",
        "--agent=gpu-1",
        "--agent=gpu-2",
        "--viewer=helm-test",
        "--days=90",
        "--renew-within=30",
    ]
    (pki,) = [
        volume for volume in _pod(objects["Deployment/swingbus-controller"])["volumes"] if volume["name"] == "pki"
    ]
    assert pki["secret"]["secretName"] == "swingbus-controller-certificates"
    (bundles,) = [v for v in _pod(objects["DaemonSet/swingbus-agent"])["volumes"] if v["name"] == "bundles"]
    assert bundles["secret"]["secretName"] == "swingbus-agent-bundles"
    assert objects["Pod/swingbus-test"]["spec"]["volumes"][0]["secret"]["secretName"] == "swingbus-test-bundle"
    on_host = chart.objects(**_made(agent={**agent, "bundles": {"onHost": True}}, test={"bundleSecretName": "mine"}))
    words = _arguments(on_host["Job/swingbus-certificates"])
    assert not [word for word in words if word.startswith(("--agent", "--viewer"))]
    assert "Job/swingbus-certificates" not in chart.objects(controller=CONTROLLER)


def test_secrets_of_cert_manager_are_taken_as_they_are(chart: Chart) -> None:
    """The controller's whole and above revoked serials beside it, each node's under its name; the endpoint is this release's or as told."""
    agent = {**AGENT, "bundles": {"tlsSecretPrefix": "agent-"}}
    own = {**CONTROLLER, "certificates": {"secretName": "controller-tls"}}
    objects = chart.objects(controller=own, agent=agent, test={"tlsSecretName": "test-tls"})
    (pki,) = [
        volume for volume in _pod(objects["Deployment/swingbus-controller"])["volumes"] if volume["name"] == "pki"
    ]
    assert [next(iter(source.values()))["name"] for source in pki["projected"]["sources"]] == [
        "swingbus-denied",
        "controller-tls",
    ]
    workload = objects["DaemonSet/swingbus-agent"]
    (bundles,) = [volume for volume in _pod(workload)["volumes"] if volume["name"] == "bundles"]
    assert [
        (each["secret"]["name"], each["secret"]["items"][1]["path"]) for each in bundles["projected"]["sources"]
    ] == [
        ("agent-gpu-1", "gpu-1/tls.key"),
        ("agent-gpu-2", "gpu-2/tls.key"),
    ]
    here = f"swingbus-controller.{_NAMESPACE}.svc:7443"
    assert (
        _arguments(workload)[1] == "/etc/swingbus/tls/$(NODE_NAME)" and _arguments(workload)[-1] == f"--endpoint={here}"
    )
    test = objects["Pod/swingbus-test"]["spec"]
    assert test["containers"][0]["args"][:2] == ["--bundle=/etc/swingbus/client", f"--endpoint={here}"]
    elsewhere = chart.objects(agent={**agent, "endpoint": "c.example:443"})["DaemonSet/swingbus-agent"]
    assert _arguments(elsewhere)[-1] == "--endpoint=c.example:443"


def test_node_that_is_added_restarts_nobody_where_labels_choose(chart: Chart) -> None:
    """Chosen by name, the names are part of the pod; a changed file is a new pod in any case."""

    def template(**changes: Any) -> dict[str, Any]:
        found: dict[str, Any] = chart.objects(agent={**AGENT, **changes})["DaemonSet/swingbus-agent"]["spec"][
            "template"
        ]
        return found

    labels = {"swingbus.io/container": "c07"}
    more = [*AGENT["nodes"], {"name": "gpu-3"}]
    assert template(nodeSelector=labels) == template(nodeSelector=labels, nodes=more)
    assert template() != template(nodes=more)
    assert template(nodeSelector=labels) != template(nodeSelector=labels, config='[[bank]]\nname = "h200"\n')


def test_controller_is_allowed_where_only_restricted_pods_are(chart: Chart) -> None:
    """By the API server's own judgement; the agent, which sees its host, is not."""
    for name, values, refusal in (
        ("Deployment/swingbus-controller", {"controller": CONTROLLER}, None),
        ("Job/swingbus-certificates", _made(), None),
        ("DaemonSet/swingbus-agent", {"agent": AGENT}, "hostPID"),
    ):
        template = chart.objects(**values)[name]["spec"]["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"}, "spec": template["spec"]}
        for there in ("serviceAccountName", "serviceAccount", "priorityClassName"):  # made by nobody here
            pod["spec"].pop(there, None)
        if refusal is None:
            chart.try_restricted(pod)
        else:
            with pytest.raises(SwingbusError, match=refusal):
                chart.try_restricted(pod)


def test_each_node_has_its_own_agent_file(chart: Chart) -> None:
    """Its name, the common file or its own, and whom it becomes; a file that the agent itself reads."""
    bank = '[[bank]]\nname = "h100"\nkind = "gpu"\nclass = "h100"\n\n[[bank.point]]\nname = "full"\nmode = "inference"\npower_w = 700\n'
    files = chart.objects(agent={**AGENT, "config": bank, "user": 4_000_000})["ConfigMap/swingbus-agent"]["data"]
    assert set(files) == {"gpu-1.toml", "gpu-2.toml"}
    settings = {}
    for name, text in files.items():
        path = chart.folder / name
        path.write_text(text)
        settings[name.removesuffix(".toml")] = load_settings(path, {})
    assert [each.name for each in settings.values()] == ["gpu-1", "gpu-2"]
    assert [len(each.banks) for each in settings.values()] == [1, 0]
    assert not settings["gpu-1"].writes and settings["gpu-2"].sampling.gpu_period_s == 2
    assert settings["gpu-1"].node.run_as_user == 4_000_000
