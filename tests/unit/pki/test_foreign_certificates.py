"""Certificates that cert-manager made: what the controller shows of them, what a holder's folder amounts to, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from swingbus.bundle import format_bundle, parse_bundle
from swingbus.faults import InvalidInput, NotFound
from swingbus.rpc.tls_folder import read_tls_folder
from swingbus_agent.main import main as agent_main
from swingbus_controller.adapters.server_files import ServerFiles
from tests.fakes.cert_manager import CertManager, write_folder

ISSUER, STRANGER = CertManager(), CertManager()
SERVER = ISSUER.server(["swingbus-controller", "swingbus-controller.swingbus-system.svc"])
AGENT = ISSUER.client("gpu-1", "swingbus:role:agent")
_END = "controller.example:7443"


@pytest.mark.parametrize("is_rsa", [True, False])
def test_server_shows_what_cert_manager_wrote(tmp_path: Path, is_rsa: bool) -> None:
    """Both of its key formats, as they are."""
    secret = ISSUER.server(["swingbus-controller"], is_rsa=is_rsa)
    identity = ServerFiles(write_folder(tmp_path, secret)).identity()
    assert (identity.certificate_pem, identity.key_pem, identity.ca_pem) == tuple(secret.values())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "tls.key").write_text(STRANGER.server(["x"])["tls.key"]), "is not the key of the certificate"),
        (
            lambda f: write_folder(f, ISSUER.server(["other.example"])),
            "is for other.example; agents look for swingbus-",
        ),
        (lambda f: (f / "tls.crt").write_text("nothing"), "holds no PEM certificate"),
        (lambda f: (f / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\nx\n"), "holds no PEM certificate"),
        (lambda f: (f / "tls.key").write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n"), "holds no PEM certificate"),
        (lambda f: (f / "ca.crt").write_bytes(b"\xff"), "cannot be read"),
    ],
)
def test_server_that_nobody_could_believe_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    """Told at the start, with the next step, and without a word of the key."""
    spoil(write_folder(tmp_path, SERVER))
    with pytest.raises(InvalidInput, match=words) as refused:
        ServerFiles(tmp_path).identity()
    assert "c2VjcmV0" not in str(refused.value) and "BEGIN" not in str(refused.value)


def test_missing_files_are_told_by_name(tmp_path: Path) -> None:
    """Of either layout."""
    with pytest.raises(
        NotFound, match=r"has no tls.crt: it needs server.pem and ca.pem .*or tls.crt, tls.key and ca.crt"
    ):
        ServerFiles(tmp_path).identity()
    write_folder(tmp_path, {name: SERVER[name] for name in ("tls.crt", "tls.key")})
    with pytest.raises(NotFound, match=r"has no ca.crt"):
        ServerFiles(tmp_path).identity()


@pytest.mark.parametrize("is_rsa", [True, False])
def test_holders_folder_is_a_bundle(tmp_path: Path, is_rsa: bool) -> None:
    """Name, role, serial and end are the certificate's; it reads back as any bundle."""
    secret = ISSUER.client("gpu-1", "spiffe://x/y", "swingbus:role:agent", is_rsa=is_rsa)
    bundle = read_tls_folder(write_folder(tmp_path, secret), _END)
    assert (bundle.name, bundle.role, bundle.endpoint) == ("gpu-1", "agent", _END)
    again = parse_bundle(format_bundle(bundle))
    assert (again.serial, again.key_pem.strip()) == (bundle.serial, secret["tls.key"].strip())


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        (ISSUER.client("gpu-1"), "one URI swingbus:role:ROLE"),
        (ISSUER.client("gpu-1", "swingbus:role:king"), "one URI swingbus:role:ROLE"),
        (ISSUER.client("gpu-1", "swingbus:role:agent", "swingbus:role:admin"), "one URI swingbus:role:ROLE"),
        ({**AGENT, "tls.key": STRANGER.client("x")["tls.key"]}, "is not the key of the certificate"),
        ({**AGENT, "tls.crt": "nothing"}, "holds no PEM certificate"),
    ],
)
def test_folder_of_nobody_is_refused(tmp_path: Path, secret: dict[str, str], words: str) -> None:
    """Before it goes anywhere."""
    with pytest.raises(InvalidInput, match=words):
        read_tls_folder(write_folder(tmp_path, secret), _END)


def test_folder_needs_an_endpoint_privacy_and_all_its_files(tmp_path: Path) -> None:
    """Each told with what to do."""
    with pytest.raises(InvalidInput, match="say --endpoint HOST:PORT"):
        read_tls_folder(write_folder(tmp_path, AGENT), None)
    with pytest.raises(InvalidInput, match=r"others may read it \(mode 0644\): chmod 600"):
        read_tls_folder(write_folder(tmp_path, AGENT, mode=0o644), _END)
    (tmp_path / "tls.key").unlink()
    with pytest.raises(NotFound, match=r"has no tls.key"):
        read_tls_folder(tmp_path, _END)


def test_agent_joins_with_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the chart's first container does; a renewed certificate goes over the old one, and an endpoint can be told of a bundle too."""
    config = tmp_path / "agent.toml"
    config.write_text(f'name = "gpu-1"\nstate_dir = "{tmp_path}/state"\n')
    folder = str(write_folder(tmp_path / "tls", AGENT))
    assert agent_main(["join", folder, "--config", str(config), "--endpoint", _END]) == 0
    installed = tmp_path / "state" / "bundle" / "bundle.toml"
    assert parse_bundle(installed.read_text()).key_pem.strip() == AGENT["tls.key"].strip()
    renewed = ISSUER.client("gpu-1", "swingbus:role:agent")
    write_folder(tmp_path / "tls", renewed)
    assert agent_main(["join", folder, "--config", str(config), "--endpoint", "10.0.0.9"]) == 0
    held = parse_bundle(installed.read_text())
    assert (held.key_pem.strip(), held.endpoint) == (renewed["tls.key"].strip(), "10.0.0.9:7443")
    copy = tmp_path / "copy.toml"
    copy.write_text(installed.read_text())
    copy.chmod(0o600)
    assert agent_main(["join", str(copy), "--config", str(config), "--endpoint", "[::1]:1"]) == 0
    assert parse_bundle(installed.read_text()).endpoint == "[::1]:1"
    capsys.readouterr()
    assert agent_main(["join", folder, "--config", str(config)]) != 0
    assert "say --endpoint HOST:PORT" in capsys.readouterr().err
