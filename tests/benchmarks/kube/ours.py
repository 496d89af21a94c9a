"""Swingbus as a contender: the chart, a pool, the controller as a process with its own service account, agents on every node.

Nothing of it is special to the bench: inference pods come ungated and the cluster injects the gate, miners are the controller's own.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swingbus.faults import WrongState
from swingbus_sim.cluster.processes import run, wait_until
from swingbus_sim.cluster.up import Cluster
from swingbus_sim.kwok_site.plan import MINE_W, SERVE_W, SitePlan
from swingbus_sim.kwok_site.site_file import write_site
from tests.benchmarks.certificates import make_authority
from tests.benchmarks.controllers import RunningController, controller
from tests.benchmarks.kube.cluster import (
    CONTAINER,
    CONTAINER_LABEL,
    GRACE_S,
    PRODUCT,
    PRODUCT_LABEL,
    make_namespace,
    pod_spec,
)
from tests.benchmarks.kube.contenders import INFERENCE_NAMESPACE, Stage, Standing
from tests.benchmarks.kube.nodes import Nodes, running_nodes
from tests.benchmarks.kube.rows import Row
from tests.benchmarks.kube.verdicts import OURS
from tests.benchmarks.procs import tail

CHART = Path(__file__).parents[3] / "charts" / "swingbus"
SYSTEM, MINERS, POOL, TEMPLATE = "swingbus-system", "swingbus-miners", "grid-h100", "miner-h100"
ACCOUNT = "swingbus-controller"
SITE = "bench"
# Inference where watts are short: the catalogue's curve leaves 91 % of the throughput there, for what a miner counts at.
_LOW_SERVE_W = MINE_W
_POOLS = "/apis/swingbus.io/v1alpha1/capacitypools"


class Swingbus:
    """Ours."""

    @property
    def name(self) -> str:
        return OURS

    def node_labels(self, plan: SitePlan) -> dict[str, dict[str, str]]:
        return {}

    def miner_count(self, row: Row) -> int:
        return row.gpu_count

    @contextmanager
    def standing(self, stage: Stage) -> Iterator[Standing]:
        cluster, plan, folder = stage.cluster, stage.plan, stage.folder
        install_chart(cluster)
        make_namespace(cluster, INFERENCE_NAMESPACE, {"swingbus.io/power-gate": "enabled"})
        make_namespace(cluster, MINERS)
        kubeconfig = account_kubeconfig(cluster, folder)
        bundles = make_authority(folder, plan.nodes)
        site = folder / "site.toml"
        more = f'\n[kubernetes]\nkubeconfig = "{kubeconfig}"\n'
        site.write_text(
            write_site(
                plan,
                site=SITE,
                pool=POOL,
                dwell_s=stage.row.dwell_s,
                flips_in_flight=stage.row.flips_in_flight,
                low_serve_w=_LOW_SERVE_W,
                more=more,
            )
        )
        with (
            controller(site) as server,
            running_nodes(
                folder,
                plan,
                kubeconfig=cluster.kubeconfig,
                seed=stage.row.seed,
                # A host unit holds every GPU at its floor before kubelet starts.
                boot_limits_w=dict.fromkeys(plan.nodes, plan.gpu.min_limit_w),
                endpoint=server.endpoint,
                bundles=bundles,
            ) as nodes,
        ):
            _wait_granted(nodes, server, plan)
            yield Standing(
                nodes=nodes, pids={"swingbus-controller": server.pid}, own=lambda: _own(folder / "data", server)
            )

    def start_miners(self, stage: Stage) -> None:
        api = stage.cluster.api
        api.create(
            f"/api/v1/namespaces/{MINERS}/podtemplates",
            {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": {"name": TEMPLATE},
                "template": {"metadata": {"labels": {"app": "miner"}}, "spec": pod_spec()},
            },
        )
        dwell = f"{stage.row.dwell_s:g}s"
        api.create(
            _POOLS,
            {
                "apiVersion": "swingbus.io/v1alpha1",
                "kind": "CapacityPool",
                "metadata": {"name": POOL},
                "spec": {
                    "site": SITE,
                    "container": CONTAINER,
                    "nodeSelector": {CONTAINER_LABEL: CONTAINER, PRODUCT_LABEL: PRODUCT},
                    "caps": {"mining": round(MINE_W), "inference": round(SERVE_W)},
                    "mining": {
                        "enabled": True,
                        "namespace": MINERS,
                        "podTemplate": TEMPLATE,
                        "graceSeconds": GRACE_S,
                    },
                    "timing": {"dwellMining": dwell, "dwellInference": dwell, "maxFlipsPerMinute": 10_000},
                    "mode": "Auto",
                },
            },
        )

    def arrival(self, name: str) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod_spec()}


def install_chart(cluster: Cluster) -> None:
    """Install the chart and return when its policies are in force."""
    helm = (str(cluster.tools.path("helm")), f"--kubeconfig={cluster.kubeconfig}")
    run((*helm, "upgrade", "--install", "swingbus", str(CHART), "-n", SYSTEM, "--create-namespace"), timeout_s=120.0)
    make_namespace(cluster, "probe", {"swingbus.io/power-gate": "enabled"})
    probe = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": pod_spec()}

    def injects() -> bool:
        words = ("create", "-n", "probe", "-o", "json", "--dry-run=server", "-f", "-")
        try:
            made = json.loads(cluster.kubectl(*words, input_text=json.dumps(probe)))
        except WrongState:
            return False  # the guard is in force already, the injection not yet
        return bool(made["spec"].get("schedulingGates"))

    # The server compiles policies a moment after they are written.
    wait_until(injects, what="the policy injects the gate", timeout_s=30.0)


def account_kubeconfig(cluster: Cluster, folder: Path) -> Path:
    """Write a kubeconfig of the controller's own service account: it has the chart's rights and no more."""
    path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{ACCOUNT}/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86_400}}
    token = cluster.api.create(path, request)["status"]["token"]
    config = json.loads(cluster.kubeconfig.read_text())
    config["users"] = [{"name": "me", "user": {"token": token}}]
    written = folder / "account.kubeconfig"
    written.touch(mode=0o600)
    written.write_text(json.dumps(config))
    return written


def _wait_granted(nodes: Nodes, server: RunningController, plan: SitePlan) -> None:
    try:
        nodes.wait(
            lambda seen: seen["agents_applied"] == plan.node_count,
            what="every agent has a grant and has applied it",
            timeout_s=60.0 + plan.node_count,
        )
    except Exception as error:
        raise type(error)(f"{error}\nthe controller's log ends:\n{tail(server.log)}") from error


def _own(data: Path, server: RunningController) -> dict[str, object]:
    """Return what its journal says it did, by kind, and how its log ends."""
    database = sqlite3.connect(f"file:{data / 'journal.sqlite'}?mode=ro", uri=True)
    try:
        kinds = Counter(dict(database.execute("SELECT kind, count(*) FROM entries GROUP BY kind").fetchall()))
    finally:
        database.close()
    return {"journal": dict(kinds.most_common()), "log_tail": tail(server.log, 5).splitlines()}
