"""`swingctl curtail`: lower a limit for a while, and prove it at the meter."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from swingbus.capacity.v1alpha import capacity_service_pb2 as pb
from swingbus.capacity.v1alpha.capacity_pb2 import Curtailment, Evidence
from swingbus.names import parse_id
from swingctl.arguments import (
    Nouns,
    add_noun,
    add_site,
    add_verb,
    add_write,
    argument,
    curtailment_name,
    power_argument,
    span_argument,
    to_duration,
)
from swingctl.render import Column, moment, optional, power, short_name, span
from swingctl.session import Session
from swingctl.writes import write

POLL_S = 1.0
OVER = ("ENDED", "CANCELLED")

COLUMNS = (
    Column(title="CURTAILMENT", shortens=True),
    Column(title="FEEDER", shortens=True),
    Column(title="LIMIT", right=True),
    Column(title="METER", right=True),
    Column(title="STATE"),
    Column(title="START"),
    Column(title="END"),
    Column(title="MET", droppable=True),
    Column(title="BY", shortens=True, droppable=True),
    Column(title="REASON", wraps=True, droppable=True),
)
_GROUPS = (
    Column(title="GROUP", shortens=True),
    Column(title="SETTLED"),
    Column(title="WHY NOT"),
    Column(title="SINCE"),
)
_WINDOWS = (
    Column(title="GROUP", shortens=True, droppable=True),
    Column(title="METER", shortens=True),
    Column(title="WINDOW", right=True),
    Column(title="MEAN", right=True),
    Column(title="AT MOST", right=True),
    Column(title="GRANTED", right=True),
    Column(title="FITS"),
)


def mount(nouns: Nouns) -> None:
    """Add the noun."""
    verbs = add_noun(nouns, "curtail", "lower a limit for a while, proven at the meter")
    start = add_verb(
        verbs,
        "start",
        _start,
        summary="lower a limit for a while",
        examples="curtail start --site north --limit 400kW --for 1h --yes\n"
        "curtail start --limit 1.2MW --for 2h --notice 10m --ramp 5m --reason 'grid operator call 17' --dry-run\n"
        "curtail start --feeder c2 --limit 90kW --for 30m --wait --yes",
    )
    start.add_argument(
        "--limit",
        type=power_argument,
        required=True,
        metavar="POWER",
        help="power not to be passed, for instance 400kW",
    )
    start.add_argument(
        "--for",
        dest="duration",
        type=span_argument,
        required=True,
        metavar="SPAN",
        help="how long, after notice and ramp: 1h, 90s",
    )
    start.add_argument(
        "--feeder", type=argument(parse_id), metavar="FEEDER", help="feeder id (default: the head feeder)"
    )
    start.add_argument(
        "--notice",
        type=span_argument,
        default=0.0,
        metavar="SPAN",
        help="from now to the start of the ramp (default: none)",
    )
    start.add_argument(
        "--ramp",
        type=span_argument,
        default=0.0,
        metavar="SPAN",
        help="from the start to the full limit (default: none)",
    )
    start.add_argument(
        "--window", type=span_argument, metavar="SPAN", help="averaging window of the promise (default: 60s)"
    )
    start.add_argument("--payment", default="", metavar="USD", help="paid per MWh shed, decimal")
    start.add_argument("--penalty", default="", metavar="USD", help="owed per MWh missed, decimal")
    start.add_argument(
        "--wait", action="store_true", help="return when the meter has proven it (exit code 1 if it ends before)"
    )
    add_site(start)
    add_write(start)
    show = add_verb(
        verbs,
        "show",
        _show,
        summary="show one curtailment with its evidence",
        examples="curtail show ct-7\ncurtail show ct-7 --output json",
    )
    show.add_argument("curtailment", help="curtailment id or resource name")
    add_site(show)
    add_site(
        add_verb(
            verbs,
            "list",
            _list,
            summary="list curtailments, newest first",
            examples="curtail list\ncurtail list --output json",
        )
    )
    end = add_verb(
        verbs,
        "end",
        _end,
        summary="end a curtailment before its time",
        examples="curtail end ct-7 --reason 'released by the grid operator' --yes",
    )
    end.add_argument("curtailment", help="curtailment id or resource name")
    add_site(end)
    add_write(end)


async def _start(session: Session, args: argparse.Namespace) -> int:
    request = pb.StartCurtailmentRequest(
        parent=await session.site(args.site),
        feeder=args.feeder or "",
        limit_w=args.limit,
        notice=to_duration(args.notice),
        ramp=to_duration(args.ramp),
        duration=to_duration(args.duration),
        payment_usd_per_mwh=args.payment,
        penalty_usd_per_mwh=args.penalty,
    )
    if args.window is not None:
        request.window.CopyFrom(to_duration(args.window))

    def preview(checked: pb.StartCurtailmentResponse) -> None:
        planned, now = checked.curtailment, session.clock.now()
        session.line(
            f"would hold {short_name(planned.feeder)} at {power(planned.limit_w)} "
            f"from {moment(planned, 'start_time', now)} to {moment(planned, 'end_time', now)}"
        )
        for line in checked.preview:
            session.line(f"  {line}")

    answer = await write(
        session, args, session.capacity.StartCurtailment, request, question="Start this curtailment", preview=preview
    )
    if answer is None:
        return 0
    if args.wait:
        return await _wait(session, answer.curtailment.name)
    if session.as_json:
        session.show_json(answer)
    else:
        _summary(session, answer.curtailment, "started")
        session.line(f"proof: swingctl curtail show {short_name(answer.curtailment.name)}")
    return 0


def _summary(session: Session, curtailment: Curtailment, verb: str) -> None:
    now = session.clock.now()
    session.line(
        f"{verb} {short_name(curtailment.name)}: {short_name(curtailment.feeder)} at {power(curtailment.limit_w)} from "
        f"{moment(curtailment, 'start_time', now)} to {moment(curtailment, 'end_time', now)}, now {curtailment.state}"
    )


async def _wait(session: Session, name: str) -> int:
    """Poll until the meter has proven the curtailment, telling each change of state."""
    told = ""
    while True:
        answer = await session.call(session.capacity.GetCurtailment, pb.GetCurtailmentRequest(name=name))
        curtailment = answer.curtailment
        if curtailment.state != told:
            session.note(
                f"{short_name(name)}: {curtailment.state}, meter {power(optional(curtailment, 'metered_power_w'))}"
            )
            told = curtailment.state
        is_met = curtailment.HasField("met_time")
        if is_met or curtailment.state in OVER:
            show_curtailment(session, answer)
            return 0 if is_met else 1
        await session.clock.sleep(POLL_S)


async def _show(session: Session, args: argparse.Namespace) -> int:
    name = await curtailment_name(session, args.curtailment, args.site)
    show_curtailment(session, await session.call(session.capacity.GetCurtailment, pb.GetCurtailmentRequest(name=name)))
    return 0


def show_curtailment(session: Session, answer: pb.GetCurtailmentResponse) -> None:
    """Print a curtailment, its groups and the windows that prove it."""
    curtailment, now = answer.curtailment, session.clock.now()
    session.show_facts(
        answer,
        [
            ("name", curtailment.name),
            ("feeder", curtailment.feeder),
            ("limit", power(curtailment.limit_w)),
            ("metered now", power(optional(curtailment, "metered_power_w"))),
            ("baseline", power(optional(curtailment, "baseline_power_w"))),
            ("state", curtailment.state),
            ("ordered", moment(curtailment, "create_time", now)),
            ("start", moment(curtailment, "start_time", now)),
            ("ramp", span(curtailment, "ramp")),
            ("end", moment(curtailment, "end_time", now)),
            ("window", span(curtailment, "window")),
            (
                "met",
                moment(curtailment, "met_time", now) if curtailment.HasField("met_time") else "not yet, by evidence",
            ),
            ("by", curtailment.author),
            ("reason", curtailment.reason),
            ("payment per MWh", curtailment.payment_usd_per_mwh),
            ("penalty per MWh", curtailment.penalty_usd_per_mwh),
        ],
    )
    if session.as_json:
        return
    session.line()
    if not curtailment.evidence:
        session.line("no evidence: no metered group lies below this feeder, or nothing was read since the start")
        return
    session.table(
        _GROUPS,
        [
            [e.group, "yes" if e.settled else "no", e.reason or "-", moment(e, "settle_time", now)]
            for e in curtailment.evidence
        ],
    )
    if windows := window_rows(curtailment.evidence):
        session.line()
        session.line("evidence windows, in seconds of the reading agent's own clock since boot:")
        session.table(_WINDOWS, windows)
    for evidence in curtailment.evidence:
        for straggler in evidence.stragglers:
            session.line(f"straggler in {evidence.group}: {straggler}")


def window_rows(groups: Sequence[Evidence]) -> list[list[str]]:
    """Return the cells of evidence windows."""
    return [
        [
            evidence.group,
            window.meter,
            f"{window.start_boottime_s:.2f}-{window.end_boottime_s:.2f}",
            power(window.power_w),
            power(window.upper_power_w),
            power(window.granted_power_w),
            "yes" if window.upper_power_w <= window.granted_power_w else "NO",
        ]
        for evidence in groups
        for window in evidence.windows
    ]


async def _list(session: Session, args: argparse.Namespace) -> int:
    request = pb.ListCurtailmentsRequest(parent=await session.site(args.site))
    answer = await session.pages(session.capacity.ListCurtailments, request)
    session.show_list(answer, COLUMNS, rows(session, answer.curtailments), "no curtailments")
    return 0


def rows(session: Session, curtailments: Sequence[Curtailment]) -> list[list[str]]:
    """Return the cells of curtailments."""
    now = session.clock.now()
    return [
        [
            short_name(c.name),
            short_name(c.feeder),
            power(c.limit_w),
            power(optional(c, "metered_power_w")),
            c.state,
            moment(c, "start_time", now),
            moment(c, "end_time", now),
            moment(c, "met_time", now),
            c.author,
            c.reason,
        ]
        for c in curtailments
    ]


async def _end(session: Session, args: argparse.Namespace) -> int:
    request = pb.EndCurtailmentRequest(name=await curtailment_name(session, args.curtailment, args.site))
    answer = await write(
        session,
        args,
        session.capacity.EndCurtailment,
        request,
        question=f"End {args.curtailment}",
        preview=lambda checked: _summary(session, checked.curtailment, "would end"),
    )
    if answer is not None and session.as_json:
        session.show_json(answer)
    elif answer is not None:
        _summary(session, answer.curtailment, "ended")
    return 0
