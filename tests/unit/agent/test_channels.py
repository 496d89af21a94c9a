"""A bundle on disk replaces the one in use only if a controller could accept it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from swingbus.bundle import BUNDLE_FILE, Bundle, format_bundle, install_bundle, write_private
from swingbus.faults import InvalidInput, NotFound
from swingbus.rpc.roles import Role
from swingbus_agent.adapters.channels import BundleChannels
from swingbus_controller.adapters.pki import CertificateAuthority
from tests.fakes.authority import issue, make_authority

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=800)


class Host:
    """A folder with the bundle in use, the channels that look at it, and what they told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bundle"
        self.path = self.folder / BUNDLE_FILE
        self.authority = make_authority(folder / "pki", LONG_AGO)
        self.names: set[str] = set()
        self.first = self.issued()
        install_bundle(self.first, self.folder)
        self.channels = BundleChannels(self.path, agent="edge-1")
        self.told: list[tuple[str, str]] = []
        self.channels.tell_to(lambda kind, message: self.told.append((kind, message)))

    def issued(
        self, name: str = "edge-1", now: datetime = NOW, authority: CertificateAuthority | None = None
    ) -> Bundle:
        """Return a new bundle."""
        if authority is None and name in self.names:
            bundle = self.authority.issue(name, Role.AGENT, now=now, renew=True)
        else:
            bundle = (authority or self.authority).issue(name, Role.AGENT, now=now)
            self.names.add(name)
        return replace(bundle, endpoint="127.0.0.1:7443")


async def test_renewed_bundle_is_used_from_the_next_channel_on(tmp_path: Path) -> None:
    """It is told once, and nothing more is new once a channel shows it."""
    host = Host(tmp_path)
    assert not host.channels.is_renewed()
    second = host.issued()
    install_bundle(second, host.folder)
    assert host.channels.is_renewed() and host.channels.is_renewed()
    async with host.channels.open():
        assert not host.channels.is_renewed()
    assert [kind for kind, _ in host.told] == ["bundle_renewed"]
    assert second.serial in host.told[0][1]


def servers(host: Host) -> Bundle:
    """Return a bundle with the controller's own certificate and key: whole, but good for servers only."""
    identity = host.authority.serving.identity()
    return replace(host.first, certificate_pem=identity.certificate_pem, key_pem=identity.key_pem)


BROKEN: dict[str, Callable[[Host, Path], None]] = {
    "gone": lambda host, _: host.path.unlink(),
    "no bundle": lambda host, _: write_private(host.path, "half a file"),
    "another agent's": lambda host, _: write_private(host.path, format_bundle(host.issued("edge-2"))),
    "another key": lambda host, _: write_private(
        host.path, format_bundle(replace(host.issued(), key_pem=host.first.key_pem))
    ),
    "run out": lambda host, _: write_private(host.path, format_bundle(host.issued(now=LONG_AGO))),
    "another CA": lambda host, folder: write_private(
        host.path,
        format_bundle(replace(host.issued(authority=make_authority(folder / "other")), ca_pem=host.first.ca_pem)),
    ),
    "a server's": lambda host, _: write_private(host.path, format_bundle(servers(host))),
    "for all to read": lambda host, _: host.path.chmod(0o644),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_bundle_replaces_nothing_and_is_told_once(tmp_path: Path, what: str) -> None:
    """The one in use stays, and a good one that follows is taken."""
    host = Host(tmp_path)
    BROKEN[what](host, tmp_path)
    assert not host.channels.is_renewed() and not host.channels.is_renewed()
    assert [kind for kind, _ in host.told] == ["bundle_refused"]
    assert "the certificate in use stays" in host.told[0][1]
    write_private(host.path, format_bundle(host.issued()))
    assert host.channels.is_renewed()


def test_agent_starts_with_a_bundle_that_has_run_out(tmp_path: Path) -> None:
    """Miners are cared for without a controller too; without any bundle, or with another's, it says so."""
    authority = make_authority(tmp_path / "pki", LONG_AGO)
    path = install_bundle(issue(authority, "edge-1", Role.AGENT, 7443, LONG_AGO), tmp_path / "bundle")
    channels = BundleChannels(path, agent="edge-1", endpoint="10.0.0.7:7443")
    assert not channels.is_renewed() and channels.endpoint == "10.0.0.7:7443"
    with pytest.raises(InvalidInput, match="edge-1"):
        BundleChannels(path, agent="edge-2")
    with pytest.raises(NotFound):
        BundleChannels(tmp_path / "nowhere", agent="edge-1")
