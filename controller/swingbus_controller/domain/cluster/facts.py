"""What is known of pods, nodes and pools: plain values, in the words of Kubernetes, without its wire types.

Decides nothing but whether a pod could run on a node at all. Refuses to know watts and flips. Invariant: a pod that is not told as over
or gone holds what it asked for; whether a GPU is free is never said here (that takes the agent's evidence).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

PodKey = tuple[str, str]  # namespace, name
# How a kubelet says that it does not take a pod; a container's own end leaves other words, or none.
_REJECTED = ("UnexpectedAdmissionError", "OutOf", "NodeAffinity", "Topology")
HOSTNAME_LABEL = "kubernetes.io/hostname"


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRef:
    """One life of a pod: a name alone could be its successor's."""

    namespace: str
    name: str
    uid: str

    @property
    def key(self) -> PodKey:
        """Return (namespace, name)."""
        return self.namespace, self.name

    @classmethod
    def parse(cls, text: str) -> PodRef:
        """Return what `token` wrote; names hold no slash."""
        namespace, name, uid = text.split("/")
        return cls(namespace=namespace, name=name, uid=uid)

    @property
    def token(self) -> str:
        """Return it as one word."""
        return f"{self.namespace}/{self.name}/{self.uid}"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """What taint a pod bears; an empty key with Exists bears all, an empty effect any effect."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def bears(self, taint: Taint) -> bool:
        """Return whether this taint is borne."""
        if self.effect and self.effect != taint.effect:
            return False
        if self.operator == "Exists":
            return not self.key or self.key == taint.key
        return self.key == taint.key and self.value == taint.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Taint:
    """A taint of a node."""

    key: str
    effect: str
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPod:
    """A pod that asks for GPUs.

    Attributes:
        revision: the resourceVersion that was looked at.
        gpu_count: whole GPUs that the scheduler counts for it.
        node: where it is bound; empty before. aimed_at: the node that we let it go to, or made it for.
        is_gated: it carries our gate; has_other_gates: somebody else's too.
        is_leaving: it was deleted or evicted and is not gone; is_over: it ended by itself or was rejected, and holds no GPU for Kubernetes.
        is_ready: the kubelet calls it ready.
        failure: why it is over or cannot start, where Kubernetes says so; unschedulable: why the scheduler finds no node.
        disruption: reason of its DisruptionTarget condition: who made it leave.
        priority: its own; made_unix_s: when it was made.
        owner_uid: the workload that would make it again, empty where nobody would; owner_kind: what that is.
        gang: why it has to start together with others, empty where it does not.
        queue: name of a queue (Kueue) that holds quota for it.
        miner_pool, slot: of a miner that we made: its pool and its number on the node.
        flip: the mark of the flip that lifted or made it; lifted_unix_s: when that was, by our wall clock.
        only_nodes: nodes that it names by affinity, empty for any; of other affinity terms only the scheduler knows.
    """

    namespace: str
    name: str
    uid: str
    revision: str
    gpu_count: int
    node: str = ""
    aimed_at: str = ""
    is_gated: bool = False
    has_other_gates: bool = False
    is_leaving: bool = False
    is_over: bool = False
    is_ready: bool = False
    failure: str = ""
    unschedulable: str = ""
    disruption: str = ""
    priority: int = 0
    made_unix_s: float = 0.0
    owner_uid: str = ""
    owner_kind: str = ""
    gang: str = ""
    queue: str = ""
    miner_pool: str = ""
    slot: int | None = None
    flip: str = ""
    lifted_unix_s: float | None = None
    only_nodes: frozenset[str] = frozenset()
    node_selector: Mapping[str, str] = field(default_factory=_nothing)
    tolerations: tuple[Toleration, ...] = ()
    # Which life this is; asked for with every look at every pod, so made once.
    ref: PodRef = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ref", PodRef(namespace=self.namespace, name=self.name, uid=self.uid))

    @property
    def key(self) -> PodKey:
        """Return (namespace, name)."""
        return self.namespace, self.name

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for us: only our gate is left on it."""
        return self.is_gated and not self.has_other_gates and not self.is_leaving and not self.is_over

    @property
    def is_under_way(self) -> bool:
        """Whether it was let go and no node has it yet."""
        return not self.is_gated and not self.has_other_gates and not self.node and not self.is_over

    @property
    def is_rejected(self) -> bool:
        """Whether the kubelet of its node would not take it: it never ran."""
        return self.is_over and self.failure.startswith(_REJECTED)

    @property
    def rank(self) -> tuple[int, float, PodKey]:
        """Return its place in line: by priority, then age."""
        return -self.priority, self.made_unix_s, self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterNode:
    """A node. `gpu_count` is what pods may be given now."""

    name: str
    uid: str
    gpu_count: int
    labels: Mapping[str, str] = field(default_factory=_nothing)
    taints: tuple[Taint, ...] = ()
    is_ready: bool = True
    is_unschedulable: bool = False


