"""The connection to the API server: HTTPS, raw bytes in and out.

Decides deadlines and bounds. Refuses to know what is asked. Invariants: every await ends by a deadline (a stream's reader brings its own);
no answer is larger in memory than a bound; a redirect is never followed, since it would take our token elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import aiohttp

from swingbus.faults import InvalidInput, SwingbusError, TimedOut, Unreachable
from swingbus_controller.adapters.kubernetes.access import ApiServer, ClusterAccess
from swingbus_controller.adapters.kubernetes.answers import (
    Answer,
    ByteStream,
    fault_of,
    not_an_api_server,
    retry_after_s,
    shorten,
)
from swingbus_controller.adapters.kubernetes.resources import JSON, ApiCall

_REFUSED = 401


@dataclass(frozen=True, slots=True)
class ActAs:
    """Whom a person acts as, by the right to impersonate; the server's audit log names both."""

    user: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """Args:
    connections_at_most: at a time; a watch has one for itself.
    read_ahead_bytes: of one answer; a watch's event may be large.
    call_timeout_s: a whole call, its body included; for a stream until its header.
    connect_timeout_s: of it, until the connection stands.
    answer_bytes_at_most: a page of 500 pods has some 1.5 MB.
    act_as: somebody else's name, where the server lets us.
    """

    connections_at_most: int = 100
    read_ahead_bytes: int = 2 * 1024 * 1024
    call_timeout_s: float = 10.0
    connect_timeout_s: float = 5.0
    answer_bytes_at_most: int = 64 * 1024 * 1024
    user_agent: str = "swingbus-controller"
    act_as: ActAs | None = None


class ApiConnection:
    """Implements `KubeApi` over HTTPS. Use as an async context manager."""

    def __init__(self, access: ClusterAccess, settings: ConnectionSettings | None = None) -> None:
        self._access = access
        self._settings = settings or ConnectionSettings()
        self._server = access.server
        try:
            self._tls = _tls_context(access.server)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise InvalidInput(
                f"the certificates for {access.server.url} cannot be read ({type(error).__name__}); "
                "check the certificate authority, client certificate and key",
                reason="BAD_CERTIFICATE_FILES",
            ) from error
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        settings = self._settings
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=settings.connections_at_most, ssl=self._tls),
            read_bufsize=settings.read_ahead_bytes,
            # Proxies and passwords of the environment (.netrc) are not ours; a kubeconfig's proxy-url is honoured.
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, call: ApiCall, *, timeout_s: float | None = None) -> Answer:
        """Return the answer whatever its code; refused credentials are renewed and shown once more."""
        limit_s = self._settings.call_timeout_s if timeout_s is None else min(timeout_s, self._settings.call_timeout_s)
        shown = self._access.authorization()
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._ask(call, shown)
                # A refusal did nothing, so the call may be made again, whatever it is.
                if answer.code == _REFUSED and (fresh := await self._renewed(shown)) is not None:
                    answer = await self._ask(call, fresh)
                return answer
        except TimeoutError as error:
            raise _timed_out(call, limit_s) from error

    @asynccontextmanager
    async def stream(self, call: ApiCall) -> AsyncIterator[ByteStream]:
        """Open an endless answer; a refusal is raised as its fault."""
        limit_s = self._settings.call_timeout_s
        shown = self._access.authorization()
        try:
            async with asyncio.timeout(limit_s):
                response = await self._open(call, shown)
                if response.status == _REFUSED:
                    response = await self._open_anew(call, response, shown)
        except TimeoutError as error:
            raise _timed_out(call, limit_s) from error
        try:
            if response.status != 200:
                try:
                    async with asyncio.timeout(limit_s):
                        raise fault_of(await self._read(call, response), call)
                except TimeoutError as error:
                    raise _timed_out(call, limit_s) from error
            _require_json(call, response)
            yield _Body(call, response)
        finally:
            response.close()

    async def _open_anew(
        self, call: ApiCall, refusal: aiohttp.ClientResponse, shown: str | None
    ) -> aiohttp.ClientResponse:
        """Return the answer to other credentials, or the refusal itself where there are none."""
        try:
            fresh = await self._renewed(shown)
        except BaseException:
            refusal.close()  # or it would hold its connection for ever
            raise
        if fresh is None:
            return refusal
        refusal.close()
        return await self._open(call, fresh)

    async def _renewed(self, refused: str | None) -> str | None:
        """Return other credentials than the refused ones, None where there are none."""
        try:
            await self._access.renew()
        except SwingbusError:
            return None  # the refusal itself is what the caller must see
        fresh = self._access.authorization()
        return fresh if fresh != refused else None

    async def _ask(self, call: ApiCall, authorization: str | None) -> Answer:
        response = await self._open(call, authorization)
        try:
            return await self._read(call, response)
        except BaseException:
            response.close()  # half read: not to be used again
            raise

    async def _open(self, call: ApiCall, authorization: str | None) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("the connection is used outside of its block")
        headers = [
            ("Accept", JSON),
            ("Accept-Encoding", "identity"),  # gzip would cost both sides more than a local network does
            ("Content-Type", call.content_type),
            ("User-Agent", self._settings.user_agent),
        ]
        if (other := self._settings.act_as) is not None:
            headers.append(("Impersonate-User", other.user))
            headers += [("Impersonate-Group", group) for group in other.groups]
        if authorization is not None:
            headers.append(("Authorization", authorization))
        limits = aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_timeout_s)
        try:
            response = await self._session.request(
                call.method,
                self._server.url + call.target,
                headers=headers,
                data=None if call.body is None else json.dumps(call.body),
                timeout=limits,
                allow_redirects=False,
                proxy=self._server.proxy_url,
                server_hostname=self._server.tls_name,
            )
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(call, error) from error
        except ValueError:  # a header that is none: of all of them only the token is not ours; it must not be quoted
            raise InvalidInput(
                f"cannot {call.what}: the token has characters that no header may hold; check its file",
                reason="BAD_TOKEN",
                metadata=call.facts,
            ) from None
        if (target := response.headers.get("Location")) is not None and 300 <= response.status < 400:
            response.close()
            raise not_an_api_server(call, f"a redirect to {shorten(target)}")
        return response

    async def _read(self, call: ApiCall, response: aiohttp.ClientResponse) -> Answer:
        body, limit = bytearray(), self._settings.answer_bytes_at_most
        try:
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise Unreachable(
                        f"cannot {call.what}: the answer is larger than {limit} bytes; ask for smaller pages",
                        reason="ANSWER_TOO_LARGE",
                        metadata=call.facts,
                    )
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(call, error) from error
        if 200 <= response.status < 300:
            _require_json(call, response)
        return Answer(
            code=response.status, body=bytes(body), retry_after_s=retry_after_s(response.headers.get("Retry-After"))
        )


