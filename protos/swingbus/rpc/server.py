"""The controller's gRPC server: mutual TLS, transport options, health and reflection.

Decides transport settings only; `interceptors` is the door. A client without a certificate of our CA does not get past the handshake.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from swingbus.faults import Unreachable, WrongState
from swingbus.rpc.channel import TRANSPORT_OPTIONS, Options
from swingbus.rpc.interceptors import DoorInterceptor


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """What the server shows, and whom it believes. All PEM. `key_pem` is left out of repr."""

    ca_pem: str
    certificate_pem: str
    key_pem: str

    def __repr__(self) -> str:
        return "ServerIdentity(...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the server keeps connections."""

    keepalive_s: float = 30.0
    keepalive_timeout_s: float = 10.0
    # gRPC's default of five minutes ends idle streams of clients that ping more often.
    min_ping_interval_s: float = 10.0
    # Connections are renewed (gRPC adds ±10 %), so that new certificates and deny lists reach long streams. The grace lets clients
    # open the next stream first; without it the age alone leaves streams up for ever.
    max_connection_age_s: float = 3600.0
    max_connection_grace_s: float = 30.0
    max_concurrent_streams: int = 256  # of one connection


def server_options(settings: ServerSettings) -> Options:
    """Return the options of the server."""
    return (
        *TRANSPORT_OPTIONS,
        ("grpc.keepalive_time_ms", round(settings.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_s * 1000)),
        ("grpc.http2.min_ping_interval_without_data_ms", round(settings.min_ping_interval_s * 1000)),
        ("grpc.max_connection_age_ms", round(settings.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", round(settings.max_connection_grace_s * 1000)),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        # Two controllers on one port must be an error, not a lottery.
        ("grpc.so_reuseport", 0),
    )


def server_credentials(identity: ServerIdentity) -> grpc.ServerCredentials:
    """Return credentials that demand a client certificate of our CA."""
    return grpc.ssl_server_credentials(
        [(identity.key_pem.encode(), identity.certificate_pem.encode())],
        root_certificates=identity.ca_pem.encode(),
        require_client_auth=True,
    )


def build_server(door: DoorInterceptor, settings: ServerSettings | None = None) -> grpc.aio.Server:
    """Return a server without services and ports; call it inside the event loop."""
    return grpc.aio.server(interceptors=[door], options=server_options(settings or ServerSettings()))


def add_health_and_reflection(server: grpc.aio.Server, services: Iterable[str]) -> health.aio.HealthServicer:
    """Add the standard services for these full service names; return the health servicer, everything NOT_SERVING.

    Call `await set_serving(health, services)` once the controller is ready, and `await health.enter_graceful_shutdown()` before it stops.
    """
    names = sorted(services)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return servicer


async def set_serving(servicer: health.aio.HealthServicer, services: Iterable[str], *, serving: bool = True) -> None:
    """Tell the health service that these services (and the server as a whole) are or are not ready."""
    status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", *services):
        await servicer.set(name, status)


def bind_port(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    """Bind `host:port` (port 0 picks one) and return the port. Raises WrongState if it is taken, Unreachable if it cannot be bound."""
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        text = str(error)
        if "in use" in text.lower():
            raise WrongState(
                f"{address} is in use: is another controller running? Stop it or choose another address",
                reason="ADDRESS_IN_USE",
                metadata={"address": address},
            ) from error
        raise Unreachable(
            f"cannot listen on {address}: {text}; is this address of this host?",
            reason="CANNOT_LISTEN",
            metadata={"address": address},
        ) from error
    if port == 0:
        raise Unreachable(f"cannot listen on {address}", reason="CANNOT_LISTEN", metadata={"address": address})
    return port
