"""A proxy before a real API server that does wrong what it is told to: the same faults as the fake's, on real answers.

It shows its own certificate. To the server behind it speaks as the kubeconfig's user, or, told to, with the token that it was shown.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import aiohttp
from aiohttp import web

from swingbus_controller.adapters.kubernetes.kubeconfig import load_kubeconfig
from tests.fakes.api_server.faults import CutBody, FaultPlan, Late, WatchFault
from tests.fakes.api_server.server import cut_short, place_of, refuse, strike, verb_of
from tests.fakes.api_server.store import Refusal


@dataclass
class FaultProxy:
    """Start with `async with`; `url` and `ca_path` are what a client needs.

    `is_passing_tokens`: who asks is who the server sees; else no credentials are looked at.
    """

    folder: Path
    certificates: tuple[Path, Path, Path]
    kubeconfig: Path
    faults: FaultPlan = field(default_factory=FaultPlan)
    is_passing_tokens: bool = False
    url: str = ""

    def __post_init__(self) -> None:
        self._ends = asyncio.Event()

    @property
    def ca_path(self) -> Path:
        """The authority that signed the proxy's certificate."""
        return self.certificates[0]

    def end_watches(self) -> None:
        """End every open watch in order."""
        self._ends.set()
        self._ends = asyncio.Event()

    async def __aenter__(self) -> Self:
        server = (await load_kubeconfig(self.kubeconfig)).server
        behind = ssl.create_default_context(cafile=server.ca_file)
        if not self.is_passing_tokens:  # the server would believe the certificate first
            assert server.certificate_file is not None
            behind.load_cert_chain(server.certificate_file, server.key_file)
        self._host = server.url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=behind), timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )
        await self.start(0)
        return self

    async def start(self, port: int) -> None:
        """Listen on a port, any if 0."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(self.certificates[1], self.certificates[2])
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=tls).start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> int:
        """Go away with all connections; returns the port to come back on."""
        port = int(self._runner.addresses[0][1])
        await self._close()
        return port

    async def __aexit__(self, *_: object) -> None:
        await self._close()  # it may be away already, where a test failed
        await self._session.close()

    async def _close(self) -> None:
        self.end_watches()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            place, _ = place_of(request.path)
            verb = verb_of(request, place)
            fault = self.faults.take(verb)
            if (struck := await strike(fault)) is not None:
                return struck
            if verb == "watch":
                return await self._watch(request, fault if isinstance(fault, WatchFault) else None)
            headers = {"Content-Type": request.content_type, **self._headers(request)}
            async with self._session.request(
                request.method, self._host + request.raw_path, data=await request.read(), headers=headers
            ) as told:
                body = await told.read()
                if isinstance(fault, CutBody):
                    return await cut_short(request, body)
                if isinstance(fault, Late):
                    await asyncio.sleep(fault.after_s)
                return web.Response(body=body, status=told.status, content_type=told.content_type)
        except Refusal as refusal:
            return refuse(refusal)

    def _headers(self, request: web.Request) -> dict[str, str]:
        shown = {"Authorization": request.headers.get("Authorization", "")} if self.is_passing_tokens else {}
        return {"Accept": "application/json", **shown}

    async def _watch(self, request: web.Request, fault: WatchFault | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        ends = self._ends
        async with self._session.get(self._host + request.raw_path, headers=self._headers(request)) as told:
            if told.status != 200:
                return web.Response(body=await told.read(), status=told.status, content_type=told.content_type)
            await response.prepare(request)
            reading = asyncio.create_task(self._forward(request, response, told, fault))
            ended = asyncio.create_task(ends.wait())
            try:
                await asyncio.wait((reading, ended), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (reading, ended):
                    task.cancel()
                await asyncio.gather(reading, ended, return_exceptions=True)  # noqa: TID251 - only to see them end
        return response

    async def _forward(
        self, request: web.Request, response: web.StreamResponse, told: aiohttp.ClientResponse, fault: WatchFault | None
    ) -> None:
        sent, rest = 0, b""
        while True:
            if fault is not None and sent >= fault.after_events:
                await response.write(fault.raw)
                if fault.then == "silence":
                    await asyncio.sleep(3600)
                if fault.then == "reset" and request.transport is not None:
                    request.transport.abort()
                if fault.then != "go_on":
                    return
                fault = None
            chunk = await told.content.readany()
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for text in lines:
                await response.write(text + b"\n")
                sent += 1
