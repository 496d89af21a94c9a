"""The fake API server's HTTP side: addresses, credentials, pages, verbs."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from tests.fakes.api_server import rules
from tests.fakes.api_server.faults import (
    CutBody,
    Fault,
    FaultPlan,
    Hang,
    Html,
    Late,
    Meanwhile,
    Redirect,
    Refuse,
    Reply,
    WatchFault,
)
from tests.fakes.api_server.patches import PatchFailed, json_patch, merge_patch
from tests.fakes.api_server.store import Json, Place, Refusal, Store
from tests.fakes.api_server.watching import Watches, list_page

TOKEN = "token-1"
_KINDS = {
    "pods": ("v1", "Pod"),
    "nodes": ("v1", "Node"),
    "namespaces": ("v1", "Namespace"),
    "podtemplates": ("v1", "PodTemplate"),
    "secrets": ("v1", "Secret"),
    "poddisruptionbudgets": ("policy/v1", "PodDisruptionBudget"),
    "leases": ("coordination.k8s.io/v1", "Lease"),
    "events": ("events.k8s.io/v1", "Event"),
    "capacitypools": ("swingbus.io/v1alpha1", "CapacityPool"),
}
_CLUSTER_SCOPED = frozenset({"nodes", "namespaces", "capacitypools"})
_WITH_STATUS = frozenset({"pods", "nodes", "poddisruptionbudgets", "capacitypools"})


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request was, for tests to look at."""

    verb: str
    target: str
    body: Any


