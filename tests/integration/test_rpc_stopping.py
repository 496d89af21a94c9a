"""A server that stops, or a caller that goes, while streams are busy: nothing looks like a fault of ours. Over real loopback gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from swingbus.clock import SystemClock
from swingbus.faults import Unreachable
from swingbus.rpc import roles
from swingbus.rpc.channel import open_channel
from swingbus.rpc.interceptors import DoorInterceptor
from swingbus.rpc.roles import Role
from swingbus.rpc.server import bind_port, build_server, server_credentials
from swingbus.rpc.status import faults_raised
from swingbus_controller.adapters.pki import CertificateAuthority
from tests.fakes.authority import issue, make_authority

SERVICE = "test.Stopping"
STYLES = ("written", "yielded", "late")
DEADLINE_S = 20.0
STREAMS_COUNT = 10


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Make one CA for the module."""
    return make_authority(tmp_path_factory.mktemp("pki") / "site")


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test's service rows in the role table."""
    rows = {f"/{SERVICE}/{name}": frozenset({Role.VIEWER}) for name in STYLES}
    monkeypatch.setattr(roles, "METHOD_ROLES", {**roles.METHOD_ROLES, **rows})


class Busy:
    """Streams that write all the time, in both styles; one of them cannot be stopped before the server has."""

    def __init__(self) -> None:
        self.is_stopped = asyncio.Event()
        self.ended_count = 0
        self.all_ended = asyncio.Event()

    async def written(self, requests: AsyncIterator[StringValue], context: Any) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write(context))
            async for _ in requests:
                pass

    @staticmethod
    async def _write(context: Any) -> None:
        while True:
            await context.write(StringValue(value="x"))
            await asyncio.sleep(0.005)

    async def yielded(self, requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
        while True:
            yield StringValue(value="x")
            await asyncio.sleep(0.005)

    async def late(self, requests: AsyncIterator[StringValue], context: Any) -> None:
        """Write once more when the server is gone, as one that was just about to acknowledge something."""
        await context.write(StringValue(value="x"))
        try:
            await asyncio.sleep(DEADLINE_S)
        except asyncio.CancelledError:
            await self.is_stopped.wait()
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(context.write(StringValue(value="ack")))
            finally:
                self.ended_count += 1
                if self.ended_count == STREAMS_COUNT:
                    self.all_ended.set()


@asynccontextmanager
async def busy_server(
    authority: CertificateAuthority,
) -> AsyncIterator[tuple[grpc.aio.Server, DoorInterceptor, Busy, int]]:
    """Run a server of busy streams; it is stopped by the test."""
    door, busy = DoorInterceptor(SystemClock()), Busy()
    server = build_server(door)
    handlers = {
        name: grpc.stream_stream_rpc_method_handler(
            getattr(busy, name),
            request_deserializer=StringValue.FromString,
            response_serializer=StringValue.SerializeToString,
        )
        for name in STYLES
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = bind_port(server, "127.0.0.1:0", server_credentials(authority.serving.identity))
    await server.start()
    try:
        yield server, door, busy, port
    finally:
        await server.stop(0)


async def read(channel: grpc.aio.Channel, style: str, begun: asyncio.Event, *, greets: bool = True) -> None:
    """Read a stream until it ends; raise as callers of ours do."""

    async def requests() -> AsyncIterator[StringValue]:
        if greets:
            yield StringValue(value="hello")
        await asyncio.sleep(DEADLINE_S)

    multi: Any = channel.stream_stream(
        f"/{SERVICE}/{style}",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=StringValue.FromString,
    )
    with faults_raised():
        async for _ in multi(requests(), timeout=DEADLINE_S):
            begun.set()


async def read_many(channel: grpc.aio.Channel, style: str) -> list[asyncio.Task[None]]:
    """Open streams and return their readers once each has answered."""
    begun = [asyncio.Event() for _ in range(STREAMS_COUNT)]
    tasks = [asyncio.create_task(read(channel, style, each)) for each in begun]
    for each in begun:
        async with asyncio.timeout(DEADLINE_S):
            await each.wait()
    return tasks


async def ends_of(readers: list[asyncio.Task[None]]) -> list[BaseException | None]:
    """Return what each reader ended with."""
    await asyncio.wait(readers, timeout=DEADLINE_S)
    return [reader.exception() for reader in readers]


@pytest.mark.parametrize("style", ["written", "yielded"])
async def test_streams_end_as_unavailable_before_the_server_stops(authority: CertificateAuthority, style: str) -> None:
    """Each reader hears it from the door, with the reason; whoever comes then is refused alike; nothing is an error."""
    async with busy_server(authority) as (server, door, _, port):
        with capture_logs() as logs:
            async with open_channel(issue(authority, f"vic-{style}", Role.VIEWER, port)) as channel:
                readers = await read_many(channel, style)
                await door.end_streams(DEADLINE_S)
                with pytest.raises(Unreachable, match="stops"):
                    await read(channel, style, asyncio.Event(), greets=False)
                # Of one that writes as it is refused grpc.aio may report its failed write instead of the reason.
                with pytest.raises(Unreachable):
                    await read(channel, style, asyncio.Event())
                await server.stop(0.2)
                ends = await ends_of(readers)
    assert [type(end) for end in ends] == [Unreachable] * STREAMS_COUNT, ends
    assert not [line for line in logs if line["log_level"] in ("warning", "error")]
    finished = [line["code"] for line in logs if line["event"] == "rpc_finished"]
    assert len(finished) == STREAMS_COUNT + 2
    assert set(finished) <= {"UNAVAILABLE", "CANCELLED"}
    if style == "written":
        assert {end.reason for end in ends if isinstance(end, Unreachable)} == {"SERVER_STOPS"}


async def test_a_write_after_the_server_has_stopped_is_no_crash_of_ours(authority: CertificateAuthority) -> None:
    """It was cut off under its servicer: logged as the end of an RPC, with who had called, and not as an error."""
    async with busy_server(authority) as (server, _, busy, port):
        with capture_logs() as logs:
            async with open_channel(issue(authority, "late-1", Role.VIEWER, port)) as channel:
                readers = await read_many(channel, "late")
                await server.stop(0)
                busy.is_stopped.set()
                ends = await ends_of(readers)
                async with asyncio.timeout(DEADLINE_S):
                    await busy.all_ended.wait()
                await asyncio.sleep(0.1)  # the door's own last steps
    assert [type(end) for end in ends] == [Unreachable] * STREAMS_COUNT, ends
    assert not [line for line in logs if line["log_level"] in ("warning", "error")]
    finished = [line for line in logs if line["event"] == "rpc_finished"]
    assert [line["code"] for line in finished] == ["UNAVAILABLE"] * STREAMS_COUNT
    assert all(line["peer"].startswith("ipv4:127.0.0.1") for line in finished)


async def test_a_write_after_the_caller_has_gone_is_no_crash_of_ours(authority: CertificateAuthority) -> None:
    """An agent that ends its stream while it is being answered: logged as the end of an RPC, not as an error."""
    async with busy_server(authority) as (_, _, busy, port):
        with capture_logs() as logs:
            async with open_channel(issue(authority, "gone-1", Role.VIEWER, port)) as channel:
                readers = await read_many(channel, "late")
                for reader in readers:
                    reader.cancel()
                await asyncio.wait(readers, timeout=DEADLINE_S)
                busy.is_stopped.set()
                async with asyncio.timeout(DEADLINE_S):
                    await busy.all_ended.wait()
                await asyncio.sleep(0.1)  # the door's own last steps
    assert not [line for line in logs if line["log_level"] in ("warning", "error")]
    assert [line["code"] for line in logs if line["event"] == "rpc_finished"] == ["CANCELLED"] * STREAMS_COUNT
