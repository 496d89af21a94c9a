"""`swingctl watch`: the whole site on one screen, refreshed; plain lines where nobody looks.

At a terminal it redraws site, feeders, banks, open flips, running curtailments and the newest events every interval. Elsewhere (a file, a
pipe, --output json) it prints events as they come, one line each. A lost connection is shown and outlasted.
"""

from __future__ import annotations

import argparse
from datetime import datetime

from swingbus.capacity.v1alpha import capacity_service_pb2 as capacity_pb
from swingbus.faults import Forbidden, SwingbusError, TimedOut, Unauthenticated, Unreachable
from swingbus.fleet.v1alpha import fleet_service_pb2 as pb
from swingbus.quantities import format_span
from swingbus.rpc.status import RemoteFailure
from swingctl import bank, curtail, events, feeder, flip, site
from swingctl.arguments import Nouns, add_globals, add_site, span_argument
from swingctl.render import render_table
from swingctl.session import Session

CLEAR = "\x1b[H\x1b[J"
EVENTS_SHOWN = 8


def mount(nouns: Nouns) -> None:
    """Add the noun, which has no verbs."""
    parser: argparse.ArgumentParser = nouns.add_parser(
        "watch",
        help="the whole site on one screen, refreshed",
        description="Show the whole site on one screen, refreshed. Without a terminal: events as they come, one line each. "
        "Ends with Ctrl-C.",
        epilog="examples:\n  swingctl watch\n  swingctl watch --site north --interval 5s\n"
        "  swingctl watch --output json | tee record.jsonl\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_globals(parser, suppressed=True)
    parser.add_argument(
        "--interval", type=span_argument, default=2.0, metavar="SPAN", help="time between two looks (default: 2s)"
    )
    parser.add_argument("--count", type=int, metavar="N", help="end after N screens, or N events without a terminal")
    add_site(parser)
    parser.set_defaults(handler=_watch)


async def _watch(session: Session, args: argparse.Namespace) -> int:
    site_name = await session.site(args.site)
    if session.terminal.width is None or session.as_json:
        return await events.watch_from(session, site_name, None, args.count)
    shown = 0
    last, failed_since = "", None
    while args.count is None or shown < args.count:
        try:
            last = await screen(session, site_name)
            failed_since = None
        except (Unreachable, TimedOut) as error:
            failed_since = failed_since or session.clock.now()
            last = _stale(last, error, failed_since, session.clock.now())
        session.terminal.out.write(CLEAR + last + "\n")
        session.terminal.out.flush()
        shown += 1
        if args.count is None or shown < args.count:
            await session.clock.sleep(max(0.2, args.interval))
    return 0


def _stale(last: str, error: SwingbusError, since: datetime, now: datetime) -> str:
    """Return the last good screen under a line that says it is old."""
    body = last.partition("\n\n")[2] if last.startswith("NOT CURRENT") else last
    span = format_span(round((now - since).total_seconds()))
    return f"NOT CURRENT for {span}: {error}\n\n{body}"


async def screen(session: Session, site_name: str) -> str:
    """Return one screen. What this controller does not serve (flips below CONTROL, for instance) is left out with its reason."""
    now, width = session.clock.now(), session.terminal.width
    the_site = await session.call(session.fleet.GetSite, pb.GetSiteRequest(name=site_name))
    feeders = await session.call(session.fleet.ListFeeders, pb.ListFeedersRequest(parent=site_name))
    banks = await session.call(session.fleet.ListBanks, pb.ListBanksRequest(parent=site_name))
    asked = pb.ListEventsRequest(parent=site_name, newest_first=True, page_size=EVENTS_SHOWN)
    recorded = await session.call(session.fleet.ListEvents, asked)
    recent = sorted(recorded.events, key=lambda event: event.revision)
    parts = [
        f"{site_name}  {now:%H:%M:%SZ}  revision {the_site.revision}",
        render_table(site.COLUMNS, [site.row(the_site.site)], width),
        render_table(feeder.COLUMNS, feeder.rows(feeders.feeders), width),
        render_table(bank.COLUMNS, bank.rows(banks.banks), width),
        *await _capacity(session, site_name),
        render_table(events.COLUMNS, events.rows(session, recent), width),
    ]
    return "\n\n".join(part for part in parts if part)


async def _capacity(session: Session, site_name: str) -> list[str]:
    """Return open flips and curtailments in force, or why there are none to show."""
    width = session.terminal.width
    try:
        flips = await session.call(
            session.capacity.ListFlips, capacity_pb.ListFlipsRequest(parent=site_name, open_only=True)
        )
        orders = await session.call(
            session.capacity.ListCurtailments, capacity_pb.ListCurtailmentsRequest(parent=site_name)
        )
    except (Forbidden, Unauthenticated, RemoteFailure) as error:
        return [f"flips and curtailments: {error}"]
    running = [order for order in orders.curtailments if order.state not in curtail.OVER]
    return [
        render_table(flip.COLUMNS, flip.rows(session, flips.flips), width),
        render_table(curtail.COLUMNS, curtail.rows(session, running), width),
    ]
