"""`swingctl events`: what happened, who did it and why."""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from swingbus.faults import HistoryCompacted, Unreachable
from swingbus.fleet.v1alpha import fleet_service_pb2 as pb
from swingbus.fleet.v1alpha.fleet_pb2 import Event
from swingbus.rpc.status import faults_raised
from swingctl.arguments import Nouns, add_noun, add_site, add_verb
from swingctl.render import Column, moment, to_json
from swingctl.session import Session

RETRY_S = (0.5, 1.0, 2.0, 5.0)

COLUMNS = (
    Column(title="REVISION", right=True, droppable=True),
    Column(title="TIME"),
    Column(title="KIND", shortens=True),
    Column(title="SUBJECT", shortens=True),
    Column(title="BY", shortens=True),
    Column(title="WHAT", wraps=True),
)


def mount(nouns: Nouns) -> None:
    """Add the noun."""
    verbs = add_noun(nouns, "events", "the record: what happened, who did it and why")
    listing = add_verb(
        verbs,
        "list",
        _list,
        summary="list recorded events, newest last",
        examples="events list\nevents list --limit 500 --kind flip_active --kind device_self_woke\nevents list --after 1200 --output json",
    )
    listing.add_argument(
        "--limit", type=_count, default=50, metavar="N", help="at most this many, the newest (default: 50)"
    )
    listing.add_argument("--after", type=int, metavar="REVISION", help="only after this revision, oldest first")
    listing.add_argument("--kind", action="append", default=[], metavar="KIND", help="only this kind; may be repeated")
    add_site(listing)
    watch = add_verb(
        verbs,
        "watch",
        _watch,
        summary="follow events as they are recorded",
        examples="events watch\nevents watch --after 1200 --output json",
        about="Follow events as they are recorded, one line each (one JSON object a line with --output json). It goes on after a lost "
        "connection, and ends with Ctrl-C.",
    )
    watch.add_argument(
        "--after", type=int, metavar="REVISION", help="start after this revision (default: only new ones)"
    )
    watch.add_argument("--count", type=_count, metavar="N", help="end after this many")
    add_site(watch)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a count: at least 1")
    return number


async def _list(session: Session, args: argparse.Namespace) -> int:
    newest_first = args.after is None
    request = pb.ListEventsRequest(
        parent=await session.site(args.site), after_revision=args.after or 0, newest_first=newest_first, kinds=args.kind
    )
    answer = await session.pages(session.fleet.ListEvents, request, at_most=args.limit)
    if newest_first:
        ordered = sorted(answer.events, key=lambda event: event.revision)
        del answer.events[:]
        answer.events.extend(ordered)
    session.show_list(answer, COLUMNS, rows(session, answer.events), "no events")
    return 0


def rows(session: Session, events: Sequence[Event]) -> list[list[str]]:
    """Return the cells of events."""
    now = session.clock.now()
    return [
        [str(e.revision), moment(e, "event_time", now), e.kind, subject(e.subject), e.author, what(e)] for e in events
    ]


def subject(name: str) -> str:
    """Return a subject without the site and the collection words."""
    parts = name.split("/")
    return "/".join(parts[3::2]) or "/".join(parts[1:2]) or name


def what(event: Event) -> str:
    """Return what an event says and why."""
    return f"{event.message} ({event.reason})" if event.message and event.reason else event.message or event.reason


async def follow(session: Session, site: str, after: int) -> AsyncGenerator[pb.WatchEventsResponse, None]:
    """Yield what the controller records after a revision, for ever: over lost connections and compacted history."""
    failures = 0
    while True:
        try:
            call = session.fleet.WatchEvents(pb.WatchEventsRequest(parent=site, after_revision=after))
            try:
                with faults_raised(session.endpoint):
                    async for answer in call:
                        failures = 0
                        after = max(after, answer.revision)
                        yield answer
            finally:
                call.cancel()
        except HistoryCompacted:
            oldest = await session.call(session.fleet.ListEvents, pb.ListEventsRequest(parent=site, page_size=1))
            kept_after = oldest.events[0].revision - 1 if oldest.events else oldest.revision
            session.note(
                f"events up to revision {kept_after} are no longer kept: going on from there, {after} was asked for"
            )
            after = kept_after
        except Unreachable as error:
            wait_s = RETRY_S[min(failures, len(RETRY_S) - 1)]
            if failures == 0:
                session.note(
                    f"lost {session.endpoint} ({error}); trying again, the record goes on after revision {after}"
                )
            failures += 1
            await session.clock.sleep(wait_s)
        else:
            await session.clock.sleep(
                RETRY_S[0]
            )  # the server ended the stream in peace, for instance at a connection's age


async def newest_revision(session: Session, site: str) -> int:
    """Return the newest revision of the record."""
    request = pb.ListEventsRequest(parent=site, newest_first=True, page_size=1)
    return (await session.call(session.fleet.ListEvents, request)).revision


async def _watch(session: Session, args: argparse.Namespace) -> int:
    return await watch_from(session, await session.site(args.site), args.after, args.count)


async def watch_from(session: Session, site: str, after: int | None, count: int | None) -> int:
    """Print events after a revision (None: only new ones) as they come, until `count` of them."""
    start = after if after is not None else await newest_revision(session, site)
    seen = 0
    async with aclosing(follow(session, site, start)) as answers:
        async for answer in answers:
            for event in answer.events:
                print_event(session, event)
                seen += 1
                if count is not None and seen >= count:
                    return 0
    return 0


def print_event(session: Session, event: Event) -> None:
    """Print one event as one line."""
    if session.as_json:
        session.line(json.dumps(to_json(event), ensure_ascii=False))
    else:
        stamp = moment(event, "event_time", session.clock.now())
        session.line(
            f"{stamp}  {event.revision}  {event.kind}  {subject(event.subject)}  {event.author}: {what(event)}"
        )
    session.terminal.out.flush()
