"""A small site on a real control plane: three mining nodes and a quiet one of four GPUs each, the chart, two pools, our controller.

Evidence is physical (`nodes`), rights are the chart's own, spans are short. Every wait is for something; whatever did not come is told with
what is there instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swingbus.faults import NotFound, SwingbusError, TimedOut
from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_sim.cluster.processes import run, wait_until
from swingbus_sim.cluster.up import Cluster
from swingbus_sim.kwok_site.plan import BANK, MINE_W, SERVE_W, SitePlan
from swingbus_sim.kwok_site.site_file import write_site
from tests.benchmarks.certificates import VIEWER, make_authority
from tests.benchmarks.kube.cluster import (
    CONTAINER,
    CONTAINER_LABEL,
    GRACE_S,
    PRODUCT,
    PRODUCT_LABEL,
    Writer,
    add_nodes,
    make_namespace,
    pod_spec,
)
from tests.benchmarks.kube.ours import MINERS, SITE, TEMPLATE, account_kubeconfig, install_chart
from tests.benchmarks.kube.witness import Seen, Witness, now_s
from tests.cluster.traps.nodes import Background, Nodes
from tests.cluster.traps.process import ControllerProcess


def may_draw_w(plan: SitePlan) -> float:
    """Return what a site may draw: of its limit it keeps back what meters may err by and three devices (R)."""
    node_gpus_w = plan.node_counted_w(plan.gpu.default_limit_w) - plan.node_counted_w(0.0)
    return plan.limit_w * (1.0 - ProtocolSettings().meter_error_ratio) - 3 * node_gpus_w / plan.gpus_per_node


# What is kept back is an eighth at so few GPUs. What is left is below nameplate, and lets seven GPUs serve on the mining nodes while all of
# the quiet one serves.
PLAN = SitePlan(node_count=4, gpus_per_node=4, limit_ratio=1.08)
MAY_DRAW_W = may_draw_w(PLAN)
MINING_NODES, QUIET = PLAN.nodes[:3], PLAN.nodes[3]
MINING_GPUS = PLAN.gpus_per_node * len(MINING_NODES)
GRID, STILL = "grid", "still"
PART_LABEL = "traps.swingbus.io/part"
CUSTOMERS, STRANGERS = "customers", "strangers"
POOLS = "/apis/swingbus.io/v1alpha1/capacitypools"
TTL_S = 20.0
WAIT_S = 60.0


def pool_body(name: str, *, is_mining: bool, **changes: Any) -> dict[str, Any]:
    """Return a pool of the site; what is called like it has its label."""
    mining = {"enabled": True, "namespace": MINERS, "podTemplate": TEMPLATE, "graceSeconds": GRACE_S}
    spec: dict[str, Any] = {
        "site": SITE,
        "container": CONTAINER,
        "nodeSelector": {CONTAINER_LABEL: CONTAINER, PRODUCT_LABEL: PRODUCT, PART_LABEL: name},
        "caps": {"mining": round(MINE_W), "inference": round(SERVE_W)},
        **({"mining": mining} if is_mining else {}),
        "inference": {"evictDeadline": "3s", "onBlocked": "Cap"},
        "timing": {"dwellMining": "1s", "dwellInference": "1s", "liftDeadline": "5s", "maxFlipsPerMinute": 1000},
        "mode": "Auto",
        **changes,
    }
    return {"apiVersion": "swingbus.io/v1alpha1", "kind": "CapacityPool", "metadata": {"name": name}, "spec": spec}


@dataclass(slots=True)
class TrapSite:
    """The site, and what a test asks of it."""

    cluster: Cluster
    nodes: Nodes
    controller: ControllerProcess
    witness: Witness
    background: Background
    kubeconfig: Path
    began_s: float = field(default_factory=now_s)

    # Pods.

    def pods(self, namespace: str = CUSTOMERS) -> list[dict[str, Any]]:
        """Return the pods of a namespace."""
        items: list[dict[str, Any]] = self.cluster.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
        return items

    def pod(self, name: str, namespace: str = CUSTOMERS) -> dict[str, Any] | None:
        """Return a pod, None where there is none of that name."""
        try:
            return self.cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
        except NotFound:
            return None

    def lives(self, prefix: str, namespace: str = CUSTOMERS) -> list[Seen]:
        """Return every life, over or not, of pods whose names begin so, in the order they were seen; each test has names of its own."""
        return [seen for seen in self.witness.pods(namespace) if seen.name.startswith(prefix)]

    def working(self, prefix: str, namespace: str = CUSTOMERS) -> list[dict[str, Any]]:
        """Return pods that work on all the GPUs they asked for and are not leaving."""
        return [
            pod
            for pod in self.pods(namespace)
            if pod["metadata"]["name"].startswith(prefix)
            and "deletionTimestamp" not in pod["metadata"]
            and len(self.nodes.gpus_of(pod["metadata"]["uid"])) == gpus_of(pod)
        ]

    def wait_working(self, prefix: str, count: int = 1, *, timeout_s: float = WAIT_S) -> list[dict[str, Any]]:
        """Wait until so many pods work, and return them."""
        self.wait(lambda: len(self.working(prefix)) == count, f"{count} of {prefix} work", timeout_s=timeout_s)
        return self.working(prefix)

    # Pools.

    def status(self, pool: str) -> dict[str, Any]:
        """Return a pool's status."""
        status: dict[str, Any] = self.cluster.api.get(f"{POOLS}/{pool}").get("status", {})
        return status

    def condition(self, pool: str, kind: str) -> tuple[str, str, str]:
        """Return a condition: status, reason, message."""
        for each in self.status(pool).get("conditions", []):
            if each["type"] == kind:
                return each["status"], each["reason"], each.get("message", "")
        return "", "", ""

    def wait_condition(self, pool: str, kind: str, reason: str, word: str = "", *, timeout_s: float = WAIT_S) -> str:
        """Wait until a condition has a reason and its message a word; return the message."""

        def is_so() -> bool:
            _, told, message = self.condition(pool, kind)
            return told == reason and word in message

        self.wait(is_so, f"{kind} of pool {pool} says {reason} ({word})", timeout_s=timeout_s)
        return self.condition(pool, kind)[2]

    def wait_settled(self, pool: str, *, inference: int) -> None:
        """Wait until so many GPUs of a pool serve and no flip of it is open: who is on the way could still go elsewhere."""

        def is_so() -> bool:
            gpus = self.status(pool)["gpus"]
            return bool(gpus["flipping"] == 0 and gpus["inference"] == inference)

        self.wait(is_so, f"pool {pool} is settled with {inference} GPUs serving")

    def set_pool(self, pool: str, **spec: Any) -> None:
        """Change fields of a pool."""
        self.cluster.api.merge(f"{POOLS}/{pool}", {"spec": spec})

    def events(self, reason: str) -> list[str]:
        """Return what our events of a reason say."""
        items = self.cluster.api.get("/apis/events.k8s.io/v1/events")["items"]
        return [each.get("note", "") for each in items if each["reason"] == reason]

    # Waiting.

    def wait(self, so: Callable[[], bool], what: str, *, timeout_s: float = WAIT_S) -> None:
        """Wait until it is so; where it never is, say what is there instead."""

        def is_so() -> bool:
            self.nodes.must_run()
            return so()

        try:
            wait_until(is_so, what=what, timeout_s=timeout_s, poll_s=0.1)
        except TimedOut as error:
            raise AssertionError(f"{error}\n{self.explain()}") from None

    def explain(self) -> str:
        """Tell how things stand."""
        lines = []
        for node in self.nodes.plan.nodes:
            gpus = self.nodes.gpus(node)
            lines.append(f"{node}: {[(gpu.tenant, round(gpu.enforced_w)) for gpu in gpus]}")
        for namespace in (CUSTOMERS, STRANGERS, MINERS):
            lines += [_line(pod) for pod in self.pods(namespace)]
        for pool in self.cluster.api.get(POOLS)["items"]:
            status = pool.get("status", {})
            lines.append(f"pool {pool['metadata']['name']}: {status.get('gpus')} {status.get('watts')}")
            for each in status.get("conditions", []):
                lines.append(f"  {each['type']}={each['status']} {each['reason']}: {each.get('message', '')}")
        lines += [self.why_not(node, "mining") for node in MINING_NODES]
        return "\n".join([*lines, self.controller.tail()])

    def why_not(self, node: str, mode: str) -> str:
        """Return what the controller says of why a node's bank is not in a mode, as an operator asks."""
        bundle = self.kubeconfig.parent / "bundles" / f"{VIEWER}.toml"
        options = ("--bundle", str(bundle), "--endpoint", self.controller.endpoint)
        try:
            return run((sys.executable, "-m", "swingctl.main", "plan", "why-not", *options, f"{node}/{BANK}", mode))
        except SwingbusError as error:
            return str(error)

    def wait_mining(self, count: int = MINING_GPUS, *, timeout_s: float = WAIT_S) -> None:
        """Wait until so many GPUs mine."""
        self.wait(lambda: self.nodes.count("mining") == count, f"{count} GPUs mine", timeout_s=timeout_s)

    def clear(self) -> None:
        """Take every workload away and wait until none of it works any more."""
        kinds = "deployments,replicasets,daemonsets,poddisruptionbudgets,pods"
        for namespace in (CUSTOMERS, STRANGERS):
            self.cluster.kubectl("delete", kinds, "--all", "-n", namespace, "--wait=false")
        self.wait(lambda: not self.pods() and not self.pods(STRANGERS), "the tests' pods are gone")
        self.wait(lambda: self.nodes.count("inference") == 0, "nobody serves")


