"""Arguments that many commands share: how names, power, spans and times are written, and the options of every write.

Decides spelling; whatever is wrong here is a usage error before anything is sent.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from swingbus.bundle import parse_endpoint
from swingbus.faults import InvalidInput
from swingbus.link.v1alpha import link_pb2
from swingbus.names import AgentName, BankName, CurtailmentName, DeviceName, FeederName, FlipName, ReservationName
from swingbus.quantities import parse_power_w, parse_span_s
from swingctl.session import Session, UsageError

Nouns = Any  # argparse keeps the type of its sub-parsers to itself
Handler = Callable[[Session, argparse.Namespace], Awaitable[int]]
T = TypeVar("T")

MODES = {"mining": "MODE_MINING", "inference": "MODE_INFERENCE", "standby": "MODE_STANDBY", "off": "MODE_OFF"}
DEFAULT_TIMEOUT_S = 10.0


def add_globals(parser: argparse.ArgumentParser, *, suppressed: bool) -> None:
    """Add the options that every command takes, before or after its noun.

    `suppressed` leaves defaults to the first parser, or a sub-parser's default would overwrite what was given before the noun.
    """

    def default(value: object) -> Any:
        return argparse.SUPPRESS if suppressed else value

    group = parser.add_argument_group("connection and output")
    bundle = os.environ.get("SWINGCTL_BUNDLE")
    group.add_argument(
        "--bundle",
        type=Path,
        metavar="FILE",
        default=default(Path(bundle) if bundle else None),
        help="the bundle that says who you are, or a folder with tls.crt, tls.key, ca.crt (default: environment variable SWINGCTL_BUNDLE)",
    )
    group.add_argument(
        "--endpoint",
        type=argument(parse_endpoint),
        metavar="HOST:PORT",
        default=default(None),
        help="the controller (default: as the bundle says)",
    )
    group.add_argument(
        "--output",
        choices=["table", "json"],
        default=default("table"),
        help="for people or for programs (default: table)",
    )
    group.add_argument(
        "--timeout",
        type=argument(parse_span_s),
        metavar="SPAN",
        default=default(DEFAULT_TIMEOUT_S),
        help="longest wait for one answer (default: 10s)",
    )


def argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Make a parser of ours an argparse type: its fault becomes a usage error."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except InvalidInput as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def add_verb(
    verbs: Nouns, name: str, handler: Handler, *, summary: str, examples: str, about: str = ""
) -> argparse.ArgumentParser:
    """Add a verb with its help, its examples and the global options."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=about or summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + "".join(f"  swingctl {line}\n" for line in examples.strip().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_globals(parser, suppressed=True)
    parser.set_defaults(handler=handler)
    return parser


def add_noun(nouns: Nouns, name: str, summary: str) -> Nouns:
    """Add a noun; return the place for its verbs."""
    parser = nouns.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    return parser.add_subparsers(dest="verb", metavar="VERB", required=True)


def add_site(parser: argparse.ArgumentParser) -> None:
    """Add `--site`."""
    parser.add_argument("--site", metavar="SITE", help="site id; may be left out where the controller serves only one")


def add_write(parser: argparse.ArgumentParser) -> None:
    """Add what every write takes."""
    group = parser.add_argument_group("write")
    group.add_argument("--yes", action="store_true", help="do not ask")
    group.add_argument("--dry-run", action="store_true", help="let the controller check and answer, change nothing")
    group.add_argument("--reason", metavar="TEXT", help="why, kept on the record (default: the command itself)")
    group.add_argument(
        "--request-id",
        metavar="ID",
        help="repeat a write whose answer was lost without doing it twice (default: a new one)",
    )


def power_argument(text: str) -> float:
    """Read power; below zero cannot be written."""
    return argument(parse_power_w)(text)


def span_argument(text: str) -> float:
    """Read a span of time."""
    return argument(parse_span_s)(text)


def time_argument(text: str) -> datetime:
    """Read a moment: RFC 3339 with its zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write it like 2026-11-23T14:00:00Z") from error
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no zone: add Z for UTC or an offset like +01:00")
    return moment.astimezone(UTC)


def to_duration(span_s: float) -> Duration:
    """Return a proto Duration."""
    duration = Duration()
    duration.FromNanoseconds(round(span_s * 1e9))
    return duration


def to_timestamp(moment: datetime) -> Timestamp:
    """Return a proto Timestamp."""
    stamp = Timestamp()
    stamp.FromDatetime(moment.astimezone(UTC))
    return stamp


def mode_number(word: str) -> link_pb2.Mode:
    """Return the number of a mode's word."""
    number: link_pb2.Mode = getattr(link_pb2, MODES[word])
    return number


def _ids(given: str, count: int, form: str) -> list[str]:
    parts = given.split("/", count - 1)
    if len(parts) != count or not all(parts):
        raise UsageError(f"{given!r} is not {form}")
    return parts


async def feeder_name(session: Session, given: str, site: str | None) -> str:
    """Return a feeder's resource name from `grid` or the whole name."""
    if given.startswith("sites/"):
        return str(FeederName.parse(given))
    return str(FeederName(_site_id(await session.site(site)), given))


async def agent_name(session: Session, given: str, site: str | None) -> str:
    """Return an agent's resource name from `edge-1` or the whole name."""
    if given.startswith("sites/"):
        return str(AgentName.parse(given))
    return str(AgentName(_site_id(await session.site(site)), given))


async def bank_name(session: Session, given: str, site: str | None) -> str:
    """Return a bank's resource name from `edge-1/s19j` or the whole name."""
    if given.startswith("sites/"):
        return str(BankName.parse(given))
    agent, bank = _ids(given, 2, "AGENT/BANK, for instance edge-1/s19j")
    return str(BankName(_site_id(await session.site(site)), agent, bank))


async def device_name(session: Session, given: str, site: str | None) -> str:
    """Return a device's resource name from `edge-1/s19j/m07` or the whole name; the device id may hold slashes."""
    if given.startswith("sites/"):
        return str(DeviceName.parse(given))
    agent, bank, device = _ids(given, 3, "AGENT/BANK/DEVICE, for instance edge-1/s19j/m07")
    return str(DeviceName(_site_id(await session.site(site)), agent, bank, device))


async def flip_name(session: Session, given: str, site: str | None) -> str:
    """Return a flip's resource name from its id or the whole name."""
    return str(
        FlipName.parse(given) if given.startswith("sites/") else FlipName(_site_id(await session.site(site)), given)
    )


async def curtailment_name(session: Session, given: str, site: str | None) -> str:
    """Return a curtailment's resource name from its id or the whole name."""
    if given.startswith("sites/"):
        return str(CurtailmentName.parse(given))
    return str(CurtailmentName(_site_id(await session.site(site)), given))


async def reservation_name(session: Session, given: str, site: str | None) -> str:
    """Return a reservation's resource name from its id or the whole name."""
    if given.startswith("sites/"):
        return str(ReservationName.parse(given))
    return str(ReservationName(_site_id(await session.site(site)), given))


def _site_id(name: str) -> str:
    return name.split("/")[1]
