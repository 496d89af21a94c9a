"""`swingctl plan`: what the planner wants and why, in money and limits."""

from __future__ import annotations

import argparse

from swingbus.capacity.v1alpha import capacity_service_pb2 as pb
from swingbus.capacity.v1alpha.capacity_pb2 import PlannedBank
from swingctl.arguments import MODES, Nouns, add_noun, add_site, add_verb, bank_name, mode_number
from swingctl.render import ABSENT, Column, age, enum_word, optional, power, short_name
from swingctl.session import Session

COLUMNS = (
    Column(title="BANK", shortens=True),
    Column(title="POINTS", wraps=True),
    Column(title="POWER", right=True),
    Column(title="USD/MWH", right=True, droppable=True),
    Column(title="RULE"),
    Column(title="WHY", wraps=True),
)


def mount(nouns: Nouns) -> None:
    """Add the noun."""
    verbs = add_noun(nouns, "plan", "what the planner wants and why, in money and limits")
    add_site(
        add_verb(verbs, "show", _show, summary="show the newest plan", examples="plan show\nplan show --output json")
    )
    explain = add_verb(
        verbs, "explain", _explain, summary="say why a bank is where it is", examples="plan explain edge-1/s19j"
    )
    explain.add_argument("bank", help="AGENT/BANK or resource name")
    add_site(explain)
    why_not = add_verb(
        verbs,
        "why-not",
        _why_not,
        summary="say why a bank is not in a mode",
        examples="plan why-not gpu-3/h100 inference",
    )
    why_not.add_argument("bank", help="AGENT/BANK or resource name")
    why_not.add_argument("mode", choices=sorted(MODES), help="the mode that it is not in")
    add_site(why_not)


async def _show(session: Session, args: argparse.Namespace) -> int:
    answer = await session.call(session.capacity.GetPlan, pb.GetPlanRequest(parent=await session.site(args.site)))
    plan = answer.plan
    if session.as_json:
        session.show_json(answer)
        return 0
    session.line(f"{plan.name}, made {age(plan, 'create_time', session.clock.now())} on revision {plan.basis_revision}")
    for feeder, value in sorted(plan.marginal_value_usd_per_kw_h.items()):
        session.line(
            f"one more kW at {short_name(feeder) if '/' in feeder else feeder} is worth {value:.4g} USD for an hour"
        )
    session.line()
    session.table(COLUMNS, [_row(bank) for bank in plan.banks])
    for title, lines in (("refused now", plan.refusals), ("signals", plan.signals)):
        if lines:
            session.line(f"\n{title}:")
            for line in lines:
                session.line(f"  {line}")
    return 0


def _row(bank: PlannedBank) -> list[str]:
    values = [value for point in bank.points if (value := optional(point, "value_usd_per_mwh")) is not None]
    return [
        short_name(bank.bank, 2),
        ", ".join(f"{p.count} {enum_word(p, 'mode').lower()} at {p.point}" for p in bank.points if p.count) or ABSENT,
        power(sum(p.count * p.counted_power_w for p in bank.points)),
        f"{max(values):.4g}" if values else ABSENT,
        bank.reason,
        bank.explanation,
    ]


async def _explain(session: Session, args: argparse.Namespace) -> int:
    return await _say(session, pb.ExplainBankRequest(name=await bank_name(session, args.bank, args.site)))


async def _why_not(session: Session, args: argparse.Namespace) -> int:
    name = await bank_name(session, args.bank, args.site)
    return await _say(session, pb.ExplainBankRequest(name=name, why_not=mode_number(args.mode)))


async def _say(session: Session, request: pb.ExplainBankRequest) -> int:
    answer = await session.call(session.capacity.ExplainBank, request)
    session.show_facts(answer, [("why", answer.explanation), *sorted(answer.facts.items())])
    return 0
