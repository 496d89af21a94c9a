"""A certificate authority in Secrets: how it is lent and given back, and what the chart's job makes of it, run again and again."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from swingbus.bundle import Bundle, parse_bundle
from swingbus.faults import AlreadyExists, InvalidInput, NotFound, StaleRevision, WrongState
from swingbus.rpc.roles import Role
from swingbus_controller.adapters.kubernetes import secrets
from swingbus_controller.adapters.kubernetes.answers import Answer, ByteStream
from swingbus_controller.adapters.kubernetes.resources import SECRETS, ApiCall
from swingbus_controller.adapters.kubernetes.secrets import BYTES_AT_MOST, SecretFiles, read_secret, write_secret
from swingbus_controller.adapters.pki import CertificateAuthority
from swingbus_controller.adapters.pki_in_cluster import (
    AGENTS_SECRET,
    AUTHORITY_SECRET,
    CONTROLLER_SECRET,
    TEST_SECRET,
    lend_authority,
)
from swingbus_controller.adapters.server_files import ServerFiles
from swingbus_controller.providing import Wanted, provide
from tests.contract.test_kubernetes_api import Rig
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.server import FakeApiServer
from tests.fakes.kube_rig import connected

NOW = datetime.now(UTC)
_HOST = "swingbus-controller.swingbus-system.svc"
WANTED = Wanted(
    endpoint=f"{_HOST}:7443",
    server_names=(_HOST,),
    agents=("gpu-1", "gpu-2"),
    viewer="helm-test",
    days=365,
    renew_within=timedelta(days=60),
)
_ALL = (AUTHORITY_SECRET, CONTROLLER_SECRET, AGENTS_SECRET, TEST_SECRET)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """Return the double."""
    async with FakeApiServer(tmp_path, write_certificates(tmp_path)) as server, connected(server) as api:
        yield Rig(api, "contract", server)


async def _secrets(rig: Rig) -> dict[str, SecretFiles]:
    return {name: await read_secret(rig.api, rig.namespace, name) for name in _ALL}


async def _bundles(rig: Rig) -> dict[str, Bundle]:
    files = (await read_secret(rig.api, rig.namespace, AGENTS_SECRET)).files
    return {name.removesuffix(".bundle.toml"): parse_bundle(text) for name, text in files.items()}


async def _put(rig: Rig, name: str, **files: str) -> None:
    """Write some files of a Secret as a person would."""
    seen = await read_secret(rig.api, rig.namespace, name)
    await write_secret(
        rig.api, rig.namespace, name, {**seen.files, **{k.replace("__", "."): v for k, v in files.items()}}, seen=seen
    )


async def test_secret_is_written_as_it_was_seen_or_not_at_all(rig: Rig) -> None:
    """Made, changed, files taken out; nothing is sent for nothing."""
    where = (rig.api, rig.namespace, "files")
    nothing = await read_secret(*where)
    assert not nothing.is_there
    written = await write_secret(*where, {"a.txt": "1", "b": "größe"}, seen=nothing)
    first = await read_secret(*where)
    assert written == first
    assert first.files == {"a.txt": "1", "b": "größe"} and first.is_there and "größe" not in repr(first)
    assert await write_secret(*where, {"a.txt": "1", "b": "größe"}, seen=first) is first
    assert (await read_secret(*where)).revision == first.revision
    assert await write_secret(*where, {"b": "2", "c": ""}, seen=first) != first
    assert (await read_secret(*where)).files == {"b": "2", "c": ""}
    with pytest.raises(StaleRevision):
        await write_secret(*where, {"a": "late"}, seen=first)
    with pytest.raises(AlreadyExists):
        await write_secret(*where, {"a": "late"}, seen=nothing)
    with pytest.raises(InvalidInput, match=r"would hold 1048577 bytes in 1 files"):
        await write_secret(*where, {"a": "x" * (BYTES_AT_MOST + 1)}, seen=first)
    assert (await read_secret(*where)).files == {"b": "2", "c": ""}


async def test_secret_that_is_no_text_is_told_by_its_key(rig: Rig) -> None:
    """Not by its content."""
    data = {"a": base64.b64encode(b"\xff\xfe").decode()}
    meta = {"name": "odd", "namespace": rig.namespace}
    await rig.make(SECRETS, {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
    with pytest.raises(InvalidInput, match=r"the key a of Secret odd in namespace \S+ is no text"):
        await read_secret(rig.api, rig.namespace, "odd")


async def test_first_run_makes_everything_and_the_second_nothing(rig: Rig, tmp_path: Path) -> None:
    """What the controller mounts is enough to serve, and holds no key that could sign."""
    assert await provide(rig.api, rig.namespace, WANTED, NOW) == 0
    made = await _secrets(rig)
    assert "ca-key.pem" in made[AUTHORITY_SECRET].files
    shown = made[CONTROLLER_SECRET].files
    assert sorted(shown) == ["ca.pem", "denied.txt", "endpoint.txt", "server.pem"]
    for name, text in shown.items():
        (tmp_path / name).write_text(text)
    assert ServerFiles(tmp_path).identity().ca_pem == shown["ca.pem"]
    bundles = await _bundles(rig)
    assert {(b.name, b.role, b.endpoint) for b in bundles.values()} == {
        ("gpu-1", "agent", WANTED.endpoint),
        ("gpu-2", "agent", WANTED.endpoint),
    }
    assert {bundle.ca_pem.strip() for bundle in bundles.values()} == {shown["ca.pem"].strip()}
    assert parse_bundle(made[TEST_SECRET].files["bundle.toml"]).role == "viewer"
    assert await provide(rig.api, rig.namespace, WANTED, NOW) == 0
    assert await _secrets(rig) == made


async def test_node_that_comes_gets_one_and_the_others_keep_theirs(rig: Rig) -> None:
    """One that goes leaves no key behind; one that comes back gets a new certificate."""
    await provide(rig.api, rig.namespace, WANTED, NOW)
    before = await _bundles(rig)
    await provide(rig.api, rig.namespace, replace(WANTED, agents=("gpu-2", "gpu-3")), NOW)
    after = await _bundles(rig)
    assert sorted(after) == ["gpu-2", "gpu-3"] and after["gpu-2"] == before["gpu-2"]
    await provide(rig.api, rig.namespace, WANTED, NOW)
    again = await _bundles(rig)
    assert sorted(again) == ["gpu-1", "gpu-2"] and again["gpu-1"].serial != before["gpu-1"].serial


async def test_what_ends_soon_is_renewed_the_controllers_too(rig: Rig) -> None:
    """Eleven months later; the authority stays."""
    await provide(rig.api, rig.namespace, WANTED, NOW)
    before, bundles = await _secrets(rig), await _bundles(rig)
    await provide(rig.api, rig.namespace, WANTED, NOW + timedelta(days=300))
    assert await _secrets(rig) == before
    await provide(rig.api, rig.namespace, WANTED, NOW + timedelta(days=310))
    after, renewed = await _secrets(rig), await _bundles(rig)
    for secret in (before, after):
        assert secret[CONTROLLER_SECRET].files["ca.pem"] == before[CONTROLLER_SECRET].files["ca.pem"]
    assert before[CONTROLLER_SECRET].files["server.pem"] != after[CONTROLLER_SECRET].files["server.pem"]
    assert before[TEST_SECRET].files != after[TEST_SECRET].files
    assert all(renewed[name].expires > bundles[name].expires + timedelta(days=300) for name in bundles)


async def test_controller_that_moves_is_told_to_everybody(rig: Rig) -> None:
    """Another port, another name: bundles and the controller's certificate follow, and what is issued by hand from then on."""
    await provide(rig.api, rig.namespace, WANTED, NOW)
    moved = replace(WANTED, endpoint="c.example:443", server_names=(_HOST, "c.example"))
    before = await _secrets(rig)
    await provide(rig.api, rig.namespace, moved, NOW)
    assert {bundle.endpoint for bundle in (await _bundles(rig)).values()} == {"c.example:443"}
    after = await _secrets(rig)
    assert after[CONTROLLER_SECRET].files["server.pem"] != before[CONTROLLER_SECRET].files["server.pem"]
    async with lend_authority(rig.api, rig.namespace) as lent:
        authority = CertificateAuthority(lent.directory)
        assert (authority.endpoint, list(authority.server_names)) == ("c.example:443", [_HOST, "c.example"])


