"""Who may call what: one row per method of every service. A method without a row is refused to everybody.

Decides by method and, in one case, by request. Refuses to know who calls; `interceptors` brings the two together.
Agents reach the agent link and nothing else; viewer < operator < admin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    """What a certificate says its holder is."""

    AGENT = "agent"
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


_AGENT = frozenset({Role.AGENT})
_VIEWER = frozenset({Role.VIEWER, Role.OPERATOR, Role.ADMIN})
_OPERATOR = frozenset({Role.OPERATOR, Role.ADMIN})
_ADMIN = frozenset({Role.ADMIN})


def _rows(service: str, roles: frozenset[Role], *methods: str) -> dict[str, frozenset[Role]]:
    return {f"/{service}/{method}": roles for method in methods}


_LINK = "swingbus.link.v1alpha.AgentLinkService"
_FLEET = "swingbus.fleet.v1alpha.FleetService"
_CAPACITY = "swingbus.capacity.v1alpha.CapacityService"
_MARKET = "swingbus.market.v1alpha.MarketService"

METHOD_ROLES: Mapping[str, frozenset[Role]] = {
    **_rows(_LINK, _AGENT, "StreamTelemetry", "StreamControl"),
    **_rows(
        _FLEET,
        _VIEWER,
        "ListSites",
        "GetSite",
        "ListFeeders",
        "GetFeeder",
        "ListAgents",
        "GetAgent",
        "ListBanks",
        "GetBank",
        "ListDevices",
        "GetDevice",
        "ListEvents",
        "WatchEvents",
        "VerifySequences",
        "ListMeterIntervals",
    ),
    **_rows(
        _CAPACITY,
        _VIEWER,
        "GetPlan",
        "ExplainBank",
        "ListFlips",
        "GetFlip",
        "ListCurtailments",
        "GetCurtailment",
        "ListPins",
        "ListLockouts",
        "ListReservations",
    ),
    **_rows(
        _CAPACITY,
        _OPERATOR,
        "RequestFlip",
        "CancelFlip",
        "StartCurtailment",
        "EndCurtailment",
        "SetPin",
        "SetLockout",
        "CreateReservation",
        "EndReservation",
    ),
    **_rows(_CAPACITY, _ADMIN, "SetFeederLimit", "SetAuthority"),
    **_rows(_MARKET, _VIEWER, "ListSignals"),
    **_rows(_MARKET, _OPERATOR, "PushSignals"),
    **_rows("grpc.health.v1.Health", _VIEWER, "Check", "Watch", "List"),
    **_rows("grpc.reflection.v1alpha.ServerReflection", _VIEWER, "ServerReflectionInfo"),
    **_rows("grpc.reflection.v1.ServerReflection", _VIEWER, "ServerReflectionInfo"),
}


def _lockout_roles(request: Any) -> frozenset[Role]:
    """Lock: operator. Lift: admin, since people's hands depend on it."""
    return _OPERATOR if request.locked_out else _ADMIN


# Methods whose request decides: looked at after METHOD_ROLES let the caller in, unary requests only.
REQUEST_ROLES: Mapping[str, Callable[[Any], frozenset[Role]]] = {f"/{_CAPACITY}/SetLockout": _lockout_roles}


def roles_for(method: str) -> frozenset[Role]:
    """Return the roles that may call a full method name (`/package.Service/Method`); nobody by default."""
    return METHOD_ROLES.get(method, frozenset())


def roles_for_request(method: str, request: object) -> frozenset[Role]:
    """Return the roles that may send this very request."""
    rule = REQUEST_ROLES.get(method)
    return roles_for(method) & rule(request) if rule is not None else roles_for(method)


def lowest(roles: frozenset[Role]) -> str:
    """Return the least powerful role of a set, for messages; `nobody` for the empty set."""
    return next((role.value for role in Role if role in roles), "nobody")
