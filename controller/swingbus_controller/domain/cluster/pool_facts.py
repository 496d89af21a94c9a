"""What a pool's status is made of, gathered from pods, agents, flips, plan and ledger: plain values.

Decides nothing, but which of an agent's words mean that it cannot tell who holds its GPUs. Invariant: what is not known is None or empty,
never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from swingbus_controller.domain.cluster.blocking import Blocked, Rejected
from swingbus_controller.domain.cluster.facts import ClusterNode, ClusterPod, PodRef, Pool
from swingbus_controller.domain.cluster.pool_words import GpuCounts


class Blindness(StrEnum):
    """Why an agent cannot tell who holds its GPUs."""

    KUBELET_SILENT = "KubeletSilent"
    GPUS_UNSUPPORTED = "GpusUnsupported"


class Bar(StrEnum):
    """Why no more pods come into a bank now; in this order the first of several banks is told, since it is the one that ends first."""

    ARRIVING = "Arriving"
    NO_WATTS = "NoWatts"
    SETTLING = "Settling"
    DWELL = "Dwell"
    FLIP_LIMIT = "FlipLimit"
    NODE_RESTS = "NodeRests"
    NOT_READY = "NotReady"
    PINNED = "Pinned"
    NOT_WORTH = "NotWorth"
    UNAVAILABLE = "Unavailable"
    POOL_NOT_READY = "PoolNotReady"
    FULL = "Full"
    NO_FIT = "NoFit"
    GANG_UNSUPPORTED = "GangUnsupported"
    QUEUE_UNSUPPORTED = "QueueUnsupported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Barred:
    """Why no more pods come, in words; a feeder's name, a time, never a figure that moves with every sample."""

    bar: Bar
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BankFacts:
    """One bank of a pool.

    Attributes:
        bank, agent, node: names of the site file; cluster_node: None where there is none of that name.
        frozen: `Reason: words` why nothing is moved here.
        pods: pods of GPUs that are bound to the node or were let go to it, without those that are over.
        is_silent: its agent is not heard, so what its GPUs do is not known.
        blind: by kind, the agent's words why it cannot tell who holds GPUs.
        unnamed: the agent's words on units where processes run that no pod names, and that have run for a while.
        is_overdrawing: it draws more than it was ever granted.
        barred: why no more pods come here, None where nothing is in the way.
        lockout: who keeps it off, and why.
        failed_flips: flips that failed and whose GPUs are counted in full and used by nobody.
        rejected: pods that its node could not start; is_resting: so nothing is sent there now.
        no_miners: why miners could not be made.
    """

    bank: str
    agent: str
    node: str
    device_count: int
    unit_size: int
    gpus: GpuCounts
    cluster_node: ClusterNode | None = None
    frozen: str = ""
    pods: tuple[ClusterPod, ...] = ()
    is_silent: bool = False
    blind: Mapping[Blindness, str] = field(default_factory=dict)
    unnamed: tuple[str, ...] = ()
    is_overdrawing: bool = False
    barred: Barred | None = None
    lockout: str = ""
    failed_flips: tuple[str, ...] = ()
    rejected: Rejected | None = None
    is_resting: bool = False
    no_miners: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeederFacts:
    """A feeder above a pool's banks. `limit_w` is what is in force, None where nothing is; `excess_w` is what may be drawn above it."""

    feeder: str
    limit_w: float | None
    excess_w: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CurtailmentFacts:
    """A curtailment of a feeder above a pool's banks that is not over. `state` as the site calls it."""

    id: str
    feeder: str
    limit_w: float
    state: str
    until_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """One pool at one moment.

    Attributes:
        banks: banks of the site file that name it.
        feeders: from the pool's container up to the grid connection.
        granted_w, reserved_w: of its banks: what they may draw, and what flips under way need beyond it.
        waiting: every pod of the cluster that only our gate holds, first in line first.
        arriving: of them, those that a flip or an empty place brings, each with why its flip is held up, empty where nothing holds it.
        in_line: of them, those of more than one unit that a bank has room for.
        homeless: of them, those that fit no pool at all. resting: those whose workload rests, with why.
        namespaces: labels of enrolled namespaces.
        blocked: pods here that a disruption budget keeps.
        below_control: the site's authority, where it lets nothing be moved.
        unseen: kinds of the cluster's objects that have not been followed for a while, each with why.
    """

    pool: Pool
    epoch: int
    now_unix_s: float
    banks: tuple[BankFacts, ...] = ()
    feeders: tuple[FeederFacts, ...] = ()
    curtailments: tuple[CurtailmentFacts, ...] = ()
    granted_w: float = 0.0
    reserved_w: float = 0.0
    waiting: tuple[ClusterPod, ...] = ()
    arriving: Mapping[PodRef, str] = field(default_factory=dict)
    in_line: frozenset[PodRef] = frozenset()
    homeless: frozenset[PodRef] = frozenset()
    resting: Mapping[PodRef, str] = field(default_factory=dict)
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    blocked: Mapping[PodRef, Blocked] = field(default_factory=dict)
    below_control: str = ""
    unseen: Mapping[str, str] = field(default_factory=dict)


def why_blind(reason: str) -> Blindness | None:
    """Return what an agent's words on a unit mean, None where it can tell who holds it.

    The words are the agent's own and cross the link as text: the test of this function feeds it what the agent really says.
    """
    if "whole GPUs only" in reason:
        return Blindness.GPUS_UNSUPPORTED
    if reason.startswith("kubelet "):
        return Blindness.KUBELET_SILENT
    return None
