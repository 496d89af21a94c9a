"""Admission: which moves of a plan may become flips now, and what each refused one lacks.

A plan is made on one revision and carried out on later ones, so every move is checked again on the fleet as it is: authority, pins,
dwell, devices still where they were, watts. Shrinks come first and free nothing until evidence shows it, so a growing flip starts
now only if it fits beside everything that is still claimed. GPUs that come into inference and do not fit at the planned point come
in at a lower one that does, and a later plan raises them: who waits is served now, not when a meter has proven that a neighbour
shrank. Everything else waits, and names what it waits for; where nothing on the way could ever make room it is refused. It knows no
ledger: the ledger may still say no, and then the flip waits in SETTLING.
Invariant: claims now + flips that start now never exceed a feeder; with every waiting flip added and every shrink done neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from swingbus_controller.domain.cluster.facts import PodRef
from swingbus_controller.domain.flips.boot_axis import BootAxis
from swingbus_controller.domain.flips.flip import Flip, new_flip
from swingbus_controller.domain.flips.parties import Part, assign_parties, why_left_out
from swingbus_controller.domain.planning.packing import EPSILON_W, Headroom, Path
from swingbus_controller.domain.planning.plan import (
    PLANNABLE,
    Authority,
    Availability,
    BankView,
    Move,
    Plan,
    PlanView,
    Reason,
)
from swingbus_controller.domain.planning.planner import bank_claim_w, dwell_left_s
from swingbus_controller.domain.planning.points import DeviceKind, Mode
from swingbus_controller.domain.planning.policy import FlipTimes, Policy


class RefusalCode(StrEnum):
    """Why a move may not become a flip now."""

    AUTHORITY = "authority"
    BANK_GONE = "bank_gone"
    UNAVAILABLE = "unavailable"
    PINNED = "pinned"
    DWELL = "dwell"
    DEVICES_MOVED = "devices_moved"
    NO_WATTS = "no_watts"
    NO_PARTY = "no_party"
    TOO_MANY_FLIPS = "too_many_flips"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedFlip:
    """A part of a move that may become one flip: one GPU unit, or a count of ASICs.

    Args:
        to_point: where it goes: the move's point, or for now a lower one of the same mode.
        starts_now: whether its watts fit beside everything claimed now; shrinks always do.
        waits_for: banks and open flips whose shrinking it waits for, if it has to wait.
        waits_at: the feeder that is full, if it has to wait.
        party: who comes, or leaves, by name; empty where nobody has to be named.
    """

    move: Move
    count: int
    unit_ids: tuple[str, ...]
    to_point: str
    claim_delta_w: float
    is_safety: bool
    starts_now: bool
    party: str = ""
    waits_for: tuple[str, ...] = ()
    waits_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A part of a move that may not become a flip now."""

    move: Move
    count: int
    code: RefusalCode
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What became of a plan's moves, in the order in which they are to be carried out."""

    basis_revision: int
    revision: int
    admitted: tuple[AdmittedFlip, ...]
    refused: tuple[Refusal, ...]


def admit(plan: Plan, view_now: PlanView, now_s: float) -> Admission:
    """Check each move of a plan against the fleet as it is now."""
    banks = {b.bank: b for b in view_now.banks}
    room = Headroom(view_now.wary().feeders)
    for bank in view_now.banks:
        room.take(room.path(bank.feeder, bank.bank), bank_claim_w(bank))
    coming = _Coming(view_now, room)
    open_flips = len({t.flip for b in view_now.banks for t in b.transits})
    slots = plan.policy.max_flips_in_flight - open_flips
    admitted: list[AdmittedFlip] = []
    refused: list[Refusal] = []
    moves = sorted(plan.moves, key=_order)
    parties = _parties(view_now, moves, plan.policy, now_s)
    for at, move in enumerate(moves):
        is_safety = move.reason is Reason.LIMIT
        refusal = _refusal(move, banks.get(move.bank), view_now, plan, now_s)
        if refusal is not None:
            refused.append(Refusal(move=move, count=move.count, code=refusal[0], detail=refusal[1]))
            continue
        bank = banks[move.bank]
        path = room.path(bank.feeder, bank.bank)
        parts = _parts(move, bank, plan.policy.max_devices_per_flip)
        if at in parties.get(move.bank, {}):
            parts = parties[move.bank][at]
            left_count = move.count - sum(count for count, _, _ in parts)
            if left_count > 0:
                detail = why_left_out(move)
                refused.append(Refusal(move=move, count=left_count, code=RefusalCode.NO_PARTY, detail=detail))
        for count, units, party in parts:
            aim, delta_w = _entry(move, bank, count, room, coming, path)
            if slots <= 0 and not is_safety:
                refused.append(
                    Refusal(
                        move=move, count=count, code=RefusalCode.TOO_MANY_FLIPS,
                        detail=f"{plan.policy.max_flips_in_flight} flips are open already; it comes with a later plan",
                    )
                )  # fmt: skip
                continue
            starts_now = True
            waits_for: tuple[str, ...] = ()
            waits_at: str | None = None
            if delta_w <= 0:
                coming.free(path, -delta_w, f"{move.bank} {move.from_point} to {aim}")
            elif room.units_that_fit(path, delta_w, 1):
                room.take(path, delta_w)
            else:
                full = room.full_for(path, delta_w)
                waits_at = room.names[full[-1]]
                if not coming.can_take(path, delta_w):
                    detail = f"feeder {waits_at} is full and nothing that shrinks under it would make {delta_w / 1000:.1f} kW of room"
                    refused.append(Refusal(move=move, count=count, code=RefusalCode.NO_WATTS, detail=detail))
                    continue
                starts_now, waits_for = False, coming.names(full)
                coming.take(path, delta_w)
            if not is_safety:
                slots -= 1
            admitted.append(
                AdmittedFlip(
                    move=move, count=count, unit_ids=units, to_point=aim, claim_delta_w=delta_w, is_safety=is_safety,
                    starts_now=starts_now, waits_for=waits_for, waits_at=waits_at, party=party,
                )
            )  # fmt: skip
    return Admission(
        basis_revision=plan.basis_revision, revision=view_now.revision, admitted=tuple(admitted), refused=tuple(refused)
    )


