"""The connection against a server that rotates tokens, redirects, hangs and lies about what it is."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from swingbus.faults import Forbidden, InvalidInput, NotFound, TimedOut, Unreachable
from swingbus_controller.adapters.kubernetes.access import load_in_cluster
from swingbus_controller.adapters.kubernetes.answers import fault_of
from swingbus_controller.adapters.kubernetes.connection import ApiConnection, ConnectionSettings
from swingbus_controller.adapters.kubernetes.kubeconfig import load_kubeconfig
from swingbus_controller.adapters.kubernetes.resources import JSON_PATCH, PODS, ApiCall
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.faults import CutBody, Hang, Html, Redirect
from tests.fakes.api_server.server import TOKEN, FakeApiServer
from tests.fakes.kube_rig import connected, in_cluster_files, pod_body

LIST = ApiCall(verb="list", resource=PODS, namespace="ns")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer(tmp_path, write_certificates(tmp_path)) as running:
        yield running


def kubeconfig(server: FakeApiServer, user: dict[str, object], cluster: dict[str, object] | None = None) -> Path:
    """Write a kubeconfig."""
    about = {"server": server.url, "certificate-authority-data": base64.b64encode(server.ca_path.read_bytes()).decode()}
    path = server.folder / "kubeconfig"
    text = yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {**about, **(cluster or {})}}],
            "users": [{"name": "u", "user": user}],
        }
    )
    path.write_text(text)
    return path


async def test_a_pods_account_is_used_and_a_rotated_token_with_it(server: FakeApiServer) -> None:
    """The file is read anew, and its line end does not reach the header."""
    async with connected(server) as api:
        assert (await api.call(LIST)).is_ok
        server.tokens = {"token-2": set()}
        (server.folder / "account" / "token").write_text("token-2\n")
        assert (await api.call(LIST)).is_ok
        (server.folder / "account" / "token").unlink()
        assert (await api.call(LIST)).is_ok, "while the file is swapped the last token is shown"


async def test_a_kubeconfig_is_used_and_read_again_after_a_refusal(server: FakeApiServer) -> None:
    """As its login program or token file may have something newer."""
    path = kubeconfig(server, {"token": TOKEN})
    async with ApiConnection(await load_kubeconfig(path)) as api:
        assert (await api.call(LIST)).is_ok
        server.tokens = {"token-2": set()}
        kubeconfig(server, {"token": "token-2"})
        made = await api.call(ApiCall(verb="create", resource=PODS, namespace="ns", body=pod_body("p")))
        assert made.code == 201
        server.tokens = {"token-3": set()}
        kubeconfig(server, {"token": "token-3"})
        async with api.stream(
            ApiCall(verb="watch", resource=PODS, query={"watch": "true", "timeoutSeconds": "0"})
        ) as body:
            assert await body.read_some() == b""


async def test_a_token_that_fits_no_header_is_not_quoted(server: FakeApiServer) -> None:
    """A file with two lines, say."""
    async with connected(server) as api:
        (server.folder / "account" / "token").write_text("s3cret\r\nX-Other: 1")
        with pytest.raises(InvalidInput, match="check its file") as seen:
            await api.call(LIST)
    assert "s3cret" not in str(seen.value)


async def test_refused_credentials_say_so_and_show_no_token(server: FakeApiServer) -> None:
    """The refusal itself is what the caller sees."""
    async with connected(server) as api:
        server.tokens = {}
        fault = fault_of(await api.call(LIST), LIST)
    assert isinstance(fault, Forbidden)
    assert fault.reason == "CREDENTIALS_REFUSED"
    assert TOKEN not in str(fault) + str(dict(fault.metadata))


async def test_a_missing_verb_is_named_for_a_stream_too(server: FakeApiServer) -> None:
    """`watch` is a verb of its own in a role."""
    server.tokens[TOKEN].add(("watch", "pods"))
    async with connected(server) as api:
        with pytest.raises(Forbidden, match="grant the verb 'watch' on 'pods'"):
            async with api.stream(ApiCall(verb="watch", resource=PODS, query={"watch": "true"})):
                pass


async def test_a_kubeconfig_is_never_quoted(server: FakeApiServer) -> None:
    """The official loader's complaint holds the whole entry of the user; ours does not."""
    path = kubeconfig(server, {"token": "s3cret"})
    broken = yaml.safe_load(path.read_text())
    broken["users"] = [{"name": "u", "token": "s3cret"}]  # one level up: the commonest slip
    path.write_text(yaml.safe_dump(broken))
    with pytest.raises(InvalidInput, match="kubectl config view") as seen:
        await load_kubeconfig(path)
    assert "s3cret" not in str(seen.value)
    assert seen.value.__cause__ is None
    path.write_text("users: [{token: s3cret\n")
    with pytest.raises(InvalidInput, match="kubectl config view") as seen:
        await load_kubeconfig(path)
    assert "s3cret" not in str(seen.value)


