"""The fields that we read of the kinds that we watch.

Decides which fields matter: whatever else an object holds is skipped while decoding. Refuses to know what they mean for a flip.
Invariant: an object has a name, a uid and a revision, else it is not decoded at all. Times stay as written: nothing is decided by them.

Pods of one workload differ in their names and in little else, and a site has many thousands: parts that are equal are kept once.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import TypeVar, cast

from msgspec import Struct, field
from msgspec.structs import force_setattr

from swingbus_controller.adapters.kubernetes.quantity import parse_count

Amounts = dict[str, str | int]  # quantities, parsed only where asked for
H = TypeVar("H", bound=Hashable)


@lru_cache(maxsize=4096)  # what many pods share comes again before so many others; what none does is not held for long
def _kept(value: Hashable) -> Hashable:
    return value


def shared(value: H) -> H:
    """Return the value that came first of those equal to this one, as long as it is remembered."""
    return cast(H, _kept(value))


class OwnerReference(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """Who made an object."""

    kind: str
    name: str
    uid: str
    controller: bool = False


class Meta(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """What every object carries."""

    name: str
    uid: str
    resource_version: str
    namespace: str = ""
    generation: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    owner_references: tuple[OwnerReference, ...] = ()
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class KubeObject(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """The base of every kind."""

    metadata: Meta

    @property
    def key(self) -> tuple[str, str]:
        """Return (namespace, name)."""
        return self.metadata.namespace, self.metadata.name

    @property
    def uid(self) -> str:
        return self.metadata.uid

    @property
    def revision(self) -> str:
        return self.metadata.resource_version

    @property
    def is_deleting(self) -> bool:
        return self.metadata.deletion_timestamp is not None


class FieldNeed(Struct, frozen=True, gc=False, kw_only=True):
    """What a field of a node has to be."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


