"""`swingctl market`: prices and demand as the controller sees them, and how to push them."""

from __future__ import annotations

import argparse
import csv
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from swingbus.market.v1alpha import market_service_pb2 as pb
from swingbus.quantities import format_span
from swingctl.arguments import Nouns, add_noun, add_site, add_verb, add_write, time_argument, to_timestamp
from swingctl.render import ABSENT, Column, age, moment
from swingctl.session import Session, UsageError
from swingctl.writes import write

CSV_HEADER = ["signal", "value", "valid_time"]
MOST_VALUES = 10_000

COLUMNS = (
    Column(title="SIGNAL", shortens=True),
    Column(title="VALUE", right=True),
    Column(title="VALID FROM"),
    Column(title="CAME IN", droppable=True),
    Column(title="LIMIT", right=True, droppable=True),
    Column(title="STALE"),
    Column(title="SOURCE", shortens=True),
)


def mount(nouns: Nouns) -> None:
    """Add the noun."""
    verbs = add_noun(nouns, "market", "prices and demand: list and push")
    add_site(
        add_verb(
            verbs,
            "list",
            _list,
            summary="list signals, their age and source",
            examples="market list\nmarket list --output json",
        )
    )
    push = add_verb(
        verbs,
        "push",
        _push,
        summary="push values of signals",
        examples="market push power_price_usd_per_mwh 71.5 --yes\nmarket push --file prices.csv --reason 'day-ahead' --yes",
        about="Push one value, or a CSV file with the header signal,value,valid_time (times in RFC 3339). Repeats change nothing.",
    )
    push.add_argument("signal", nargs="?", help="name with its unit, for instance power_price_usd_per_mwh")
    push.add_argument("value", nargs="?", help="decimal number")
    push.add_argument("--valid-time", type=time_argument, metavar="TIME", help="from when it holds (default: now)")
    push.add_argument("--file", type=Path, metavar="CSV", help="many values instead of one")
    add_site(push)
    add_write(push)


async def _list(session: Session, args: argparse.Namespace) -> int:
    answer = await session.call(session.market.ListSignals, pb.ListSignalsRequest(parent=await session.site(args.site)))
    now = session.clock.now()
    rows = [
        [
            signal.signal,
            signal.value or ABSENT,
            moment(signal, "valid_time", now),
            age(signal, "receive_time", now),
            format_span(signal.staleness_limit_s),
            "STALE" if signal.stale else "no",
            signal.source,
        ]
        for signal in answer.signals
    ]
    session.show_list(answer, COLUMNS, rows, "no signals: the site file names none and none was pushed")
    return 0


def read_values(path: Path) -> list[pb.SignalValue]:
    """Read a CSV of values. Raises UsageError that names the file, the line and what is wrong."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if not rows or [cell.strip() for cell in rows[0]] != CSV_HEADER:
        raise UsageError(f"{path} line 1 must be the header {','.join(CSV_HEADER)}")
    values = []
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        where = f"{path} line {number}"
        if len(row) != len(CSV_HEADER):
            raise UsageError(f"{where} has {len(row)} cells, not {len(CSV_HEADER)}: {','.join(CSV_HEADER)}")
        signal, value, valid_time = (cell.strip() for cell in row)
        try:
            valid = time_argument(valid_time)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{where}: {error}") from error
        values.append(_value(signal, value, valid, where))
    if not 1 <= len(values) <= MOST_VALUES:
        raise UsageError(f"{path} holds {len(values)} values: push 1 to {MOST_VALUES} at a time")
    return values


def _value(signal: str, value: str, valid_time: datetime, where: str) -> pb.SignalValue:
    try:
        is_number = Decimal(value).is_finite()
    except InvalidOperation:
        is_number = False
    if not is_number:
        raise UsageError(f"{where}: {value!r} is not a decimal number")
    if not signal:
        raise UsageError(f"{where}: the signal has no name")
    return pb.SignalValue(signal=signal, value=value, valid_time=to_timestamp(valid_time))


async def _push(session: Session, args: argparse.Namespace) -> int:
    if args.file is not None:
        if args.signal is not None or args.valid_time is not None:
            raise UsageError("--file replaces SIGNAL, VALUE and --valid-time: give one or the other")
        values = read_values(args.file)
    elif args.signal is None or args.value is None:
        raise UsageError("push SIGNAL VALUE, or --file CSV")
    else:
        values = [
            _value(args.signal, args.value, args.valid_time or session.clock.now().astimezone(UTC), "the command line")
        ]
    request = pb.PushSignalsRequest(parent=await session.site(args.site), values=values)
    answer = await write(
        session,
        args,
        session.market.PushSignals,
        request,
        question=f"Push {len(values)} value(s)",
        preview=lambda checked: session.line(
            f"would take {checked.accepted_count} new value(s), knows {checked.repeated_count} already"
        ),
    )
    if answer is not None and session.as_json:
        session.show_json(answer)
    elif answer is not None:
        session.line(f"took {answer.accepted_count} new value(s), knew {answer.repeated_count} already")
    return 0
