"""`swingctl bank`: devices of one class behind one agent."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from swingbus.fleet.v1alpha import fleet_service_pb2 as pb
from swingbus.fleet.v1alpha.fleet_pb2 import Bank
from swingctl.arguments import Nouns, add_noun, add_site, add_verb, agent_name, bank_name
from swingctl.render import Column, enum_word, hashrate, optional, power, short_name
from swingctl.session import Session

COLUMNS = (
    Column(title="BANK", shortens=True),
    Column(title="CLASS", shortens=True, droppable=True),
    Column(title="MODES", wraps=True),
    Column(title="POWER", right=True),
    Column(title="CLAIM", right=True),
    Column(title="GRANT", right=True),
    Column(title="STATE"),
    Column(title="HOLD", wraps=True, droppable=True),
)


def mount(nouns: Nouns) -> None:
    """Add the noun."""
    verbs = add_noun(nouns, "bank", "devices of one class behind one agent: what they do, draw and may draw")
    listing = add_verb(
        verbs, "list", _list, summary="list banks", examples="bank list\nbank list --agent edge-1 --output json"
    )
    listing.add_argument("--agent", metavar="AGENT", help="only behind this agent")
    add_site(listing)
    show = add_verb(
        verbs, "show", _show, summary="show one bank and why it is where it is", examples="bank show edge-1/s19j"
    )
    show.add_argument("bank", help="AGENT/BANK or resource name")
    add_site(show)


def rows(banks: Sequence[Bank]) -> list[list[str]]:
    """Return the cells of banks."""
    return [
        [
            short_name(bank.name, 2),
            bank.device_class,
            modes(bank),
            power(optional(bank, "power_w")),
            power(bank.claim_w),
            power(optional(bank, "grant_w")),
            bank.state,
            "; ".join(word for word, held in (("LOCKED OUT", bank.lockout), ("pinned", bank.pin)) if held),
        ]
        for bank in banks
    ]


def modes(bank: Bank) -> str:
    """Return devices by mode: `40 mining, 60 standby`."""
    counts = sorted(bank.mode_counts.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{count} {mode.removeprefix('MODE_').lower()}" for mode, count in counts if count]
    return ", ".join(words) or f"{bank.device_count} not seen"


async def _list(session: Session, args: argparse.Namespace) -> int:
    parent = await agent_name(session, args.agent, args.site) if args.agent else await session.site(args.site)
    answer = await session.pages(session.fleet.ListBanks, pb.ListBanksRequest(parent=parent))
    session.show_list(answer, COLUMNS, rows(answer.banks), "no banks: no agent has told of any yet")
    return 0


async def _show(session: Session, args: argparse.Namespace) -> int:
    name = await bank_name(session, args.bank, args.site)
    answer = await session.call(session.fleet.GetBank, pb.GetBankRequest(name=name))
    bank = answer.bank
    session.show_facts(
        answer,
        [
            ("name", bank.name),
            ("feeder", bank.feeder),
            ("class", f"{bank.device_class} ({enum_word(bank, 'kind')})"),
            ("devices", f"{bank.device_count}, moved {bank.unit_size} at a time"),
            ("modes", modes(bank)),
            ("state", bank.state),
            ("power", power(optional(bank, "power_w"))),
            ("hashrate", hashrate(optional(bank, "hashrate_ths")) if bank.HasField("hashrate_ths") else ""),
            ("claim", power(bank.claim_w)),
            ("grant", power(optional(bank, "grant_w"))),
            ("safe share", power(bank.safe_share_w)),
            ("ceiling", power(bank.ceiling_w)),
            ("meter", bank.meter or "none settles it"),
            ("pin", bank.pin),
            ("lockout", bank.lockout),
            ("why", bank.explanation),
        ],
    )
    return 0
