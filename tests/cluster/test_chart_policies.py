"""The chart's admission policies, CRD and rights on a real API server: each row of the trap table that admission can answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from swingbus.faults import InvalidInput, SwingbusError
from swingbus_sim.cluster.processes import run, wait_until
from swingbus_sim.cluster.up import Cluster
from tests.cluster.pods import BREAK_GLASS, GATE, exists, lift, make_namespace, make_pod, make_pod_spec

pytestmark = pytest.mark.cluster
CHART = Path(__file__).parents[2] / "charts" / "swingbus"
NAMESPACE, MINERS = "swingbus-system", "swingbus-miners"
CONTROLLER = f"system:serviceaccount:{NAMESPACE}:swingbus-controller"
POOLS = "/apis/swingbus.io/v1alpha1/capacitypools"


class Installed:
    """The chart on a cluster, and how to write as somebody."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def helm(self, *words: str) -> str:
        """Run helm."""
        return run((str(self.cluster.tools.path("helm")), f"--kubeconfig={self.cluster.kubeconfig}", *words))

    def install(self, *settings: str) -> None:
        """Install or upgrade with these `--set` values, and wait until the policies are obeyed: the server compiles them a moment later."""
        sets = [word for setting in settings for word in ("--set", setting)]
        options = ("-n", NAMESPACE, "--create-namespace", "--reset-values")
        self.helm("upgrade", "--install", "swingbus", str(CHART), *options, *sets)

    def obeys(self, spec: Mapping[str, Any], verdict: Callable[[dict[str, Any] | None], bool]) -> None:
        """Wait until a dry run of a pod (None where it is refused) is as `verdict` wants."""

        def tried() -> bool:
            try:
                made = self.create("enrolled", make_pod("probe", spec), "--dry-run=server")
            except SwingbusError:
                made = None
            return verdict(made)

        wait_until(tried, what="the policies are in force", timeout_s=30)

    def create(self, namespace: str, pod: Mapping[str, Any], *words: str) -> dict[str, Any]:
        """Create a pod with kubectl's options (`--as=…`); return it as it was made."""
        text = self.cluster.kubectl(
            "create", "-n", namespace, "-o", "json", "-f", "-", *words, input_text=json.dumps(pod)
        )
        made: dict[str, Any] = json.loads(text)
        return made

    def lift(self, namespace: str, pod: str, *words: str) -> None:
        """Lift a pod's gate as somebody."""
        patch = json.dumps(list(lift("kwok-001")))
        self.cluster.kubectl("patch", "pod", pod, "-n", namespace, "--type=json", "-p", patch, *words)

    def can(self, verb: str, what: str, namespace: str, subresource: str = "") -> bool:
        """Tell whether the controller's account may do something."""
        words = ("auth", "can-i", verb, what, "-n", namespace, f"--subresource={subresource}", f"--as={CONTROLLER}")
        try:
            return self.cluster.kubectl(*words).strip() == "yes"
        except SwingbusError:
            return False


def gates(pod: Mapping[str, Any] | None) -> list[str]:
    """Return the names of a pod's gates."""
    return [] if pod is None else [gate["name"] for gate in pod["spec"].get("schedulingGates", [])]


@pytest.fixture(scope="module")
def chart(cluster: Cluster) -> Iterator[Installed]:
    """Return the chart, installed, with one enrolled namespace and one that is not."""
    installed = Installed(cluster)
    installed.install()
    make_namespace(cluster.api, "enrolled")
    make_namespace(cluster.api, "strangers")
    cluster.kubectl("label", "namespace", "enrolled", "swingbus.io/power-gate=enabled")
    wait_until(
        lambda: exists(cluster.api, f"/api/v1/namespaces/{MINERS}/serviceaccounts/default"),
        what="the miners' service account",
        timeout_s=30,
    )
    installed.obeys(make_pod_spec(gated=False), lambda pod: gates(pod) == [GATE])
    yield installed
    installed.helm("uninstall", "swingbus", "-n", NAMESPACE, "--wait")
    assert exists(cluster.api, POOLS), "the definition, and with it every pool, is kept"
    cluster.kubectl("delete", "crd", "capacitypools.swingbus.io")
    cluster.kubectl("delete", "namespace", "enrolled", "strangers", "--wait=false")


