"""`swingctl reservation`: inference capacity sold firm."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation

from swingbus.capacity.v1alpha import capacity_service_pb2 as pb
from swingbus.capacity.v1alpha.capacity_pb2 import Reservation
from swingbus.names import parse_id
from swingctl.arguments import (
    Nouns,
    add_noun,
    add_site,
    add_verb,
    add_write,
    argument,
    reservation_name,
    span_argument,
    time_argument,
    to_timestamp,
)
from swingctl.render import Column, moment, ratio, short_name
from swingctl.session import Session, UsageError
from swingctl.writes import write

COLUMNS = (
    Column(title="RESERVATION", shortens=True),
    Column(title="CLASS", shortens=True),
    Column(title="GPUS", right=True),
    Column(title="SERVED", right=True),
    Column(title="MISSED", right=True, droppable=True),
    Column(title="USD/GPU H", right=True),
    Column(title="UPTIME", right=True, droppable=True),
    Column(title="START", droppable=True),
    Column(title="END"),
    Column(title="BY", shortens=True, droppable=True),
)


def mount(nouns: Nouns) -> None:
    """Add the noun."""
    verbs = add_noun(nouns, "reservation", "inference capacity sold firm")
    add_site(
        add_verb(
            verbs,
            "list",
            _list,
            summary="list reservations",
            examples="reservation list\nreservation list --output json",
        )
    )
    create = add_verb(
        verbs,
        "create",
        _create,
        summary="accept a reservation if it fits under every promised limit",
        examples="reservation create acme-1 --class h100 --gpus 16 --for 30d --price 2.10 --uptime 0.999 --yes\n"
        "reservation create acme-2 --class h100 --gpus 8 --start 2026-12-01T00:00:00Z --end 2027-01-01T00:00:00Z --price 1.95 --dry-run",
    )
    create.add_argument("id", type=argument(parse_id), help="id of your choice")
    create.add_argument(
        "--class", dest="device_class", required=True, metavar="CLASS", help="GPU class as banks name it"
    )
    create.add_argument("--gpus", type=int, required=True, metavar="N", help="GPUs")
    create.add_argument("--price", type=_decimal, required=True, metavar="USD", help="per GPU-hour, decimal")
    create.add_argument("--start", type=time_argument, metavar="TIME", help="from when (default: now)")
    until = create.add_mutually_exclusive_group(required=True)
    until.add_argument("--end", type=time_argument, metavar="TIME", help="until when")
    until.add_argument("--for", dest="duration", type=span_argument, metavar="SPAN", help="for how long: 6h, 30d")
    create.add_argument(
        "--uptime", type=_share, default=0.0, metavar="SHARE", help="promised share of time, for instance 0.999"
    )
    create.add_argument(
        "--credit",
        action="append",
        default=[],
        metavar="BELOW:SHARE",
        help="credit step: uptime below, share of the price; may be repeated",
    )
    end = add_verb(
        verbs,
        "end",
        _end,
        summary="end a reservation",
        examples="reservation end acme-1 --reason 'contract ended' --yes",
    )
    end.add_argument("reservation", help="reservation id or resource name")
    for verb in (create, end):
        add_site(verb)
        add_write(verb)


def _decimal(text: str) -> str:
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a decimal number") from error
    if not number.is_finite() or number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a price: 0 or more")
    return text


def _share(text: str) -> float:
    number = float(text)
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return number


async def _list(session: Session, args: argparse.Namespace) -> int:
    answer = await session.call(
        session.capacity.ListReservations, pb.ListReservationsRequest(parent=await session.site(args.site))
    )
    now = session.clock.now()
    rows = [
        [
            short_name(r.name),
            r.device_class,
            str(r.gpu_count),
            str(r.served_gpu_count),
            f"{r.missed_minutes:g} min",
            r.price_usd_per_gpu_h,
            ratio(r.uptime_ratio),
            moment(r, "start_time", now),
            moment(r, "end_time", now),
            r.author,
        ]
        for r in answer.reservations
    ]
    session.show_list(answer, COLUMNS, rows, "no reservations")
    return 0


async def _create(session: Session, args: argparse.Namespace) -> int:
    start = args.start or session.clock.now()
    end = args.end or _after(start, args.duration)
    if end <= start:
        raise UsageError(f"it would end at {end:%Y-%m-%d %H:%MZ}, before it starts at {start:%Y-%m-%d %H:%MZ}")
    request = pb.CreateReservationRequest(
        parent=await session.site(args.site),
        reservation_id=args.id,
        reservation=Reservation(
            device_class=args.device_class,
            gpu_count=args.gpus,
            start_time=to_timestamp(start),
            end_time=to_timestamp(end),
            price_usd_per_gpu_h=args.price,
            uptime_ratio=args.uptime,
            credit_steps=args.credit,
        ),
    )
    answer = await write(
        session,
        args,
        session.capacity.CreateReservation,
        request,
        question="Accept this reservation",
        preview=lambda checked: session.line(f"would accept {_sentence(session, checked.reservation)}"),
    )
    if answer is not None and session.as_json:
        session.show_json(answer)
    elif answer is not None:
        session.line(f"accepted {_sentence(session, answer.reservation)}")
    return 0


def _sentence(session: Session, r: Reservation) -> str:
    now = session.clock.now()
    return (
        f"{short_name(r.name)}: {r.gpu_count} {r.device_class} at {r.price_usd_per_gpu_h} USD/GPU h "
        f"from {moment(r, 'start_time', now)} to {moment(r, 'end_time', now)}"
    )


async def _end(session: Session, args: argparse.Namespace) -> int:
    request = pb.EndReservationRequest(name=await reservation_name(session, args.reservation, args.site))
    answer = await write(
        session,
        args,
        session.capacity.EndReservation,
        request,
        question=f"End {args.reservation}",
        preview=lambda checked: session.line(f"would end {_sentence(session, checked.reservation)}"),
    )
    if answer is not None and session.as_json:
        session.show_json(answer)
    elif answer is not None:
        session.line(f"ended {_sentence(session, answer.reservation)}")
    return 0


def _after(start: datetime, span_s: float) -> datetime:
    return start + timedelta(seconds=span_s)
