"""What is told of a pool: counts, watts, conditions; and of a flip on pods and nodes. Plain values.

Decides nothing. Watts are whole: a status that moves with every sample would be written for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from swingbus_controller.domain.cluster.facts import PodRef


class Truth(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCondition:
    """A condition; `reason` is UpperCamel for machines, `message` for people."""

    type: str
    truth: Truth
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCounts:
    """GPUs of a pool by what they do."""

    total: int = 0
    inference: int = 0
    mining: int = 0
    standby: int = 0
    flipping: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWords:
    """A pool's status.

    Attributes:
        generation: of the pool that was looked at.
        waiting_pods, waiting_gpus: behind the gate; oldest_unix_s: when the longest waiting pod was made.
        limit_w: in force at the nearest feeder above its banks that has one; granted_w: what its banks may draw; reserved_w: what flips
            under way need beyond that.
    """

    generation: int
    epoch: int
    gpus: GpuCounts
    waiting_pods: int = 0
    waiting_gpus: int = 0
    oldest_unix_s: float | None = None
    limit_w: int | None = None
    granted_w: int = 0
    reserved_w: int = 0
    conditions: tuple[PoolCondition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Something that happened to a pod, a node or a pool because of a flip.

    Attributes:
        about: a pod, or the name of a node or pool; kind: Pod, Node or CapacityPool; uid: of a node or pool.
        flip: its mark, empty where no flip is behind it; once_for: what it is told once for, where that is not the flip.
        reason, action: UpperCamel.
    """

    kind: str
    about: PodRef | str
    uid: str
    flip: str
    reason: str
    action: str
    text: str
    at_unix_s: float
    is_warning: bool = False
    once_for: str = ""