def test_gpu_pod_in_an_enrolled_namespace_gets_the_gate(chart: Installed) -> None:
    """Whether a container or an init container asks; once, also where the template carries it."""
    plain = make_pod_spec(gated=False)
    early = {**plain, "containers": [{"name": "work", "image": "x"}], "initContainers": plain["containers"]}
    early["initContainers"] = [{**plain["containers"][0], "name": "early"}]
    for name, spec in (("plain", plain), ("early", early), ("carried", make_pod_spec(gated=True))):
        assert gates(chart.create("enrolled", make_pod(name, spec))) == [GATE], name


def test_what_asks_for_no_gpu_or_is_not_enrolled_is_left_alone(chart: Installed) -> None:
    """Exporters, DaemonSets without GPUs and other people's namespaces never wait for us."""
    without = {"containers": [{"name": "exporter", "image": "x"}]}
    assert gates(chart.create("enrolled", make_pod("exporter", without))) == []
    assert gates(chart.create("strangers", make_pod("theirs", make_pod_spec(gated=False)))) == []


def test_pods_of_a_replicaset_are_gated(chart: Installed) -> None:
    """The pods that a controller makes pass the same door."""
    labels = {"app": "served"}
    template = {"metadata": {"labels": labels}, "spec": make_pod_spec(gated=False)}
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    chart.cluster.api.create(
        "/apis/apps/v1/namespaces/enrolled/replicasets",
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "served"}, "spec": spec},
    )
    path = "/api/v1/namespaces/enrolled/pods?labelSelector=app%3Dserved"
    wait_until(lambda: len(chart.cluster.api.get(path)["items"]) == 2, what="both pods", timeout_s=30)
    assert [gates(pod) for pod in chart.cluster.api.get(path)["items"]] == [[GATE], [GATE]]


def test_only_the_controller_or_break_glass_lifts(chart: Installed) -> None:
    """An admin is told who may and why; the controller's account and a member of the break-glass group go through."""
    for name in ("foreign", "ours", "broken-glass"):
        chart.create("enrolled", make_pod(name, make_pod_spec(gated=False)))
    with pytest.raises(SwingbusError, match=r"only Swingbus lifts swingbus\.io/power"):
        chart.lift("enrolled", "foreign")
    chart.lift("enrolled", "ours", f"--as={CONTROLLER}")
    chart.lift("enrolled", "broken-glass", *BREAK_GLASS)
    left = {
        name: gates(chart.cluster.api.get(f"/api/v1/namespaces/enrolled/pods/{name}")) for name in ("foreign", "ours")
    }
    assert left == {"foreign": [GATE], "ours": []}


def test_other_changes_of_a_gated_pod_stay_free(chart: Installed) -> None:
    """Labels, and gates of others, are not ours to guard."""
    spec = make_pod_spec(gated=True)
    spec["schedulingGates"].append({"name": "example.com/other"})
    chart.create("enrolled", make_pod("two-gates", spec))
    path = "/api/v1/namespaces/enrolled/pods/two-gates"
    chart.cluster.api.merge(path, {"metadata": {"labels": {"seen": "yes"}}})
    chart.cluster.api.patch(path, [{"op": "remove", "path": "/spec/schedulingGates/1"}])
    assert gates(chart.cluster.api.get(path)) == [GATE]