def gpus_of(pod: Mapping[str, Any]) -> int:
    """Return how many GPUs a pod asks for."""
    return sum(
        int(c.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0)) for c in pod["spec"]["containers"]
    )


def _line(pod: Mapping[str, Any]) -> str:
    gates = [gate["name"] for gate in pod["spec"].get("schedulingGates", [])]
    leaving = " leaving" if "deletionTimestamp" in pod["metadata"] else ""
    status = pod["status"]
    return (
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']}: {status.get('phase')} {status.get('reason', '')} "
        f"on {pod['spec'].get('nodeName', '')} {gates}{leaving}"
    )


@contextmanager
def standing(cluster: Cluster, folder: Path) -> Iterator[TrapSite]:
    """Install all of it on a fresh control plane without nodes; return when every mining GPU mines."""
    writer, witness, background = Writer(cluster), Witness(cluster), Background()
    try:
        parts = {node: {PART_LABEL: STILL if node == QUIET else GRID} for node in PLAN.nodes}
        add_nodes(cluster, writer, PLAN, parts)
        writer.close()
        install_chart(cluster)
        make_namespace(cluster, CUSTOMERS, {"swingbus.io/power-gate": "enabled"})
        make_namespace(cluster, STRANGERS)
        make_namespace(cluster, MINERS)
        kubeconfig = account_kubeconfig(cluster, folder)
        bundles = make_authority(folder, PLAN.nodes)
        controller = ControllerProcess(_write_site(folder, kubeconfig))
        _make_pools(cluster)
        try:
            controller.start()
            nodes = Nodes(
                background,
                PLAN,
                folder / "nodes",
                kubeconfig=cluster.kubeconfig,
                endpoint=controller.endpoint,
                bundles=bundles,
                # Host units hold GPUs at their floor before kubelet starts; the last mining node has none.
                boot_limits_w=dict.fromkeys((*MINING_NODES[:-1], QUIET), PLAN.gpu.min_limit_w),
            )
            try:
                site = TrapSite(cluster, nodes, controller, witness, background, kubeconfig)
                site.wait_mining(timeout_s=180.0)
                yield site
            finally:
                nodes.close()
        finally:
            controller.stop()
    finally:
        witness.close()
        background.close()


def _write_site(folder: Path, kubeconfig: Path) -> Path:
    more = f'\n[kubernetes]\nkubeconfig = "{kubeconfig}"\n'
    text = write_site(PLAN, site=SITE, pool=GRID, dwell_s=1.0, ttl_s=TTL_S, more=more)
    text = text.replace("settle_s = 10\n", "settle_s = 3\n")  # what the model needs at most is one second
    before, found, after = text.partition(f'node = "{QUIET}"\npool = "{GRID}"')
    assert found, "the site file names the pool of every node"
    site = folder / "site.toml"
    site.write_text(f'{before}node = "{QUIET}"\npool = "{STILL}"{after}', encoding="utf-8")
    return site


def _make_pools(cluster: Cluster) -> None:
    template = {
        "apiVersion": "v1",
        "kind": "PodTemplate",
        "metadata": {"name": TEMPLATE},
        "template": {"metadata": {"labels": {"app": "miner"}}, "spec": pod_spec()},
    }
    cluster.api.create(f"/api/v1/namespaces/{MINERS}/podtemplates", template)
    cluster.api.create(POOLS, pool_body(GRID, is_mining=True))
    cluster.api.create(POOLS, pool_body(STILL, is_mining=False))
