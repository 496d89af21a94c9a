"""`swingctl flip`: moves from one operating point to another, each finished by evidence or undone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from swingbus.capacity.v1alpha import capacity_service_pb2 as pb
from swingbus.capacity.v1alpha.capacity_pb2 import Flip
from swingctl.arguments import MODES, Nouns, add_noun, add_site, add_verb, add_write, bank_name, flip_name, mode_number
from swingctl.render import Column, enum_word, moment, short_name
from swingctl.session import Session
from swingctl.writes import write

POLL_S = 1.0
GOOD_END = "ACTIVE"
ENDS = (GOOD_END, "ROLLED_BACK", "FAILED")

COLUMNS = (
    Column(title="FLIP", shortens=True),
    Column(title="BANK", shortens=True),
    Column(title="N", right=True),
    Column(title="FROM", shortens=True),
    Column(title="TO", shortens=True),
    Column(title="PHASE"),
    Column(title="SINCE"),
    Column(title="BY", shortens=True, droppable=True),
    Column(title="WHY", wraps=True, droppable=True),
)


def mount(nouns: Nouns) -> None:
    """Add the noun."""
    verbs = add_noun(nouns, "flip", "moves from one operating point to another, finished by evidence")
    listing = add_verb(
        verbs,
        "list",
        _list,
        summary="list flips, newest first",
        examples="flip list\nflip list --open\nflip list --limit 20 --output json",
    )
    listing.add_argument("--open", action="store_true", help="only those not ended")
    listing.add_argument("--limit", type=int, default=100, metavar="N", help="at most this many (default: 100)")
    add_site(listing)
    show = add_verb(verbs, "show", _show, summary="show one flip with its history", examples="flip show fl-31")
    show.add_argument("flip", help="flip id or resource name")
    add_site(show)
    request = add_verb(
        verbs,
        "request",
        _request,
        summary="ask for a flip; admission may refuse it",
        examples="flip request gpu-3/h100 --count 8 --from mining --to inference --reason 'customer trial' --yes\n"
        "flip request edge-1/s19j --count 10 --from standby --to mining --dry-run",
    )
    request.add_argument("bank", help="AGENT/BANK or resource name")
    request.add_argument(
        "--count", type=int, required=True, metavar="N", help="devices: a whole number of the bank's units"
    )
    request.add_argument("--from", dest="from_mode", choices=sorted(MODES), required=True, help="mode before")
    request.add_argument("--to", dest="to_mode", choices=sorted(MODES), required=True, help="mode after")
    request.add_argument("--wait", action="store_true", help="return when it has ended (exit code 1 unless ACTIVE)")
    cancel = add_verb(verbs, "cancel", _cancel, summary="undo an open flip", examples="flip cancel fl-31 --yes")
    cancel.add_argument("flip", help="flip id or resource name")
    for verb in (request, cancel):
        add_site(verb)
        add_write(verb)


async def _list(session: Session, args: argparse.Namespace) -> int:
    request = pb.ListFlipsRequest(parent=await session.site(args.site), open_only=args.open)
    answer = await session.pages(session.capacity.ListFlips, request, at_most=max(1, args.limit))
    session.show_list(answer, COLUMNS, rows(session, answer.flips), "no open flips" if args.open else "no flips")
    return 0


def rows(session: Session, flips: Sequence[Flip]) -> list[list[str]]:
    """Return the cells of flips."""
    now = session.clock.now()
    return [
        [
            short_name(flip.name),
            short_name(flip.bank, 2),
            str(flip.device_count),
            f"{enum_word(flip, 'from_mode').lower()} {flip.from_point}".strip(),
            f"{enum_word(flip, 'to_mode').lower()} {flip.to_point}".strip(),
            enum_word(flip, "phase"),
            moment(flip, "phase_time", now),
            flip.author,
            flip.reason,
        ]
        for flip in flips
    ]


async def _show(session: Session, args: argparse.Namespace) -> int:
    name = await flip_name(session, args.flip, args.site)
    answer = await session.call(session.capacity.GetFlip, pb.GetFlipRequest(name=name))
    _show_flip(session, answer)
    return 0


def _show_flip(session: Session, answer: pb.GetFlipResponse) -> None:
    flip, now = answer.flip, session.clock.now()
    session.show_facts(
        answer,
        [
            ("name", flip.name),
            ("bank", flip.bank),
            ("devices", str(flip.device_count) + (f", units {', '.join(map(str, flip.units))}" if flip.units else "")),
            ("from", f"{enum_word(flip, 'from_mode')} {flip.from_point}"),
            ("to", f"{enum_word(flip, 'to_mode')} {flip.to_point}"),
            ("kind", "cap: only watts change" if flip.is_cap else "mode flip"),
            ("phase", enum_word(flip, "phase")),
            ("since", moment(flip, "phase_time", now)),
            ("deadline of phase", moment(flip, "deadline_time", now) if flip.HasField("deadline_time") else ""),
            ("journaled", moment(flip, "create_time", now)),
            ("ended", moment(flip, "end_time", now) if flip.HasField("end_time") else "not yet"),
            ("by", flip.author),
            ("why", flip.reason),
            ("history", "\n".join(flip.history)),
        ],
    )


async def _request(session: Session, args: argparse.Namespace) -> int:
    request = pb.RequestFlipRequest(
        bank=await bank_name(session, args.bank, args.site),
        device_count=args.count,
        from_mode=mode_number(args.from_mode),
        to_mode=mode_number(args.to_mode),
    )
    answer = await write(
        session,
        args,
        session.capacity.RequestFlip,
        request,
        question="Flip these devices",
        preview=lambda checked: session.line(f"would flip {_sentence(checked.flip)}"),
    )
    if answer is None:
        return 0
    if args.wait:
        return await _wait(session, answer.flip.name)
    if session.as_json:
        session.show_json(answer)
    else:
        session.line(f"journaled {short_name(answer.flip.name)}: {_sentence(answer.flip)}")
    return 0


def _sentence(flip: Flip) -> str:
    return (
        f"{flip.device_count} of {short_name(flip.bank, 2)} from {enum_word(flip, 'from_mode').lower()} "
        f"to {enum_word(flip, 'to_mode').lower()} {flip.to_point}".strip()
    )


async def _wait(session: Session, name: str) -> int:
    told = ""
    while True:
        answer = await session.call(session.capacity.GetFlip, pb.GetFlipRequest(name=name))
        phase = enum_word(answer.flip, "phase")
        if phase != told:
            session.note(f"{short_name(name)}: {phase}")
            told = phase
        if phase in ENDS:
            _show_flip(session, answer)
            return 0 if phase == GOOD_END else 1
        await session.clock.sleep(POLL_S)


async def _cancel(session: Session, args: argparse.Namespace) -> int:
    request = pb.CancelFlipRequest(name=await flip_name(session, args.flip, args.site))
    answer = await write(
        session,
        args,
        session.capacity.CancelFlip,
        request,
        question=f"Undo {args.flip}",
        preview=lambda checked: session.line(
            f"would undo {_sentence(checked.flip)}, now {enum_word(checked.flip, 'phase')}"
        ),
    )
    if answer is not None and session.as_json:
        session.show_json(answer)
    elif answer is not None:
        session.line(
            f"{short_name(answer.flip.name)} is being undone, now {enum_word(answer.flip, 'phase')}; it is over when evidence says so"
        )
    return 0
