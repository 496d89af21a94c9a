"""The list-watch under every order of faults, changes and slow consumers, in virtual time: it ends knowing what is, and what ended."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swingbus.faults import TimedOut, Unreachable
from swingbus_controller.adapters.kubernetes.answers import Answer, ByteStream
from swingbus_controller.adapters.kubernetes.lines import LineSplitter
from swingbus_controller.adapters.kubernetes.listwatch import ListWatch, ListWatchSettings
from swingbus_controller.adapters.kubernetes.objects import Pod
from swingbus_controller.adapters.kubernetes.resources import PODS, ApiCall
from swingbus_controller.domain.cluster.mirror import Change, Gone, Key, Mirror, PendingChanges, Seen
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
from tests.fakes.api_server.store import Refusal, Store, expired
from tests.fakes.api_server.watching import line, list_page
from tests.fakes.virtual_time import LoopClock, in_virtual_time

NAMES = "abcde"
# What happens at the server at one moment: create or touch or end a name, forget history, change another kind.
WHAT_HAPPENS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["make", "touch", "drop"]), st.sampled_from(NAMES)),
        st.tuples(st.sampled_from(["compact", "other_kind"]), st.just("")),
    ),
    max_size=4,
)
FAULTS = st.sampled_from(
    [
        "",
        "",
        "unreachable",
        "timeout",
        "expired",
        "garbage",
        "throttled",
        "refused",
        "half",
        "silence",
        "replay",
        "bookmark",
        "close",
        "ahead",
    ]
)
SCRIPT = st.lists(st.tuples(WHAT_HAPPENS, FAULTS), max_size=25)


class ScriptedApi:
    """A server in memory: before every answer and every read the script says what happens and what goes wrong."""

    def __init__(self, script: list[tuple[list[tuple[str, str]], str]]) -> None:
        self.store = Store()
        self.script = script[::-1]
        self.look: Callable[[], None] = lambda: None

    def turn(self) -> str:
        """Let the next thing happen; returns what goes wrong."""
        self.look()
        if not self.script:
            return ""
        happenings, fault = self.script.pop()
        for what, name in happenings:
            self._happen(what, ("pods", "ns", name))
        return fault

    def _happen(self, what: str, place: tuple[str, str, str]) -> None:
        match what:
            case "make" if place not in self.store.objects:
                self.store.create(place, {"metadata": {"name": place[2]}})
            case "touch" if place in self.store.objects:
                pod = self.store.get(place)
                pod["metadata"]["labels"] = {"at": str(self.store.revision)}
                self.store.update(place, pod)
            case "drop" if place in self.store.objects:
                self.store.remove(place)
            case "compact":
                self.store.compact()
            case "other_kind":
                self.store.create(("nodes", "", f"n{self.store.revision}"), {"metadata": {"name": "n"}})

    async def call(self, call: ApiCall, *, timeout_s: float | None = None) -> Answer:
        await asyncio.sleep(0.01)
        fault = self.turn()
        raise_common(fault)
        try:
            match fault:
                case "expired":
                    raise expired()
                case "garbage" | "half":
                    return Answer(code=200, body=b'{"metadata":{"resourceVersion":"9')
                case "refused":
                    raise Refusal(403, "Forbidden", "no")
                case "throttled":
                    raise Refusal(429, "TooManyRequests", "busy")
            page = list_page(
                self.store,
                ("pods", "", ""),
                limit=int(call.query["limit"]),
                token=call.query.get("continue", ""),
                selector="",
            )
        except Refusal as refusal:
            return Answer(code=refusal.body["code"], body=json.dumps(refusal.body).encode(), retry_after_s=5.0)
        return Answer(code=200, body=json.dumps(page).encode())

    @asynccontextmanager
    async def stream(self, call: ApiCall) -> AsyncIterator[ByteStream]:
        await asyncio.sleep(0.01)
        at = int(call.query["resourceVersion"])
        if at > self.store.revision:
            raise TimedOut("ahead", reason="REVISION_AHEAD")
        yield ScriptedWatch(self, at)


class ScriptedWatch:
    """One watch."""

    def __init__(self, api: ScriptedApi, at: int) -> None:
        self._api = api
        self._at = at
        self._ended = False

    async def read_some(self) -> bytes:
        await asyncio.sleep(0.01)
        store = self._api.store
        fault = self._api.turn()
        raise_common(fault)
        if self._ended or fault == "close":
            return b""
        if self._at < store.compacted or fault == "expired":
            self._ended = True
            return line("ERROR", expired().body)
        lines = [line(e.type, e.object) for e in store.log if e.revision > self._at and e.place[0] == "pods"]
        match fault:
            case "silence":
                await asyncio.sleep(3600)
            case "garbage":
                self._ended = True
                return b"".join(lines[:1]) + b"{]\n"
            case "half":
                self._ended = True
                return b"".join(lines)[:-1]
            case "refused" | "throttled" | "ahead":
                self._ended = True
                code = {"refused": 403, "throttled": 429, "ahead": 504}[fault]
                causes = [{"reason": "ResourceVersionTooLarge"}] if fault == "ahead" else []
                return line("ERROR", Refusal(code, fault, fault, details={"causes": causes}).body)
            case "replay":
                return b"".join(
                    line(e.type, e.object) for e in store.log if e.place[0] == "pods" and e.revision <= self._at
                )
            case "bookmark":
                lines.append(line("BOOKMARK", {"metadata": {"resourceVersion": str(store.revision)}}))
        if not lines and not self._api.script:
            await asyncio.sleep(3600)
        self._at = store.revision
        return b"".join(lines)


def raise_common(fault: str) -> None:
    """Raise what the connection raises."""
    if fault == "unreachable":
        raise Unreachable("broken")
    if fault == "timeout":
        raise TimedOut("late")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=SCRIPT, lazy=st.lists(st.floats(0, 120), max_size=6), seed=st.integers(0, 1000))
def test_whatever_happens_the_copy_is_the_servers_state_and_no_end_is_lost(
    script: list[tuple[list[tuple[str, str]], str]], lazy: list[float], seed: int
) -> None:
    """Once synced after the last fault: copy and consumer equal the server; every life that was ever in the copy and ended was told so."""

    async def main() -> None:
        api = ScriptedApi(script)
        watch = ListWatch(
            api,
            PODS,
            Pod,
            clock=LoopClock(),
            chance=random.Random(seed),
            settings=ListWatchSettings(page_objects=2, ends_at_most=3),
        )
        known: dict[Key, Pod] = {}
        ever_seen: set[str] = set()
        told_gone: list[str] = []

        async def follow() -> None:
            waits = list(lazy)
            async for change in watch.changes():
                take(change, known, told_gone)
                if waits:
                    await asyncio.sleep(waits.pop())

        api.look = lambda: ever_seen.update(pod.uid for pod in watch.snapshot().values())
        running = [asyncio.create_task(part) for part in (watch.run(), follow())]
        # Every turn of the script costs at most a silence or the longest pause, each a little over a minute.
        async with asyncio.timeout(25 * 200 + 2000):
            while api.script or versions(watch.snapshot()) != server_versions(api.store):
                assert not any(task.done() for task in running), [task for task in running if task.done()]
                await asyncio.sleep(5.0)
            while versions(known) != server_versions(api.store) or watch.pending_count:
                await asyncio.sleep(5.0)
        living = {uid for uid, _ in server_versions(api.store).values()}
        assert ever_seen - living <= set(told_gone)
        assert not living & set(told_gone)
        assert len(told_gone) == len(set(told_gone))
        for task in running:
            task.cancel()
        await asyncio.wait(running)

    in_virtual_time(main)


def take(change: Change[Pod], known: dict[Key, Pod], told_gone: list[str]) -> None:
    """Believe one change, as a consumer does; a successor never comes before the end of what it follows."""
    key = change.obj.key
    if isinstance(change, Gone):
        told_gone.append(change.obj.uid)
        assert known.pop(key, change.obj).uid == change.obj.uid
    else:
        assert key not in known or known[key].uid == change.obj.uid
        known[key] = change.obj


def versions(objects: Any) -> dict[Key, tuple[str, str]]:
    return {key: (pod.uid, pod.revision) for key, pod in objects.items()}


def server_versions(store: Store) -> dict[Key, tuple[str, str]]:
    return {
        ("ns", obj["metadata"]["name"]): (obj["metadata"]["uid"], obj["metadata"]["resourceVersion"])
        for obj in store.select("pods", "")
    }


@given(
    pieces=st.lists(st.binary(max_size=30)),
    text=st.lists(st.binary(max_size=40).filter(lambda part: b"\n" not in part)),
)
def test_lines_do_not_depend_on_how_they_were_cut(pieces: list[bytes], text: list[bytes]) -> None:
    """Any cut of the same bytes gives the same lines, and half a line is no line."""
    whole = b"".join(part + b"\n" for part in text) + b"rest"
    splitter, lines, at = LineSplitter(100), [], 0
    for piece in pieces:
        lines += splitter.feed(whole[at : at + len(piece)])
        at += len(piece)
    lines += splitter.feed(whole[at:])
    assert lines == text
    assert splitter.has_half_line


EVENTS = st.one_of(
    st.builds(PageTaken, continue_token=st.sampled_from(["", "t"]), revision=st.sampled_from(["5", "6"])),
    st.builds(ListFailed, trouble=st.sampled_from(Trouble)),
    st.builds(
        WatchEnded,
        trouble=st.sampled_from(Trouble),
        revision=st.sampled_from(["5", "6", "7"]),
        lived_s=st.floats(0, 100),
        has_heard=st.booleans(),
        is_list_old=st.booleans(),
    ),
)


@given(events=st.lists(EVENTS, max_size=30), dice=st.floats(0, 1))
def test_the_course_never_asks_again_at_once_and_never_keeps_a_lost_revision(
    events: list[CourseEvent], dice: float
) -> None:
    """Only an orderly end after a healthy life, or a page, is followed by the next request without a pause."""
    course = Course()
    for event in events:
        before, course = course, step(course, event, healthy_after_s=10.0)
        wait_s = pause_s(course, base_s=0.5, longest_s=30.0, dice=dice)
        assert 0 <= wait_s <= 30
        match event:
            case WatchEnded(trouble=Trouble.EXPIRED | Trouble.REVISION_AHEAD | Trouble.SILENT):
                assert course.next_request == ListPage(continue_token="")
                assert wait_s > 0
            case WatchEnded(trouble=Trouble.CLOSED, lived_s=lived_s, has_heard=True) if lived_s >= 10:
                assert wait_s == 0
                expected = ListPage(continue_token="") if event.is_list_old else Watch(revision=event.revision)
                assert course.next_request == expected
            case WatchEnded(trouble=Trouble.CLOSED, lived_s=lived_s) if lived_s >= 10:
                pass  # nothing was heard: the third time it is listed again
            case WatchEnded() | ListFailed():
                assert wait_s > 0
            case PageTaken():
                assert course.failures_count == before.failures_count


def test_a_watch_that_never_says_a_word_is_not_believed_for_ever() -> None:
    """Whatever ends it. A server that can't be reached says nothing about the revision, though."""
    for trouble, is_listed in ((Trouble.CLOSED, True), (Trouble.UNREACHABLE, False)):
        course = Course(revision="5")
        for _ in range(3):
            assert course.next_request == Watch(revision="5")
            ended = WatchEnded(trouble=trouble, revision="5", lived_s=60.0, has_heard=False)
            course = step(course, ended, healthy_after_s=10.0)
        assert (course.next_request == ListPage(continue_token="")) == is_listed


