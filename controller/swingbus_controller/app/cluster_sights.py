"""What is seen of each bank whose workloads are pods: its node, its pool, its pods, joined with its agent's newest report.

Decides nothing. Invariant: a report that is not fresh, not of our epoch or of a silent agent shows no unit free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from swingbus_controller.domain.cluster.facts import ClusterNode, ClusterPod, PodKey, Pool
from swingbus_controller.domain.cluster.pod_moves import NodePod, UnitWish, node_pod
from swingbus_controller.domain.cluster.pool_checks import why_frozen
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.flips.placement import BankModel
from swingbus_controller.domain.flips.pods_seen import (
    UNKNOWN,
    PodsSeen,
    free_units,
    see_pods,
    tenants_of_units,
    units_of_pods,
)
from swingbus_controller.domain.planning.plan import BankView
from swingbus_controller.domain.planning.points import Mode
from swingbus_controller.domain.site.sitefile import SiteFile

UNSEEN = "ClusterUnseen: the cluster was not listed yet"
NO_PERMIT = "NoWritePermit: this controller does not hold the lease; another one may be active, or the API server does not answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSight:
    """One bank in its cluster at one moment.

    Attributes:
        frozen: why nothing is moved here, empty where pods are moved.
        pods: pods of GPUs that are bound to the node or let go to it, without those that are over.
        units: the units that each pod holds.
        shown: what they show to flips.
        tenants: by unit, who stays there; held_units: units that anybody holds; free_units: units that evidence shows free.
        reasons: by unit, the agent's words.
        is_anybody_under_way: whether a pod here was let go and has no node yet.
    """

    model: BankModel
    node: ClusterNode | None
    pool: Pool | None
    frozen: str
    pods: tuple[ClusterPod, ...] = ()
    units: Mapping[PodKey, frozenset[int]] = field(default_factory=dict)
    shown: PodsSeen = UNKNOWN
    tenants: Mapping[int, Mode] = field(default_factory=dict)
    held_units: frozenset[int] = frozenset()
    free_units: frozenset[int] = frozenset()
    reasons: Mapping[int, str] = field(default_factory=dict)
    # Asked for several times in a round, and the same for as long as this is what is seen.
    _customers: tuple[ClusterPod, ...] = field(init=False, repr=False, compare=False)
    is_anybody_under_way: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        namespace = "" if self.pool is None else self.pool.miner_namespace
        customers = tuple(pod for pod in self.pods if not namespace or pod.namespace != namespace)
        object.__setattr__(self, "_customers", customers)
        object.__setattr__(self, "is_anybody_under_way", any(pod.is_under_way for pod in self.pods))

    @property
    def may_move(self) -> bool:
        """Whether pods are moved here."""
        return not self.frozen and self.node is not None and self.pool is not None

    def as_node_pod(self, pod: ClusterPod) -> NodePod:
        """Return a pod as the moves of this node see it."""
        namespace = "" if self.pool is None else self.pool.miner_namespace
        pool = "" if self.pool is None else self.pool.name
        return node_pod(pod, miner_namespace=namespace, pool=pool, units=self.units)

    def customers(self) -> tuple[ClusterPod, ...]:
        """Return the pods here that are no miners."""
        return self._customers


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSource:
    """All that is shown to the planner of a bank where nobody serves comes from this."""

    view: BankView
    sight: BankSight
    wishes: list[UnitWish] | None

    def is_same(self, other: ViewSource) -> bool:
        """Tell whether nothing has changed. All is replaced, never changed: the same object says the same."""
        return self.view is other.view and self.sight is other.sight and self.wishes is other.wishes


def see_bank(
    model: BankModel,
    site: SiteFile,
    cluster: ClusterState,
    report: orders.BankReport | None,
    *,
    is_fresh: bool,
    may_write: bool,
) -> BankSight:
    """Return what is seen of a bank.

    Args:
        report: the newest, None before the first.
        is_fresh: whether it is the word of a live agent under our epoch.
        may_write: whether this controller has the permit.
    """
    declared = model.declared
    node, pool = cluster.nodes.get(declared.node), cluster.pools.get(declared.pool)
    if not cluster.is_synced:
        return BankSight(model=model, node=node, pool=pool, frozen=UNSEEN)
    frozen = why_frozen(
        site=site.name,
        feeders=[feeder for feeder, _ in site.tree.path(declared.feeder)],
        node_name=declared.node,
        pool_name=declared.pool,
        node=node,
        pools=cluster.pools.values(),
    )
    if not frozen and not may_write:
        frozen = NO_PERMIT
    holdings = () if report is None else report.unit_holdings
    units = units_of_pods(holdings)
    pods = cluster.pods_on(declared.node)
    shown = see_pods(pods, units)
    tenants = tenants_of_units(holdings, model.device_class.workloads) if is_fresh else {}
    return BankSight(
        model=model,
        node=node,
        pool=pool,
        frozen=frozen,
        pods=tuple(pod for pod in pods if not pod.is_over),
        units=units,
        shown=shown,
        tenants={unit: mode for unit, mode in tenants.items() if unit in shown.staying_units},
        held_units=frozenset(holding.unit for holding in holdings if holding.holders),
        free_units=free_units(holdings) if is_fresh else frozenset(),
        reasons={holding.unit: holding.reason for holding in holdings if holding.reason},
    )
