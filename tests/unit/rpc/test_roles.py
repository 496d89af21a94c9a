"""The role table against the contract itself."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from swingbus.capacity.v1alpha.capacity_service_pb2 import SetLockoutRequest
from swingbus.rpc.roles import METHOD_ROLES, REQUEST_ROLES, Role, lowest, roles_for, roles_for_request

MODULES = (
    "swingbus.link.v1alpha.agent_link_service_pb2",
    "swingbus.fleet.v1alpha.fleet_service_pb2",
    "swingbus.capacity.v1alpha.capacity_service_pb2",
    "swingbus.market.v1alpha.market_service_pb2",
)


def methods() -> Iterator[tuple[str, MethodDescriptor]]:
    """Return every method of every service of the contract."""
    for module in MODULES:
        for service in importlib.import_module(module).DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}", method


CONTRACT = dict(methods())


def is_write(method: MethodDescriptor) -> bool:
    """A write carries write options (or, in the market, a request id)."""
    fields = method.input_type.fields_by_name
    return "options" in fields or "request_id" in fields


def test_every_method_of_the_contract_has_a_row_and_no_row_is_left_over() -> None:
    """A new RPC without a row is refused to everybody: this test says so before a user does."""
    standard = {f"/{s.full_name}/{m.name}" for s in health_pb2.DESCRIPTOR.services_by_name.values() for m in s.methods}
    standard |= {
        f"/{s.full_name}/{m.name}" for s in reflection_pb2.DESCRIPTOR.services_by_name.values() for m in s.methods
    }
    assert set(CONTRACT) <= set(METHOD_ROLES)
    left_over = set(METHOD_ROLES) - set(CONTRACT) - standard
    assert left_over <= {"/grpc.health.v1.Health/List", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"}
    assert set(REQUEST_ROLES) <= set(METHOD_ROLES)


@pytest.mark.parametrize("method", sorted(CONTRACT))
def test_row_agrees_with_the_comment_and_kind_of_the_method(method: str) -> None:
    """Viewers read and never write; agents have their link and nothing else; admin may whatever an operator may."""
    roles, is_link = roles_for(method), "AgentLinkService" in method
    assert (Role.AGENT in roles) is is_link
    if is_link:
        assert roles == {Role.AGENT}
    else:
        assert Role.ADMIN in roles
        assert (Role.VIEWER in roles) is not is_write(CONTRACT[method])


def test_unlisted_method_is_for_nobody() -> None:
    """Default deny."""
    assert roles_for("/swingbus.fleet.v1alpha.FleetService/DropEverything") == frozenset()
    assert lowest(frozenset()) == "nobody"


def test_lifting_a_lockout_takes_an_admin() -> None:
    """An operator may lock; hands inside depend on who lifts."""
    method = "/swingbus.capacity.v1alpha.CapacityService/SetLockout"
    assert Role.OPERATOR in roles_for_request(method, SetLockoutRequest(locked_out=True))
    assert roles_for_request(method, SetLockoutRequest(locked_out=False)) == {Role.ADMIN}
