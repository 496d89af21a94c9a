"""`swingctl authority` and `swingctl limit`: what Swingbus may do at a site, and what a feeder may carry.

Both take the role admin to change.
"""

from __future__ import annotations

import argparse

from swingbus.capacity.v1alpha import capacity_service_pb2 as pb
from swingbus.fleet.v1alpha import fleet_pb2 as fleet_messages
from swingbus.fleet.v1alpha import fleet_service_pb2 as fleet_pb
from swingbus.fleet.v1alpha.fleet_pb2 import Authority, Feeder
from swingctl.arguments import Nouns, add_noun, add_site, add_verb, add_write, feeder_name, power_argument
from swingctl.feeder import limit_rows
from swingctl.render import Column, enum_word, power, short_name
from swingctl.session import Session
from swingctl.writes import write

WORDS: dict[str, Authority] = {
    "observe": fleet_messages.AUTHORITY_OBSERVE,
    "advise": fleet_messages.AUTHORITY_ADVISE,
    "control": fleet_messages.AUTHORITY_CONTROL,
}
MEANING = {
    "observe": "it reads only",
    "advise": "plans are shown, nothing is written",
    "control": "plans are carried out",
}

_LIMITS = (
    Column(title="FEEDER", shortens=True),
    Column(title="LIMIT", right=True),
    Column(title="WINDOW", right=True, droppable=True),
    Column(title="SOURCE", shortens=True),
    Column(title="FROM", droppable=True),
    Column(title="UNTIL"),
    Column(title="IN FORCE"),
)


def mount(nouns: Nouns) -> None:
    """Add both nouns."""
    authorities = add_noun(nouns, "authority", "what Swingbus may do at a site: observe, advise or control")
    add_site(add_verb(authorities, "show", _show, summary="show what Swingbus may do", examples="authority show"))
    change = add_verb(
        authorities,
        "set",
        _set,
        summary="change what Swingbus may do (admin)",
        examples="authority set control --site north --reason 'commissioned' --yes\n"
        "authority set observe --reason 'works on feeder c2' --yes",
        about="Change what Swingbus may do. Below control nothing is sent to a site any more: grants run out within ttl_s and "
        "machines fall to their safe share by themselves. Back at control every agent is fenced and adopted anew, as after a start.",
    )
    change.add_argument(
        "authority", choices=sorted(WORDS), help="; ".join(f"{word}: {MEANING[word]}" for word in WORDS)
    )
    add_site(change)
    add_write(change)

    limits = add_noun(nouns, "limit", "limits of feeders: declared, ordered, an operator's own")
    add_site(add_verb(limits, "list", _limits, summary="list every limit and which one counts", examples="limit list"))
    set_limit = add_verb(
        limits,
        "set",
        _set_limit,
        summary="set an operator's limit at a feeder (admin)",
        examples="limit set grid 1.1MW --reason 'transformer runs hot' --yes\nlimit set c2 90kW --dry-run",
        about="Set an operator's limit at a feeder. It lowers the declared limit until it is cleared, and can never raise it.",
    )
    set_limit.add_argument("feeder", help="feeder id or resource name")
    set_limit.add_argument("limit", type=power_argument, metavar="POWER", help="for instance 400kW")
    clear = add_verb(
        limits, "clear", _clear_limit, summary="clear an operator's limit (admin)", examples="limit clear grid --yes"
    )
    clear.add_argument("feeder", help="feeder id or resource name")
    for verb in (set_limit, clear):
        add_site(verb)
        add_write(verb)


async def _show(session: Session, args: argparse.Namespace) -> int:
    answer = await session.call(session.fleet.GetSite, fleet_pb.GetSiteRequest(name=await session.site(args.site)))
    word = enum_word(answer.site, "authority")
    if session.as_json:
        session.show_json(answer)
    else:
        session.line(f"{short_name(answer.site.name)}: {word}, {MEANING.get(word.lower(), 'unknown to this program')}")
    return 0


async def _set(session: Session, args: argparse.Namespace) -> int:
    site = await session.site(args.site)
    request = pb.SetAuthorityRequest(name=site, authority=WORDS[args.authority])
    sentence = f"let Swingbus {args.authority} at {short_name(site)} ({MEANING[args.authority]})"
    answer = await write(
        session,
        args,
        session.capacity.SetAuthority,
        request,
        question=sentence[0].upper() + sentence[1:],
        preview=lambda _: session.line(f"would {sentence}"),
    )
    if answer is not None and session.as_json:
        session.show_json(answer)
    elif answer is not None:
        session.line(
            f"{short_name(answer.site.name)}: {enum_word(answer.site, 'authority')}, {MEANING[args.authority]}"
        )
    return 0


async def _limits(session: Session, args: argparse.Namespace) -> int:
    answer = await session.pages(
        session.fleet.ListFeeders, fleet_pb.ListFeedersRequest(parent=await session.site(args.site))
    )
    rows = [
        [short_name(feeder.name), *cells, "yes" if limit.limit_w == feeder.limit_w else ""]
        for feeder in answer.feeders
        for limit, cells in zip(feeder.limits, limit_rows(session, feeder.limits), strict=True)
    ]
    session.show_list(answer, _LIMITS, rows, "no limits")
    return 0


async def _set_limit(session: Session, args: argparse.Namespace) -> int:
    name = await feeder_name(session, args.feeder, args.site)
    request = pb.SetFeederLimitRequest(name=name, limit_w=args.limit)
    return await _write_limit(session, args, request, f"limit {short_name(name)} to {power(args.limit)}")


async def _clear_limit(session: Session, args: argparse.Namespace) -> int:
    name = await feeder_name(session, args.feeder, args.site)
    return await _write_limit(
        session, args, pb.SetFeederLimitRequest(name=name), f"clear the operator's limit of {short_name(name)}"
    )


async def _write_limit(
    session: Session, args: argparse.Namespace, request: pb.SetFeederLimitRequest, sentence: str
) -> int:
    def preview(checked: pb.SetFeederLimitResponse) -> None:
        session.line(f"would {sentence}: {_in_force(checked.feeder)}")

    answer = await write(
        session,
        args,
        session.capacity.SetFeederLimit,
        request,
        question=sentence[0].upper() + sentence[1:],
        preview=preview,
    )
    if answer is not None and session.as_json:
        session.show_json(answer)
    elif answer is not None:
        session.line(_in_force(answer.feeder))
    return 0


def _in_force(feeder: Feeder) -> str:
    return f"{short_name(feeder.name)} at {power(feeder.limit_w)}"
