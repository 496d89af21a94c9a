"""The kinds that we write ourselves, CapacityPool and Lease, and what every answer is wrapped in: lists, watch events, Status.

Decides which fields of them are read. Invariant: as in `objects`; a pool's values were validated by the API server and are not again.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct, field

from swingbus_controller.adapters.kubernetes.objects import DatedCondition, KubeObject, LabelSelector


class PoolMining(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """How miners of a pool are made."""

    enabled: bool = False
    namespace: str = ""
    pod_template: str = ""
    priority_class_name: str = ""
    grace_seconds: int = 5


class PoolInference(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """Whose pods are served and how they are moved. `on_blocked` is Cap, Wait or Delete."""

    namespace_selector: LabelSelector = LabelSelector()
    fast_lane: str = "Deny"
    evict_deadline: str = "2m"
    on_blocked: str = "Cap"


class PoolTiming(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """How long things take; durations as Kubernetes writes them."""

    dwell_mining: str = "5m"
    dwell_inference: str = "10m"
    lift_deadline: str = "30s"
    max_flips_per_minute: int = 60


class PoolCaps(Struct, frozen=True, gc=False, kw_only=True):
    """Watts per GPU and tenant: orders to the agent, never what is charged."""

    mining: float | None = None
    inference: float | None = None


class PoolSpec(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """What an operator wants of one GPU class in one site container."""

    site: str
    container: str
    node_selector: dict[str, str]
    resource: str = "nvidia.com/gpu"
    caps: PoolCaps = PoolCaps()
    mining: PoolMining = PoolMining()
    inference: PoolInference = PoolInference()
    timing: PoolTiming = PoolTiming()
    mode: str = "Advisory"


class PoolGpus(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """GPUs of a pool by what they do."""

    total: int = 0
    inference: int = 0
    mining: int = 0
    standby: int = 0
    flipping: int = 0
    unknown: int = 0


class PoolWaiting(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """Demand behind the gate; `oldest` is the time at which the longest waiting pod was made."""

    pods: int = 0
    gpus: int = 0
    oldest: str | None = None


class PoolWatts(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """Watts of a pool; no limit where none is in force."""

    limit: float | None = None
    granted: float = 0.0
    reserved: float = 0.0


class PoolStatus(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """What we say of a pool: written on change only."""

    observed_generation: int = 0
    epoch: int = 0
    gpus: PoolGpus = PoolGpus()
    waiting: PoolWaiting = PoolWaiting()
    watts: PoolWatts = PoolWatts()
    conditions: tuple[DatedCondition, ...] = ()


class CapacityPool(KubeObject, frozen=True, rename="camel", gc=False, kw_only=True):
    """A pool."""

    spec: PoolSpec
    status: PoolStatus = PoolStatus()


class LeaseSpec(Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """Who writes. Times are the holder's wall clock: shown to people, compared only for being different."""

    holder_identity: str = ""
    lease_duration_seconds: int = 0
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int = 0


class Lease(KubeObject, frozen=True, rename="camel", gc=False, kw_only=True):
    """A lease."""

    spec: LeaseSpec = LeaseSpec()


class ListMeta(Struct, frozen=True, rename="camel", kw_only=True):
    """Where a page stands: `resource_version` is the revision of the whole list, `continue_` the token of the next page."""

    resource_version: str
    continue_: str = field(default="", name="continue")


class StatusCause(Struct, frozen=True, kw_only=True):
    """One of a refusal's reasons."""

    reason: str = ""
    message: str = ""
    field: str = ""


class StatusDetails(Struct, frozen=True, rename="camel", kw_only=True):
    """What a refusal is about."""

    name: str = ""
    kind: str = ""
    uid: str = ""
    retry_after_seconds: int = 0
    causes: tuple[StatusCause, ...] = ()


class Status(Struct, frozen=True, rename="camel", kw_only=True):
    """The API server's refusal."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: StatusDetails = StatusDetails()


class WatchLine(Struct, frozen=True, kw_only=True):
    """One line of a watch; what the object is depends on the type."""

    type: str
    object: msgspec.Raw


class _BookmarkMeta(Struct, frozen=True, rename="camel", kw_only=True):
    resource_version: str


class Bookmark(Struct, frozen=True, kw_only=True):
    """All that a bookmark's object holds."""

    metadata: _BookmarkMeta