@dataclass
class FakeApiServer:
    """Start with `async with`; `url`, `ca_path` and TOKEN are what a client needs.

    `tokens` maps a token to the (verb, resource) pairs that it may not do.
    """

    folder: Path
    certificates: tuple[Path, Path, Path]
    store: Store = field(default_factory=Store)
    faults: FaultPlan = field(default_factory=FaultPlan)
    tokens: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: {TOKEN: set()})
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self.watches = Watches(self.store)
        self._runner: web.AppRunner | None = None

    @property
    def ca_path(self) -> Path:
        """The authority that signed the server's certificate."""
        return self.certificates[0]

    async def __aenter__(self) -> Self:
        await self.start(0)
        return self

    async def start(self, port: int) -> None:
        """Listen on a port, any if 0."""
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(self.certificates[1], self.certificates[2])
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=tls).start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> int:
        """Go away with all connections; returns the port to come back on."""
        assert self._runner is not None
        port = int(self._runner.addresses[0][1])
        self.watches.end_all()
        await self._runner.cleanup()
        return port

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def make(self, plural: str, namespace: str, name: str, **fields: Any) -> Json:
        """Keep an object past all admission, as another client would have made it; `fields` may hold metadata."""
        api_version, kind = _KINDS[plural]
        meta = {"name": name, **fields.pop("metadata", {})}
        body = {"apiVersion": api_version, "kind": kind, "metadata": meta, **fields}
        if plural == "pods":
            rules.check_new_pod(body)
        made = self.store.create((plural, namespace, name), body)
        rules.count_budgets(self.store)
        return made

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        try:
            place, subresource = place_of(request.path)
            verb = verb_of(request, place)
            self.asked.append(Asked(verb, request.path_qs, body))
            self._authorize(request, verb, place[0], subresource)
            fault = self.faults.take(verb)
            if (struck := await strike(fault)) is not None:
                return struck
            if verb == "watch":
                watch = web.StreamResponse(headers={"Content-Type": "application/json"})
                wrong = fault if isinstance(fault, WatchFault) else None
                await self.watches.serve(request, watch, place[0], place[1], wrong)
                return watch
            code, result = self._do(request, verb, place, subresource, body)
            if isinstance(fault, Late):
                await asyncio.sleep(fault.after_s)
            if isinstance(fault, CutBody):
                return await cut_short(request, json.dumps(result).encode())
            return web.json_response(result, status=code)
        except Refusal as refusal:
            return refuse(refusal)

    def _authorize(self, request: web.Request, verb: str, plural: str, subresource: str) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        denied = self.tokens.get(token)
        if denied is None:
            raise Refusal(401, "Unauthorized", "Unauthorized")
        resource = f"{plural}/{subresource}" if subresource else plural
        if (verb, resource) in denied:
            raise Refusal(403, "Forbidden", f'User "fake" cannot {verb} resource "{resource}"')

    def _do(self, request: web.Request, verb: str, place: Place, subresource: str, body: Any) -> tuple[int, Json]:
        try:
            match verb, subresource:
                case "list", _:
                    page = list_page(
                        self.store,
                        place,
                        limit=int(request.query.get("limit", "0")),
                        token=request.query.get("continue", ""),
                        selector=request.query.get("labelSelector", ""),
                    )
                    api_version, kind = _KINDS[place[0]]
                    return 200, {"kind": f"{kind}List", "apiVersion": api_version, **page}
                case "get", _:
                    return 200, self.store.get(place)
                case "create", "eviction":
                    rules.evict(self.store, place, body)
                    return 201, {"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201}
                case "create", "binding":
                    return 201, self._bind(place, body)
                case "create", _:
                    return 201, self._create(request, place, body)
                case "delete", _:
                    return 200, rules.delete(self.store, place, body or {})
                case _:
                    return 200, self._change(request, verb, place, subresource, body)
        finally:
            rules.count_budgets(self.store)

    def _create(self, request: web.Request, place: Place, body: Json) -> Json:
        plural, namespace, _ = place
        body = rules.check_fields(plural, body, is_strict=request.query.get("fieldValidation") == "Strict")
        if plural == "pods":
            rules.check_new_pod(body)
        if plural in _WITH_STATUS and plural != "pods":
            body.pop("status", None)
        return self.store.create((plural, namespace, body["metadata"]["name"]), body)

    def _bind(self, place: Place, body: Json) -> Json:
        pod = self.store.get(place)
        if pod["spec"].get("schedulingGates"):
            raise Refusal(422, "Invalid", "pod has scheduling gates")
        if pod["spec"].get("nodeName"):
            raise Refusal(409, "Conflict", f"pod {place[2]} is already assigned to node")
        pod["spec"]["nodeName"] = body["target"]["name"]
        self.store.update(place, pod)
        return {"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201}

    def _change(self, request: web.Request, verb: str, place: Place, subresource: str, body: Any) -> Json:
        plural, current = place[0], self.store.get(place)
        is_strict = request.query.get("fieldValidation") == "Strict"
        if verb == "update":
            if not body["metadata"].get("resourceVersion"):
                raise Refusal(422, "Invalid", "metadata.resourceVersion: must be specified for an update")
            changed = body
        elif request.content_type == "application/json-patch+json":
            try:
                changed = json_patch(current, body)
            except PatchFailed:
                # The real server does not say which operation, nor that it was a test.
                message = "the server rejected our request due to an error in our request"
                raise Refusal(422, "Invalid", message) from None
        else:
            changed = merge_patch(current, body)
        changed = rules.check_fields(plural, changed, is_strict=is_strict, is_patch=verb == "patch")
        if subresource == "status":
            kept = {**current, "status": changed.get("status", {})}
            kept["metadata"] = {
                **current["metadata"],
                **{k: changed["metadata"].get(k) for k in ("uid", "resourceVersion")},
            }
            changed = kept
        elif plural in _WITH_STATUS and "status" in current:
            changed["status"] = current["status"]
        if plural == "pods" and not subresource:
            rules.check_pod_change(current, changed)
        return self.store.update(place, changed)


def place_of(path: str) -> tuple[Place, str]:
    """Return which object a path means, and which subresource."""
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    if not rest or rest[0] not in _KINDS:
        raise Refusal(404, "NotFound", "the server could not find the requested resource")
    plural, name, subresource = (*rest, "", "")[:3]
    if name and (plural in _CLUSTER_SCOPED) != (namespace == ""):
        raise Refusal(404, "NotFound", "the server could not find the requested resource")
    return (plural, namespace, name), subresource


def verb_of(request: web.Request, place: Place) -> str:
    """Return a request's verb as RBAC says it."""
    if request.method == "GET":
        if request.query.get("watch") == "true":
            return "watch"
        return "get" if place[2] else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]


def refuse(refusal: Refusal) -> web.Response:
    """Return a refusal as an answer."""
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    return web.json_response(refusal.body, status=refusal.code, headers=headers)


async def strike(fault: Fault | None) -> web.Response | None:
    """Return the wrong answer that a fault gives at once; None where the request goes on (and may go wrong later)."""
    match fault:
        case Refuse(refusal):
            raise refusal
        case Html():
            return web.Response(text="<html>Sign in</html>", content_type="text/html")
        case Redirect(location):
            return web.Response(status=302, headers={"Location": location})
        case Hang():
            await asyncio.sleep(3600)
        case Meanwhile(action):
            action()
        case Late(before_s=before_s):
            await asyncio.sleep(before_s)
        case Reply(raw):
            return web.Response(body=raw, content_type="application/json")
    return None


async def cut_short(request: web.Request, body: bytes) -> web.StreamResponse:
    """Send half of an answer, then break the connection."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