async def _deny(rig: Rig, serial: str) -> None:
    async with lend_authority(rig.api, rig.namespace) as lent:
        CertificateAuthority(lent.directory).deny(serial, comment="stolen")
        await lent.give_back()


async def _denied(rig: Rig) -> str:
    """Return the deny list that the controller goes by."""
    return (await read_secret(rig.api, rig.namespace, CONTROLLER_SECRET)).files["denied.txt"]


async def test_who_was_revoked_is_let_in_again_by_a_person_alone(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither by another run, nor by leaving the values and coming back, nor by a bundle that is gone or spoilt: by a renewal."""
    await provide(rig.api, rig.namespace, WANTED, NOW)
    before = await _bundles(rig)
    await _deny(rig, before["gpu-1"].serial)
    assert before["gpu-1"].serial in await _denied(rig)
    capsys.readouterr()
    await provide(rig.api, rig.namespace, WANTED, NOW)
    assert await _bundles(rig) == before
    assert (
        "gpu-1: its certificate is revoked; to let it in again: certificate renew --agent gpu-1"
        in capsys.readouterr().err
    )
    await _put(rig, AGENTS_SECRET, **{"gpu-1__bundle__toml": "spoilt"})
    await provide(rig.api, rig.namespace, WANTED, NOW)
    assert (await read_secret(rig.api, rig.namespace, AGENTS_SECRET)).files["gpu-1.bundle.toml"] == "spoilt"
    await provide(rig.api, rig.namespace, replace(WANTED, agents=("gpu-2",)), NOW)
    await provide(rig.api, rig.namespace, WANTED, NOW)
    assert await _bundles(rig) == {"gpu-2": before["gpu-2"]}
    async with lend_authority(rig.api, rig.namespace) as lent:
        CertificateAuthority(lent.directory).issue("gpu-1", Role.AGENT, now=NOW, renew=True)
        await lent.give_back()
    await provide(rig.api, rig.namespace, WANTED, NOW)
    after = await _bundles(rig)
    assert after["gpu-1"].serial != before["gpu-1"].serial and after["gpu-2"] == before["gpu-2"]
    assert before["gpu-1"].serial in await _denied(rig)


async def test_revocation_between_somebody_elses_looks_stays(rig: Rig) -> None:
    """Whoever read the authority before it, or only looks, writes no older list over it."""
    await provide(rig.api, rig.namespace, WANTED, NOW)
    serial = (await _bundles(rig))["gpu-1"].serial

    class Slow:
        """An API whose first answers are old: between them somebody revokes."""

        def __init__(self) -> None:
            self.left = 1

        async def call(self, call: ApiCall, *, timeout_s: float | None = None) -> Answer:
            answer = await rig.api.call(call, timeout_s=timeout_s)
            if self.left:
                self.left = 0
                await _deny(rig, serial)
            return answer

        def stream(self, call: ApiCall) -> AbstractAsyncContextManager[ByteStream]:
            return rig.api.stream(call)

    async with lend_authority(Slow(), rig.namespace) as lent:
        await lent.give_back()
    assert serial in await _denied(rig)


async def test_authority_that_is_put_back_from_a_backup_revokes_what_was_revoked_since(rig: Rig) -> None:
    """The controller's own Secret remembers it."""
    await provide(rig.api, rig.namespace, WANTED, NOW)
    backup = await read_secret(rig.api, rig.namespace, AUTHORITY_SECRET)
    serial = (await _bundles(rig))["gpu-1"].serial
    await _deny(rig, serial)
    seen = await read_secret(rig.api, rig.namespace, AUTHORITY_SECRET)
    await write_secret(rig.api, rig.namespace, AUTHORITY_SECRET, backup.files, seen=seen)
    await provide(rig.api, rig.namespace, WANTED, NOW)
    assert serial in await _denied(rig)
    assert serial in (await read_secret(rig.api, rig.namespace, AUTHORITY_SECRET)).files["denied.txt"]


async def test_controllers_secret_that_somebody_touched_follows_the_authority(rig: Rig) -> None:
    """What was signed is shown, though the controller's Secret was written since it was read; a later authority's is left alone."""
    await provide(rig.api, rig.namespace, WANTED, NOW)
    async with lend_authority(rig.api, rig.namespace) as lent:
        CertificateAuthority(lent.directory).renew_server(now=NOW)
        await _put(rig, CONTROLLER_SECRET, note="touched")
        await lent.give_back()
        renewed = (lent.directory / "server.pem").read_text()
    shown = (await read_secret(rig.api, rig.namespace, CONTROLLER_SECRET)).files
    assert shown["server.pem"] == renewed and "note" not in shown


async def test_half_an_authority_is_told_by_what_it_lacks(rig: Rig) -> None:
    """Without its key it can still be looked at and revoked by; without its index nothing can be said."""
    await provide(rig.api, rig.namespace, WANTED, NOW)
    seen = await read_secret(rig.api, rig.namespace, AUTHORITY_SECRET)
    rest = {name: text for name, text in seen.files.items() if name != "ca-key.pem"}
    seen = await write_secret(rig.api, rig.namespace, AUTHORITY_SECRET, rest, seen=seen)
    serial = (await _bundles(rig))["gpu-2"].serial
    await _deny(rig, serial)
    assert serial in await _denied(rig)
    seen = await read_secret(rig.api, rig.namespace, AUTHORITY_SECRET)
    rest = {name: text for name, text in rest.items() if name != "index.jsonl"}
    await write_secret(rig.api, rig.namespace, AUTHORITY_SECRET, rest, seen=seen)
    with pytest.raises(InvalidInput, match=r"Secret swingbus-authority in namespace \S+ has no index.jsonl"):
        async with lend_authority(rig.api, rig.namespace):
            pass


async def test_certificates_that_every_run_would_renew_are_refused(rig: Rig) -> None:
    """Before anything is made."""
    with pytest.raises(InvalidInput, match="would be renewed by every run"):
        await provide(rig.api, rig.namespace, replace(WANTED, days=60), NOW)
    assert not any(each.is_there for each in (await _secrets(rig)).values())


async def test_rotation_renews_everybody_in_two_runs(rig: Rig) -> None:
    """As by hand: while both authorities are believed all get the new one's, then the old one goes."""
    await provide(rig.api, rig.namespace, WANTED, NOW)
    old = await _bundles(rig)
    async with lend_authority(rig.api, rig.namespace) as lent:
        CertificateAuthority(lent.directory).rotate(now=NOW + timedelta(hours=1))
        await lent.give_back()
    later = NOW + timedelta(hours=2)
    await provide(rig.api, rig.namespace, WANTED, later)
    both = await _bundles(rig)
    assert all(both[name].serial != old[name].serial for name in old)
    assert all(bundle.ca_pem.count("BEGIN CERTIFICATE") == 2 for bundle in both.values())
    async with lend_authority(rig.api, rig.namespace) as lent:
        CertificateAuthority(lent.directory).finish_rotation(now=later)  # refuses while anybody has only the old one's
        await lent.give_back()
    await provide(rig.api, rig.namespace, WANTED, later)
    assert all(bundle.ca_pem.count("BEGIN CERTIFICATE") == 1 for bundle in (await _bundles(rig)).values())


async def test_damaged_or_foreign_bundles_get_new_ones(rig: Rig) -> None:
    """Cut short, or out of another authority: neither would let an agent in."""
    await provide(rig.api, rig.namespace, WANTED, NOW)
    text = (await read_secret(rig.api, rig.namespace, AGENTS_SECRET)).files["gpu-1.bundle.toml"]
    await _put(rig, AGENTS_SECRET, gpu_1="unused", **{"gpu-1__bundle__toml": text[:200]})
    await provide(rig.api, rig.namespace, WANTED, NOW)
    assert sorted(await _bundles(rig)) == ["gpu-1", "gpu-2"]
    foreign = text.replace('serial = "', 'serial = "f')
    await _put(rig, AGENTS_SECRET, **{"gpu-1__bundle__toml": foreign})
    await provide(rig.api, rig.namespace, WANTED, NOW)
    assert (await _bundles(rig))["gpu-1"].serial != parse_bundle(foreign).serial


async def test_authority_whose_key_is_lost_is_not_begun_anew_silently(rig: Rig) -> None:
    """A new one would lock out every agent outside of the cluster."""
    with pytest.raises(NotFound, match=r"there is no Secret swingbus-authority in namespace \S+: the chart makes one"):
        async with lend_authority(rig.api, rig.namespace):
            pass
    await provide(rig.api, rig.namespace, WANTED, NOW)
    before = await _secrets(rig)
    gone = ApiCall(verb="delete", resource=SECRETS, namespace=rig.namespace, name=AUTHORITY_SECRET)
    assert (await rig.api.call(gone)).is_ok
    with pytest.raises(WrongState, match=r"but not swingbus-authority, whose key signed it"):
        await provide(rig.api, rig.namespace, WANTED, NOW)
    assert (await _secrets(rig))[CONTROLLER_SECRET] == before[CONTROLLER_SECRET]


async def test_two_who_sign_at_once_cannot_both_give_it_back(rig: Rig) -> None:
    """The second one's certificate is in no index, so it must not leave."""
    await provide(rig.api, rig.namespace, WANTED, NOW)
    async with lend_authority(rig.api, rig.namespace) as one, lend_authority(rig.api, rig.namespace) as two:
        CertificateAuthority(one.directory).issue("dana", Role.ADMIN, now=NOW)
        CertificateAuthority(two.directory).issue("eve", Role.ADMIN, now=NOW)
        await one.give_back()
        with pytest.raises(WrongState, match="run this again"):
            await two.give_back()
        folder = two.directory
    assert not folder.exists()
    async with lend_authority(rig.api, rig.namespace) as lent:
        names = {state.certificate.name for state in CertificateAuthority(lent.directory).states(NOW)}
    assert "dana" in names and "eve" not in names


async def test_more_bundles_than_a_secret_holds_are_refused_before_any_is_issued(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the authority's index does not grow with every try."""
    await provide(rig.api, rig.namespace, WANTED, NOW)
    before = await _secrets(rig)
    monkeypatch.setattr(secrets, "BYTES_AT_MOST", 20_000)  # a site of 500 nodes would take a while
    many = replace(WANTED, agents=tuple(f"gpu-{number}" for number in range(12)))
    with pytest.raises(
        InvalidInput, match=r"Secret swingbus-agent-bundles .* would hold \d+ bytes in 12 files, and 20000 is"
    ):
        await provide(rig.api, rig.namespace, many, NOW)
    assert await _secrets(rig) == before