@given(
    changes=st.lists(st.tuples(st.sampled_from(["put", "end", "take"]), st.integers(0, 5)), max_size=60),
    ends_at_most=st.integers(1, 4),
)
def test_pending_changes_are_bounded_and_fair(changes: list[tuple[str, int]], ends_at_most: int) -> None:
    """One change per life, ends counted right, the oldest first."""
    pending: PendingChanges[Pod] = PendingChanges(ends_at_most)
    waiting: dict[str, bool] = {}
    for what, number in changes:
        uid = f"u{number}"
        pod = msgspec.convert({"metadata": {"name": uid, "uid": uid, "resourceVersion": "1"}}, Pod)
        if what == "take" and waiting:
            taken = pending.take()
            assert taken.obj.uid == next(iter(waiting))
            assert waiting.pop(taken.obj.uid) == isinstance(taken, Gone)
        elif what != "take":
            if waiting.get(uid):
                del waiting[uid]
            waiting[uid] = what == "end"
            pending.put(Gone(pod, is_last_state=True) if what == "end" else Seen(pod))
        assert len(pending) == len(waiting) <= 6
        assert pending.is_full == (sum(waiting.values()) >= ends_at_most)


def test_a_list_older_than_the_copy_is_believed() -> None:
    """A restored server is the truth; what it lacks has ended, its last state unseen."""

    def pod(name: str, uid: str, revision: str) -> Pod:
        return msgspec.convert({"metadata": {"name": name, "uid": uid, "resourceVersion": revision}}, Pod)

    mirror: Mirror[Pod] = Mirror()
    mirror.replace([pod("a", "1", "90"), pod("b", "2", "95")], "100")
    changes = mirror.replace([pod("a", "1", "40"), pod("b", "3", "41")], "50")
    assert [(type(change), change.obj.uid) for change in changes] == [(Gone, "2"), (Seen, "1"), (Seen, "3")]
    assert mirror.revision == "50"
