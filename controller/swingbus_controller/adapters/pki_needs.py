"""Which certificates a job that runs again and again has to issue: pure decisions about what is there.

Refuses to take back what a person decided: a holder whose newest certificate was revoked gets no other until somebody renews it by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from swingbus.bundle import Bundle
from swingbus_controller.adapters.pki import SERVER_ROLE, CertificateState


class Action(Enum):
    """What to do about one holder."""

    KEEP = "keep"
    ISSUE = "issue"
    LEAVE_REVOKED = "leave revoked"


@dataclass(frozen=True, slots=True)
class Need:
    """`because` is for people."""

    action: Action
    because: str = ""


def holder_need(
    name: str,
    held: Bundle | None,
    states: Sequence[CertificateState],
    *,
    ca_pem: str,
    endpoint: str,
    now: datetime,
    renew_within: timedelta,
) -> Need:
    """Return what one holder needs.

    Args:
        held: the bundle that it is given now, None where there is none that can be read.
        states: every certificate of the authority.
        ca_pem: whom the authority believes now.
        endpoint: what bundles should carry.
        renew_within: before its end.
    """
    newest = [state for state in states if state.certificate.name == name][-1:]
    if newest and newest[0].state == "denied":
        return Need(Action.LEAVE_REVOKED, "its certificate is revoked")
    if held is None:
        return Need(Action.ISSUE, "it has none")
    known = {state.certificate.serial: state for state in states}.get(held.serial)
    if known is None:
        return Need(Action.ISSUE, "the one it has is another authority's")
    if known.state == "denied":
        return Need(Action.ISSUE, "the one it has is revoked, and it was given another since")
    if held.ca_pem.strip() != ca_pem.strip():
        return Need(Action.ISSUE, "the authority rotates")
    if held.endpoint != endpoint:
        return Need(Action.ISSUE, f"the controller is at {endpoint} now")
    if held.expires - now < renew_within:
        return Need(Action.ISSUE, f"the one it has ends on {held.expires:%Y-%m-%d}")
    return Need(Action.KEEP)


def server_need(
    states: Sequence[CertificateState],
    *,
    names: Sequence[str],
    wanted: Sequence[str],
    now: datetime,
    renew_within: timedelta,
) -> Need:
    """Return what the controller itself needs; `names` are those that its certificate has."""
    ends = [state.certificate.not_after for state in states if state.certificate.role == SERVER_ROLE]
    if not ends:
        return Need(Action.ISSUE, "it has none")
    if set(names) != set(wanted):
        return Need(Action.ISSUE, f"it is reached as {', '.join(wanted)} now")
    if ends[-1] - now < renew_within:
        return Need(Action.ISSUE, f"the one it has ends on {ends[-1]:%Y-%m-%d}")
    return Need(Action.KEEP)
