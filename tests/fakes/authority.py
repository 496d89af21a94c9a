"""A certificate authority and a gRPC server on loopback for tests: real mutual TLS, nothing of the controller but its PKI."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import grpc.aio

from swingbus.bundle import Bundle
from swingbus.clock import Clock, SystemClock
from swingbus.rpc.interceptors import DenyList, DoorInterceptor
from swingbus.rpc.roles import Role
from swingbus.rpc.server import (
    ServerSettings,
    add_health_and_reflection,
    bind_port,
    build_server,
    server_credentials,
    set_serving,
)
from swingbus_controller.adapters.pki import CertificateAuthority
from swingbus_controller.adapters.server_files import ServerFiles

SERVICES = (
    "swingbus.fleet.v1alpha.FleetService",
    "swingbus.capacity.v1alpha.CapacityService",
    "swingbus.market.v1alpha.MarketService",
    "swingbus.link.v1alpha.AgentLinkService",
)


def make_authority(directory: Path, now: datetime | None = None) -> CertificateAuthority:
    """Make a CA with a server certificate for localhost."""
    return CertificateAuthority.create(directory, server_names=[], endpoint=None, now=now or datetime.now(UTC))


def issue(authority: CertificateAuthority, name: str, role: Role, port: int, now: datetime | None = None) -> Bundle:
    """Issue a bundle for a server on a loopback port."""
    bundle = authority.issue(name, role, now=now or datetime.now(UTC), renew=False)
    return replace(bundle, endpoint=f"127.0.0.1:{port}")


class Shown(Protocol):
    """Whose certificate a server shows: an authority's, or a folder of somebody else's."""

    @property
    def serving(self) -> ServerFiles: ...


@asynccontextmanager
async def serving(
    authority: Shown,
    register: Callable[[grpc.aio.Server], None],
    *,
    deny_list: DenyList | None = None,
    clock: Clock | None = None,
    settings: ServerSettings | None = None,
) -> AsyncIterator[int]:
    """Run a server with the services that `register` adds; yield its port."""
    server = build_server(DoorInterceptor(clock or SystemClock(), deny_list), settings)
    register(server)
    health = add_health_and_reflection(server, SERVICES)
    port = bind_port(server, "127.0.0.1:0", server_credentials(authority.serving.identity))
    await server.start()
    await set_serving(health, SERVICES)
    try:
        yield port
    finally:
        await server.stop(0)
