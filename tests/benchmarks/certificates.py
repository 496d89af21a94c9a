"""A certificate authority of the bench's own and many bundles of it, by the program's own code."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from swingbus.bundle import Bundle, format_bundle, write_private
from swingbus.rpc.roles import Role
from swingbus_controller.adapters.pki import CertificateAuthority

VIEWER = "bench-viewer"
ADMIN = "bench-admin"


def make_authority(folder: Path, agents: Iterable[str]) -> Path:
    """Make an authority in `folder`/pki and one bundle file per name in `folder`/bundles; return the latter."""
    now = datetime.now(tz=UTC)
    authority = CertificateAuthority.create(folder / "pki", server_names=["127.0.0.1"], endpoint=None, now=now)
    bundles = folder / "bundles"
    bundles.mkdir()
    roles = {**dict.fromkeys(agents, Role.AGENT), VIEWER: Role.VIEWER, ADMIN: Role.ADMIN}
    for name, role in roles.items():
        _write(bundles, authority.issue(name, role, now=now))
    return bundles


def _write(folder: Path, bundle: Bundle) -> None:
    write_private(folder / f"{bundle.name}.toml", format_bundle(bundle))
