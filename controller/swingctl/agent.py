"""`swingctl agent`: the programs on the hosts."""

from __future__ import annotations

import argparse
from datetime import UTC

from swingbus.fleet.v1alpha import fleet_service_pb2 as pb
from swingbus.fleet.v1alpha.fleet_pb2 import Agent
from swingctl.arguments import Nouns, add_noun, add_site, add_verb, agent_name
from swingctl.render import Column, age, moment, short_name
from swingctl.session import Session

EXPIRY_WARN_DAYS = 30

COLUMNS = (
    Column(title="AGENT", shortens=True),
    Column(title="STATE"),
    Column(title="LAST STORED", right=True),
    Column(title="ACKED", right=True),
    Column(title="SAMPLES", right=True, droppable=True),
    Column(title="WRITES", droppable=True),
    Column(title="HOST", shortens=True, droppable=True),
    Column(title="VERSION", droppable=True),
    Column(title="CERTIFICATE", droppable=True),
)


def mount(nouns: Nouns) -> None:
    """Add the noun."""
    verbs = add_noun(nouns, "agent", "programs on hosts: heard or not, stored up to where")
    add_site(add_verb(verbs, "list", _list, summary="list agents", examples="agent list\nagent list --site north"))
    show = add_verb(
        verbs,
        "show",
        _show,
        summary="show one agent, its host readings and what it cannot see",
        examples="agent show edge-1",
    )
    show.add_argument("agent", help="agent id or resource name")
    add_site(show)


async def _list(session: Session, args: argparse.Namespace) -> int:
    answer = await session.pages(session.fleet.ListAgents, pb.ListAgentsRequest(parent=await session.site(args.site)))
    now = session.clock.now()
    rows = [
        [
            short_name(agent.name),
            agent.state,
            age(agent, "last_seen_time", now),
            str(agent.acked_sequence),
            str(agent.sample_count),
            "yes" if agent.writes_enabled else "no",
            agent.hostname,
            agent.version,
            _expiry(session, agent),
        ]
        for agent in answer.agents
    ]
    session.show_list(answer, COLUMNS, rows, "no agents: the site file names none")
    return 0


def _expiry(session: Session, agent: Agent) -> str:
    """Return when an agent's certificate expires, loudly if soon."""
    now = session.clock.now()
    text = moment(agent, "certificate_expire_time", now)
    if agent.HasField("certificate_expire_time"):
        left = agent.certificate_expire_time.ToDatetime(tzinfo=UTC) - now
        if left.days < EXPIRY_WARN_DAYS:
            return f"{text} RENEW" if left.total_seconds() > 0 else f"{text} EXPIRED"
    return text


async def _show(session: Session, args: argparse.Namespace) -> int:
    name = await agent_name(session, args.agent, args.site)
    answer = await session.call(session.fleet.GetAgent, pb.GetAgentRequest(name=name))
    agent = answer.agent
    session.show_facts(
        answer,
        [
            ("name", agent.name),
            ("state", agent.state),
            ("host", agent.hostname),
            ("version", agent.version),
            ("last stored", age(agent, "last_seen_time", session.clock.now())),
            ("acked sequence", str(agent.acked_sequence)),
            ("samples stored", str(agent.sample_count)),
            (
                "writes",
                "its own file lets software change things"
                if agent.writes_enabled
                else "off in its own file: it only reports",
            ),
            ("certificate expires", _expiry(session, agent)),
            *((f"host {field}", f"{value:g}") for field, value in sorted(agent.host_values.items())),
            ("cannot see", "\n".join(agent.unsupported)),
        ],
    )
    return 0
