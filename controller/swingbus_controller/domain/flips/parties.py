"""Who comes and who leaves with a plan's moves, where devices are held by somebody with a name (pods).

A plan counts devices; pods come and go whole. This room cuts the moves of one bank into parts that each belong to one of them. Refuses to
know what a party is. Invariants: a unit is in one part at most; a party comes only if all its devices do, beside those that stand empty for
it; it leaves only with all its units, and not while who is to go before it stays for its dwell; who is first in line and fits in the bank
is not overtaken there by who asks for less.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from swingbus_controller.domain.planning.plan import BankView, Move, Party, Reason
from swingbus_controller.domain.planning.planner import dwell_left_s
from swingbus_controller.domain.planning.points import Mode
from swingbus_controller.domain.planning.policy import Policy

# Devices, their units, who comes or leaves with them (empty: nobody).
Part = tuple[int, tuple[str, ...], str]


def names_parties(move: Move) -> bool:
    """Return whether somebody comes into or leaves inference with a move."""
    return move.is_mode_flip and Mode.INFERENCE in (move.from_mode, move.to_mode)


def why_left_out(move: Move) -> str:
    """Say why some of a move's devices have no part in it."""
    if move.to_mode is Mode.INFERENCE and move.is_mode_flip:
        return "nobody who waits fits"
    if names_parties(move):
        return "who holds them stays"
    return "somebody is there who was not let go" if move.is_mode_flip else "who holds them leaves"


def assign_parties(
    bank: BankView, waiting: Sequence[Party], moves: Sequence[Move], policy: Policy, now_s: float
) -> dict[int, list[Part]]:
    """Return the parts of a bank's moves into and out of inference, of those that only change a limit, and of those between mining and rest
    where somebody is who was not let go, by the move's place among `moves`.

    Args:
        waiting: who waits to come into inference here, first in line first.
    """
    here = [(at, move) for at, move in enumerate(moves) if move.bank == bank.bank and names_parties(move)]
    into = [(at, move) for at, move in here if move.to_mode is Mode.INFERENCE]
    out = [(at, move) for at, move in here if move.from_mode is Mode.INFERENCE]
    # Places of inference that stand empty are too few for the first in line, else it would be there already: they are its own.
    empty_count = 0 if out else sum(len(party.unit_ids) for party in bank.parties_out if not party.name)
    chosen = {unit for move in moves if move.bank == bank.bank for unit in move.unit_ids}
    others = {
        unit: holding.point
        for holding in bank.holdings
        if dwell_left_s(bank, holding, policy, now_s) <= 0
        for unit in holding.unit_ids
        if unit not in chosen
    }
    parts = _let_in(bank, waiting, into, empty_count, others) | _let_out(bank, out, policy, now_s)
    return (
        parts | _beside_uninvited(bank, waiting, moves, others) | _changes_of_limits(bank, moves, parts, policy, now_s)
    )


def _let_in(
    bank: BankView,
    waiting: Sequence[Party],
    moves: Sequence[tuple[int, Move]],
    empty_count: int,
    others: dict[str, str],
) -> dict[int, list[Part]]:
    # Units that rest come first: nobody has to leave for them.
    units = [
        (at, unit)
        for at, move in sorted(moves, key=lambda each: each[1].from_mode is not Mode.STANDBY)
        for unit in move.unit_ids
    ]
    found: dict[int, list[Part]] = {at: [] for at, _ in moves}
    for party in waiting:
        if party.unit_ids:
            taken = _own_units(party, units, dict(moves), others)
        else:
            need = party.count // bank.unit_size - empty_count
            if need <= 0 or need > len(units):
                break  # the place is kept for it until enough is free
            empty_count, taken = 0, units[:need]
        units = [each for each in units if each not in taken]
        for at in dict.fromkeys(at for at, _ in taken):
            ids = tuple(unit for other, unit in taken if other == at)
            found[at].append((len(ids) * bank.unit_size, ids, party.name))
    return found


def _own_units(
    party: Party, units: list[tuple[int, str]], moves: Mapping[int, Move], others: dict[str, str]
) -> list[tuple[int, str]]:
    """Return the units on which a party works already, where the moves can be of those; a plan chose among equals. None else."""
    exchanged, left = list(units), dict(others)
    for unit in party.unit_ids:
        if unit in {each for _, each in exchanged}:
            continue
        place = next(
            (
                i
                for i, (at, each) in enumerate(exchanged)
                if each not in party.unit_ids and left.get(unit) == moves[at].from_point
            ),
            None,
        )
        if place is None:
            return []
        at, given_back = exchanged[place]
        exchanged[place] = (at, unit)
        left[given_back] = left.pop(unit)
    units[:] = exchanged
    others.clear()
    others.update(left)
    return [each for each in units if each[1] in party.unit_ids]


