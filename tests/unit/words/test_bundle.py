"""The bundle: one file to carry over."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from swingbus.bundle import (
    BUNDLE_FILE,
    Bundle,
    format_bundle,
    install_bundle,
    is_lent_by_root,
    load_bundle,
    parse_bundle,
    parse_endpoint,
    write_private,
)
from swingbus.faults import AlreadyExists, InvalidInput, NotFound

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
KEY = "-----BEGIN PRIVATE KEY-----\nTOPSECRET\n-----END PRIVATE KEY-----"
BUNDLE = Bundle(
    name="edge-1",
    role="agent",
    endpoint="10.0.0.5:7443",
    server_name="swingbus-controller",
    serial="3fa4",
    expires=datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC),
    ca_pem=PEM + "\n",
    certificate_pem=PEM + "\n",
    key_pem=KEY + "\n",
)


def test_bundle_is_written_and_read_back() -> None:
    """Nothing is lost."""
    assert parse_bundle(format_bundle(BUNDLE)) == BUNDLE


def test_bundle_never_shows_its_key() -> None:
    """Not in repr, so not in a log or traceback."""
    assert "TOPSECRET" not in repr(BUNDLE)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("version = 1", "version = 2"), "version 2.*upgrade this program"),
        (("version = 1\n", ""), "version None"),
        (('name = "edge-1"\n', ""), "lacks name"),
        (('name = "edge-1"', 'name = "Edge-1"'), "try 'edge-1'"),
        (('role = "agent"', 'role = "root"'), "not one of agent"),
        (('endpoint = "10.0.0.5:7443"', 'endpoint = "10.0.0.5:99999"'), "not host:port"),
        (("expires = 2027-01-02T03:04:05Z", 'expires = "soon"'), "expires must be a time"),
        (("expires = 2027-01-02T03:04:05Z", "expires = 2027-01-02T03:04:05"), "with its zone"),
        (('serial = "3fa4"', "serial = 3"), "serial must be text"),
        (('serial = "3fa4"', 'serial = "3fa4"\ncommand = "rm"'), "unknown command"),
        (("BEGIN CERTIFICATE", "BEGIN NOTHING"), "holds no PEM certificate"),
        (("BEGIN PRIVATE KEY", "BEGIN NOTHING"), "holds no PEM private key"),
        (("key_pem", "key_pem ="), "not TOML"),
    ],
)
def test_broken_bundle_says_what_is_wrong_and_never_its_key(change: tuple[str, str], problem: str) -> None:
    """Each fault names the file and the next step."""
    text = format_bundle(BUNDLE)
    assert change[0] in text
    with pytest.raises(InvalidInput, match=problem) as refused:
        parse_bundle(text.replace(*change), where="edge-1.bundle.toml")
    assert "TOPSECRET" not in str(refused.value)


def test_half_a_bundle_is_refused() -> None:
    """A copy that was cut on the way."""
    text = format_bundle(BUNDLE)
    with pytest.raises(InvalidInput, match="is the file whole"):
        parse_bundle(text[: len(text) // 2])


def test_installed_bundle_is_private_and_loads(tmp_path: Path) -> None:
    """Mode 0600 in a directory of mode 0700."""
    path = install_bundle(BUNDLE, tmp_path / "agent")
    assert path == tmp_path / "agent" / BUNDLE_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert load_bundle(path) == BUNDLE
    assert [p.name for p in path.parent.iterdir()] == [BUNDLE_FILE]


def test_renewal_replaces_the_same_identity_only(tmp_path: Path) -> None:
    """Another agent's bundle does not go in by mistake."""
    install_bundle(BUNDLE, tmp_path)
    renewed = replace(BUNDLE, serial="77")
    install_bundle(renewed, tmp_path)
    assert load_bundle(tmp_path / BUNDLE_FILE).serial == "77"
    with pytest.raises(AlreadyExists, match="bundle of agent 'edge-1'"):
        install_bundle(replace(BUNDLE, name="edge-2"), tmp_path)
    install_bundle(replace(BUNDLE, name="edge-2"), tmp_path, replace=True)
    assert load_bundle(tmp_path / BUNDLE_FILE).name == "edge-2"


def test_bundle_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """The next step is a chmod."""
    path = tmp_path / "b.toml"
    write_private(path, format_bundle(BUNDLE))
    path.chmod(0o640)
    with pytest.raises(InvalidInput, match="chmod 600"):
        load_bundle(path)


def test_missing_bundle_says_how_to_get_one(tmp_path: Path) -> None:
    """The next step is the controller's command."""
    with pytest.raises(NotFound, match="certificate issue"):
        load_bundle(tmp_path / "none.toml")


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Whole or not at all."""
    path = tmp_path / "b.toml"
    write_private(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_private(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["b.toml"]


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("10.0.0.5", "10.0.0.5:7443"),
        ("c.example:9000", "c.example:9000"),
        ("[::1]", "[::1]:7443"),
        ("[::1]:80", "[::1]:80"),
        (" localhost ", "localhost:7443"),
    ],
)
def test_endpoint_gets_the_default_port(text: str, endpoint: str) -> None:
    """IPv6 in brackets."""
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize("text", ["", ":7443", "host:0", "host:65536", "host:x", "http://host", "::1", "a b"])
def test_bad_endpoint_is_refused(text: str) -> None:
    """With an example of a good one."""
    with pytest.raises(InvalidInput, match="for instance"):
        parse_endpoint(text)


def test_file_that_root_lends_to_our_group_is_private_enough() -> None:
    """As a kubelet gives a Secret to a pod's user. Anything more, anybody else's file or group, and root itself: not."""
    lent = {"owner": 0, "group": 65532, "own_user": 65532, "own_group": 65532}
    assert is_lent_by_root(0o440, **lent)
    assert not any(is_lent_by_root(mode, **lent) for mode in (0o444, 0o460, 0o450, 0o441, 0o640))
    for change in ({"owner": 1000}, {"group": 100}, {"own_user": 0}, {"group": 0, "own_group": 0}):
        assert not is_lent_by_root(0o440, **{**lent, **change})
