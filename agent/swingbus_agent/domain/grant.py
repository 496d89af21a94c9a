"""What the controller lends the agent, and what the agent must not forget: the words of the governor.

Decides: the safe share at a moment, whether a durable record can be believed. Refuses to know: files, wire, devices.
Invariant: a record that is missing, torn or of another shape is *lost*, never guessed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from swingbus.faults import InvalidInput

# Names a moment of the controller: (epoch, count); echoed in meter windows that began after it was received.
Marker = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeShareStep:
    """From `from_s` (the agent's CLOCK_BOOTTIME of the boot it was acknowledged in) the safe share is `watts`."""

    from_s: float
    watts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BankGrant:
    """One bank's grant as the controller sends it: watts at the bank's feeder.

    `for_instance` is the agent run that the controller had heard when it decided; an agent that lost its memory takes
    only a grant made for its present run, which an outdated controller cannot have journaled.
    """

    bank: str
    generation: int
    grant_w: float
    for_instance: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What a controller wants of this agent: adopt its epoch, and per bank a grant (a bank left out keeps what it has).

    Attributes:
        ticket: the agent's own ticket that this answers; the grant's time counts from when that was sent.
        ttl_s: how long the grants last from then.
        safe_shares: per bank the schedule to acknowledge (times on this host's CLOCK_BOOTTIME, earliest first); a bank
            left out keeps the one it has.
    """

    epoch: int
    controller_instance: str
    ticket: str
    ttl_s: float
    grants: tuple[BankGrant, ...] = ()
    safe_shares: Mapping[str, tuple[SafeShareStep, ...]] = field(default_factory=dict)
    marker: Marker | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DurableGrant:
    """A bank's grant on disk.

    Attributes:
        lease_until_s: CLOCK_BOOTTIME of `DurableState.boot_id` until which it lives at least (refreshed lazily).
        writes_open: raising writes may have been under way when this was stored.
    """

    epoch: int
    generation: int
    grant_w: float
    lease_until_s: float
    writes_open: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DurableState:
    """Everything that must survive a crash; stored with fsync before it is acted on."""

    boot_id: str
    fence_epoch: int = 0
    fence_instance: str = ""
    grants: Mapping[str, DurableGrant] = field(default_factory=dict)
    safe_shares: Mapping[str, tuple[SafeShareStep, ...]] = field(default_factory=dict)
    revision: int = 0


def to_record(state: DurableState) -> bytes:
    """Return the state with a checksum over it, one line of JSON."""
    body = json.dumps(asdict(state), sort_keys=True)
    return f"{hashlib.sha256(body.encode()).hexdigest()} {body}\n".encode()


def from_record(record: bytes) -> DurableState:
    """Return the state that `to_record` wrote; raise `InvalidInput` where it is torn or of another shape.

    The caller then starts the governor with `durable=None`: lost is a state of its own.
    """
    digest, _, body = record.rstrip(b"\n").partition(b" ")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise InvalidInput("the stored grants are torn: checksum differs.", reason="TORN_GRANTS")
    try:
        fields: dict[str, Any] = json.loads(body)
        grants = {name: DurableGrant(**grant) for name, grant in fields.pop("grants").items()}
        safe_shares = {
            name: tuple(SafeShareStep(**step) for step in steps) for name, steps in fields.pop("safe_shares").items()
        }
        return DurableState(grants=grants, safe_shares=safe_shares, **fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(f"the stored grants are of another shape: {error}.", reason="BAD_GRANTS") from error


def safe_share_w(schedule: tuple[SafeShareStep, ...], default_w: float, now_s: float) -> float:
    """Return the safe share in force: the last step that has begun, else the default.

    >>> safe_share_w((SafeShareStep(from_s=100.0, watts=2000.0),), 5000.0, 99.0)
    5000.0
    """
    watts = default_w
    for step in schedule:
        if step.from_s <= now_s:
            watts = step.watts
    return watts


class MarkerLog:
    """When which marker arrived, so that a meter window can carry the newest one older than the power it shows."""

    def __init__(self, kept: int = 64) -> None:
        self._kept = kept
        self._markers: list[tuple[float, Marker]] = []

    def note(self, marker: Marker, now_s: float) -> None:
        """Remember the moment a marker was first received; older ones than known change nothing."""
        if self._markers and marker <= self._markers[-1][1]:
            return
        self._markers.append((now_s, marker))
        del self._markers[: -self._kept]

    def before(self, begun_s: float) -> Marker | None:
        """Return the newest marker received at or before `begun_s` (window start less meter lag and averaging)."""
        for received_s, marker in reversed(self._markers):
            if received_s <= begun_s:
                return marker
        return None
