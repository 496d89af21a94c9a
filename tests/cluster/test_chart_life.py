"""A release's life on a real control plane: an earlier chart, an upgrade in the middle of flips, the way back, and leaving.

The controller is the chart's own pod on a real node, under its own service account and on a volume; GPU nodes and their agents are the
model's. `charts/` has the chart of an earlier commit, packed with a version of its own (`helm package --version`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from swingbus.faults import SwingbusError
from swingbus_sim.cluster import kwok, node
from swingbus_sim.cluster.loading import load_images
from swingbus_sim.cluster.processes import run, wait_until
from swingbus_sim.cluster.relaying import start_relay
from swingbus_sim.cluster.tools import CONTROL, NODES
from swingbus_sim.cluster.up import Cluster, bring_up, take_down
from swingbus_sim.demo.controller import free_port
from swingbus_sim.demo_kube.manifests import IMAGE_USER, certificates_secret, controller_values, controller_volume
from swingbus_sim.kwok_site.measures import total
from swingbus_sim.kwok_site.plan import SitePlan
from swingbus_sim.kwok_site.site_file import write_site
from tests.benchmarks.certificates import VIEWER, make_authority
from tests.benchmarks.kube.cluster import CONTAINER, CONTAINER_LABEL, PRODUCT, PRODUCT_LABEL, make_namespace, pod_spec
from tests.benchmarks.kube.ours import CHART, MINERS, SITE, SYSTEM, TEMPLATE
from tests.benchmarks.kube.witness import now_s
from tests.cluster.conftest import _build_or_skip, _own_place
from tests.cluster.pods import GATE, lift_by_hand
from tests.cluster.traps.nodes import Background, Nodes
from tests.cluster.traps.site import CUSTOMERS, GRID, PART_LABEL, POOLS, may_draw_w, pool_body
from tests.cluster.traps.work import deployment
from tools.images.build import Built

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(900)]
_EARLIER = Path(__file__).parent / "charts" / "swingbus-0.0.9.tgz"
_VOLUME = "/var/lib/controller-volume"
_PLAN = SitePlan(node_count=2, gpus_per_node=4, limit_ratio=1.2)
_GPUS = _PLAN.node_count * _PLAN.gpus_per_node
_MAY_DRAW_W = may_draw_w(_PLAN)
_DEPLOYMENTS = f"/apis/apps/v1/namespaces/{CUSTOMERS}/deployments"
_WAIT_S = 90.0


class Life:
    """The release, and what a test asks of it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.api = cluster, cluster.api
        self.values = folder / "values.json"
        self.bundles = make_authority(folder, _PLAN.nodes)
        self.port = free_port()
        self.nodes: Nodes | None = None

    def helm(self, *words: str) -> str:
        """Run helm in the release's namespace."""
        helm = (str(self.cluster.tools.path("helm")), f"--kubeconfig={self.cluster.kubeconfig}", "-n", SYSTEM)
        return run((*helm, *words), timeout_s=180.0)

    def swingctl(self, *words: str) -> dict[str, Any]:
        """Return what an operator is answered."""
        bundle = ("--bundle", str(self.bundles / f"{VIEWER}.toml"), "--endpoint", f"127.0.0.1:{self.port}")
        answer = run((sys.executable, "-m", "swingctl.main", *bundle, "--output", "json", *words))
        found: dict[str, Any] = json.loads(answer)
        return found

    def epoch(self) -> int:
        """Return whose turn it is: each start of a controller on one journal is one more."""
        return int(self.swingctl("site", "show")["site"]["epoch"])

    def controller(self) -> dict[str, Any] | None:
        """Return the one pod of the controller that is Ready and stays."""
        path = f"/api/v1/namespaces/{SYSTEM}/pods?labelSelector=app.kubernetes.io%2Fcomponent%3Dcontroller"
        for pod in self.api.get(path)["items"]:
            ready = [each["status"] for each in pod["status"].get("conditions", []) if each["type"] == "Ready"]
            if ready == ["True"] and "deletionTimestamp" not in pod["metadata"]:
                return dict(pod)
        return None

    def priority_of(self, pod: Mapping[str, Any]) -> tuple[str, int]:
        """Return a pod's class and what that came to."""
        return pod["spec"]["priorityClassName"], pod["spec"]["priority"]

    def classes(self) -> list[str]:
        """Return the priority classes of the release."""
        words = ("-l", "app.kubernetes.io/name=swingbus", "-o", "name")
        found = self.cluster.kubectl("get", "priorityclasses", *words).split()
        return sorted(each.rpartition("/")[2] for each in found)

    def wait(self, so: Callable[[], bool], what: str) -> None:
        """Wait until it is so; where it never is, say what is there instead."""
        try:
            wait_until(so, what=what, timeout_s=_WAIT_S, poll_s=0.3)
        except SwingbusError as error:
            shown = [
                self.cluster.kubectl("get", "pods", "-A", "-o", "wide"),
                self.cluster.kubectl("get", POOLS.rpartition("/")[2], "-o", "yaml"),
            ]
            try:
                shown.append(self.cluster.kubectl("logs", "-n", SYSTEM, "deployment/swingbus-controller", "--tail=30"))
            except SwingbusError as silent:
                shown.append(str(silent))
            pytest.fail("\n".join([str(error), *shown]), pytrace=False)

    def wait_other(self, uid: str) -> dict[str, Any]:
        """Wait until another pod than that one is the controller."""
        self.wait(
            lambda: (self.controller() or {"metadata": {"uid": uid}})["metadata"]["uid"] != uid, "another controller"
        )
        found = self.controller()
        assert found is not None
        self.wait(self._answers, "it answers operators")
        return found

    def _answers(self) -> bool:
        try:
            return self.epoch() > 0
        except SwingbusError:
            return False  # the Service leads to it a moment after it is Ready

    def serve(self, count: int) -> None:
        """Let so many pods be wanted."""
        body = deployment("chat", count, pod_spec(tolerations=[kwok.TOLERATION]))
        self.api.ensure(_DEPLOYMENTS, body)
        self.api.merge(f"{_DEPLOYMENTS}/chat", {"spec": {"replicas": count}})

    def wait_tenants(self, *, inference: int) -> None:
        """Wait until so many GPUs serve and all others mine."""
        nodes = self.nodes
        assert nodes is not None
        wanted = (inference, _GPUS - inference)
        self.wait(
            lambda: (nodes.count("inference"), nodes.count("mining")) == wanted,
            f"{inference} GPUs serve, the others mine",
        )

    def gated(self) -> list[str]:
        """Return pods that wait behind our gate."""
        pods = self.api.get("/api/v1/pods")["items"]
        return [
            pod["metadata"]["name"]
            for pod in pods
            if any(gate["name"] == GATE for gate in pod["spec"].get("schedulingGates", []))
        ]


