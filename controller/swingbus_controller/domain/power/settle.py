"""Settle: when does a metered group's evidence prove its newest grants (POWER.md, Settle)?

Decides: settled, or the first reason why not. Refuses to know: what the ledger does with the answer. Invariant: "yes"
needs all of: every bank's newest grant Applied, none in flight; at least three distinct windows over the group's
shortest span, each begun (less lag and averaging) after Applied on the same boot's clock or under a later marker; the
group's upper bound within the sum of its own grants, no other reading subtracted; every device held or counted at its
ceiling; a live meter; no disturbance. A low draw and a reply prove nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from swingbus_controller.domain.power.budget_events import EvidenceWindow, GroupSettled, SettledGrant
from swingbus_controller.domain.power.evidence import MeterHistory, has_true_energy, is_frozen
from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_controller.domain.power.reports import Applied, Marker, MeterWindow

TOLERANCE_W = 1e-6


class SettleReason(Enum):
    """Why a group is not settled yet; stable words for `curtail show`."""

    NO_METER = "NoMeter"  # its nearest meter is the site's, or is shared with others
    NOT_ADOPTED = "NotAdopted"  # a bank has not reported under our epoch, or has no grant of it
    IN_FLIGHT = "InFlight"  # the agent has not confirmed the newest grant
    NOT_APPLIED = "NotApplied"  # confirmed, not yet read back on every device
    NOT_HELD = "NotHeld"  # read back, but devices count above the grant (unheld ones at their ceiling)
    METER_SILENT = "MeterSilent"  # no plausible, moving window lately
    METER_FROZEN = "MeterFrozen"  # identical readings, or its energy stands still
    METER_DISAGREES = "MeterDisagrees"  # energy and power do not agree
    ABOVE_GRANT = "AboveGrant"  # the reading does not fit the grants
    TOO_FEW_WINDOWS = "TooFewWindows"  # fits so far; more windows, or a longer span, are needed
    DISTURBANCE = "Disturbance"  # a blip is too fresh
    NOTHING_OPEN = "NothingOpen"  # already settled


@dataclass(frozen=True, slots=True, kw_only=True)
class NotSettled:
    """The group's newest grants are not proven, and why; `windows` is the evidence so far."""

    group: str
    reason: SettleReason
    detail: str
    bank: str | None = None
    windows: tuple[EvidenceWindow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BankProof:
    """What a settlement needs to know of one bank.

    Attributes:
        factor: watts at the group's meter per watt of grant (losses between bank and meter).
        confirmed: the (epoch, generation) that the agent says it holds on disk.
        applied_boot_id: the boot that `applied.at_s` counts from.
        marker: the first marker issued after Applied was received.
    """

    bank: str
    agent: str
    epoch: int
    generation: int
    grant_w: float
    factor: float
    settle_min_s: float
    is_adopted: bool
    confirmed: tuple[int, int] | None
    applied: Applied | None
    applied_boot_id: str
    marker: Marker | None


def settle(
    *,
    group: str,
    proofs: Sequence[BankProof],
    history: MeterHistory | None,
    disturbed_until_s: float,
    settings: ProtocolSettings,
    now_s: float,
) -> GroupSettled | NotSettled:
    """Return the settlement of a group's newest grants, or the first reason against it."""

    def refuse(
        reason: SettleReason, detail: str, bank: str | None = None, windows: tuple[EvidenceWindow, ...] = ()
    ) -> NotSettled:
        return NotSettled(group=group, reason=reason, detail=detail, bank=bank, windows=windows)

    if history is None:
        return refuse(SettleReason.NO_METER, "no meter measures this group alone: it may shrink, never settle by power")
    if now_s < disturbed_until_s:
        return refuse(SettleReason.DISTURBANCE, f"{disturbed_until_s - now_s:.0f} s until readings count again")
    for proof in proofs:
        refusal = _refuse_bank(proof)
        if refusal is not None:
            return refuse(refusal[0], refusal[1], proof.bank)
    if not history.is_live(now_s, settings):
        return refuse(SettleReason.METER_SILENT, f"no moving reading for {settings.meter_dead_s:.0f} s")

    bound_w = sum(proof.grant_w * proof.factor for proof in proofs)
    span_s = max(proof.settle_min_s for proof in proofs)
    run: list[MeterWindow] = []
    for window, received_s in zip(reversed(history.windows), reversed(history.received), strict=True):
        if not _is_after(window, received_s, proofs, history, disturbed_until_s):
            break
        upper_w = history.meter.upper_w(window.mean_w)
        if upper_w > bound_w + TOLERANCE_W:
            if not run:
                return refuse(SettleReason.ABOVE_GRANT, f"reads up to {upper_w:.0f} W, granted {bound_w:.0f} W")
            break
        if not has_true_energy(window, settings, history.meter):
            if not run:
                return refuse(SettleReason.METER_DISAGREES, "its energy counter does not agree with its power")
            break
        run.append(window)
        if len(run) >= settings.settle_windows and run[0].end_s - window.start_s >= span_s:
            break
    run.reverse()
    windows = tuple(
        EvidenceWindow(start_s=w.start_s, end_s=w.end_s, mean_w=w.mean_w, upper_w=history.meter.upper_w(w.mean_w))
        for w in run
    )
    if len(run) < settings.settle_windows or run[-1].end_s - run[0].start_s < span_s:
        seen_s = run[-1].end_s - run[0].start_s if run else 0.0
        detail = f"{len(run)} of {settings.settle_windows} windows over {seen_s:.0f} of {span_s:.0f} s"
        return refuse(SettleReason.TOO_FEW_WINDOWS, detail, windows=windows)
    if is_frozen(run):
        return refuse(SettleReason.METER_FROZEN, "identical readings or no energy gained", windows=windows)
    grants = tuple(SettledGrant(bank=p.bank, epoch=p.epoch, generation=p.generation, grant_w=p.grant_w) for p in proofs)
    return GroupSettled(group=group, grants=grants, windows=windows, at_s=now_s)


def _refuse_bank(proof: BankProof) -> tuple[SettleReason, str] | None:
    """Return why this bank's report proves nothing yet, None where it does."""
    newest = (proof.epoch, proof.generation)
    if not proof.is_adopted or proof.generation == 0:
        return SettleReason.NOT_ADOPTED, "its agent has no grant of our epoch yet"
    if proof.confirmed != newest:
        return SettleReason.IN_FLIGHT, f"grant {proof.epoch}.{proof.generation} is not confirmed by its agent"
    applied = proof.applied
    if applied is None or (applied.epoch, applied.generation) != newest:
        return SettleReason.NOT_APPLIED, f"grant {proof.epoch}.{proof.generation} is not read back on every device"
    if applied.counted_w > proof.grant_w + TOLERANCE_W:
        detail = (
            f"devices count {applied.counted_w:.0f} W ({applied.unheld_count} unheld), granted {proof.grant_w:.0f} W"
        )
        return SettleReason.NOT_HELD, detail
    return None


def _is_after(
    window: MeterWindow,
    received_s: float,
    proofs: Sequence[BankProof],
    history: MeterHistory,
    disturbed_until_s: float,
) -> bool:
    """Tell whether the power behind a window can only have been drawn after every bank's Applied."""
    delay_s = history.meter.lag_s + history.meter.averaging_s
    # A length of time is the same on both hosts; a moment is not. Late arrival only makes a window look younger, which
    # costs nothing here: a disturbance frees no watts, causality below is exact.
    if received_s - (window.end_s - window.start_s) - delay_s < disturbed_until_s:
        return False
    begun_s = window.start_s - delay_s
    for proof in proofs:
        applied = proof.applied
        if applied is None:
            return False
        is_same_clock = window.reader == proof.agent and window.boot_id == proof.applied_boot_id
        if is_same_clock and begun_s >= applied.at_s:
            continue
        if window.marker is not None and proof.marker is not None and _is_marked(window.marker, proof.marker):
            continue
        return False
    return True


def _is_marked(seen: Marker, needed: Marker) -> bool:
    """Tell whether a window carries this epoch's marker or a later one of the same epoch."""
    return seen[0] == needed[0] and seen[1] >= needed[1]