def _entry(move: Move, bank: BankView, count: int, room: Headroom, coming: _Coming, path: Path) -> tuple[str, float]:
    """Return the point that a part of a move goes to, and the counted watts that it adds.

    It is the planned one, or where that does not fit now and devices come into inference, the highest below it that does.

    Of GPUs only: their limit is raised later without a word to who works there, a miner's profile costs minutes of its work. Who waits for
    watts is not overtaken: what it waits for is not there for others.
    """
    from_w, planned = bank.point(move.from_point).claim_w, bank.point(move.to_point)
    delta_w = count * (planned.claim_w - from_w)
    may_enter_lower = bank.kind is DeviceKind.GPU and move.is_mode_flip and move.to_mode is Mode.INFERENCE
    if may_enter_lower and not room.units_that_fit(path, delta_w, 1):
        lower = [
            point
            for point in bank.points
            if point.mode is move.to_mode
            and point.workload == planned.workload  # another program would have to be stopped and started to raise it
            and point.claim_w < planned.claim_w
            and point.name not in bank.barred_points
        ]
        for point in sorted(lower, key=lambda each: (-each.claim_w, each.name)):
            lower_delta_w = count * (point.claim_w - from_w)
            if room.units_that_fit(path, lower_delta_w, 1) and coming.can_take(path, lower_delta_w):
                return point.name, lower_delta_w
    return planned.name, delta_w


def _parties(view: PlanView, moves: Sequence[Move], policy: Policy, now_s: float) -> dict[str, dict[int, list[Part]]]:
    """Return the parts of each bank's moves; who may come to several banks comes to one of them."""
    found: dict[str, dict[int, list[Part]]] = {}
    placed: set[str] = set()
    places: dict[str, list[int]] = {}
    for at, move in enumerate(moves):
        places.setdefault(move.bank, []).append(at)
    for bank in sorted(view.banks, key=lambda each: each.bank):
        own, askers = places.get(bank.bank), view.askers.get(bank.bank)
        if askers is None or own is None:
            continue
        waiting = [party for party in askers.parties if party.name not in placed]
        parts = assign_parties(bank, waiting, [moves[at] for at in own], policy, now_s)
        found[bank.bank] = {own[number]: each for number, each in parts.items()}
        placed |= {name for each in parts.values() for _, _, name in each}
    return found


def flip_of(
    admitted: AdmittedFlip, bank: BankView, *, id: str, author: str, now_s: float, axis: BootAxis, times: FlipTimes
) -> Flip:
    """Make the flip of an admitted part, still PLANNED: journal it, then send it `Begun`."""
    move = admitted.move
    reason = f"{move.reason}: {move.detail}"
    if admitted.to_point != move.to_point:
        reason += f"; comes in at {admitted.to_point}, {move.to_point} has to wait for watts"
    return new_flip(
        id=id,
        bank=bank.bank,
        kind=bank.kind,
        count=admitted.count,
        unit_ids=admitted.unit_ids,
        origin=bank.point(move.from_point),
        aim=bank.point(admitted.to_point),
        reason=reason,
        author=author,
        now_s=now_s,
        axis=axis,
        times=times,
        is_safety=admitted.is_safety,
        pod=PodRef.parse(admitted.party) if admitted.party else None,
    )