@pytest.fixture(scope="module")
def life(images: Mapping[str, Built], say: Callable[[str], None]) -> Iterator[Life]:
    """Return an earlier chart's release whose GPUs mine."""
    with ExitStack() as undo:
        place = undo.enter_context(_own_place("tests-life", say))
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="life-")))
        _build_or_skip("a release's life", place, (CONTROL, NODES), say)
        undo.callback(take_down, place, say=say)
        cluster = bring_up(place, real_node_count=1, say=say)
        load_images(cluster, [images["swingbus-controller"].archive])
        labels = {PRODUCT_LABEL: PRODUCT, CONTAINER_LABEL: CONTAINER, PART_LABEL: GRID}
        for name in _PLAN.nodes:
            cluster.api.create(
                "/api/v1/nodes", kwok.node(name, gpu_count=_PLAN.gpus_per_node, labels=labels, is_tainted=True)
            )
        made = Life(cluster, folder)
        _install(made, images["swingbus-controller"].recipe.image)
        background = Background()
        undo.callback(background.close)
        made.nodes = Nodes(
            background,
            _PLAN,
            folder / "nodes",
            kubeconfig=cluster.kubeconfig,
            endpoint=f"127.0.0.1:{made.port}",
            bundles=made.bundles,
            boot_limits_w=dict.fromkeys(_PLAN.nodes, _PLAN.gpu.min_limit_w),
        )
        undo.callback(made.nodes.close)
        made.wait_tenants(inference=0)
        yield made


