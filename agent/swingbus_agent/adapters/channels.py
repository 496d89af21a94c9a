"""Channels to the controller, opened with the bundle as it is on disk now: a renewed certificate needs no restart.

Decides whether a bundle that was put there may replace the one in use. Refuses to know what is said over a channel. Invariant: a
bundle that is missing, unreadable, another's, or that fails a handshake with itself replaces nothing; it is told once, and the one
before stays.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc.aio

from swingbus.bundle import Bundle, load_bundle
from swingbus.faults import InvalidInput, SwingbusError
from swingbus.rpc.channel import TRANSPORT_OPTIONS, open_channel

Tell = Callable[[str, str], None]  # kind, message
_FLIGHTS_COUNT = 8  # a handshake takes three, of each side


class LoopbackChannels:
    """Channels without TLS to a controller on this host; for tests."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def is_renewed(self) -> bool:
        """Return False: there is nothing to renew."""
        return False

    def open(self) -> grpc.aio.Channel:
        """Return a new channel."""
        return grpc.aio.insecure_channel(self.endpoint, options=list(TRANSPORT_OPTIONS))


class BundleChannels:
    """Channels that show the newest good bundle of one agent.

    Args:
        path: the bundle file that `swingbus-agent join` writes.
        agent: whose bundle it must be.
        endpoint: where the controller is; empty means what the bundle says.

    Raises:
        SwingbusError: there is no bundle of this agent to begin with. One that has run out will do: miners are cared for without a
            controller too, and its successor is found here.
    """

    def __init__(self, path: Path, *, agent: str, endpoint: str = "") -> None:
        self._path = path
        self._agent = agent
        self._endpoint = endpoint
        self._tell: Tell | None = None
        self._looked_at = _mark(path)
        self._bundle = self._load()
        self._shown = self._bundle

    def tell_to(self, tell: Tell) -> None:
        """Say to whom renewals and bundles that are no good are told."""
        self._tell = tell

    @property
    def endpoint(self) -> str:
        """Return where the controller is."""
        return self._endpoint or self._bundle.endpoint

    def is_renewed(self) -> bool:
        """Look at the disk; tell whether a channel that is opened now shows another certificate than the last one."""
        mark = _mark(self._path)
        if mark != self._looked_at:
            self._looked_at = mark
            try:
                bundle = self._load()
                _check(bundle, self._path)
                self._take(bundle)
            except SwingbusError as error:
                self._say(
                    "bundle_refused",
                    f"{error}; the certificate in use stays, it runs out {self._bundle.expires:%Y-%m-%d}",
                )
        return self._bundle != self._shown

    def open(self) -> grpc.aio.Channel:
        """Return a new channel."""
        self._shown = self._bundle
        return open_channel(self._bundle, endpoint=self.endpoint)

    def _take(self, bundle: Bundle) -> None:
        if bundle != self._bundle:
            self._bundle = bundle
            self._say(
                "bundle_renewed", f"the certificate {bundle.serial} is in use, it runs out {bundle.expires:%Y-%m-%d}"
            )

    def _load(self) -> Bundle:
        bundle = load_bundle(self._path)
        if bundle.name != self._agent:
            raise InvalidInput(
                f"{self._path} is the bundle of {bundle.name!r}, the configuration is of {self._agent!r}; join with the right bundle",
                reason="OTHER_AGENT",
            )
        return bundle

    def _say(self, kind: str, message: str) -> None:
        if self._tell is not None:
            self._tell(kind, message)


def _mark(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when the file is replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_mode


def _check(bundle: Bundle, path: Path) -> None:
    try:
        _shake_hands(bundle)
    except (OSError, ValueError) as error:  # all of ssl's errors are OSErrors
        raise InvalidInput(
            f"{path} holds no certificate that a controller could accept ({error}); join with a new bundle",
            reason="BAD_BUNDLE",
        ) from error


def _shake_hands(bundle: Bundle) -> None:
    """Show the bundle to itself as a controller would see it: key, signature, purpose and dates.

    Raises:
        OSError, ValueError: what is wrong.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The ssl module takes a key from a file only; this one is in memory and has no name.
    held = os.memfd_create("bundle")
    try:
        os.write(held, f"{bundle.key_pem}\n{bundle.certificate_pem}\n".encode())
        for context in (server, client):
            context.load_cert_chain(f"/proc/self/fd/{held}")
    finally:
        os.close(held)
    server.load_verify_locations(cadata=bundle.ca_pem)
    server.verify_mode = ssl.CERT_REQUIRED
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE  # only the holder is judged here; gRPC judges the controller
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(_FLIGHTS_COUNT):
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
    if ends:
        raise ValueError("the handshake does not end")