async def test_tls_is_always_on(server: FakeApiServer, tmp_path: Path) -> None:
    """Neither plain http nor an unverified server is accepted, whoever asks for it."""
    with pytest.raises(InvalidInput, match="without TLS"):
        await load_kubeconfig(kubeconfig(server, {"token": TOKEN}, {"server": "http://127.0.0.1:1"}))
    with pytest.raises(InvalidInput, match="insecure-skip-tls-verify"):
        await load_kubeconfig(kubeconfig(server, {"token": TOKEN}, {"insecure-skip-tls-verify": True}))
    other = tmp_path / "other"
    other.mkdir()
    write_certificates(other)
    environ = in_cluster_files(other, server)
    write_certificates(other)  # an authority that did not sign the server's certificate
    async with ApiConnection(load_in_cluster(environ, other)) as api:
        with pytest.raises(Unreachable, match="certificate authority") as seen:
            await api.call(LIST)
    assert seen.value.reason == "UNTRUSTED_SERVER"
    assert not server.asked


async def test_outside_of_a_cluster_the_way_out_is_told(tmp_path: Path) -> None:
    """No account, no kubeconfig, no readable authority."""
    with pytest.raises(NotFound, match="name a kubeconfig"):
        load_in_cluster({}, tmp_path)
    with pytest.raises(NotFound, match="no kubeconfig"):
        await load_kubeconfig(tmp_path / "none")
    (tmp_path / "token").write_text("x")
    (tmp_path / "ca.crt").write_text("not a certificate")
    access = load_in_cluster({"KUBERNETES_SERVICE_HOST": "::1", "KUBERNETES_SERVICE_PORT": "1"}, tmp_path)
    assert access.server.url == "https://[::1]:1"
    with pytest.raises(InvalidInput, match="check the certificate authority"):
        ApiConnection(access)


@pytest.mark.parametrize("name", ["token", "ca.crt"])
@pytest.mark.parametrize("content", [None, ""])
def test_half_a_service_account_is_none(name: str, content: str | None, server: FakeApiServer, tmp_path: Path) -> None:
    """Which file is missing or empty is told."""
    environ = in_cluster_files(tmp_path, server)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(NotFound, match=f"{name} is missing"):
        load_in_cluster(environ, tmp_path)


async def test_a_kubeconfig_s_other_name_and_proxy_are_kept(server: FakeApiServer) -> None:
    """What a certificate is made out to where that is not the address, and the way to it."""
    ways: dict[str, object] = {"tls-server-name": "kubernetes.default", "proxy-url": "http://127.0.0.1:3128"}
    access = await load_kubeconfig(kubeconfig(server, {"token": TOKEN}, ways))
    assert access.server.tls_name == "kubernetes.default"
    assert access.server.proxy_url == "http://127.0.0.1:3128"
    async with ApiConnection(
        await load_kubeconfig(kubeconfig(server, {"token": TOKEN}, {"tls-server-name": "a.b"}))
    ) as api:
        with pytest.raises(Unreachable, match="for another name"):
            await api.call(LIST)


