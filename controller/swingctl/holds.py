"""`swingctl pin` and `swingctl lockout`: "stay as is", and "hands inside"."""

from __future__ import annotations

import argparse

from swingbus.capacity.v1alpha import capacity_service_pb2 as pb
from swingctl.arguments import Nouns, add_noun, add_site, add_verb, add_write, bank_name, span_argument, to_duration
from swingctl.render import Column, moment, short_name
from swingctl.session import Session
from swingctl.writes import write

PINS = (
    Column(title="BANK", shortens=True),
    Column(title="BY", shortens=True),
    Column(title="SINCE"),
    Column(title="UNTIL"),
    Column(title="REASON", wraps=True),
)
LOCKOUTS = (
    Column(title="BANK", shortens=True),
    Column(title="BY", shortens=True),
    Column(title="SINCE"),
    Column(title="REASON", wraps=True),
)


def mount(nouns: Nouns) -> None:
    """Add both nouns."""
    pins = add_noun(nouns, "pin", "hold a bank as it is; yields to safety and curtailments")
    add_site(add_verb(pins, "list", _pin_list, summary="list pins", examples="pin list"))
    pin_set = add_verb(
        pins,
        "set",
        _pin_set,
        summary="hold a bank as it is",
        examples="pin set edge-1/s19j --for 2h --reason 'firmware trial' --yes\npin set gpu-3/h100 --dry-run",
    )
    pin_set.add_argument("bank", help="AGENT/BANK or resource name")
    pin_set.add_argument(
        "--for", dest="duration", type=span_argument, metavar="SPAN", help="for how long (default: until lifted)"
    )
    lift = add_verb(
        pins, "lift", _pin_lift, summary="let a pinned bank move again", examples="pin lift edge-1/s19j --yes"
    )
    lift.add_argument("bank", help="AGENT/BANK or resource name")

    locks = add_noun(nouns, "lockout", "hands inside: a bank is off and never woken by software")
    add_site(add_verb(locks, "list", _lock_list, summary="list lockouts", examples="lockout list"))
    lock_set = add_verb(
        locks,
        "set",
        _lock_set,
        summary="lock a bank out",
        examples="lockout set edge-1/s19j --reason 'fan replacement, Dana inside' --yes",
    )
    lock_set.add_argument("bank", help="AGENT/BANK or resource name")
    lock_lift = add_verb(
        locks,
        "lift",
        _lock_lift,
        summary="lift a lockout (admin)",
        examples="lockout lift edge-1/s19j --cleared-by 'Dana K.' --yes",
        about="Lift a lockout. Only after the named person on site has checked that no hands are inside; takes the role admin.",
    )
    lock_lift.add_argument("bank", help="AGENT/BANK or resource name")
    lock_lift.add_argument(
        "--cleared-by", required=True, metavar="PERSON", help="who on site checked that no hands are inside"
    )
    for verb in (pin_set, lift, lock_set, lock_lift):
        add_site(verb)
        add_write(verb)


async def _pin_list(session: Session, args: argparse.Namespace) -> int:
    answer = await session.call(session.capacity.ListPins, pb.ListPinsRequest(parent=await session.site(args.site)))
    now = session.clock.now()
    rows = [
        [
            short_name(pin.bank, 2),
            pin.author,
            moment(pin, "create_time", now),
            moment(pin, "expire_time", now) if pin.HasField("expire_time") else "lifted",
            pin.reason,
        ]
        for pin in answer.pins
    ]
    session.show_list(answer, PINS, rows, "no pins")
    return 0


async def _pin_set(session: Session, args: argparse.Namespace) -> int:
    request = pb.SetPinRequest(bank=await bank_name(session, args.bank, args.site), pinned=True)
    if args.duration is not None:
        request.duration.CopyFrom(to_duration(args.duration))
    return await _set_pin(session, args, request, "pin", "pinned")


async def _pin_lift(session: Session, args: argparse.Namespace) -> int:
    request = pb.SetPinRequest(bank=await bank_name(session, args.bank, args.site), pinned=False)
    return await _set_pin(session, args, request, "lift the pin of", "unpinned")


async def _set_pin(session: Session, args: argparse.Namespace, request: pb.SetPinRequest, verb: str, done: str) -> int:
    bank = short_name(request.bank, 2)
    answer = await write(
        session,
        args,
        session.capacity.SetPin,
        request,
        question=f"{verb.capitalize()} {bank}",
        preview=lambda _: session.line(f"would {verb} {bank}"),
    )
    if answer is not None and session.as_json:
        session.show_json(answer)
    elif answer is not None:
        session.line(f"{done} {bank}")
    return 0


async def _lock_list(session: Session, args: argparse.Namespace) -> int:
    answer = await session.call(
        session.capacity.ListLockouts, pb.ListLockoutsRequest(parent=await session.site(args.site))
    )
    now = session.clock.now()
    rows = [
        [short_name(lock.bank, 2), lock.author, moment(lock, "create_time", now), lock.reason]
        for lock in answer.lockouts
    ]
    session.show_list(answer, LOCKOUTS, rows, "no lockouts")
    return 0


async def _lock_set(session: Session, args: argparse.Namespace) -> int:
    request = pb.SetLockoutRequest(bank=await bank_name(session, args.bank, args.site), locked_out=True)
    return await _set_lockout(session, args, request, "lock out", "locked out")


async def _lock_lift(session: Session, args: argparse.Namespace) -> int:
    request = pb.SetLockoutRequest(
        bank=await bank_name(session, args.bank, args.site), locked_out=False, cleared_by=args.cleared_by
    )
    return await _set_lockout(session, args, request, "lift the lockout of", "lifted the lockout of")


async def _set_lockout(
    session: Session, args: argparse.Namespace, request: pb.SetLockoutRequest, verb: str, done: str
) -> int:
    bank = short_name(request.bank, 2)
    answer = await write(
        session,
        args,
        session.capacity.SetLockout,
        request,
        question=f"{verb.capitalize()} {bank}",
        preview=lambda _: session.line(f"would {verb} {bank}"),
    )
    if answer is not None and session.as_json:
        session.show_json(answer)
    elif answer is not None:
        session.line(f"{done} {bank}")
        if request.locked_out:
            session.line(f"machines are off only when the meter says so: swingctl bank show {bank}")
    return 0
