"""Sockets for simulated miners: who listens where, and how the network misbehaves.

Decides nothing about watts or commands: bytes of one whole request go to the firmware's `answer`, bytes of the reply
come back. Socket faults (late, hung, truncated, refused) are played here, so every firmware has them alike.
Invariant: a fault of one miner never delays another; a server keeps at most `MAX_OPEN` connections per miner.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from swingbus.faults import Unreachable
from swingbus_sim.miners.luxos import LuxosApi
from swingbus_sim.miners.whatsminer import WhatsminerApi
from swingbus_sim.miners.whatsminer_v3 import WhatsminerV3Api
from swingbus_sim.ports import Asic, NetworkFault

RPC_PORT = 4028
V3_PORT = 4433
MAX_OPEN = 64  # a real control board runs out of sockets much earlier
MAX_REQUEST_BYTES = 64 * 1024
REFUSAL_CHECK_S = 0.2  # how soon a "refused" spell opens or closes the listening socket


class Firmware(Enum):
    """Which protocol a miner speaks."""

    LUXOS = "luxos"
    WHATSMINER = "whatsminer"  # API 2.0.5: JSON on 4028, writes in an AES envelope with a token
    WHATSMINER_V3 = "whatsminer-v3"  # firmware of 2024-11 and later: length-prefixed JSON on 4433


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedMiner:
    """One miner and its place on the network.

    `host` is a loopback address of its own; `password` is the one the operator has set (Whatsminer refuses writes while
    it is still the factory's "admin", unless `allow_default_password`; LuxOS has none on this API).
    """

    asic: Asic
    firmware: Firmware
    host: str
    password: str | None = None
    allow_default_password: bool = False


@dataclass(slots=True)
class MinerTraffic:
    """How much the servers were asked: for figures and tests."""

    connections: int = 0
    requests: int = 0


class MinerApi(Protocol):
    """One firmware's protocol on one port."""

    def is_whole(self, request: bytes) -> bool:
        """Say whether the bytes so far make one request."""
        ...

    def answer(self, request: bytes, now_s: float) -> tuple[bytes, bool]:
        """Return the reply and whether the connection stays open for a second request."""
        ...


class _Connection(asyncio.Protocol):
    """One TCP connection: collect a request, play the weather, answer, close."""

    __slots__ = ("_api", "_bytes", "_is_closed", "_port", "_timer", "_transport")

    def __init__(self, port: _ServedPort) -> None:
        self._port = port
        self._api = port.api
        self._bytes = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._port.connections.add(self)
        self._port.traffic.connections += 1
        if len(self._port.connections) > MAX_OPEN:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed = True
        self._port.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._bytes = self._bytes + data if self._bytes else data
        if len(self._bytes) > MAX_REQUEST_BYTES:
            self.abort()
        elif self._api.is_whole(self._bytes):
            request, self._bytes = self._bytes, b""
            self._play(request)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _play(self, request: bytes) -> None:
        port = self._port
        port.traffic.requests += 1
        now_s = port.now()
        weather = port.miner.asic.weather(now_s)
        if weather.fault is NetworkFault.HUNG:
            return  # the peer waits until it gives up
        if weather.fault is NetworkFault.REFUSED:
            self.abort()  # the listener closes within REFUSAL_CHECK_S; who slips in before is reset
        elif weather.fault is NetworkFault.LATE:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(weather.delay_s, self._answer, request, False)
        else:
            self._answer(request, weather.fault is NetworkFault.TRUNCATED)

    def _answer(self, request: bytes, is_truncated: bool) -> None:
        transport = self._transport
        if transport is None or self._is_closed:
            return
        reply, stays_open = self._api.answer(request, self._port.now())
        transport.write(reply[: len(reply) // 2] if is_truncated else reply)
        if is_truncated or not stays_open:
            transport.close()


class _ServedPort:
    """One listening socket of one miner, opened and closed with the weather."""

    def __init__(self, miner: ServedMiner, port: int, api: MinerApi, now: Callable[[], float], traffic: MinerTraffic):
        self.miner = miner
        self.api = api
        self.now = now
        self.traffic = traffic
        self.connections: set[_Connection] = set()
        self._port = port
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        if self._server is None:
            loop = asyncio.get_running_loop()
            host = self.miner.host
            try:
                self._server = await loop.create_server(
                    lambda: _Connection(self), host, self._port, reuse_address=True, backlog=MAX_OPEN
                )
            except OSError as error:
                raise Unreachable(
                    f"simulated miner {self.miner.asic.name} cannot listen on {host}:{self._port}: {error.strerror}; "
                    "is another simulator running here, or is the address no loopback address?",
                    metadata={"miner": self.miner.asic.name, "address": f"{host}:{self._port}"},
                ) from error

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.abort()

    async def follow_weather(self) -> None:
        if self.miner.asic.weather(self.now()).fault is NetworkFault.REFUSED:
            self.close()
        else:
            await self.open()


def _ports_of(miner: ServedMiner, now: Callable[[], float], traffic: MinerTraffic) -> list[_ServedPort]:
    def port(number: int, api: MinerApi) -> _ServedPort:
        return _ServedPort(miner, number, api, now, traffic)

    match miner.firmware:
        case Firmware.LUXOS:
            return [port(RPC_PORT, LuxosApi(miner.asic))]
        case Firmware.WHATSMINER:
            api = WhatsminerApi(miner.asic, miner.password, miner.allow_default_password)
            return [port(RPC_PORT, api)]
        case Firmware.WHATSMINER_V3:
            # Port 4028 stays for identification; it answers reads and refuses writes.
            old = WhatsminerApi(miner.asic, None, False, firmware_version="20250115.10.REL")
            new = WhatsminerV3Api(miner.asic, miner.password, miner.allow_default_password)
            return [port(RPC_PORT, old), port(V3_PORT, new)]


@contextlib.asynccontextmanager
async def serve_miners(miners: Sequence[ServedMiner], now: Callable[[], float]) -> AsyncIterator[MinerTraffic]:
    """Serve all miners from the running loop until the block ends.

    `now` gives seconds on the simulator's axis. Yields the traffic counters. Needs no privileges (all ports > 1023).
    """
    traffic = MinerTraffic()
    ports = [port for miner in miners for port in _ports_of(miner, now, traffic)]

    async def follow() -> None:
        while True:
            await asyncio.sleep(REFUSAL_CHECK_S)
            for port in ports:
                await port.follow_weather()

    try:
        for port in ports:
            await port.follow_weather()
        async with asyncio.TaskGroup() as tasks:
            follower = tasks.create_task(follow())
            try:
                yield traffic
            finally:
                follower.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:  # the caller's own error, which the task group only wrapped
            raise group.exceptions[0] from None
        raise
    finally:
        for port in ports:
            port.close()