class _Body:
    """A stream's body."""

    def __init__(self, call: ApiCall, response: aiohttp.ClientResponse) -> None:
        self._call = call
        self._response = response

    async def read_some(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(self._call, error) from error


def _tls_context(server: ApiServer) -> ssl.SSLContext:
    """Return what verifies the server, and shows our certificate where there is one. Raises SSLError, OSError or ValueError."""
    context = ssl.create_default_context(cafile=server.ca_file)
    if server.certificate_file:
        context.load_cert_chain(server.certificate_file, server.key_file)
    return context


def _require_json(call: ApiCall, response: aiohttp.ClientResponse) -> None:
    if response.content_type != JSON:
        raise not_an_api_server(call, f"{response.content_type} ({response.status})")


def _unreachable(call: ApiCall, error: Exception) -> SwingbusError:
    if isinstance(error, TimeoutError):  # aiohttp's are both: a connection that did not come to stand
        return Unreachable(f"cannot {call.what}: no connection in time; check address and network", metadata=call.facts)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Unreachable(
            f"cannot {call.what}: the server's certificate is not signed by the authority we know, or for another name; "
            "check the cluster's certificate authority",
            reason="UNTRUSTED_SERVER",
            metadata=call.facts,
        )
    return Unreachable(
        f"cannot {call.what}: {type(error).__name__}: {shorten(str(error))}; it may or may not have been done",
        metadata=call.facts,
    )


def _timed_out(call: ApiCall, limit_s: float) -> TimedOut:
    return TimedOut(
        f"cannot {call.what}: no answer within {limit_s:g} s; it may or may not have been done: read before trying again",
        metadata=call.facts,
    )
