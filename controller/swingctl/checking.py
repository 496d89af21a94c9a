"""`swingctl site check`: whether a controller answers for all that it serves, and can say why each bank is where it is.

For a first look after an installation, and for programs that ask from outside (`helm test`): the health service alone says that a port is
open, an explanation says that a plan was made. Reads only.
"""

from __future__ import annotations

import argparse

from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from swingbus.capacity.v1alpha import capacity_service_pb2 as capacity_pb
from swingbus.faults import NotFound, SwingbusError, TimedOut, Unreachable
from swingbus.fleet.v1alpha import fleet_service_pb2 as fleet_pb
from swingbus.link.v1alpha import agent_link_service_pb2 as link_pb
from swingbus.market.v1alpha import market_service_pb2 as market_pb
from swingctl.render import Column, print_json, short_name
from swingctl.session import Session

_SERVICES = tuple(
    service.full_name
    for contract in (capacity_pb, fleet_pb, link_pb, market_pb)
    for service in contract.DESCRIPTOR.services_by_name.values()
)
_COLUMNS = (Column(title="ASKED", shortens=True), Column(title="GOOD"), Column(title="ANSWER", wraps=True))


async def check(session: Session, args: argparse.Namespace) -> int:
    """Ask for the health of each service, then for the reason of each bank; 1 where anything is not as it should be.

    Raises:
        Unreachable, TimedOut: nobody answers; there is nothing to list then.
    """
    site = await session.site(args.site)
    rows = [(name, *await _health(session, name)) for name in _SERVICES]
    banks = await session.pages(session.fleet.ListBanks, fleet_pb.ListBanksRequest(parent=site))
    rows += [(bank.name, *await _reason(session, bank.name)) for bank in banks.banks]
    if session.as_json:
        told = [{"asked": name, "is_good": is_good, "answer": answer} for name, is_good, answer in rows]
        print_json({"site": site, "checks": told}, session.terminal.out)
    else:
        session.table(
            _COLUMNS,
            [
                (short_name(name, 2) if "/" in name else name, "yes" if good else "NO", said)
                for name, good, said in rows
            ],
        )
    return 0 if all(is_good for _, is_good, _ in rows) else 1


async def _health(session: Session, service: str) -> tuple[bool, str]:
    stub = HealthStub(session.channel)
    try:
        answer = await session.call(stub.Check, health_pb2.HealthCheckRequest(service=service))
    except NotFound:
        return False, "it is not served"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return answer.status == health_pb2.HealthCheckResponse.SERVING, status.lower().replace("_", " ")


async def _reason(session: Session, bank: str) -> tuple[bool, str]:
    try:
        answer = await session.call(session.capacity.ExplainBank, capacity_pb.ExplainBankRequest(name=bank))
    except (Unreachable, TimedOut):
        raise
    except SwingbusError as fault:
        if fault.reason == "AUTHORITY_OBSERVE":
            return True, "under authority observe nothing is planned: it stays as it is"
        return False, str(fault)
    return bool(answer.explanation), answer.explanation or "no reason is given"