class _Coming:
    """Watts that shrinks under way will free, by feeder; nobody may start on them, only wait for them."""

    def __init__(self, view: PlanView, room: Headroom) -> None:
        self._room = room
        self._free_w = [0.0] * len(room.names)
        self._names: list[list[str]] = [[] for _ in room.names]
        for bank in sorted(view.banks, key=lambda b: b.bank):
            for transit in sorted(bank.transits, key=lambda t: t.flip):
                less = bank.point(transit.from_point).claim_w - bank.point(transit.to_point).claim_w
                if less > 0:
                    self.free(room.path(bank.feeder, bank.bank), less * transit.count, f"flip {transit.flip}")

    def free(self, path: tuple[tuple[int, float], ...], watts_w: float, name: str) -> None:
        for i, multiplier in path:
            self._free_w[i] += watts_w * multiplier
            if watts_w > 0 and name not in self._names[i]:
                self._names[i].append(name)

    def can_take(self, path: tuple[tuple[int, float], ...], watts_w: float) -> bool:
        return all(self._room.free_w[i] + self._free_w[i] + EPSILON_W >= watts_w * m for i, m in path)

    def take(self, path: tuple[tuple[int, float], ...], watts_w: float) -> None:
        for i, multiplier in path:
            self._free_w[i] -= watts_w * multiplier

    def names(self, feeders: tuple[int, ...]) -> tuple[str, ...]:
        found: list[str] = []
        for i in feeders:
            found += [n for n in self._names[i] if n not in found]
        return tuple(found)


def _order(move: Move) -> tuple[int, int, float, str, str, str]:
    """Safety shrinks, other shrinks, then growth: firm first, then by what a watt earns."""
    growth = move.claim_delta_w > 0
    stage = 2 if growth else (0 if move.reason is Reason.LIMIT else 1)
    firm = 0 if move.reason is Reason.FIRM else 1
    per_watt = move.gain_usd_per_h / move.claim_delta_w if growth else 0.0
    return (stage, firm, -per_watt, move.bank, move.from_point, move.to_point)


def _refusal(
    move: Move, bank: BankView | None, view: PlanView, plan: Plan, now_s: float
) -> tuple[RefusalCode, str] | None:
    if view.authority is not Authority.CONTROL:
        return RefusalCode.AUTHORITY, f"authority at {view.site} is {view.authority}; flips need control"
    if bank is None:
        return RefusalCode.BANK_GONE, f"bank {move.bank} is not in the fleet any more"
    if bank.availability not in PLANNABLE:
        return RefusalCode.UNAVAILABLE, f"bank is {bank.availability}" + (f": {bank.note}" if bank.note else "")
    if bank.availability is Availability.SHRINK_ONLY and move.claim_delta_w > 0:
        return RefusalCode.UNAVAILABLE, "bank may only shrink now" + (f": {bank.note}" if bank.note else "")
    points = {p.name for p in bank.points}
    here = [h for h in bank.holdings if h.point == move.from_point]
    units = {u for h in here for u in h.unit_ids}
    if (
        not {move.from_point, move.to_point} <= points
        or sum(h.count for h in here) < move.count
        or not set(move.unit_ids) <= units
    ):
        return RefusalCode.DEVICES_MOVED, f"fewer than {move.count} of the planned devices are at {move.from_point} now"
    if move.reason is Reason.LIMIT:
        return None
    if bank.pinned_reason is not None:
        return RefusalCode.PINNED, f"pinned: {bank.pinned_reason}"
    ripe = 0
    for holding in here:
        if move.unit_ids and not set(holding.unit_ids) & set(move.unit_ids):
            continue
        left_s = dwell_left_s(bank, holding, plan.policy, now_s)
        if bank.kind is DeviceKind.GPU and not move.is_mode_flip:
            is_free = move.to_point in bank.raises_after_entry(holding)
            left_s = 0.0 if is_free else max(0.0, plan.policy.cap_dwell_s - (now_s - holding.since_s))
        if left_s <= 0:
            ripe += holding.count
        elif move.unit_ids:
            return RefusalCode.DWELL, f"{left_s:.0f} s of its minimum dwell are left"
    if ripe < move.count:
        return RefusalCode.DWELL, f"only {ripe} of {move.count} devices have served their minimum dwell"
    return None


def _parts(move: Move, bank: BankView, most: int) -> list[Part]:
    """Cut a move into flips: one per GPU unit, so that one failure undoes one; ASICs in counts of at most `most`."""
    if move.unit_ids:
        return [(bank.unit_size, (unit,), "") for unit in move.unit_ids]
    if bank.kind is DeviceKind.GPU:
        return [(bank.unit_size, (), "") for _ in range(move.count // bank.unit_size)]
    whole, rest = divmod(move.count, most)
    counts = [most] * whole + ([rest] if rest else [])
    return [(count, (), "") for count in counts]