class PoolMode(StrEnum):
    """What a pool may do."""

    ADVISORY = "Advisory"
    AUTO = "Auto"
    DRAIN = "Drain"


class OnBlocked(StrEnum):
    """What follows when a disruption budget refuses an eviction until its deadline."""

    CAP = "Cap"
    WAIT = "Wait"
    DELETE = "Delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelNeed:
    """One requirement of a label selector; operators as Kubernetes names them."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Return whether labels satisfy it; an operator that we do not know is satisfied by nothing."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value is not None and value in self.values
            case "NotIn":
                return value is None or value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case _:
                return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A CapacityPool as an operator wrote it; durations in seconds, watts per GPU."""

    name: str
    uid: str
    revision: str
    generation: int
    site: str
    container: str
    node_selector: Mapping[str, str]
    resource: str = "nvidia.com/gpu"
    mining_cap_w: float | None = None
    inference_cap_w: float | None = None
    is_mining_enabled: bool = False
    miner_namespace: str = ""
    miner_template: str = ""
    miner_priority_class: str = ""
    miner_grace_s: int = 5
    namespace_needs: tuple[LabelNeed, ...] = ()
    evict_deadline_s: float = 120.0
    on_blocked: OnBlocked = OnBlocked.CAP
    dwell_mining_s: float = 300.0
    dwell_inference_s: float = 600.0
    lift_deadline_s: float = 30.0
    flips_per_minute: int = 60
    mode: PoolMode = PoolMode.ADVISORY

    def selects(self, node: ClusterNode) -> bool:
        """Return whether a node is the pool's."""
        return all(node.labels.get(key) == value for key, value in self.node_selector.items())

    def serves(self, namespace_labels: Mapping[str, str]) -> bool:
        """Return whether pods of a namespace with these labels are served."""
        return all(need.holds(namespace_labels) for need in self.namespace_needs)


_REPELS = ("NoSchedule", "NoExecute")


def why_not_on(pod: ClusterPod, node: ClusterNode) -> str:
    """Return why a pod cannot run on a node whatever is free there, empty where it may.

    Affinity terms are the scheduler's to read: a pod that has some may still find no node here.
    """
    if node.is_unschedulable:
        return f"node {node.name} is cordoned"
    if not node.is_ready:
        return f"node {node.name} is not ready"
    if pod.only_nodes and node.name not in pod.only_nodes:
        return f"it names {', '.join(sorted(pod.only_nodes)[:3])} and may run nowhere else"
    for key, value in pod.node_selector.items():
        if node.labels.get(key) != value:
            return f"node {node.name} has no label {key}={value}"
    for taint in node.taints:
        if taint.effect in _REPELS and not any(toleration.bears(taint) for toleration in pod.tolerations):
            return f"node {node.name} has taint {taint.key}:{taint.effect}"
    return ""