def _install(life: Life, image: str) -> None:
    """Install the earlier chart with its controller, as a platform team does, and make the pool."""
    cluster, plan = life.cluster, life.cluster.real_nodes[0]
    make_namespace(cluster, SYSTEM)
    owner = (f"--owner={IMAGE_USER}", f"--group={IMAGE_USER}", "--mode=0700")
    run((*node.entry(cluster.processes, plan), "install", "--directory", *owner, _VOLUME))
    cluster.api.create("/api/v1/persistentvolumes", controller_volume(SYSTEM, Path(_VOLUME)))
    cluster.kubectl(*certificates_secret(SYSTEM, life.bundles.parent / "pki"))
    site = write_site(_PLAN, site=SITE, pool=GRID, dwell_s=1.0, ttl_s=20.0, more="\n[kubernetes]\n")
    site = site.replace("settle_s = 10\n", "settle_s = 3\n")
    life.values.write_text(json.dumps({"controller": controller_values(image, site, node=plan.name)}))
    life.helm("install", "swingbus", str(_EARLIER), "-f", str(life.values))
    make_namespace(cluster, CUSTOMERS, {"swingbus.io/power-gate": "enabled"})
    spec = pod_spec(tolerations=[kwok.TOLERATION])
    template = {
        "apiVersion": "v1",
        "kind": "PodTemplate",
        "metadata": {"name": TEMPLATE},
        "template": {"metadata": {"labels": {"app": "miner"}}, "spec": spec},
    }
    cluster.api.create(f"/api/v1/namespaces/{MINERS}/podtemplates", template)
    cluster.api.create(POOLS, pool_body(GRID, is_mining=True))
    service = cluster.api.get(f"/api/v1/namespaces/{SYSTEM}/services/swingbus-controller")["spec"]
    start_relay(
        cluster.processes,
        "controller-relay",
        host=service["clusterIP"],
        port=service["ports"][0]["port"],
        port_file=cluster.layout.run / "controller-port",
        own_port=life.port,
    )
    life.wait_other("")


def test_release_is_upgraded_rolled_back_and_taken_away(life: Life) -> None:
    """Nothing is lost, no watt is over a limit, nobody stays behind the gate; what outlives the release is what the page says."""
    nodes, began_s = life.nodes, now_s()
    assert nodes is not None
    first = life.controller()
    assert first is not None
    epoch = life.epoch()

    # Upgraded while flips are open: the new one finds them in the journal and ends them.
    life.serve(3)
    life.wait(lambda: bool(life.swingctl("flip", "list", "--open")["flips"]), "a flip is open")
    open_flips = {each["name"] for each in life.swingctl("flip", "list", "--open")["flips"]}
    with pytest.raises(SwingbusError, match="additional properties 'priorityClassName' not allowed"):
        life.helm(
            "upgrade", "swingbus", str(CHART), "--reuse-values"
        )  # the earlier chart's own defaults come with them
    told = life.helm("upgrade", "swingbus", str(CHART), "-f", str(life.values))
    assert "rollout status deployment/swingbus-controller" in told
    second = life.wait_other(first["metadata"]["uid"])
    life.wait_tenants(inference=3)
    assert life.epoch() == epoch + 1
    assert life.priority_of(second) == ("swingbus-controller", 800_000_000)
    flips = {each["name"]: each["phase"] for each in life.swingctl("flip", "list")["flips"]}
    life.wait(lambda: not life.swingctl("flip", "list", "--open")["flips"], "no flip is open")
    assert open_flips <= set(flips), "flips of the time before are still known"

    # And back, with other flips open.
    life.serve(1)
    life.helm("rollback", "swingbus", "1")
    third = life.wait_other(second["metadata"]["uid"])
    life.wait_tenants(inference=1)
    assert life.epoch() == epoch + 2
    assert life.priority_of(third) == ("system-cluster-critical", 2_000_000_000)
    assert life.classes() == ["swingbus-miner"], "a class that nobody asks for any more is gone"
    life.helm("upgrade", "swingbus", str(CHART), "--reset-then-reuse-values")
    life.wait_other(third["metadata"]["uid"])
    assert life.epoch() == epoch + 3

    totals = total(nodes.samples(began_s), _MAY_DRAW_W)
    assert totals.over_limit_ws == 0.0, f"peak {totals.peak_w:.0f} W of {_MAY_DRAW_W:.0f} W"

    # Leaving, as the page says; more wait than ever fit.
    life.serve(_GPUS + 4)
    life.wait(lambda: len(life.gated()) >= 4, "some wait")
    life.cluster.kubectl("delete", "mutatingadmissionpolicybinding", "swingbus-inject-gate")
    for name in life.gated():
        lift_by_hand(life.cluster, CUSTOMERS, name)
    life.helm("uninstall", "swingbus", "--wait")
    assert life.gated() == []
    left = life.cluster.kubectl(
        "get",
        "all,configmaps,pvc,roles,rolebindings,clusterroles,clusterrolebindings,networkpolicies,serviceaccounts,priorityclasses,"
        "validatingadmissionpolicies,validatingadmissionpolicybindings,mutatingadmissionpolicies,mutatingadmissionpolicybindings,crd",
        "-A",
        "-l",
        "app.kubernetes.io/name=swingbus",
        "-o",
        "name",
    )
    assert set(left.split()) == {
        "customresourcedefinition.apiextensions.k8s.io/capacitypools.swingbus.io",
        "persistentvolumeclaim/swingbus-controller",
    }
