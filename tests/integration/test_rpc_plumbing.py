"""The door, the status table and mutual TLS over real loopback connections, for all four kinds of methods."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from swingbus.bundle import Bundle
from swingbus.clock import SystemClock
from swingbus.faults import (
    Forbidden,
    NotFound,
    OverBudget,
    SwingbusError,
    Unauthenticated,
    Unreachable,
    WrongState,
)
from swingbus.fleet.v1alpha import fleet_service_pb2 as fleet_pb
from swingbus.fleet.v1alpha import fleet_service_pb2_grpc as fleet_grpc
from swingbus.rpc import roles
from swingbus.rpc.caller import current_caller
from swingbus.rpc.channel import open_channel
from swingbus.rpc.interceptors import DoorInterceptor
from swingbus.rpc.roles import Role
from swingbus.rpc.server import ServerSettings, bind_port, build_server, server_credentials
from swingbus.rpc.status import RemoteFailure, faults_raised
from swingbus.rpc.tls_folder import read_tls_folder
from swingbus_controller.adapters.pki import CertificateAuthority
from swingbus_controller.adapters.pki_records import DenyListFile
from swingbus_controller.adapters.server_files import ServerFiles
from tests.fakes.authority import issue, make_authority, serving
from tests.fakes.cert_manager import CertManager, write_folder
from tests.fakes.site_services import FakeSite, north
from tests.unit.rpc.test_roles import CONTRACT, MODULES

DEADLINE_S = 10.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Make one CA for the module."""
    return make_authority(tmp_path_factory.mktemp("pki") / "site")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Make another CA, with the same names in it."""
    return make_authority(tmp_path_factory.mktemp("pki") / "stranger")


class Kinds:
    """One method of every kind and style; what it does is the request's text."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def act(self, text: str) -> str:
        match text:
            case "not_found":
                raise NotFound("no such thing", metadata={"name": "x"})
            case "grouped":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._fail())
                return "never"
            case "crash":
                raise ValueError("a secret that must not leak")
            case "hang":
                try:
                    await asyncio.sleep(3600)
                finally:
                    self.ended.append("hang")
        return f"{current_caller().name}:{text}"

    @staticmethod
    async def _fail() -> None:
        raise OverBudget("full", metadata={"retry_after_s": "2"})

    async def unary_unary(self, request: StringValue, context: Any) -> StringValue:
        return StringValue(value=await self.act(request.value))

    async def unary_stream(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield StringValue(value="first")
        yield StringValue(value=await self.act(request.value))

    async def unary_stream_written(self, request: StringValue, context: Any) -> None:
        await context.write(StringValue(value="first"))
        await context.write(StringValue(value=await self.act(request.value)))

    async def stream_unary(self, requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        answers = [await self.act(request.value) async for request in requests]
        return StringValue(value=",".join(answers))

    async def stream_stream(self, requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield StringValue(value=await self.act(request.value))

    async def stream_stream_written(self, requests: AsyncIterator[StringValue], context: Any) -> None:
        async for request in requests:
            await context.write(StringValue(value=await self.act(request.value)))


KINDS = (
    "unary_unary",
    "unary_stream",
    "unary_stream_written",
    "stream_unary",
    "stream_stream",
    "stream_stream_written",
)
SERVICE = "test.Kinds"


def register_kinds(kinds: Kinds, server: grpc.aio.Server) -> None:
    """Add the service of all kinds."""
    handlers = {}
    for name in KINDS:
        rebuild = getattr(grpc, f"{name.removesuffix('_written')}_rpc_method_handler")
        handlers[name] = rebuild(
            getattr(kinds, name),
            request_deserializer=StringValue.FromString,
            response_serializer=StringValue.SerializeToString,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


async def call_kind(channel: grpc.aio.Channel, name: str, *texts: str) -> list[str]:
    """Call one method of any kind; return what it answered."""
    kind = name.removesuffix("_written")
    multi: Any = getattr(channel, kind)(
        f"/{SERVICE}/{name}",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=StringValue.FromString,
    )
    messages = [StringValue(value=text) for text in texts]
    argument = iter(messages) if kind.startswith("stream") else messages[0]
    with faults_raised():
        call = multi(argument, timeout=DEADLINE_S)
        if kind.endswith("stream"):
            return [answer.value async for answer in call]
        return [(await call).value]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test's service rows in the role table."""
    rows = {f"/{SERVICE}/{name}": frozenset({Role.VIEWER}) for name in KINDS}
    monkeypatch.setattr(roles, "METHOD_ROLES", {**roles.METHOD_ROLES, **rows})


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("name", KINDS)
async def test_every_kind_of_method_answers_faults_and_hides_crashes(
    authority: CertificateAuthority, name: str
) -> None:
    """Answers, faults, faults in a TaskGroup and crashes arrive alike whatever the kind and the style of the servicer."""
    kinds = Kinds()
    async with serving(authority, lambda server: register_kinds(kinds, server)) as port:
        bundle = issue(authority, f"vic-{name.replace('_', '-')}", Role.VIEWER, port)
        async with open_channel(bundle) as channel:
            answers = await call_kind(channel, name, "hello")
            assert answers[-1] == f"{bundle.name}:hello"
            with pytest.raises(NotFound, match="no such thing") as missing:
                await call_kind(channel, name, "not_found")
            assert dict(missing.value.metadata) == {"name": "x"}
            with pytest.raises(OverBudget) as full:
                await call_kind(channel, name, "grouped")
            assert full.value.metadata["retry_after_s"] == "2"
            with capture_logs() as logs, pytest.raises(RemoteFailure) as crash:
                await call_kind(channel, name, "crash")
            assert "secret" not in str(crash.value)
            (logged,) = (line for line in logs if line["event"] == "rpc_crashed")
            assert logged["error_id"] == crash.value.metadata["error_id"]
            assert "secret" in repr(logged["exc_info"])


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("name", KINDS)
async def test_cancelled_call_ends_its_servicer_and_is_logged_once(authority: CertificateAuthority, name: str) -> None:
    """A client that goes away leaves no task behind."""
    kinds = Kinds()
    async with serving(authority, lambda server: register_kinds(kinds, server)) as port:
        bundle = issue(authority, f"gone-{name.replace('_', '-')}", Role.VIEWER, port)
        with capture_logs() as logs:
            async with open_channel(bundle) as channel:
                task: asyncio.Task[Any] = asyncio.create_task(call_kind(channel, name, "hang"))
                await asyncio.sleep(0.2)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            for _ in range(500):
                if any(line["event"] == "rpc_finished" for line in logs):
                    break
                await asyncio.sleep(0.01)
        assert kinds.ended == ["hang"]
        assert [line["code"] for line in logs if line["event"] == "rpc_finished"] == ["CANCELLED"]


async def test_unlisted_method_is_refused_to_an_admin(authority: CertificateAuthority) -> None:
    """Default deny: a method that nobody thought about is for nobody."""
    async with (
        serving(authority, lambda server: register_kinds(Kinds(), server)) as port,
        open_channel(issue(authority, "root-1", Role.ADMIN, port)) as channel,
    ):
        for name in KINDS:
            with pytest.raises(Forbidden, match="takes the role nobody"):
                await call_kind(channel, name, "hello")


def stub_methods() -> Iterator[tuple[str, Any, bool, bool, Any]]:
    """Return (full name, request class, streams requests, streams answers, response class) of every method of the contract."""
    for module in MODULES:
        loaded = importlib.import_module(module)
        for service in loaded.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request, response = (getattr(loaded, t.name) for t in (method.input_type, method.output_type))
                yield (
                    f"/{service.full_name}/{method.name}",
                    request,
                    method.client_streaming,
                    method.server_streaming,
                    response,
                )


async def call_any(channel: grpc.aio.Channel, name: str, request: Any, up: bool, down: bool, response: Any) -> None:
    """Call any method of the contract with an empty request."""
    kind = f"{'stream' if up else 'unary'}_{'stream' if down else 'unary'}"
    multi: Any = getattr(channel, kind)(
        name, request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )
    with faults_raised():
        call = multi(iter([request()]) if up else request(), timeout=DEADLINE_S)
        if down:
            async for _ in call:
                return
        else:
            await call


async def refusal(channel: grpc.aio.Channel, method: tuple[str, Any, bool, bool, Any]) -> SwingbusError | None:
    """Return what refused a call, None if it was let in."""
    try:
        await call_any(channel, *method)
    except SwingbusError as error:
        return error
    return None


async def test_role_matrix_holds_for_every_method_of_the_contract(authority: CertificateAuthority) -> None:
    """Each role calls each method: let in exactly where the table says so, refused with ROLE_NOT_ALLOWED elsewhere."""
    site = FakeSite(oldest_kept_revision=1)  # WatchEvents from 0 ends at once
    everything = list(stub_methods())
    assert {method[0] for method in everything} == set(CONTRACT)
    async with serving(authority, site.register) as port:
        for role in Role:
            async with open_channel(issue(authority, f"role-{role}", role, port)) as channel:
                for method in everything:
                    error = await refusal(channel, method)
                    refused = isinstance(error, Forbidden) and error.reason == "ROLE_NOT_ALLOWED"
                    served = role in roles.roles_for_request(method[0], method[1]())
                    # The fake serves no agent link: gRPC itself answers there, and it is the table's test that agents may call it.
                    if "AgentLinkService" in method[0]:
                        continue
                    assert refused is not served, (role, method[0], error)


async def test_viewer_is_refused_every_write_and_nothing_is_written(authority: CertificateAuthority) -> None:
    """The writes never reach the servicer."""
    site = north()
    writes = [m for m in stub_methods() if Role.VIEWER not in roles.roles_for(m[0]) and "AgentLink" not in m[0]]
    assert len(writes) >= 11
    async with (
        serving(authority, site.register) as port,
        open_channel(issue(authority, "onlooker", Role.VIEWER, port)) as channel,
    ):
        for method in writes:
            error = await refusal(channel, method)
            assert isinstance(error, Forbidden), method[0]
    assert site.writes == []


async def test_stranger_is_refused_in_the_handshake(
    authority: CertificateAuthority, stranger: CertificateAuthority
) -> None:
    """Another CA's certificate, our CA believed or not, and no certificate at all: nothing answers, not even health."""
    site = north()
    async with serving(authority, site.register) as port:
        ours = issue(authority, "friend", Role.VIEWER, port)
        theirs = issue(stranger, "friend", Role.ADMIN, port)
        for bundle in (theirs, replace(theirs, ca_pem=ours.ca_pem)):
            async with open_channel(bundle) as channel:
                for method in stub_methods():
                    error = await refusal(channel, method)
                    assert isinstance(error, Unreachable), method[0]
                with pytest.raises(Unreachable), faults_raised():
                    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        bare = grpc.ssl_channel_credentials(root_certificates=ours.ca_pem.encode())
        override = (("grpc.ssl_target_name_override", ours.server_name),)
        async with grpc.aio.secure_channel(ours.endpoint, bare, options=override) as channel:
            assert isinstance(await refusal(channel, next(stub_methods())), Unreachable)
        async with grpc.aio.insecure_channel(ours.endpoint) as channel:
            assert isinstance(await refusal(channel, next(stub_methods())), Unreachable)
    assert site.writes == []


async def test_agents_certificate_cannot_pose_as_the_controller(authority: CertificateAuthority) -> None:
    """A client certificate does not serve: an agent in the middle would be caught."""
    held = authority.issue("mallory", Role.AGENT, now=datetime.now(UTC))
    identity = replace(authority.serving.identity(), certificate_pem=held.certificate_pem, key_pem=held.key_pem)
    server = build_server(DoorInterceptor(SystemClock()))
    port = bind_port(server, "127.0.0.1:0", server_credentials(lambda: identity))
    await server.start()
    try:
        async with open_channel(issue(authority, "careful", Role.VIEWER, port)) as channel:
            error = await refusal(channel, next(m for m in stub_methods() if m[0].endswith("ListSites")))
            assert isinstance(error, Unreachable)
    finally:
        await server.stop(0)


async def list_sites(bundle: Bundle) -> fleet_pb.ListSitesResponse:
    """Make one read on a connection of its own."""
    async with open_channel(bundle) as channel:
        with faults_raised():
            answer: fleet_pb.ListSitesResponse = await fleet_grpc.FleetServiceStub(channel).ListSites(
                fleet_pb.ListSitesRequest(), timeout=DEADLINE_S
            )
            return answer


async def test_denied_certificate_is_refused_on_its_open_connection(authority: CertificateAuthority) -> None:
    """Revocation needs no restart and no new connection."""
    deny_list = DenyListFile(authority.serving.deny_list_path)
    async with serving(authority, north().register, deny_list=deny_list) as port:
        bundle, other = issue(authority, "lost-laptop", Role.VIEWER, port), issue(authority, "safe", Role.VIEWER, port)
        async with open_channel(bundle) as channel:
            stub = fleet_grpc.FleetServiceStub(channel)
            await stub.ListSites(fleet_pb.ListSitesRequest(), timeout=DEADLINE_S)
            CertificateAuthority(authority.directory).deny(bundle.serial, comment="stolen")
            with pytest.raises(Unauthenticated, match="revoked"), faults_raised():
                await stub.ListSites(fleet_pb.ListSitesRequest(), timeout=DEADLINE_S)
        assert (await list_sites(other)).revision == 7


class ShiftedClock(SystemClock):
    """The system's clock, wrong by some days."""

    def __init__(self, shift: timedelta) -> None:
        self._shift = shift

    def now(self) -> datetime:
        return super().now() + self._shift


async def test_expired_certificate_is_refused(authority: CertificateAuthority) -> None:
    """In the handshake by TLS, and on a connection that outlived it by the door."""
    old = datetime.now(UTC) - timedelta(days=400)
    expired = authority.issue("old-timer", Role.VIEWER, now=datetime.now(UTC))
    async with serving(authority, north().register, clock=ShiftedClock(timedelta(days=366))) as port:
        with pytest.raises(Unauthenticated, match="expired") as refused:
            await list_sites(replace(expired, endpoint=f"127.0.0.1:{port}"))
        assert refused.value.reason == "CERTIFICATE_EXPIRED"
    assert old < datetime.now(UTC)


async def test_renewed_server_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    """And a rotation locks out nobody who was renewed, but whoever was not."""
    authority = make_authority(tmp_path / "pki")
    async with serving(authority, north().register) as port:
        before = issue(authority, "early", Role.VIEWER, port)
        cli = CertificateAuthority(tmp_path / "pki")  # what another process does
        cli.renew_server(now=datetime.now(UTC))
        assert (await list_sites(before)).revision == 7
        cli.rotate(now=datetime.now(UTC))
        after = issue(cli, "late", Role.VIEWER, port)
        assert (await list_sites(before)).revision == 7
        assert (await list_sites(after)).revision == 7
        cli.finish_rotation(now=datetime.now(UTC), force=True)
        assert (await list_sites(after)).revision == 7
        with pytest.raises(Unreachable):
            await list_sites(before)


@dataclass
class _Folder:
    serving: ServerFiles


@pytest.mark.parametrize("is_rsa", [True, False])
async def test_certificates_of_cert_manager_are_believed_by_its_authority_alone(tmp_path: Path, is_rsa: bool) -> None:
    """A real handshake both ways with RSA and EC keys, a renewal without a restart, roles as in ours; another issuer is refused."""
    issuer, other = CertManager(), CertManager()
    folder = write_folder(tmp_path / "server", issuer.server(["swingbus-controller"], is_rsa=is_rsa))

    def held(by: CertManager, port: int, role: str) -> Bundle:
        secret = by.client("dana", f"swingbus:role:{role}", is_rsa=is_rsa)
        return read_tls_folder(write_folder(tmp_path / role, secret), f"127.0.0.1:{port}")

    async with serving(_Folder(ServerFiles(folder)), north().register) as port:
        assert (await list_sites(held(issuer, port, "viewer"))).revision == 7
        with pytest.raises(Forbidden):
            await list_sites(held(issuer, port, "agent"))
        theirs = held(other, port, "admin")
        for bundle in (theirs, replace(theirs, ca_pem=held(issuer, port, "viewer").ca_pem)):
            with pytest.raises(Unreachable):
                await list_sites(bundle)
        renewed = issuer.server(["swingbus-controller"], is_rsa=not is_rsa)
        with capture_logs() as logs:
            write_folder(folder, {"tls.crt": renewed["tls.crt"]})  # half of it: the key is not there yet
            assert (await list_sites(held(issuer, port, "viewer"))).revision == 7
            write_folder(folder, renewed)
            assert (await list_sites(held(issuer, port, "viewer"))).revision == 7
        told = [line["event"] for line in logs if line["event"].startswith("server_identity")]
        assert told == ["server_identity_rejected", "server_identity_read"]


async def test_unreadable_server_identity_keeps_the_last_good_one(tmp_path: Path) -> None:
    """A bad file is an error in the log, not an outage."""
    authority = make_authority(tmp_path / "pki")
    async with serving(authority, north().register) as port:
        bundle = issue(authority, "vic", Role.VIEWER, port)
        (tmp_path / "pki" / "server.pem").unlink()
        with capture_logs() as logs:
            assert (await list_sites(bundle)).revision == 7
        assert any(line["event"] == "server_identity_rejected" for line in logs)


async def test_health_and_reflection_answer_viewers_but_no_agents(authority: CertificateAuthority) -> None:
    """The standard services are behind the same door."""
    async with serving(authority, north().register) as port:
        async with open_channel(issue(authority, "prober", Role.VIEWER, port)) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=DEADLINE_S
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            ask = reflection_pb2.ServerReflectionRequest(list_services="")
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            async for told in stub.ServerReflectionInfo(iter([ask]), timeout=DEADLINE_S):
                names = {service.name for service in told.list_services_response.service}
                assert "swingbus.fleet.v1alpha.FleetService" in names
                break
        async with open_channel(issue(authority, "edge-9", Role.AGENT, port)) as channel:
            with pytest.raises(Forbidden), faults_raised():
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)


async def test_health_unknown_service_keeps_grpcs_own_answer(authority: CertificateAuthority) -> None:
    """What a servicer of gRPC aborts with is passed on, and logged with its code."""
    asked = health_pb2.HealthCheckRequest(service="no.Such")
    async with (
        serving(authority, north().register) as port,
        open_channel(issue(authority, "prober-2", Role.VIEWER, port)) as channel,
    ):
        with capture_logs() as logs, pytest.raises(NotFound), faults_raised():
            await health_pb2_grpc.HealthStub(channel).Check(asked, timeout=DEADLINE_S)
        assert [line["code"] for line in logs if line["event"] == "rpc_finished"] == ["NOT_FOUND"]


async def test_second_server_on_a_port_is_an_error(authority: CertificateAuthority) -> None:
    """Without this two controllers would share a port by chance."""
    async with serving(authority, north().register) as port:
        second = build_server(DoorInterceptor(SystemClock()))
        with pytest.raises(Unreachable, match="another controller"):
            bind_port(second, f"127.0.0.1:{port}", server_credentials(authority.serving.identity))


async def test_dead_controller_is_unreachable_at_once(authority: CertificateAuthority) -> None:
    """A refused connection fails fast, it does not wait for the deadline."""
    async with serving(authority, north().register) as port:
        bundle = issue(authority, "late-comer", Role.VIEWER, port)
    started = asyncio.get_running_loop().time()
    with pytest.raises(Unreachable):
        await list_sites(bundle)
    assert asyncio.get_running_loop().time() - started < DEADLINE_S / 2


async def test_canonical_line_holds_caller_code_and_counts(authority: CertificateAuthority) -> None:
    """One line per RPC; a refusal carries its reason."""
    async with (
        serving(authority, north().register) as port,
        open_channel(issue(authority, "writer", Role.VIEWER, port)) as channel,
    ):
        with capture_logs() as logs:
            await refusal(channel, next(m for m in stub_methods() if m[0].endswith("SetAuthority")))
    (line,) = (entry for entry in logs if entry["event"] == "rpc_finished")
    assert (line["code"], line["reason"], line["role"]) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED", "viewer")
    assert (line["request_count"], line["response_count"]) == (1, 0)


async def test_connection_past_its_age_ends_a_stream_with_unavailable(authority: CertificateAuthority) -> None:
    """Age and grace together end long streams, so that a revoked holder does not stay for ever."""
    settings = ServerSettings(max_connection_age_s=0.5, max_connection_grace_s=0.5)
    async with (
        serving(authority, north().register, settings=settings) as port,
        open_channel(issue(authority, "watcher", Role.VIEWER, port)) as channel,
    ):
        stub: Any = fleet_grpc.FleetServiceStub(channel)
        request = fleet_pb.WatchEventsRequest(parent="sites/north", after_revision=5)
        call = stub.WatchEvents(request, timeout=DEADLINE_S)
        with pytest.raises(Unreachable), faults_raised():
            await anext(aiter(call))


async def test_wrong_state_arrives_with_its_reason(authority: CertificateAuthority) -> None:
    """A fault raised deep in a servicer reaches the client whole."""
    site = north()
    site.fail_with.append(
        WrongState("authority is OBSERVE", reason="AUTHORITY_TOO_LOW", metadata={"subject": "sites/north"})
    )
    async with serving(authority, site.register) as port:
        with pytest.raises(WrongState) as refused:
            await list_sites(issue(authority, "asker", Role.VIEWER, port))
    assert refused.value.reason == "AUTHORITY_TOO_LOW"
