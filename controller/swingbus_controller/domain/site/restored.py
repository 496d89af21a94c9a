"""What follows from putting an older journal back: decided here, written by `adapters.storage.restoring`.

A copy knows less than was decided since. What agents hold they tell (grants, lockouts); what only people knew is gone: limits,
curtailments, pins, a lowered authority. So nothing is written to the site until a person has set them again. Invariants: no epoch of any
controller that ran before is begun a second time, as far as the wall clock is right (agents refuse it in any case), so no flip, grant or
curtailment gets a number that another had; authority is never raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.power.budget_events import ControllerStarted, JournalTrust, to_record

# Of these, what people set is lost with the entries after a copy. Grants, flips and evidence are told by agents and meters.
SET_BY_PEOPLE = (
    "authority_set",
    "curtailment_cancelled",
    "curtailment_ordered",
    "limit_removed",
    "limit_set",
    "lockout_lifted",
    "lockout_set",
    "pin_lifted",
    "pin_set",
    "reservation_accepted",
    "reservation_ended",
)
AUTHORITY_KINDS = ("authority_set", "journal_restored")


def restored_epoch(known: Iterable[int], now_unix_s: float) -> int:
    """Return the epoch that a restored journal stands at: above all that is known, and on the axis of Unix seconds.

    A controller begins at most one epoch a second, so epochs that were begun since the copy lie below, also those of a journal that was
    restored before.

    >>> restored_epoch([7, 9], 1_795_000_000.9)
    1795000000
    >>> restored_epoch([1_795_000_003], 1_795_000_000.0)
    1795000004
    """
    return max(int(now_unix_s), max(known, default=0) + 1)


def restored_authority(newest: Mapping[str, Any] | None) -> Authority:
    """Return the authority of a restored journal: ADVISE, or OBSERVE where the copy's newest word on it is that.

    >>> restored_authority({"authority": {"authority": "control"}}).value
    'advise'
    >>> restored_authority({"authority": {"authority": "observe"}}).value
    'observe'
    """
    said = None if newest is None else newest.get("authority", {}).get("authority")
    return Authority.OBSERVE if said == Authority.OBSERVE.value else Authority.ADVISE


def restored_payload(*, epoch: int, instance: str, boot_id: str, now_s: float, authority: Authority) -> dict[str, Any]:
    """Return what a restored journal begins with: a term that nobody decides in, whose journal is known to be old.

    So every bank counts at its ceiling until its agent has reported and its meter has proven it, in whatever term.
    """
    term = ControllerStarted(epoch=epoch, instance=instance, boot_id=boot_id, trust=JournalTrust.LOST, at_s=now_s)
    return {"budget": to_record(term), "authority": {"authority": authority.value}}
