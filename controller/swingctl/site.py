"""`swingctl site`: the grid connections that this controller serves."""

from __future__ import annotations

import argparse

from swingbus.fleet.v1alpha import fleet_service_pb2 as pb
from swingbus.fleet.v1alpha.fleet_pb2 import Site
from swingctl.arguments import Nouns, add_noun, add_site, add_verb
from swingctl.checking import check
from swingctl.render import Column, enum_word, optional, power, ratio, short_name
from swingctl.session import Session

COLUMNS = (
    Column(title="SITE", shortens=True),
    Column(title="AUTHORITY"),
    Column(title="METER", right=True),
    Column(title="LIMIT", right=True),
    Column(title="CLAIMED", right=True),
    Column(title="UNATTRIB", right=True, droppable=True),
    Column(title="AGENTS", right=True),
    Column(title="FITS"),
    Column(title="NOTE", wraps=True, droppable=True),
)


def mount(nouns: Nouns) -> None:
    """Add the noun."""
    verbs = add_noun(nouns, "site", "grid connections: limits, meters, what Swingbus may do")
    add_verb(verbs, "list", _list, summary="list sites", examples="site list\nsite list --output json")
    add_site(add_verb(verbs, "show", _show, summary="show one site", examples="site show\nsite show --site north"))
    summary = "ask whether all services answer and each bank's place has a reason; exit code 1 where one does not"
    add_site(add_verb(verbs, "check", check, summary=summary, examples="site check\nsite check --output json"))


async def _list(session: Session, args: argparse.Namespace) -> int:
    answer = await session.pages(session.fleet.ListSites, pb.ListSitesRequest())
    session.show_list(
        answer, COLUMNS, [row(site) for site in answer.sites], "no site: the controller's site file names none"
    )
    return 0


def row(site: Site) -> list[str]:
    """Return a site's cells."""
    return [
        short_name(site.name),
        enum_word(site, "authority"),
        power(optional(site, "metered_power_w")),
        power(site.limit_w),
        power(site.claimed_power_w),
        ratio(optional(site, "unattributed_ratio")),
        f"{site.live_agent_count}/{site.agent_count}",
        "yes" if site.within_authority else "NO",
        site.disturbance,
    ]


async def _show(session: Session, args: argparse.Namespace) -> int:
    answer = await session.call(session.fleet.GetSite, pb.GetSiteRequest(name=await session.site(args.site)))
    site = answer.site
    session.show_facts(
        answer,
        [
            ("name", site.name),
            ("authority", enum_word(site, "authority")),
            ("price zone", site.price_zone),
            ("epoch", str(site.epoch)),
            ("limit", power(site.limit_w)),
            ("metered", power(optional(site, "metered_power_w"))),
            ("attributed to devices", power(optional(site, "attributed_power_w"))),
            ("unattributed", ratio(optional(site, "unattributed_ratio"))),
            ("claimed", power(site.claimed_power_w)),
            ("uncontrolled", power(site.uncontrolled_power_w)),
            ("margin", power(site.margin_power_w)),
            ("fits every limit", "yes" if site.within_authority else "NO: no growth until it does"),
            ("disturbance", site.disturbance),
            ("agents live", f"{site.live_agent_count} of {site.agent_count}"),
            ("settings changed", "\n".join(site.changed_settings)),
        ],
    )
    return 0
