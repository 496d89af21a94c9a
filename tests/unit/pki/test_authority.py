"""The certificate authority: issue, list, renew, deny, rotate, and what can go wrong with its files."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from swingbus.bundle import format_bundle, parse_bundle
from swingbus.faults import AlreadyExists, InvalidInput, NotFound, SwingbusError, WrongState
from swingbus.rpc.caller import caller_from_certificate
from swingbus.rpc.roles import Role
from swingbus_controller.adapters.pki import CertificateAuthority
from swingbus_controller.adapters.pki_records import DenyListFile, parse_deny_list

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    """Make a CA."""
    return CertificateAuthority.create(tmp_path / "pki", server_names=["10.0.0.5", "c.example"], endpoint=None, now=NOW)


def states(authority: CertificateAuthority, now: datetime) -> dict[str, list[str]]:
    """Return states by name."""
    found: dict[str, list[str]] = {}
    for state in authority.states(now):
        found.setdefault(state.certificate.name, []).append(state.state)
    return found


def test_everything_written_is_private(authority: CertificateAuthority) -> None:
    """Keys, index and all: nobody else reads this directory."""
    assert stat.S_IMODE(authority.directory.stat().st_mode) == 0o700
    files = list(authority.directory.iterdir())
    assert len(files) >= 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_two_authorities_share_no_secret(tmp_path: Path) -> None:
    """No default key anywhere."""
    keys = set()
    for name in ("a", "b"):
        made = CertificateAuthority.create(tmp_path / name, server_names=[], endpoint=None, now=NOW)
        keys |= {(made.directory / "ca-key.pem").read_text(), made.serving.identity().key_pem}
    assert len(keys) == 4


def test_issued_certificate_is_p256_for_clients_only_and_signed_by_the_ca(authority: CertificateAuthority) -> None:
    """And its bundle reads back whole, with the endpoint that init was told."""
    bundle = authority.issue("edge-1", Role.AGENT, now=NOW)
    assert parse_bundle(format_bundle(bundle)) == bundle
    assert bundle.endpoint == "10.0.0.5:7443"
    certificate = x509.load_pem_x509_certificate(bundle.certificate_pem.encode())
    key = serialization.load_pem_private_key(bundle.key_pem.encode(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
    assert key.public_key() == certificate.public_key()
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(bundle.ca_pem.encode()))
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    caller = caller_from_certificate(certificate)
    assert (caller.name, caller.role, caller.serial, caller.not_after) == (
        "edge-1",
        Role.AGENT,
        bundle.serial,
        bundle.expires,
    )


def test_server_certificate_holds_every_name(authority: CertificateAuthority) -> None:
    """Local names, the name that agents know, and what init was told."""
    certificate = x509.load_pem_x509_certificate(authority.serving.identity().certificate_pem.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"swingbus-controller", "localhost", "c.example"}
    assert {str(a) for a in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1", "10.0.0.5"}


def test_second_init_in_the_same_place_is_refused(authority: CertificateAuthority) -> None:
    """It would lock out everybody."""
    with pytest.raises(AlreadyExists, match="lock out"):
        CertificateAuthority.create(authority.directory, server_names=[], endpoint=None, now=NOW)


@pytest.mark.parametrize("name", ["http://x", "a b", "host:7443", "-x", ""])
def test_bad_server_name_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    """A typo leaves no half-made authority."""
    with pytest.raises(InvalidInput):
        CertificateAuthority.create(tmp_path / "pki", server_names=[name], endpoint=None, now=NOW)
    assert not (tmp_path / "pki").exists()


def test_name_in_use_needs_a_renewal(authority: CertificateAuthority) -> None:
    """A second valid certificate for one name is on purpose only; after expiry the name is free."""
    authority.issue("edge-1", Role.AGENT, now=NOW, days=10)
    with pytest.raises(AlreadyExists, match="use certificate renew"):
        authority.issue("edge-1", Role.AGENT, now=NOW)
    authority.issue("edge-1", Role.AGENT, now=NOW + timedelta(days=11))


@pytest.mark.parametrize("name", ["controller", "planner", "swingbus-controller"])
def test_names_that_the_record_uses_are_refused(authority: CertificateAuthority, name: str) -> None:
    """Nobody writes as the planner, nobody looks like the controller."""
    with pytest.raises(InvalidInput, match="controller's own"):
        authority.issue(name, Role.ADMIN, now=NOW)


def test_agents_and_people_share_no_names(authority: CertificateAuthority) -> None:
    """Authors on the record are not mistaken."""
    authority.issue("edge-1", Role.AGENT, now=NOW)
    with pytest.raises(AlreadyExists, match="an agent's name"):
        authority.issue("edge-1", Role.ADMIN, now=NOW)


def test_renewal_supersedes_and_needs_a_holder(authority: CertificateAuthority) -> None:
    """The old one counts until it expires or is denied."""
    old = authority.issue("edge-1", Role.AGENT, now=NOW)
    new = authority.issue("edge-1", authority.held_role("edge-1", NOW), now=NOW, renew=True)
    assert old.serial != new.serial and old.key_pem != new.key_pem
    assert states(authority, NOW)["edge-1"] == ["superseded", "valid"]
    with pytest.raises(NotFound, match="never had"):
        authority.issue("edge-2", Role.AGENT, now=NOW, renew=True)
    with pytest.raises(NotFound):
        authority.held_role("edge-2", NOW)


def test_expiry_is_shown_before_and_after(authority: CertificateAuthority) -> None:
    """Warned from 30 days before, with the command that helps."""
    authority.issue("edge-1", Role.AGENT, now=NOW, days=60)
    assert authority.warnings(NOW) == []
    (line,) = authority.warnings(NOW + timedelta(days=40))
    assert (
        line
        == "the certificate of agent edge-1 expires in 20 days: swingbus-controller certificate renew --agent edge-1"
    )
    assert states(authority, NOW + timedelta(days=40))["edge-1"] == ["expiring"]
    assert states(authority, NOW + timedelta(days=61))["edge-1"] == ["expired"]
    assert "expired 1 days ago" in authority.warnings(NOW + timedelta(days=61))[0]
    late = "\n".join(authority.warnings(NOW + timedelta(days=3400)))
    assert "certificate authority expires" in late and "renew --server" in late


@pytest.mark.parametrize(
    ("days", "problem"), [(0, "at least one"), (-3, "at least one"), (4000, "authority's own end")]
)
def test_bad_lifetime_is_refused(authority: CertificateAuthority, days: int, problem: str) -> None:
    """Never longer than the CA itself."""
    with pytest.raises(InvalidInput, match=problem):
        authority.issue("edge-1", Role.AGENT, now=NOW, days=days)
    assert "edge-1" not in states(authority, NOW)


def test_denied_certificate_is_on_the_list_of_a_running_controller(authority: CertificateAuthority) -> None:
    """Written by one process, seen by another without a restart; written serials in any usual form are read."""
    bundle = authority.issue("edge-1", Role.AGENT, now=NOW)
    running = DenyListFile(authority.serving.deny_list_path)
    assert not running.is_denied(bundle.serial)
    colons = ":".join(bundle.serial.upper()[i : i + 2] for i in range(0, len(bundle.serial), 2))
    authority.deny(colons, comment="lost\n# not a second line")
    assert running.is_denied(bundle.serial)
    assert states(authority, NOW)["edge-1"] == ["denied"]
    with pytest.raises(NotFound, match="certificate list"):
        authority.deny("abcdef", comment="?")


def test_bad_deny_list_keeps_the_last_good_one(authority: CertificateAuthority) -> None:
    """A typo in an emergency lets nobody back in; at start it is an error."""
    bundle = authority.issue("edge-1", Role.AGENT, now=NOW)
    authority.deny(bundle.serial, comment="lost")
    running = DenyListFile(authority.serving.deny_list_path)
    authority.serving.deny_list_path.write_text("not hexadecimal\n")
    assert running.is_denied(bundle.serial)
    with pytest.raises(InvalidInput, match="line 1"):
        DenyListFile(authority.serving.deny_list_path)
    authority.serving.deny_list_path.unlink()
    assert not running.is_denied(bundle.serial)


def test_deny_list_reads_comments_and_blanks() -> None:
    """People edit it."""
    assert parse_deny_list("# all\n\n  0x0A1b  # lost\n", "x") == {"a1b"}


def test_rotation_keeps_everybody_until_it_is_finished(authority: CertificateAuthority) -> None:
    """And refuses to finish while somebody would be locked out."""
    authority.issue("edge-1", Role.AGENT, now=NOW)
    before = authority.serving.identity()
    authority.rotate(now=NOW + timedelta(hours=1))
    again = CertificateAuthority(authority.directory)
    assert again.is_rotating
    assert again.serving.identity().certificate_pem == before.certificate_pem
    assert before.ca_pem in again.serving.identity().ca_pem
    with pytest.raises(WrongState, match="edge-1"):
        again.finish_rotation(now=NOW + timedelta(hours=2))
    with pytest.raises(WrongState, match="rotation"):
        again.renew_server(now=NOW + timedelta(hours=2))
    with pytest.raises(WrongState, match="already"):
        again.rotate(now=NOW + timedelta(hours=2))
    renewed = again.issue("edge-1", Role.AGENT, now=NOW + timedelta(hours=2), renew=True)
    again.finish_rotation(now=NOW + timedelta(hours=3))
    assert not CertificateAuthority(authority.directory).is_rotating
    new_ca = x509.load_pem_x509_certificate((authority.directory / "ca.pem").read_bytes())
    x509.load_pem_x509_certificate(renewed.certificate_pem.encode()).verify_directly_issued_by(new_ca)
    assert before.ca_pem not in again.serving.identity().ca_pem
    with pytest.raises(WrongState, match="no rotation"):
        again.finish_rotation(now=NOW)


def test_missing_authority_says_how_to_make_one(tmp_path: Path) -> None:
    """The next step is init."""
    with pytest.raises(NotFound, match="swingbus-controller init"):
        CertificateAuthority(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("ca.pem", "garbage", "cannot be read"),
        ("ca-key.pem", "garbage", "cannot be read"),
        ("ca-key.pem", None, "is not here"),
        ("index.jsonl", "{}\n", "line 1"),
        ("index.jsonl", "not json\n", "line 1"),
        ("denied.txt", "xyz\n", "line 1"),
    ],
)
def test_damaged_file_is_named(authority: CertificateAuthority, file: str, text: str | None, problem: str) -> None:
    """What, where, next step; never a traceback and never key material."""
    path = authority.directory / file
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(SwingbusError, match=problem) as refused:
        CertificateAuthority(authority.directory).issue("edge-1", Role.AGENT, now=NOW)
    assert file.partition(".")[0] in str(refused.value) or str(authority.directory) in str(refused.value)


def test_key_of_another_authority_is_noticed(authority: CertificateAuthority, tmp_path: Path) -> None:
    """A wrong backup must not sign certificates that nobody believes."""
    other = CertificateAuthority.create(tmp_path / "other", server_names=[], endpoint=None, now=NOW)
    (authority.directory / "ca-key.pem").write_text((other.directory / "ca-key.pem").read_text())
    with pytest.raises(InvalidInput, match=r"not the key of ca\.pem"):
        authority.issue("edge-1", Role.AGENT, now=NOW)


def test_crash_inside_a_rotation_leaves_a_working_authority(authority: CertificateAuthority, tmp_path: Path) -> None:
    """Both keys lie there while ca.pem changes: either certificate finds its own."""
    other = CertificateAuthority.create(tmp_path / "other", server_names=[], endpoint=None, now=NOW)
    ours = (authority.directory / "ca-key.pem").read_text()
    (authority.directory / "ca-key.pem").write_text((other.directory / "ca-key.pem").read_text() + ours)
    assert CertificateAuthority(authority.directory).issue("edge-1", Role.AGENT, now=NOW).name == "edge-1"
