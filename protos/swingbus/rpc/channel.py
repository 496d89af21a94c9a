"""Channels to a controller: mutual TLS and the options that keep long streams alive, set in this one place.

Decides transport settings only. The server is known by its certificate (our CA, the name `swingbus-controller`), not by its address, so a
controller that moves keeps its agents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from swingbus.bundle import Bundle

Options = Sequence[tuple[str, str | int]]

# What one message may hold: a 10,000-device inventory is about 3 MiB.
MESSAGE_MAX_BYTES = 16 * 1024 * 1024
# A rich error of ours stays below 8 KiB; one with foreign details may not.
METADATA_MAX_BYTES = 32 * 1024

TRANSPORT_OPTIONS: Options = (
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_metadata_size", METADATA_MAX_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * METADATA_MAX_BYTES),
    # Bandwidth probing enlarges HTTP/2 windows without a bound: an overloaded reader grew to 1 GB. Credit does the same job, bounded.
    ("grpc.http2.bdp_probe", 0),
    (
        "grpc.http2.max_pings_without_data",
        0,
    ),  # 0: no limit; streams that are idle for long still have to notice a dead peer
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings:
    """How a client keeps its connection.

    `keepalive_s` must not be less than the server's `min_ping_interval_s`, or the server ends the connection.
    """

    keepalive_s: float = 20.0
    keepalive_timeout_s: float = 10.0
    connect_timeout_s: float = 5.0  # also the least time between two attempts
    backoff_initial_s: float = 0.5
    backoff_max_s: float = 10.0


def channel_options(settings: ChannelSettings, server_name: str) -> Options:
    """Return the options of a client's channel."""
    return (
        *TRANSPORT_OPTIONS,
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.keepalive_time_ms", round(settings.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_s * 1000)),
        ("grpc.initial_reconnect_backoff_ms", round(settings.backoff_initial_s * 1000)),
        ("grpc.min_reconnect_backoff_ms", round(settings.connect_timeout_s * 1000)),
        ("grpc.max_reconnect_backoff_ms", round(settings.backoff_max_s * 1000)),
        # A site's controller is never behind a web proxy; an http_proxy in the environment must not catch the link.
        ("grpc.enable_http_proxy", 0),
        # Each channel has its own connection: closing one really closes it, and tests with many agents are many connections.
        ("grpc.use_local_subchannel_pool", 1),
    )


def channel_credentials(bundle: Bundle) -> grpc.ChannelCredentials:
    """Return credentials that show the bundle's certificate and accept only its CA."""
    return grpc.ssl_channel_credentials(
        root_certificates=bundle.ca_pem.encode(),
        private_key=bundle.key_pem.encode(),
        certificate_chain=bundle.certificate_pem.encode(),
    )


def open_channel(
    bundle: Bundle, *, endpoint: str | None = None, settings: ChannelSettings | None = None
) -> grpc.aio.Channel:
    """Return a channel to the bundle's endpoint, or to another one of the same controller. It connects at the first call."""
    return grpc.aio.secure_channel(
        endpoint or bundle.endpoint,
        channel_credentials(bundle),
        options=channel_options(settings or ChannelSettings(), bundle.server_name),
    )
