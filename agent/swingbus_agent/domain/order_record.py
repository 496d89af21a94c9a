"""The last accepted order and the site's counting as one durable record. Pure.

Invariant: a record that is torn or of another shape is refused, never guessed; then nothing is known of what was ordered, and
the governor sees to it that nothing rises.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from swingbus.faults import InvalidInput
from swingbus_agent.domain.orders import (
    AgentOrder,
    BankCounting,
    BankOrder,
    Mode,
    PointOrder,
    SafeShareStep,
    Urgency,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptOrder:
    """What a restart begins with; `order` is None before the first."""

    order: AgentOrder | None = None
    counting: tuple[BankCounting, ...] = ()


def to_record(kept: KeptOrder) -> bytes:
    """Return one line: a checksum and JSON."""
    body = json.dumps(asdict(kept), sort_keys=True, default=_plain)
    return f"{hashlib.sha256(body.encode()).hexdigest()} {body}\n".encode()


def from_record(record: bytes) -> KeptOrder:
    """Return what `to_record` wrote; raise InvalidInput where it is torn or of another shape."""
    digest, _, body = record.rstrip(b"\n").partition(b" ")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise InvalidInput("the stored order is torn: checksum differs", reason="TORN_ORDER")
    try:
        found: dict[str, Any] = json.loads(body)
        counting = tuple(BankCounting(**each) for each in found["counting"])
        order = found["order"]
        return KeptOrder(order=None if order is None else _order(order), counting=counting)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"the stored order is of another shape: {error}", reason="BAD_ORDER_RECORD") from error


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{value!r} cannot be stored")


def _order(found: Mapping[str, Any]) -> AgentOrder:
    return AgentOrder(**{**found, "banks": tuple(_bank(bank) for bank in found["banks"])})


def _bank(found: Mapping[str, Any]) -> BankOrder:
    points = tuple(
        PointOrder(**{**point, "mode": Mode(point["mode"]), "units": tuple(point["units"])})
        for point in found["points"]
    )
    return BankOrder(
        **{
            **found,
            "points": points,
            "urgency": Urgency(found["urgency"]),
            "safe_shares": tuple(SafeShareStep(**share) for share in found["safe_shares"]),
            "locked_devices": tuple(found["locked_devices"]),
        }
    )
