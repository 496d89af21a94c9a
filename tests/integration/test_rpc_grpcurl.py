"""grpcurl, a client that is not ours, against the real door: what docs/protocol.md promises to other tools."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from swingbus.bundle import Bundle
from swingbus.rpc.roles import Role
from tests.fakes.authority import issue, make_authority, serving
from tests.fakes.site_services import north

GRPCURL = Path(sys.executable).parent / "grpcurl"
pytestmark = pytest.mark.skipif(not GRPCURL.exists(), reason="grpcurl is not installed beside this Python")


def write_pems(folder: Path, bundle: Bundle) -> None:
    """Write a bundle's parts where grpcurl finds them."""
    folder.mkdir(exist_ok=True)
    for name, text in (("ca.pem", bundle.ca_pem), ("cert.pem", bundle.certificate_pem), ("key.pem", bundle.key_pem)):
        (folder / name).write_text(text)


async def grpcurl(
    folder: Path, bundle: Bundle, *words: str, with_certificate: bool = True, body: str = ""
) -> tuple[int, str]:
    """Run grpcurl with a bundle's PEM files; return its exit code and everything that it printed."""
    write_pems(folder, bundle)
    identity = ["-cert", str(folder / "cert.pem"), "-key", str(folder / "key.pem")] if with_certificate else []
    process = await asyncio.create_subprocess_exec(
        str(GRPCURL),
        "-cacert",
        str(folder / "ca.pem"),
        *identity,
        "-servername",
        "swingbus-controller",
        "-max-time",
        "5" if with_certificate else "2",
        *(["-d", body] if body else []),
        bundle.endpoint,
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_grpcurl_lists_reads_and_is_refused_like_any_client(tmp_path: Path) -> None:
    """Reflection, a read, a write refused with its reason, and no connection without a certificate."""
    authority = make_authority(tmp_path / "pki")
    site = north()
    async with serving(authority, site.register) as port:
        viewer = issue(authority, "guest", Role.VIEWER, port)
        code, text = await grpcurl(tmp_path / "v", viewer, "list")
        assert code == 0 and "swingbus.fleet.v1alpha.FleetService" in text.splitlines()

        fleet = "swingbus.fleet.v1alpha.FleetService"
        code, text = await grpcurl(tmp_path / "v", viewer, f"{fleet}/GetSite", body='{"name": "sites/north"}')
        assert code == 0 and json.loads(text)["site"]["limit_w"] == 600_000

        write = "swingbus.capacity.v1alpha.CapacityService/SetAuthority"
        code, text = await grpcurl(tmp_path / "v", viewer, write, body='{"name": "sites/north"}')
        assert code != 0 and "PermissionDenied" in text and '"reason":"ROLE_NOT_ALLOWED"' in text.replace('": "', '":"')
        assert site.writes == []

        code, text = await grpcurl(tmp_path / "v", viewer, "list", with_certificate=False)
        assert code != 0 and "swingbus" not in text

        stranger = issue(make_authority(tmp_path / "other"), "guest", Role.ADMIN, port)
        code, text = await grpcurl(tmp_path / "s", stranger, "list")
        assert code != 0 and "swingbus.fleet" not in text