def _let_out(bank: BankView, moves: Sequence[tuple[int, Move]], policy: Policy, now_s: float) -> dict[int, list[Part]]:
    found: dict[int, list[Part]] = {at: [] for at, _ in moves}
    parties = list(bank.parties_out)
    # Whoever goes anyway may be at another point than the plan thought: nobody is sent away in its stead.
    sent_count = sum(move.count for _, move in moves) - sum(p.count for p in parties if p.goes_anyway)
    for at, move in moves:
        here = [holding for holding in bank.holdings if holding.point == move.from_point]
        is_forced = move.reason is Reason.LIMIT
        ripe = {u for h in here if is_forced or dwell_left_s(bank, h, policy, now_s) <= 0 for u in h.unit_ids}
        there = {unit for holding in here for unit in holding.unit_ids}
        left_count = move.count
        for party in list(parties):
            units = set(party.unit_ids)
            if party.count > left_count or not units <= there:
                continue
            if not party.goes_anyway and not is_forced:
                if party.count > sent_count:
                    continue
                sent_count -= party.count
            # Who is to go first and may not yet is waited for: nobody else goes in its stead.
            left_count -= party.count
            if units <= ripe:
                parties.remove(party)
                found[at].append((party.count, party.unit_ids, party.name))
    return found


def _beside_uninvited(
    bank: BankView, waiting: Sequence[Party], moves: Sequence[Move], others: dict[str, str]
) -> dict[int, list[Part]]:
    """Return the parts of moves between mining and rest, which leave units alone where somebody is who was not let go.

    No miner could start there, and nobody is sent away because mining ends; but a limit may need it.

    Args:
        others: ripe units that no move has, and their points.
    """
    held = {unit for party in waiting for unit in party.unit_ids}
    found: dict[int, list[Part]] = {}
    for at, move in enumerate(moves):
        is_between = {move.from_mode, move.to_mode} == {Mode.MINING, Mode.STANDBY}
        if move.bank != bank.bank or not is_between or move.reason is Reason.LIMIT or not held & set(move.unit_ids):
            continue
        units = [unit for unit in move.unit_ids if unit not in held]
        instead = sorted(unit for unit, point in others.items() if point == move.from_point and unit not in held)
        for unit in instead[: len(move.unit_ids) - len(units)]:
            del others[unit]
            units.append(unit)
        found[at] = [(bank.unit_size, (unit,), "") for unit in units]
    return found


def _changes_of_limits(
    bank: BankView, moves: Sequence[Move], parts: Mapping[int, Sequence[Part]], policy: Policy, now_s: float
) -> dict[int, list[Part]]:
    """Return the parts of moves that only change a limit: lowered first where nobody is, raised first where somebody is.

    A plan means its units by number and knows nobody; who leaves takes its own units, which get no second flip.
    """
    caps = [
        (at, move)
        for at, move in enumerate(moves)
        if move.bank == bank.bank and move.unit_ids and not move.is_mode_flip
    ]
    taken = {unit for found in parts.values() for _, ids, _ in found for unit in ids}
    empty = {unit for party in bank.parties_out for unit in party.unit_ids if not party.name}
    ripe = {u for h in bank.holdings if now_s - h.since_s >= policy.cap_dwell_s for u in h.unit_ids}
    found: dict[int, list[Part]] = {}
    for at, move in caps:
        lowers = move.claim_delta_w < 0
        may = [
            unit
            for holding in bank.holdings
            if holding.point == move.from_point
            for unit in holding.unit_ids
            if unit not in taken
            and (move.reason is Reason.LIMIT or unit in ripe or move.to_point in bank.raises_after_entry(holding))
        ]
        may.sort(key=lambda unit: ((unit in empty) is not lowers, unit not in move.unit_ids, unit))
        units = may[: len(move.unit_ids)]
        taken.update(units)
        found[at] = [(bank.unit_size, (unit,), "") for unit in units]
    return found


def parties_of(
    units_by_holder: Mapping[str, Sequence[int]],
    idle_units: Sequence[int],
    unit_size: int,
    *,
    leaving: Collection[str] = (),
) -> tuple[Party, ...]:
    """Return what leaves together: each unit that nobody holds, then each holder with its units, in the order given.

    Args:
        leaving: holders that leave by themselves.
    """
    free = [Party(name="", count=unit_size, unit_ids=(str(unit),), goes_anyway=True) for unit in sorted(idle_units)]
    held = [
        Party(
            name=name,
            count=len(units) * unit_size,
            unit_ids=tuple(str(unit) for unit in units),
            goes_anyway=name in leaving,
        )
        for name, units in units_by_holder.items()
        if units
    ]
    return (*free, *held)