class NodeTerm(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """One way to be the right node; its needs of labels are the scheduler's to read."""

    match_fields: tuple[FieldNeed, ...] = ()


class NodeTerms(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """Ways to be the right node, of which one is enough."""

    node_selector_terms: tuple[NodeTerm, ...] = ()


class NodeAffinity(Struct, frozen=True, gc=False, kw_only=True):
    """Which nodes a pod may be on."""

    required: NodeTerms | None = field(default=None, name="requiredDuringSchedulingIgnoredDuringExecution")


class Affinity(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """What a pod wants beside it. Of it only nodes that are named are ours to read: a DaemonSet's pods name one each."""

    node_affinity: NodeAffinity | None = None

    @property
    def named_nodes(self) -> frozenset[str]:
        """Return the only nodes that it may be on, empty where that is not said by name."""
        required = None if self.node_affinity is None else self.node_affinity.required
        terms = () if required is None else required.node_selector_terms
        names = [
            [need.values for need in term.match_fields if (need.key, need.operator) == ("metadata.name", "In")]
            for term in terms
        ]
        return frozenset(name for found in names for each in found for name in each) if all(names) else frozenset()


class Condition(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """A condition; `status` is True, False or Unknown."""

    type: str
    status: str
    reason: str = ""
    message: str = ""


class DatedCondition(Condition, frozen=True, rename="camel", gc=False, kw_only=True):
    """A condition of ours, with what we have to write: of others' we don't read it, and it makes each of them another."""

    observed_generation: int = 0
    last_transition_time: str | None = None


class Gate(Struct, frozen=True, gc=False):
    """A scheduling gate."""

    name: str


class Resources(Struct, frozen=True, gc=False):
    """What a container asks for."""

    requests: Amounts = field(default_factory=dict)
    limits: Amounts = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((frozenset(self.requests.items()), frozenset(self.limits.items())))


class Container(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """A container of a pod."""

    name: str
    resources: Resources = Resources()
    restart_policy: str = ""


class PodToleration(Struct, frozen=True, gc=False, kw_only=True):
    """What taint a pod bears."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


class PodSpec(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """What a pod wants."""

    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    scheduling_gates: tuple[Gate, ...] = ()
    node_name: str = ""
    node_selector: dict[str, str] = field(default_factory=dict)
    affinity: Affinity | None = None
    tolerations: tuple[PodToleration, ...] = ()
    priority: int = 0

    def __post_init__(self) -> None:
        for part in ("containers", "init_containers", "scheduling_gates", "node_name", "affinity", "tolerations"):
            force_setattr(self, part, shared(getattr(self, part)))


class PodStatus(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """What the kubelet and the scheduler say of a pod."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        force_setattr(self, "conditions", shared(self.conditions))


class Pod(KubeObject, frozen=True, rename="camel", gc=False, kw_only=True):
    """A pod."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def gates(self) -> tuple[str, ...]:
        return tuple(gate.name for gate in self.spec.scheduling_gates)

    @property
    def is_ready(self) -> bool:
        """Return whether the kubelet calls it ready: a hint, not evidence."""
        return any(condition.type == "Ready" and condition.status == "True" for condition in self.status.conditions)

    def devices(self, resource: str) -> int:
        """Return how many devices the scheduler will count for it.

        Containers and sidecars run together; an ordinary init container runs beside the sidecars started before it.
        """
        beside, peak = 0, 0
        for container in self.spec.init_containers:
            count = _asked(container, resource)
            if container.restart_policy == "Always":
                beside += count
                peak = max(peak, beside)
            else:
                peak = max(peak, beside + count)
        return max(peak, beside + sum(_asked(container, resource) for container in self.spec.containers))


def _asked(container: Container, resource: str) -> int:
    # Of extended resources request and limit are equal, and the API server fills in the request.
    asked = container.resources.requests.get(resource, container.resources.limits.get(resource, 0))
    return parse_count(asked)


class Taint(Struct, frozen=True, gc=False, kw_only=True):
    """A taint of a node."""

    key: str
    effect: str
    value: str = ""


class NodeSpec(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """What is set on a node."""

    unschedulable: bool = False
    taints: tuple[Taint, ...] = ()


class NodeStatus(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """What a node's kubelet says."""

    allocatable: Amounts = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()


class Node(KubeObject, frozen=True, rename="camel", gc=False, kw_only=True):
    """A node."""

    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def is_ready(self) -> bool:
        return any(condition.type == "Ready" and condition.status == "True" for condition in self.status.conditions)

    def devices(self, resource: str) -> int:
        """Return how many devices of a resource may be allocated."""
        return parse_count(self.status.allocatable.get(resource, 0))


class Namespace(KubeObject, frozen=True, rename="camel", gc=False, kw_only=True):
    """A namespace: its labels say whether its pods are gated."""


class LabelRequirement(Struct, frozen=True, gc=False, kw_only=True):
    """One expression of a label selector."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


class LabelSelector(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """A label selector: all of it must hold; an empty one selects everything."""

    match_labels: dict[str, str] = field(default_factory=dict)
    match_expressions: tuple[LabelRequirement, ...] = ()

    def selects(self, labels: dict[str, str]) -> bool:
        """Return whether labels satisfy it. An operator that we do not know selects nothing."""
        if any(labels.get(key) != value for key, value in self.match_labels.items()):
            return False
        for need in self.match_expressions:
            value = labels.get(need.key)
            holds = {
                "In": value is not None and value in need.values,
                "NotIn": value is None or value not in need.values,
                "Exists": value is not None,
                "DoesNotExist": value is None,
            }.get(need.operator, False)
            if not holds:
                return False
        return True


class DisruptionBudgetSpec(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """What a workload's owner allows; numbers or percentages. A budget without selector selects nothing."""

    selector: LabelSelector | None = None
    min_available: int | str | None = None
    max_unavailable: int | str | None = None


class DisruptionBudgetStatus(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """What the disruption controller counted."""

    observed_generation: int = 0
    disruptions_allowed: int = 0
    current_healthy: int = 0
    desired_healthy: int = 0
    expected_pods: int = 0


class DisruptionBudget(KubeObject, frozen=True, rename="camel", gc=False, kw_only=True):
    """A PodDisruptionBudget."""

    spec: DisruptionBudgetSpec = DisruptionBudgetSpec()
    status: DisruptionBudgetStatus = DisruptionBudgetStatus()