async def test_a_kept_connection_that_the_server_has_closed_costs_nothing(server: FakeApiServer) -> None:
    """Kept for the next wave of calls; where the other side went meanwhile, the next call, a write too, goes over a new one."""
    lift = ApiCall(verb="patch", resource=PODS, namespace="a", name="none", body=[], content_type=JSON_PATCH)
    async with connected(server) as api:
        assert (await api.call(LIST)).is_ok
        await server.start(await server.stop())
        assert (await api.call(lift)).code == 404
        assert len(server.asked) == 2


async def test_a_redirect_is_not_followed(server: FakeApiServer) -> None:
    """It would take the token elsewhere."""
    async with connected(server) as api:
        server.faults.next("list", Redirect(f"{server.url}/api/v1/pods?elsewhere"))
        with pytest.raises(Unreachable, match="redirect to"):
            await api.call(LIST)
        assert len(server.asked) == 1


async def test_html_is_no_answer(server: FakeApiServer) -> None:
    """A proxy's sign-in page with 200 is not an empty list."""
    async with connected(server) as api:
        server.faults.next("list", Html())
        server.faults.next("watch", Html())
        with pytest.raises(Unreachable, match="text/html"):
            await api.call(LIST)
        with pytest.raises(Unreachable, match="text/html"):
            async with api.stream(ApiCall(verb="watch", resource=PODS, query={"watch": "true"})):
                pass


async def test_every_call_has_a_deadline(server: FakeApiServer) -> None:
    """A server that takes a request and says nothing costs that long and no longer."""
    async with connected(server, ConnectionSettings(call_timeout_s=0.2)) as api:
        server.faults.next("list", Hang())
        server.faults.next("watch", Hang())
        with pytest.raises(TimedOut, match=r"no answer within 0\.2 s"):
            await api.call(LIST)
        with pytest.raises(TimedOut, match="may or may not"):
            async with api.stream(ApiCall(verb="watch", resource=PODS, query={"watch": "true"})):
                pass


async def test_half_an_answer_is_none(server: FakeApiServer) -> None:
    """A body that breaks off is Unreachable, and so is a server that is gone."""
    async with connected(server) as api:
        server.faults.next("list", CutBody())
        with pytest.raises(Unreachable):
            await api.call(LIST)
        await server.stop()
        with pytest.raises(Unreachable):
            await api.call(LIST)
        await server.start(0)


async def test_an_answer_is_bounded(server: FakeApiServer) -> None:
    """Memory is not the other side's to fill."""
    for number in range(20):
        server.make("pods", "ns", f"p{number}", spec={"note": "x" * 1000})
    async with connected(server, ConnectionSettings(answer_bytes_at_most=10_000)) as api:
        with pytest.raises(Unreachable, match="larger than 10000 bytes"):
            await api.call(LIST)
        assert (await api.call(ApiCall(verb="list", resource=PODS, query={"limit": "2"}))).is_ok


async def test_the_fake_itself_speaks_tls_and_pages(server: FakeApiServer) -> None:
    """A check of the double: what a list says of itself."""
    assert ssl.create_default_context(cafile=str(server.ca_path)).cert_store_stats()["x509_ca"] == 1
    for number in range(5):
        server.make("pods", "ns", f"p{number}", spec={})
    async with connected(server) as api:
        page = json.loads((await api.call(ApiCall(verb="list", resource=PODS, query={"limit": "2"}))).body)
        rest = {"limit": "9", "continue": page["metadata"]["continue"]}
        last = json.loads((await api.call(ApiCall(verb="list", resource=PODS, query=rest))).body)
    assert [item["metadata"]["name"] for item in page["items"] + last["items"]] == [f"p{n}" for n in range(5)]


def test_a_pod_does_without_the_official_client() -> None:
    """It costs 20 MB; only who names a kubeconfig needs it."""
    code = (
        "import sys, swingbus_controller.clustering; print([m for m in sys.modules if m.split('.')[0] == 'kubernetes'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