def test_ways_around_the_scheduler_are_refused(chart: Installed) -> None:
    """`nodeName`, GPUs taken through the runtime's variable, and queued pods, each with what to do instead."""
    bound = {**make_pod_spec(gated=False), "nodeName": "kwok-001"}
    with pytest.raises(SwingbusError, match="nodeName"):
        chart.create("enrolled", make_pod("bound", bound))
    visible = {"containers": [{"name": "w", "image": "x", "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}]}
    with pytest.raises(SwingbusError, match=r"ask for nvidia\.com/gpu in resources\.limits"):
        chart.create("enrolled", make_pod("visible", visible))
    visible["containers"][0]["env"] = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]
    chart.create("enrolled", make_pod("invisible", visible))
    queued = make_pod("queued", make_pod_spec(gated=False), labels={"kueue.x-k8s.io/queue-name": "team"})
    with pytest.raises(SwingbusError, match="Kueue are not supported"):
        chart.create("enrolled", queued)


def test_miners_are_ours_alone(chart: Installed) -> None:
    """The controller makes miners without a gate, in their namespace only; nobody else's pod is taken for one by its label."""
    miner = make_pod("miner-1", make_pod_spec(gated=False), labels={"swingbus.io/tenant": "mining"})
    assert gates(chart.create(MINERS, miner, f"--as={CONTROLLER}")) == []
    with pytest.raises(SwingbusError, match="cannot create resource"):
        chart.create("enrolled", miner, f"--as={CONTROLLER}")
    forged = make_pod("forged", make_pod_spec(gated=False), labels={"swingbus.io/tenant": "mining"})
    assert gates(chart.create(MINERS, forged)) == [GATE]


def test_without_injection_an_ungated_gpu_pod_is_refused(chart: Installed) -> None:
    """Clusters before 1.36 have no mutating policies: there the template carries the gate, and one that does not is told so."""
    ungated = make_pod_spec(gated=False)
    chart.install("gate.inject=false")
    try:
        chart.obeys(ungated, lambda pod: pod is None)
        with pytest.raises(SwingbusError, match=r"add it under spec\.schedulingGates of the pod template"):
            chart.create("enrolled", make_pod("ungated", ungated))
        assert gates(chart.create("enrolled", make_pod("templated", make_pod_spec(gated=True)))) == [GATE]
    finally:
        chart.install()
        chart.obeys(ungated, lambda pod: gates(pod) == [GATE])


def test_leaving_as_the_page_says_leaves_no_pod_gated(chart: Installed) -> None:
    """No pod gets a gate any more, none starts without one meanwhile, and the page's own patch lifts those that are left."""
    page = (CHART.parents[1] / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    patch = page.split("-p '", 1)[1].split("'", 1)[0]
    chart.create("enrolled", make_pod("last", make_pod_spec(gated=False)))
    chart.cluster.kubectl("delete", "mutatingadmissionpolicybinding", "swingbus-inject-gate")
    try:
        chart.obeys(make_pod_spec(gated=False), lambda pod: pod is None)
        chart.cluster.kubectl("patch", "pod", "last", "-n", "enrolled", "--type=json", "-p", patch, *BREAK_GLASS)
        assert gates(chart.cluster.api.get("/api/v1/namespaces/enrolled/pods/last")) == []
    finally:
        chart.install()
        chart.obeys(make_pod_spec(gated=False), lambda pod: gates(pod) == [GATE])


# The pool's definition.


def make_pool(name: str, **changes: Any) -> dict[str, Any]:
    """Return a pool that is right, with parts of its spec changed."""
    spec = {
        "site": "tx1",
        "container": "c07",
        "nodeSelector": {"swingbus.io/container": "c07"},
        "caps": {"mining": 450, "inference": 700},
        **changes,
    }
    return {"apiVersion": "swingbus.io/v1alpha1", "kind": "CapacityPool", "metadata": {"name": name}, "spec": spec}


def test_pool_gets_its_defaults(chart: Installed) -> None:
    """The least that must be said is site, container, nodes and caps; advisory is the default."""
    made = chart.cluster.api.create(POOLS, make_pool("defaults"))["spec"]
    assert (made["mode"], made["resource"], made["mining"]["enabled"]) == ("Advisory", "nvidia.com/gpu", False)
    assert made["timing"] == {
        "dwellMining": "5m",
        "dwellInference": "10m",
        "liftDeadline": "30s",
        "maxFlipsPerMinute": 60,
    }
    assert made["inference"]["onBlocked"] == "Cap" and made["inference"]["fastLane"] == "Deny"
    header = chart.cluster.kubectl("get", "capacitypools").splitlines()[0].split()
    assert header == [
        "NAME",
        "SITE",
        "CONTAINER",
        "GPUS",
        "INFER",
        "MINE",
        "FLIP",
        "WAIT",
        "GRANTED",
        "LIMIT",
        "READY",
        "REASON",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nodeSelector": {}}, "nodeSelector"),
        ({"caps": {"inference": 0}}, "caps.inference"),
        ({"caps": {"mining": 450}}, "caps.inference"),
        ({"timing": {"dwellMining": "25h"}}, "from 0s to 24h"),
        ({"timing": {"liftDeadline": "1s"}}, "from 5s to 10m"),
        ({"timing": {"liftDeadline": "soon"}}, "liftDeadline"),
        ({"mode": "Manual"}, "mode"),
        ({"mining": {"enabled": True}}, "mining.enabled needs"),
        ({"site": "TX 1"}, "site"),
        ({"wattz": 3}, "unknown field"),
    ],
)
def test_wrong_pool_is_refused_with_what_is_wrong(chart: Installed, changes: dict[str, Any], words: str) -> None:
    """Each refusal names the field or says the rule; nothing is half taken."""
    with pytest.raises(SwingbusError, match=words) as refused:
        chart.cluster.api.create(POOLS, make_pool("wrong", **changes))
    assert isinstance(refused.value, InvalidInput) or "400" in str(refused.value)


def test_unknown_field_is_dropped_where_the_writer_does_not_ask(chart: Installed) -> None:
    """Kubernetes' own default, and why our writes and docs ask for strict validation."""
    text = json.dumps(make_pool("lax", wattz=3))
    made = json.loads(chart.cluster.kubectl("create", "--validate=false", "-o", "json", "-f", "-", input_text=text))
    assert "wattz" not in made["spec"]


def test_place_of_a_pool_never_changes(chart: Installed) -> None:
    """Site, container, nodes and resource are its identity; caps and mode are not."""
    chart.cluster.api.create(POOLS, make_pool("placed"))
    for changed in ({"site": "tx2"}, {"container": "c08"}, {"nodeSelector": {"b": "c"}}, {"resource": "amd.com/gpu"}):
        with pytest.raises(InvalidInput, match="stay as they were"):
            chart.cluster.api.merge(f"{POOLS}/placed", {"spec": changed})
    changed_caps = chart.cluster.api.merge(f"{POOLS}/placed", {"spec": {"caps": {"inference": 650}, "mode": "Auto"}})
    assert changed_caps["spec"]["caps"] == {"mining": 450, "inference": 650}


def test_controller_may_do_what_its_flows_need_and_no_more(chart: Installed) -> None:
    """Rights of the account, asked of the API server itself."""
    allowed: list[tuple[str, ...]] = [
        ("patch", "pods", "enrolled"),
        ("create", "pods", "enrolled", "eviction"),
        ("create", "pods", MINERS),
        ("delete", "pods", MINERS),
        ("watch", "nodes", ""),
        ("patch", "capacitypools.swingbus.io", "", "status"),
        ("create", "events.events.k8s.io", "enrolled"),
        ("create", "events.events.k8s.io", "default"),
        ("update", "leases.coordination.k8s.io/swingbus-controller", NAMESPACE),
    ]
    denied: list[tuple[str, ...]] = [
        ("create", "pods", "enrolled"),
        ("delete", "pods", "enrolled"),
        ("get", "secrets", NAMESPACE),
        ("update", "nodes", ""),
        ("update", "capacitypools.swingbus.io", ""),
        ("create", "pods", MINERS, "exec"),
        ("update", "leases.coordination.k8s.io/other", NAMESPACE),
    ]
    assert [right for right in allowed if not chart.can(*right)] == []
    assert [right for right in denied if chart.can(*right)] == []


def test_delete_of_others_pods_is_given_where_it_is_asked_for(chart: Installed) -> None:
    """controller.mayDeletePods adds that one right, and only for as long as it is set."""
    rights = [("delete", "pods", "enrolled"), ("delete", "pods", "strangers"), ("create", "pods", "enrolled")]
    chart.install("controller.mayDeletePods=true")
    try:
        assert [chart.can(*right) for right in rights] == [True, True, False]
    finally:
        chart.install()
    assert [chart.can(*right) for right in rights] == [False, False, False]


# Other operators.


def test_manifests_of_the_page_on_neighbours_are_taken_and_gated(chart: Installed) -> None:
    """Those of Kubernetes' own kinds, strictly; their pods wait behind the gate, with it in the template as without."""
    page = (CHART.parents[1] / "docs" / "neighbours.md").read_text(encoding="utf-8")
    blocks = [part.partition("```")[0] for part in page.split("```yaml\n")[1:]]
    own = [
        each for block in blocks for each in yaml.safe_load_all(block) if each["apiVersion"] in ("apps/v1", "policy/v1")
    ]
    assert [each["kind"] for each in own] == ["Deployment", "PodDisruptionBudget"]
    for each in own:
        each["metadata"]["namespace"] = "enrolled"
        words = ("create", "--dry-run=server", "--validate=strict", "-o", "name", "-f", "-")
        chart.cluster.kubectl(*words, input_text=json.dumps(each))
    spec = own[0]["spec"]["template"]["spec"]
    without = {key: value for key, value in spec.items() if key != "schedulingGates"}
    assert without != spec
    for name, shown in (("carries", spec), ("injected", without)):
        assert gates(chart.create("enrolled", make_pod(name, shown), "--dry-run=server")) == [GATE]


def test_stranger_has_no_way_to_pools(chart: Installed) -> None:
    """An account without any role is refused by the API server, not by us."""
    with pytest.raises(SwingbusError, match=r"forbidden|Forbidden"):
        chart.cluster.kubectl("get", "capacitypools", "--as=system:serviceaccount:strangers:default")
