"""`swingctl feeder`: the power tree with its limits and meters."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime

from swingbus.fleet.v1alpha import fleet_service_pb2 as pb
from swingbus.fleet.v1alpha.fleet_pb2 import Feeder, Limit
from swingbus.quantities import JOULES_PER_KWH, format_span
from swingctl.arguments import Nouns, add_noun, add_site, add_verb, feeder_name, time_argument, to_timestamp
from swingctl.render import ABSENT, Column, moment, optional, power, short_name, span
from swingctl.session import Session

COLUMNS = (
    Column(title="FEEDER", shortens=True),
    Column(title="KIND", droppable=True),
    Column(title="METER", right=True),
    Column(title="LIMIT", right=True),
    Column(title="CLAIMED", right=True),
    Column(title="HEADROOM", right=True),
    Column(title="STATE"),
    Column(title="AGE", right=True, droppable=True),
)
_LIMITS = (
    Column(title="LIMIT", right=True),
    Column(title="WINDOW", right=True),
    Column(title="SOURCE", shortens=True),
    Column(title="FROM"),
    Column(title="UNTIL"),
)
_INTERVALS = (
    Column(title="FROM"),
    Column(title="ENERGY", right=True),
    Column(title="MEAN", right=True),
    Column(title="MAX", right=True),
    Column(title="ATTRIBUTED", right=True),
    Column(title="COVERED", right=True),
)


def mount(nouns: Nouns) -> None:
    """Add the noun."""
    verbs = add_noun(nouns, "feeder", "the power tree: limits, meters, headroom")
    add_site(
        add_verb(
            verbs,
            "list",
            _list,
            summary="list feeders as a tree",
            examples="feeder list\nfeeder list --site north --output json",
        )
    )
    show = add_verb(
        verbs,
        "show",
        _show,
        summary="show one feeder with its limits",
        examples="feeder show grid\nfeeder show sites/north/feeders/c2",
    )
    show.add_argument("feeder", help="feeder id or resource name")
    add_site(show)
    intervals = add_verb(
        verbs,
        "intervals",
        _intervals,
        summary="list a meter's 15-minute intervals",
        examples="feeder intervals grid\nfeeder intervals grid --since 2026-11-23T00:00:00Z --output json",
    )
    intervals.add_argument("feeder", help="feeder id or resource name")
    intervals.add_argument("--since", type=time_argument, metavar="TIME", help="only from this time on")
    add_site(intervals)


def rows(feeders: Sequence[Feeder]) -> list[list[str]]:
    """Return the cells of a tree, parents before children, children indented."""
    depths: dict[str, int] = {}
    cells = []
    for feeder in feeders:
        depth = depths[feeder.name] = depths.get(feeder.parent, -1) + 1
        cells.append(
            [
                "  " * depth + short_name(feeder.name),
                feeder.kind,
                power(optional(feeder, "metered_power_w")),
                power(feeder.limit_w),
                power(feeder.claimed_power_w),
                power(feeder.headroom_w),
                feeder.meter_state or ABSENT,
                span(feeder, "metered_age"),
            ]
        )
    return cells


async def _list(session: Session, args: argparse.Namespace) -> int:
    answer = await session.pages(session.fleet.ListFeeders, pb.ListFeedersRequest(parent=await session.site(args.site)))
    session.show_list(answer, COLUMNS, rows(answer.feeders), "no feeders")
    return 0


async def _show(session: Session, args: argparse.Namespace) -> int:
    name = await feeder_name(session, args.feeder, args.site)
    answer = await session.call(session.fleet.GetFeeder, pb.GetFeederRequest(name=name))
    show_feeder(session, answer.feeder, answer)
    return 0


def show_feeder(session: Session, feeder: Feeder, answer: pb.GetFeederResponse) -> None:
    """Print a feeder and its limits."""
    session.show_facts(
        answer,
        [
            ("name", feeder.name),
            ("parent", feeder.parent),
            ("kind", feeder.kind),
            ("limit in force", power(feeder.limit_w)),
            ("metered", power(optional(feeder, "metered_power_w"))),
            ("meter", _meter(feeder)),
            ("claimed", power(feeder.claimed_power_w)),
            ("uncontrolled", power(feeder.uncontrolled_power_w)),
            ("margin", power(feeder.margin_power_w)),
            ("headroom", power(feeder.headroom_w)),
        ],
    )
    if not session.as_json:
        session.line()
        session.table(_LIMITS, limit_rows(session, feeder.limits))


def _meter(feeder: Feeder) -> str:
    if not feeder.meter:
        return "none"
    read = f", read {span(feeder, 'metered_age')} ago" if feeder.HasField("metered_age") else ""
    return f"{feeder.meter} ({feeder.meter_state}{read})"


def limit_rows(session: Session, limits: Sequence[Limit]) -> list[list[str]]:
    """Return the cells of limits."""
    now = session.clock.now()
    return [
        [
            power(limit.limit_w),
            span(limit, "window"),
            limit.source,
            _bound(limit, "start_time", now),
            _bound(limit, "end_time", now),
        ]
        for limit in limits
    ]


async def _intervals(session: Session, args: argparse.Namespace) -> int:
    request = pb.ListMeterIntervalsRequest(parent=await feeder_name(session, args.feeder, args.site))
    if args.since is not None:
        request.start_time.CopyFrom(to_timestamp(args.since))
    answer = await session.pages(session.fleet.ListMeterIntervals, request)
    now = session.clock.now()
    session.show_list(
        answer,
        _INTERVALS,
        [
            [
                moment(interval, "start_time", now),
                _energy(optional(interval, "energy_j")),
                power(optional(interval, "mean_power_w")),
                power(optional(interval, "max_power_w")),
                _energy(optional(interval, "attributed_energy_j")),
                format_span(interval.covered_s),
            ]
            for interval in answer.intervals
        ],
        "no intervals: the feeder has no meter, or nothing is stored yet",
    )
    return 0


def _energy(energy_j: float | None) -> str:
    return ABSENT if energy_j is None else f"{energy_j / JOULES_PER_KWH:.1f} kWh"


def _bound(limit: Limit, field: str, now: datetime) -> str:
    text = moment(limit, field, now)
    return "always" if text == ABSENT else text
