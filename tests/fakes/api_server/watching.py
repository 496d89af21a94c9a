"""The fake API server's lists and watches: pages of one state; the log from a revision on, then what happens, bookmarks on demand."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from typing import Any

from aiohttp import web

from tests.fakes.api_server.faults import WatchFault
from tests.fakes.api_server.store import Entry, Json, Place, Refusal, Store, expired


def matches(selector: str, obj: Json) -> bool:
    """Return whether an object's labels satisfy `a=b,c=d`."""
    labels = obj["metadata"].get("labels") or {}
    return all(
        labels.get(key) == value for key, _, value in (part.partition("=") for part in selector.split(",") if part)
    )


def list_page(store: Store, place: Place, *, limit: int, token: str, selector: str) -> Json:
    """Return a page of the state at which the first page was taken; 410 where that state is no longer kept."""
    plural, namespace, _ = place
    if token:
        try:
            told = json.loads(base64.b64decode(token, validate=True))
            revision, start = int(told["rv"]), int(told["start"])
        except ValueError:
            raise Refusal(400, "BadRequest", "invalid continue token: continue key is not valid") from None
        if revision < store.compacted:
            raise expired()
    else:
        revision, start = store.revision, 0
        store.snapshots[plural, namespace, revision] = store.select(plural, namespace)
    everything = [obj for obj in store.snapshots[plural, namespace, revision] if matches(selector, obj)]
    end = start + limit if limit else len(everything)
    meta: Json = {"resourceVersion": str(revision)}
    if end < len(everything):
        meta["continue"] = base64.b64encode(json.dumps({"rv": revision, "start": end, "?": "~~~"}).encode()).decode()
        meta["remainingItemCount"] = len(everything) - end
    return {"metadata": meta, "items": everything[start:end]}


class Watches:
    """All open watches of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._wakers: dict[object, asyncio.Event] = {}
        self._bookmarks_asked = 0
        self._ends_asked = 0
        self.opened = 0
        store.listeners.append(self._wake)

    @property
    def open_count(self) -> int:
        """How many watches are open now."""
        return len(self._wakers)

    def send_bookmarks(self) -> None:
        """Let every open watch that allows it get a bookmark."""
        self._bookmarks_asked += 1
        self._wake()

    def end_all(self) -> None:
        """End every open watch in order, as a server does that shuts down."""
        self._ends_asked += 1
        self._wake()

    def _wake(self) -> None:
        for event in self._wakers.values():
            event.set()

    async def serve(
        self, request: web.Request, response: web.StreamResponse, plural: str, namespace: str, fault: WatchFault | None
    ) -> None:
        """Serve one watch until its time is up, the client goes, or the fault says so."""
        # Of a revision ahead of its own the real server (1.37) says nothing, and it skips all that happens up to there.
        at = int(request.query.get("resourceVersion") or self._store.revision)
        self.opened += 1
        await response.prepare(request)
        if at < self._store.compacted:
            await response.write(line("ERROR", expired().body))
            return
        sent = 0
        lines = self._lines(request, plural, namespace, at)
        try:
            async with asyncio.timeout(float(request.query.get("timeoutSeconds", "600"))):
                while True:
                    if fault is not None and sent >= fault.after_events:
                        await response.write(fault.raw)
                        if fault.then == "silence":
                            await asyncio.sleep(3600)
                        if fault.then == "reset":
                            await asyncio.sleep(0)
                            if request.transport is not None:
                                request.transport.abort()
                        if fault.then != "go_on":
                            return
                        fault = None
                    text = await anext(lines, None)
                    if text is None:
                        return
                    await response.write(text)
                    sent += 1
        except TimeoutError:
            return
        finally:
            await lines.aclose()

    async def _lines(self, request: web.Request, plural: str, namespace: str, at: int) -> AsyncGenerator[bytes, None]:
        selector = request.query.get("labelSelector", "")
        bookmarks, ends = self._bookmarks_asked, self._ends_asked
        me, event = object(), asyncio.Event()
        self._wakers[me] = event
        try:
            while True:
                event.clear()
                for entry in [entry for entry in self._store.log if entry.revision > at]:
                    at = entry.revision
                    if entry.place[0] == plural and namespace in ("", entry.place[1]):
                        seen = _as_selected(entry, selector)
                        if seen is not None:
                            yield line(seen, entry.object)
                if self._bookmarks_asked > bookmarks:
                    bookmarks = self._bookmarks_asked
                    if request.query.get("allowWatchBookmarks") == "true":
                        at = max(at, self._store.revision)
                        yield line(
                            "BOOKMARK", {"kind": "Any", "metadata": {"resourceVersion": str(self._store.revision)}}
                        )
                if self._ends_asked > ends:
                    return
                await event.wait()
        finally:
            del self._wakers[me]


def _as_selected(entry: Entry, selector: str) -> str | None:
    """Return the type under which a watch with this selector sees a change."""
    was = entry.before is not None and matches(selector, entry.before)
    if entry.type == "DELETED":
        return "DELETED" if was else None
    match was, matches(selector, entry.object):
        case True, True:
            return "MODIFIED"
        case True, False:
            return "DELETED"
        case False, True:
            return "ADDED"
    return None


def line(kind: str, obj: Any) -> bytes:
    """Return one event as it goes over the wire."""
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"
