"""The controller's gRPC server: mutual TLS, transport options, health and reflection.

Decides transport settings only; `interceptors` is the door. A client without a certificate of our CA does not get past the handshake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from swingbus.faults import SwingbusError, Unreachable
from swingbus.logs import get_logger
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
    # gRPC's defaults (16 KiB frames, 64 KiB of them ahead) cut a container's batch in two and stop each stream after three: a sixth of
    # the server's CPU. What a stream may bring ahead is also what it can fill of our memory while we stand still.
    max_frame_bytes: int = 64 * 1024
    stream_window_bytes: int = 256 * 1024
    # Of what we send; each connection keeps a buffer of this size (16 KiB by default). An order has some hundred bytes.
    tls_record_bytes: int = 4 * 1024


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
        ("grpc.http2.max_frame_size", settings.max_frame_bytes),
        ("grpc.http2.lookahead_bytes", settings.stream_window_bytes),
        ("grpc.tsi.max_frame_size", settings.tls_record_bytes),
        # Two controllers on one port must be an error, not a lottery.
        ("grpc.so_reuseport", 0),
    )


def server_credentials(load: Callable[[], ServerIdentity]) -> grpc.ServerCredentials:
    """Return credentials that demand a client certificate of our CA, and that follow renewals without a restart.

    Args:
        load: returns the identity as it is on disk; called at every handshake, in a thread of gRPC. If it fails the last good one stays.
    """
    state = _ReloadingIdentity(load)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(state.identity),
        state.fetch,  # type: ignore[arg-type]  # the stubs forget that None means "no change"
        require_client_authentication=True,
    )


class _ReloadingIdentity:
    def __init__(self, load: Callable[[], ServerIdentity]) -> None:
        self._load = load
        self.identity = load()

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the identity if it changed, None if the one in use stays."""
        try:
            newest = self._load()
        except (SwingbusError, OSError, ValueError) as error:
            get_logger().error("server_identity_rejected", message=str(error))
            return None
        if newest == self.identity:
            return None
        self.identity = newest
        get_logger().info("server_identity_read")
        return _configuration(newest)


def _configuration(identity: ServerIdentity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key_pem.encode(), identity.certificate_pem.encode())], root_certificates=identity.ca_pem.encode()
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
    """Bind `host:port` (port 0 picks one) and return the port. Raises Unreachable if it is taken or not of this host."""
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:  # gRPC says the same for every cause; the errno is only in its own log
        raise Unreachable(
            f"cannot listen on {address}: {error} Is another controller running there, or is this address of another host?",
            reason="CANNOT_LISTEN",
            metadata={"address": address},
        ) from error
    if port == 0:
        raise Unreachable(f"cannot listen on {address}", reason="CANNOT_LISTEN", metadata={"address": address})
    return port
