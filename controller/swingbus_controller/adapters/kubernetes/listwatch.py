"""The list-watch: a copy of one kind in memory, kept by a list in pages and a watch from its revision on.

Decides nothing about what it sees: the course (what to ask next, when) and the mirror (what a change means) are pure modules of the
domain, this one carries them out. Refuses to believe: silence is a broken watch, half a line is none, a page of HTML is no list.
Invariants: once synced, the copy is a state that the server had; an object that was ever in it is told as gone when it is; clocks pace
the requests and are never asked what is true; memory is bounded by the number of objects.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar, assert_never

import msgspec

from swingbus.clock import Clock
from swingbus.faults import HistoryCompacted, OverBudget, SwingbusError, TimedOut, Unreachable
from swingbus.logs import get_logger
from swingbus_controller.adapters.kubernetes.answers import Answer, ByteStream, KubeApi, decode, fault_of, shorten
from swingbus_controller.adapters.kubernetes.lines import LineSplitter, LineTooLong
from swingbus_controller.adapters.kubernetes.objects import KubeObject
from swingbus_controller.adapters.kubernetes.own_objects import Bookmark, ListMeta, Status, WatchLine
from swingbus_controller.adapters.kubernetes.resources import ApiCall, Resource
from swingbus_controller.domain.cluster.mirror import Change, EventKind, Key, Mirror, PendingChanges, is_newer
from swingbus_controller.domain.cluster.watch_course import (
    Course,
    CourseEvent,
    ListFailed,
    ListPage,
    PageTaken,
    Trouble,
    Watch,
    WatchEnded,
    pause_s,
    step,
)

T = TypeVar("T", bound=KubeObject)
_EVENT_KINDS = frozenset(EventKind)
_LINE = msgspec.json.Decoder(WatchLine)
_BOOKMARK = msgspec.json.Decoder(Bookmark)
_STATUS = msgspec.json.Decoder(Status)
# What a fault means for the course; where several fit, the first.
_BY_REASON = {
    "REVISION_AHEAD": Trouble.REVISION_AHEAD,
    "BAD_ANSWER": Trouble.GARBAGE,
    "ANSWER_TOO_LARGE": Trouble.REFUSED,
}
# What is over as soon as a watch is open.
_KEPT_OUT = (Trouble.UNREACHABLE, Trouble.THROTTLED, Trouble.REFUSED)


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A page of a list."""

    metadata: ListMeta
    items: tuple[T, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListWatchSettings:
    """Args:
    page_objects: objects asked for at once.
    objects_at_most: a list that goes on after this many is given up; some ten times what one control plane bears.
    silence_s: after so long without a line a list is asked for; the API server sends bookmarks about once a minute, after its own start
        the first one of a quiet kind only after two.
    watch_s: a watch is asked to end after this to twice this, so that servers behind a balancer share the load again.
    list_again_s: when a watch ends and the last list is older than this, a new one confirms the copy: no watch can show what it missed.
    healthy_after_s: a watch that lived so long forgets earlier failures.
    pause_base_s, pause_longest_s: the pause after the first failure, and the longest.
    line_bytes_at_most: an object has 1.5 MB at most.
    ends_at_most: deletions that may wait to be taken before the watch stops reading.
    """

    page_objects: int = 500
    objects_at_most: int = 1_000_000
    silence_s: float = 90.0
    watch_s: float = 300.0
    list_again_s: float = 1800.0
    healthy_after_s: float = 10.0
    pause_base_s: float = 0.5
    pause_longest_s: float = 30.0
    line_bytes_at_most: int = 4 * 1024 * 1024
    ends_at_most: int = 10_000


@dataclass(slots=True)
class ListWatchCounts:
    """What happened since the start, for metrics."""

    lists_by_reason: Counter[str] = field(default_factory=Counter)  # "start", or what made a new one necessary
    list_failures: Counter[str] = field(default_factory=Counter)
    watches_count: int = 0
    watch_ends: Counter[str] = field(default_factory=Counter)
    events_count: int = 0
    bookmarks_count: int = 0
    half_lines_count: int = 0


class _Ended(Exception):
    """The server said in a watch why it ends it."""

    def __init__(self, trouble: Trouble, message: str, asked_s: float = 0.0) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.asked_s = asked_s


class ListWatch(Generic[T]):
    """One kind, in one namespace or all. Start `run` in a task group.

    Args:
        kind: the struct that its objects are decoded into.
        is_followed: whether somebody iterates `changes`; else none are kept. One consumer only.
        chance: for the pauses.
    """

    def __init__(
        self,
        api: KubeApi,
        resource: Resource,
        kind: type[T],
        *,
        clock: Clock,
        chance: random.Random,
        namespace: str = "",
        is_followed: bool = True,
        settings: ListWatchSettings | None = None,
    ) -> None:
        self._api, self._resource, self._namespace = api, resource, namespace
        self._clock, self._chance = clock, chance
        self._settings = settings or ListWatchSettings()
        self._page: msgspec.json.Decoder[Page[T]] = msgspec.json.Decoder(Page[kind])  # type: ignore[valid-type] # a type at run time
        self._object: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._course = Course()
        self._listed: list[T] = []
        self._mirror: Mirror[T] = Mirror()
        self._pending: PendingChanges[T] | None = None
        if is_followed:
            self._pending = PendingChanges(self._settings.ends_at_most)
        self._news, self._room, self._synced = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._sign_of_life_s: float | None = None
        self._asked_s = self._listed_at_s = 0.0
        self._has_heard = False
        self._log = get_logger().bind(resource=resource.plural, namespace=namespace)
        self.counts = ListWatchCounts()
        self.last_trouble = ""
        self._last_kind: Trouble | None = None

    @property
    def is_synced(self) -> bool:
        """Return whether the copy has been whole at least once."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Return as soon as the copy is whole."""
        await self._synced.wait()

    @property
    def revision(self) -> str:
        """Return how far the copy is complete, empty before the first list."""
        return self._mirror.revision

    @property
    def repeated_count(self) -> int:
        """Return how many changes came that were not newer than the copy."""
        return self._mirror.repeated_count

    @property
    def pending_count(self) -> int:
        """Return how many changes wait to be taken."""
        return 0 if self._pending is None else len(self._pending)

    def age_s(self) -> float | None:
        """Return how long ago the server was last heard about this kind, None if never."""
        return None if self._sign_of_life_s is None else self._clock.monotonic_s() - self._sign_of_life_s

    def snapshot(self) -> Mapping[Key, T]:
        """Return the copy as it is now; it may be ahead of the changes taken so far."""
        return dict(self._mirror.objects)

    async def changes(self) -> AsyncIterator[Change[T]]:
        """Yield what changed, newest state per object, for ever. After a start everything is new.

        Of a life that began and ended while the consumer was busy only the end is told.
        """
        if self._pending is None:
            raise RuntimeError("this list-watch was made without a follower")
        while True:
            while not len(self._pending):
                self._news.clear()
                await self._news.wait()
            change = self._pending.take()
            self._room.set()
            yield change

    async def run(self) -> None:
        """List and watch until cancelled."""
        settings = self._settings
        while True:
            wait_s = pause_s(
                self._course,
                base_s=settings.pause_base_s,
                longest_s=settings.pause_longest_s,
                dice=self._chance.random(),
                asked_s=self._asked_s,
            )
            self._asked_s = 0.0
            if wait_s > 0:
                await self._clock.sleep(wait_s)
            event: CourseEvent
            match self._course.next_request:
                case ListPage(continue_token=token):
                    event = await self._list(token)
                case Watch(revision=revision):
                    event = await self._watch(revision)
                case request:
                    assert_never(request)
            self._course = step(self._course, event, healthy_after_s=settings.healthy_after_s)

    async def _list(self, token: str) -> CourseEvent:
        query = {"limit": str(self._settings.page_objects)}
        if token:
            query["continue"] = token
        # No resourceVersion: the newest state, not what some server's cache still holds. A list never goes back in time.
        call = ApiCall(verb="list", resource=self._resource, namespace=self._namespace, query=query)
        try:
            page = decode(await self._api.call(call), self._page, call)
            self._check(page, call, token)
        except SwingbusError as fault:
            trouble = self._trouble(fault)
            self.counts.list_failures[trouble] += 1
            self._tell("list_failed", trouble, str(fault))
            return ListFailed(trouble=trouble)
        self._heard()
        if not token:
            self._listed = []
        self._listed += page.items
        meta = page.metadata
        if not meta.continue_:
            reason = self._course.relist_reason or "start"
            self.counts.lists_by_reason[reason] += 1
            self._publish(self._mirror.replace(self._listed, meta.resource_version))
            self._log.info("list_completed", reason=reason, objects_count=len(self._listed))
            self._listed, self._listed_at_s = [], self._clock.monotonic_s()
            self._synced.set()
        return PageTaken(continue_token=meta.continue_, revision=meta.resource_version)

    def _check(self, page: Page[T], call: ApiCall, token: str) -> None:
        """Refuse what would never end: a list that goes nowhere, or whose end can't be watched from."""
        meta = page.metadata
        if not meta.resource_version:
            problem = "the list has no revision"
        elif meta.continue_ and meta.continue_ == token:
            problem = "a page leads to itself"
        elif len(self._listed) + len(page.items) > self._settings.objects_at_most:
            problem = f"more than {self._settings.objects_at_most} objects"
        else:
            return
        raise Unreachable(f"cannot {call.what}: {problem}", reason="BAD_ANSWER", metadata=call.facts)

    async def _watch(self, revision: str) -> CourseEvent:
        watch_s = self._settings.watch_s * (1.0 + self._chance.random())
        query = {
            "watch": "true",
            "resourceVersion": revision,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, int(watch_s))),
        }
        call = ApiCall(verb="watch", resource=self._resource, namespace=self._namespace, query=query)
        began_s, self._has_heard = self._clock.monotonic_s(), False
        self.counts.watches_count += 1
        try:
            async with self._api.stream(call) as body:
                if self._last_kind in _KEPT_OUT:
                    self.last_trouble = (
                        ""  # we are let in again; a kind of which nothing changes says so only much later
                    )
                await self._read(body)
            trouble, message = Trouble.CLOSED, ""
        except TimeoutError:
            trouble, message = Trouble.SILENT, f"nothing was heard for {self._settings.silence_s:g} s"
        except _Ended as end:
            trouble, message = end.trouble, str(end)
            self._asked_s = end.asked_s
        except (LineTooLong, msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
            trouble, message = Trouble.GARBAGE, shorten(str(error))
        except SwingbusError as fault:
            trouble, message = self._trouble(fault), str(fault)
        self.counts.watch_ends[trouble] += 1
        if trouble is not Trouble.CLOSED:
            self._tell("watch_ended", trouble, message)
        now_s = self._clock.monotonic_s()
        return WatchEnded(
            trouble=trouble,
            revision=self._mirror.revision,
            lived_s=now_s - began_s,
            has_heard=self._has_heard,
            is_list_old=now_s - self._listed_at_s > self._settings.list_again_s,
        )

    async def _read(self, body: ByteStream) -> None:
        """Take lines until the end. Raises TimeoutError after a silence."""
        loop, splitter = asyncio.get_running_loop(), LineSplitter(self._settings.line_bytes_at_most)
        heard_at = loop.time()
        while True:
            if self._pending is not None and self._pending.is_full:
                await self._wait_room()
                heard_at = loop.time()  # it was we who did not listen
            # Of bytes without a line's end a server may send any number: only lines are signs of life.
            async with asyncio.timeout_at(heard_at + self._settings.silence_s):
                chunk = await body.read_some()
            if not chunk:
                self.counts.half_lines_count += splitter.has_half_line
                return
            for line in splitter.feed(chunk):
                heard_at = loop.time()
                self._heard()
                self._has_heard = True
                if line.strip():
                    self._take(_LINE.decode(line))

    async def _wait_room(self) -> None:
        while self._pending is not None and self._pending.is_full:
            self._room.clear()
            await self._room.wait()

    def _take(self, line: WatchLine) -> None:
        if line.type == "BOOKMARK":
            self.counts.bookmarks_count += 1
            revision = _BOOKMARK.decode(line.object).metadata.resource_version
            if is_newer(self._mirror.revision, revision):
                raise _Ended(Trouble.REVISION_AHEAD, f"the server is at {revision}, behind what it told before")
            self._mirror.advance(revision)
        elif line.type == "ERROR":
            raise self._end_of(_STATUS.decode(line.object), bytes(line.object))
        elif line.type in _EVENT_KINDS:
            self.counts.events_count += 1
            self._publish(self._mirror.apply(EventKind(line.type), self._object.decode(line.object)))
        else:
            raise _Ended(Trouble.GARBAGE, f"an event of type {shorten(line.type, 30)!r}")

    def _end_of(self, status: Status, raw: bytes) -> _Ended:
        call = ApiCall(verb="watch", resource=self._resource, namespace=self._namespace)
        if status.reason in ("Expired", "Gone"):
            return _Ended(Trouble.EXPIRED, shorten(status.message))
        if not 400 <= status.code < 600:
            return _Ended(Trouble.GARBAGE, "an error event without an error")
        fault = fault_of(Answer(code=status.code, body=raw), call)
        return _Ended(self._trouble(fault), str(fault), self._asked_s)

    def _publish(self, changes: list[Change[T]]) -> None:
        if self._pending is None:
            return
        for change in changes:
            self._pending.put(change)
        if changes:
            self._news.set()

    def _heard(self) -> None:
        self._sign_of_life_s = self._clock.monotonic_s()
        self.last_trouble = ""

    def _trouble(self, fault: SwingbusError) -> Trouble:
        """Return what a fault means for the course; what the server asks to wait is kept for the next pause."""
        self._asked_s = float(fault.metadata.get("retry_after_s", "0"))
        if fault.reason in _BY_REASON:
            return _BY_REASON[fault.reason]
        match fault:
            case HistoryCompacted():
                return Trouble.EXPIRED
            case OverBudget():
                return Trouble.THROTTLED
            case Unreachable() | TimedOut():
                return Trouble.UNREACHABLE
            case _:
                return Trouble.REFUSED

    def _tell(self, event: str, trouble: Trouble, message: str) -> None:
        self.last_trouble, self._last_kind = message, trouble
        self._log.warning(event, trouble=trouble.value, message=message, failures_count=self._course.failures_count)
