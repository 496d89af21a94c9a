"""Who is compared: one Protocol, and the rivals, each at its best.

(a) plain: PriorityClass preemption, GPUs at the driver's default limit. (b) tuned: the same with one GPU limit, set by hand on every node,
at which the worst case fits the site's limit. (c) share: some nodes kept for inference at full limit, the others limited so that all fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from swingbus_sim.cluster.up import Cluster
from swingbus_sim.kwok_site.plan import LIMIT_FACTOR, SitePlan
from tests.benchmarks.kube.cluster import Writer, make_namespace, pod_spec
from tests.benchmarks.kube.nodes import Nodes, running_nodes
from tests.benchmarks.kube.rows import Row

INFERENCE_NAMESPACE = "inference"
_CLASSES = "/apis/scheduling.k8s.io/v1/priorityclasses"
_SHARE_LABEL = "bench.swingbus.io/share"
SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a contender is given: a fresh cluster with its nodes, a folder, a row."""

    cluster: Cluster
    writer: Writer
    folder: Path
    row: Row

    @property
    def plan(self) -> SitePlan:
        """The site."""
        return self.row.plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A contender that runs.

    Args:
        nodes: the physical model.
        pids: its own programs, by name, to be counted.
        own: what only it can tell, asked at the end.
    """

    nodes: Nodes
    pids: Mapping[str, int] = field(default_factory=dict)
    own: Callable[[], dict[str, object]] = dict


class Contender(Protocol):
    """A way to run miners on a site and let inference in."""

    @property
    def name(self) -> str:
        """In reports."""
        ...

    def node_labels(self, plan: SitePlan) -> dict[str, dict[str, str]]:
        """Return labels that it wants on nodes, by node."""
        ...

    def standing(self, stage: Stage) -> AbstractContextManager[Standing]:
        """Install it and start the nodes' model and whatever else it needs."""
        ...

    def miner_count(self, row: Row) -> int:
        """Return how many GPUs shall mine before anybody comes."""
        ...

    def start_miners(self, stage: Stage) -> None:
        """Let mining begin; it is waited for elsewhere."""
        ...

    def arrival(self, name: str) -> dict[str, Any]:
        """Return an inference pod as its users would write it."""
        ...


class PriorityClassContender:
    """Miners of low priority in a ReplicaSet, inference of high priority, and the scheduler's own preemption."""

    def __init__(self, kind: str) -> None:
        """`kind` is plain, tuned or share."""
        self._kind = kind

    @property
    def name(self) -> str:
        return {"plain": "a PriorityClass", "tuned": "b + static limits", "share": "c + fixed share"}[self._kind]

    def node_labels(self, plan: SitePlan) -> dict[str, dict[str, str]]:
        return {node: {_SHARE_LABEL: "inference"} for node in self._reserved(plan)}

    def miner_count(self, row: Row) -> int:
        return (row.node_count - len(self._reserved(row.plan))) * row.plan.gpus_per_node

    def limits_w(self, plan: SitePlan) -> dict[str, float]:
        """Return each node's GPU limit, set before anything runs."""
        match self._kind:
            case "plain":
                return {}
            case "tuned":
                return dict.fromkeys(plan.nodes, plan.static_limit_w())
            case _:
                return share_limits_w(plan, self._reserved(plan))

    @contextmanager
    def standing(self, stage: Stage) -> Iterator[Standing]:
        api, plan = stage.cluster.api, stage.plan
        for name, value, policy in (
            ("bench-miner", -1000, "Never"),
            ("bench-inference", 1000, "PreemptLowerPriority"),
        ):
            body = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}}
            api.ensure(_CLASSES, {**body, "value": value, "preemptionPolicy": policy})
        make_namespace(stage.cluster, plan.miner_namespace)
        make_namespace(stage.cluster, INFERENCE_NAMESPACE)
        with running_nodes(
            stage.folder,
            plan,
            kubeconfig=stage.cluster.kubeconfig,
            seed=stage.row.seed,
            boot_limits_w=self.limits_w(plan),
        ) as nodes:
            yield Standing(nodes=nodes)

    def start_miners(self, stage: Stage) -> None:
        labels = {"app": "miner"}
        spec = pod_spec(priorityClassName="bench-miner")
        if self._kind == "share":
            terms = [{"matchExpressions": [{"key": _SHARE_LABEL, "operator": "DoesNotExist"}]}]
            required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
            spec["affinity"] = {"nodeAffinity": required}
        body = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {"name": "miner"},
            "spec": {
                "replicas": self.miner_count(stage.row),
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        }
        stage.cluster.api.create(f"/apis/apps/v1/namespaces/{stage.plan.miner_namespace}/replicasets", body)

    def arrival(self, name: str) -> dict[str, Any]:
        spec = pod_spec(priorityClassName="bench-inference")
        if self._kind == "share":
            # What is kept free comes first; no miner need go while there is some.
            term = {"matchExpressions": [{"key": _SHARE_LABEL, "operator": "Exists"}]}
            preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": term}]}
            spec["affinity"] = {"nodeAffinity": preferred}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}

    def _reserved(self, plan: SitePlan) -> tuple[str, ...]:
        return plan.nodes[: max(1, round(SHARE * plan.node_count))] if self._kind == "share" else ()


def share_limits_w(plan: SitePlan, reserved: tuple[str, ...]) -> dict[str, float]:
    """Return full limits for the nodes kept for inference and, for the others, the one at which the worst case still fits."""
    gpu = plan.gpu
    others = [node for node in plan.nodes if node not in reserved]
    limits = dict.fromkeys(reserved, gpu.default_limit_w)
    if not others:
        return limits
    left_w = (plan.limit_w - len(reserved) * plan.node_counted_w(gpu.default_limit_w)) / len(others)
    gpus_w = (left_w * gpu.supply_efficiency_ratio - gpu.host_base_w) / (1.0 + gpu.host_fan_ratio)
    limit_w = gpus_w / plan.gpus_per_node / LIMIT_FACTOR
    if limit_w < gpu.min_limit_w:
        return dict.fromkeys(plan.nodes, plan.static_limit_w())  # so tight that nobody can have the full limit
    return {**limits, **dict.fromkeys(others, min(gpu.max_limit_w, limit_w))}
