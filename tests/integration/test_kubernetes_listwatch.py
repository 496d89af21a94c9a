"""The list-watch against a server that does everything a server, a proxy or a network has been seen to do wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from swingbus.clock import SystemClock
from swingbus_controller.adapters.kubernetes.connection import ConnectionSettings
from swingbus_controller.adapters.kubernetes.listwatch import ListWatch, ListWatchSettings
from swingbus_controller.adapters.kubernetes.objects import Pod
from swingbus_controller.adapters.kubernetes.resources import PODS
from swingbus_controller.domain.cluster.mirror import Gone, Key, Seen
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.faults import CutBody, Hang, Html, Meanwhile, Redirect, Refuse, Reply, WatchFault
from tests.fakes.api_server.server import TOKEN, FakeApiServer
from tests.fakes.api_server.store import Refusal, expired
from tests.fakes.api_server.watching import line
from tests.fakes.kube_rig import Follower, connected

QUICK = ListWatchSettings(
    page_objects=2,
    silence_s=0.25,
    pause_base_s=0.01,
    pause_longest_s=0.05,
    healthy_after_s=60.0,
    line_bytes_at_most=50_000,
)
CALM = replace(QUICK, silence_s=30.0)
DEADLINE_S = 10.0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer(tmp_path, write_certificates(tmp_path)) as running:
        yield running


class PodFollower(Follower[Pod]):
    """Who follows the double's pods."""

    deadline_s = DEADLINE_S

    def __init__(self, server: FakeApiServer, watch: ListWatch[Pod]) -> None:
        super().__init__(watch)
        self.server = server

    def ends(self) -> list[tuple[str, bool]]:
        """Return the names that were told as gone, and whether their last state was seen."""
        return [(change.obj.metadata.name, change.is_last_state) for change in self.told if isinstance(change, Gone)]

    async def until_equal(self) -> None:
        """Wait until copy and consumer know exactly what the server has."""
        await self.until_versions(self._server_versions)

    def _server_versions(self) -> dict[Key, tuple[str, str]]:
        return {
            (obj["metadata"]["namespace"], obj["metadata"]["name"]): (
                obj["metadata"]["uid"],
                obj["metadata"]["resourceVersion"],
            )
            for obj in self.server.store.select("pods", "")
        }

    async def watching(self) -> None:
        """Wait until a watch stands."""
        await self.until(lambda: self.server.watches.open_count > 0)


@asynccontextmanager
async def following(server: FakeApiServer, settings: ListWatchSettings = CALM) -> AsyncIterator[PodFollower]:
    """Run a list-watch of pods with a consumer."""
    async with connected(server, ConnectionSettings(call_timeout_s=0.5)) as api:
        watch = ListWatch(api, PODS, Pod, clock=SystemClock(), chance=random.Random(1), settings=settings)
        follower = PodFollower(server, watch)
        async with follower.running():
            yield follower


def make(server: FakeApiServer, *names: str) -> None:
    for name in names:
        server.make("pods", "ns", name, spec={})


def touch(server: FakeApiServer, name: str, value: str) -> None:
    pod = server.store.get(("pods", "ns", name))
    pod["metadata"]["labels"] = {"touched": value}
    server.store.update(("pods", "ns", name), pod)


def drop(server: FakeApiServer, *names: str) -> None:
    for name in names:
        server.store.remove(("pods", "ns", name))


async def test_pages_then_changes(server: FakeApiServer) -> None:
    """Five pods in pages of two; then a new one, a changed one, an ended one. One list, one watch."""
    make(server, "a", "b", "c", "d", "e")
    async with following(server) as seen:
        await seen.watch.wait_synced()
        assert len(seen.watch.snapshot()) == 5
        await seen.watching()
        make(server, "f")
        touch(server, "a", "1")
        drop(server, "b")
        await seen.until_equal()
        assert seen.ends() == [("b", True)]
        counts = seen.watch.counts
        assert dict(counts.lists_by_reason) == {"start": 1}
        assert counts.watches_count == 1
        assert [asked.verb for asked in server.asked] == ["list", "list", "list", "watch"]
        age_s = seen.watch.age_s()
        assert age_s is not None
        assert age_s < 5


async def test_410_in_the_middle_of_paging_starts_the_list_again(server: FakeApiServer) -> None:
    """A page token that expired; the new list is one whole state, not two halves."""
    make(server, "a", "b", "c", "d", "e")

    def history_is_lost() -> None:
        drop(server, "a")
        make(server, "f")
        server.store.compact()

    server.faults.next("list", Meanwhile(lambda: None), Meanwhile(history_is_lost))
    async with following(server) as seen:
        await seen.until_equal()
        assert dict(seen.watch.counts.lists_by_reason) == {"expired": 1}
        assert seen.watch.counts.list_failures["expired"] == 1
        assert "a" not in {change.obj.metadata.name for change in seen.told}, "the first page was thrown away"


async def test_410_of_a_watch_by_status_and_by_event_lists_again_and_tells_what_vanished(server: FakeApiServer) -> None:
    """Replace semantics: what went while nobody watched comes out as ended, not as its last state; a namesake is another pod."""
    make(server, "a", "b", "c")
    async with following(server) as seen:
        await seen.watch.wait_synced()
        await seen.watching()
        for refusal in (Refuse(expired()), None):
            relists = seen.watch.counts.lists_by_reason["expired"]
            # While the watch is down everything happens, and history is lost.
            server.faults.next("watch", Refuse(Refusal(503, "ServiceUnavailable", "later", retry_after_s=0)))
            if refusal:
                server.faults.next("watch", refusal)
            server.watches.end_all()
            make(server, f"new-{relists}")
            drop(server, "a", "b")
            make(server, "b", "a")
            server.store.compact()
            await seen.until(lambda before=relists: seen.watch.counts.lists_by_reason["expired"] > before)  # type: ignore[misc] # bound
            await seen.until_equal()
        assert seen.ends().count(("a", False)) == 2
        assert seen.ends().count(("b", False)) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type":"ADDED","obj',
        b'{"type": nonsense}\n',
        b"\xff\xfe\n",
        b'{"type":"ADDED","object":{}}\n',
        b'{"type":"MOVED","object":{}}\n',
        b'{"type":"ADDED","object":' + b"[" * 20_000 + b"\n",
    ],
    ids=["half_line", "no_json", "no_utf8", "no_object", "unknown_type", "too_deep"],
)
async def test_a_half_line_or_garbage_loses_nothing(server: FakeApiServer, raw: bytes) -> None:
    """The watch goes on from the last whole line; what was in the broken one comes again."""
    make(server, "a")
    server.faults.next("watch", WatchFault(after_events=1, raw=raw))
    async with following(server) as seen:
        await seen.watching()
        make(server, "b")
        await seen.until(lambda: seen.watch.counts.watches_count == 2)
        make(server, "c")
        drop(server, "a")
        await seen.until_equal()
        assert seen.watch.counts.lists_by_reason.total() == 1
        assert seen.watch.repeated_count == 0


async def test_garbage_at_the_same_place_again_and_again_lists_again(server: FakeApiServer) -> None:
    """A revision from which nothing readable comes is given up after three tries."""
    make(server, "a")
    server.faults.next("watch", *[WatchFault(raw=b"{}\n") for _ in range(3)])
    async with following(server) as seen:
        await seen.until(lambda: seen.watch.counts.lists_by_reason["garbage"] == 1)
        drop(server, "a")
        await seen.until_equal()
        assert seen.watch.counts.watch_ends["garbage"] == 3


async def test_a_very_long_line_is_not_kept(server: FakeApiServer) -> None:
    """Neither with an end nor without one."""
    make(server, "a")
    server.faults.next(
        "watch", WatchFault(raw=b"x" * 200_000, then="silence"), WatchFault(raw=b'{"type":"' + b"y" * 200_000 + b'"}\n')
    )
    async with following(server) as seen:
        await seen.until(lambda: seen.watch.counts.watch_ends["garbage"] == 2)
        make(server, "b")
        await seen.until_equal()


async def test_after_a_silence_a_list_says_how_things_stand(server: FakeApiServer) -> None:
    """An open connection without a line: the watchdog takes it down. What happened meanwhile comes, and no new watch has to speak first."""
    make(server, "a")
    server.faults.next("watch", WatchFault(after_events=1, then="silence"))
    async with following(server, QUICK) as seen:
        await seen.watching()
        make(server, "b")
        touch(server, "a", "unheard")
        await seen.until_equal()
        await seen.until(lambda: seen.watch.counts.lists_by_reason["silent"] >= 1)
        assert seen.watch.counts.watch_ends["silent"] >= 1
        assert seen.watch.last_trouble == ""


async def test_bytes_without_a_line_are_silence(server: FakeApiServer) -> None:
    """A server that drips is no sign of life."""
    server.faults.next("watch", WatchFault(raw=b'{"type":', then="silence"))
    async with following(server, QUICK) as seen:
        await seen.until(lambda: seen.watch.counts.watch_ends["silent"] == 1)


async def test_bookmarks_carry_a_quiet_watch_over_a_compaction(server: FakeApiServer) -> None:
    """Pods are quiet while other kinds change: after a bookmark a reconnect needs no list, without one it would."""
    make(server, "a")
    async with following(server) as seen:
        await seen.watching()
        for number in range(5):
            server.make("nodes", "", f"n{number}")
        server.watches.send_bookmarks()
        await seen.until(lambda: seen.watch.revision == str(server.store.revision))
        server.store.compact()
        server.watches.end_all()
        await seen.until(lambda: seen.watch.counts.watches_count == 2)
        make(server, "b")
        await seen.until_equal()
        assert seen.watch.counts.bookmarks_count == 1
        assert dict(seen.watch.counts.lists_by_reason) == {"start": 1}


async def test_a_clean_close_is_no_trouble(server: FakeApiServer) -> None:
    """Every watch ends some time: on from where it was."""
    make(server, "a")
    async with following(server) as seen:
        for number in range(3):
            await seen.watching()
            server.watches.end_all()
            make(server, f"b{number}")
            await seen.until_equal()
        assert seen.watch.counts.watch_ends["closed"] == 3
        assert seen.watch.counts.lists_by_reason.total() == 1


async def test_a_broken_connection_is_taken_up_again(server: FakeApiServer) -> None:
    """A reset in the middle of a watch, and of a list."""
    make(server, "a", "b", "c")
    server.faults.next("list", CutBody())
    server.faults.next("watch", WatchFault(then="reset"), WatchFault(after_events=1, then="reset"))
    async with following(server) as seen:
        await seen.until(lambda: seen.watch.counts.watch_ends.total() >= 1)
        make(server, "d")
        drop(server, "a")
        await seen.until_equal()
        await seen.until(lambda: seen.watch.counts.watches_count == 3)
        assert seen.watch.counts.list_failures["unreachable"] == 1


async def test_events_that_come_twice_count_once(server: FakeApiServer) -> None:
    """A replay after a reconnect must neither bring back what ended nor set back what changed."""
    make(server, "a", "b")
    touch(server, "a", "1")
    old = [line(entry.type, entry.object) for entry in server.store.log if entry.place[0] == "pods"]
    drop(server, "b")
    server.faults.next("watch", WatchFault(raw=b"".join(old), then="go_on"))
    async with following(server) as seen:
        await seen.until(lambda: seen.watch.repeated_count == 3)
        make(server, "c")
        await seen.until_equal()
        assert ("ns", "b") not in seen.known
        assert [type(change) for change in seen.told] == [Seen, Seen]


async def test_429_is_waited_out_as_asked(server: FakeApiServer) -> None:
    """Retry-After is kept, for a list and for a watch, also where it says more than the back-off would."""
    busy = Refuse(Refusal(429, "TooManyRequests", "busy", retry_after_s=1))
    server.faults.next("list", busy)
    async with following(server) as seen:
        began_s = asyncio.get_running_loop().time()
        await seen.watch.wait_synced()
        assert asyncio.get_running_loop().time() - began_s > 0.8
        assert seen.watch.counts.list_failures["throttled"] == 1


@pytest.mark.parametrize(
    "fault",
    [
        Html(),
        Redirect("https://127.0.0.1:1/login"),
        Reply(b"{"),
        Reply(b'{"kind":"PodList","items":[]}'),
        Reply(b'{"metadata":{"resourceVersion":"5"},"items":[{"metadata":{"name":"x"}}]}'),
        Reply(b'{"metadata":{"resourceVersion":""},"items":[]}'),
        Reply(b'{"metadata":{"resourceVersion":"5","continue":"nonsense"},"items":[]}'),
        Reply(b'{"items":' + b"[" * 200_000),
        Refuse(Refusal(500, "InternalError", "boom")),
        Hang(),
    ],
    ids=[
        "html",
        "redirect",
        "no_json",
        "no_revision",
        "an_object_without_uid",
        "an_empty_revision",
        "a_token_that_leads_nowhere",
        "too_deep",
        "500",
        "hang",
    ],
)
async def test_what_is_no_list_is_never_taken_for_an_empty_one(server: FakeApiServer, fault: object) -> None:
    """Least of all after a start: a copy that is wrongly empty would say that every pod is gone."""
    make(server, "a", "b", "c")
    async with following(server) as seen:
        await seen.watch.wait_synced()
        await seen.watching()
        server.faults.next("list", fault)  # type: ignore[arg-type] # parametrized
        server.faults.next("watch", Refuse(expired()))
        server.watches.end_all()
        await seen.until(lambda: seen.watch.counts.list_failures.total() == 1)
        assert len(seen.watch.snapshot()) == 3
        await seen.until(lambda: seen.watch.counts.lists_by_reason["expired"] == 1)
        await seen.until_equal()
        assert seen.ends() == []


async def test_a_list_without_end_is_given_up(server: FakeApiServer) -> None:
    """A page that leads to itself, and one that is one too many; neither fills the memory nor asks without a pause."""
    make(server, "a", "b", "c")
    itself = Reply(b'{"metadata":{"resourceVersion":"5","continue":"x"},"items":[]}')
    server.faults.next("list", itself, itself)
    async with following(server, replace(CALM, objects_at_most=3)) as seen:
        await seen.until_equal()
        assert seen.watch.counts.list_failures["garbage"] == 1
    make(server, "d")
    async with following(server, replace(CALM, objects_at_most=3, pause_base_s=0.05)) as seen:
        await seen.until(lambda: "more than 3 objects" in seen.watch.last_trouble)
        assert not seen.watch.is_synced


async def test_html_and_a_redirect_end_a_watch_only(server: FakeApiServer) -> None:
    """A proxy's page in place of a watch: again from the same revision."""
    make(server, "a")
    server.faults.next("watch", Html(), Redirect("/elsewhere"), Refuse(Refusal(500, "InternalError", "boom")))
    async with following(server) as seen:
        await seen.until(lambda: seen.watch.counts.watches_count == 4)
        drop(server, "a")
        await seen.until_equal()
        assert seen.watch.counts.lists_by_reason.total() == 1


@pytest.mark.parametrize("is_told", [True, False], ids=["by_a_bookmark", "by_silence"])
async def test_a_server_restored_from_a_backup_is_believed(server: FakeApiServer, is_told: bool) -> None:
    """Its revisions are lower than ours. The real server says nothing to a watch from ahead of it: a bookmark or silence gives it away."""
    make(server, "a", "b")
    async with following(server, CALM if is_told else QUICK) as seen:
        await seen.watch.wait_synced()
        await seen.watching()
        server.watches.end_all()
        drop(server, "a")
        server.store.revision = 50
        server.store.log.clear()
        make(server, "c")
        reason = "revision_ahead" if is_told else "silent"
        async with asyncio.timeout(DEADLINE_S):
            while not seen.watch.counts.lists_by_reason[reason]:
                await asyncio.sleep(0.01)
                if is_told:
                    server.watches.send_bookmarks()
        await seen.until_equal()


async def test_an_old_list_is_confirmed_by_a_new_one(server: FakeApiServer) -> None:
    """A watch cannot show what it missed: here the server forgot to tell of an end."""
    make(server, "a", "b")
    async with following(server, replace(CALM, list_again_s=0.1, healthy_after_s=0.01)) as seen:
        await seen.watching()
        del server.store.objects["pods", "ns", "a"]
        await asyncio.sleep(0.15)
        server.watches.send_bookmarks()
        await seen.until(lambda: seen.watch.counts.bookmarks_count == 1)
        server.watches.end_all()
        await seen.until_equal()
        assert seen.watch.counts.lists_by_reason["routine"] == 1
        assert seen.ends() == [("a", False)]


async def test_a_server_that_is_away_is_not_hammered(server: FakeApiServer) -> None:
    """The pauses grow; when it is back, the copy catches up without anything lost."""
    make(server, "a", "b")
    slow = replace(CALM, pause_base_s=0.05, pause_longest_s=0.2)
    async with following(server, slow) as seen:
        await seen.watch.wait_synced()
        await seen.watching()
        port = await server.stop()
        await asyncio.sleep(0.5)
        tries = seen.watch.counts.watch_ends["unreachable"]
        assert 1 <= tries <= 8, tries
        assert seen.watch.last_trouble
        drop(server, "a")
        make(server, "c")
        await server.start(port)
        await seen.until_equal()


async def test_a_missing_verb_is_told_and_mended_without_a_restart(server: FakeApiServer) -> None:
    """RBAC is often late."""
    make(server, "a")
    server.tokens[TOKEN].add(("list", "pods"))
    async with following(server) as seen:
        await seen.until(lambda: seen.watch.counts.list_failures["refused"] >= 2)
        assert "grant the verb 'list' on 'pods'" in seen.watch.last_trouble
        assert not seen.watch.is_synced
        server.tokens[TOKEN].clear()
        await seen.until_equal()


async def test_a_slow_consumer_bounds_memory_and_loses_no_end(server: FakeApiServer) -> None:
    """Changes of a pod are folded into one; ends are kept, and past their bound the watch stops reading instead of dropping."""
    make(server, *[f"p{number}" for number in range(20)])
    async with following(server, replace(CALM, ends_at_most=10, page_objects=500)) as seen:
        await seen.until_equal()
        await seen.watching()
        seen.gate.clear()
        told = len(seen.told)
        for turn in range(50):
            touch(server, "p0", str(turn))
        await seen.until(lambda: seen.watch.revision == str(server.store.revision))
        assert seen.watch.pending_count <= 1
        for turn in range(100):
            drop(server, "p1")
            make(server, "p1")
            if turn % 10 == 0:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        assert seen.watch.pending_count <= 20 + 2 * 10 + 10, "the last chunk's ends on top"
        seen.gate.set()
        await seen.until_equal()
        ends = [change.obj.uid for change in seen.told[told:] if isinstance(change, Gone)]
        assert len(ends) == len(set(ends)) == 100


async def test_without_a_follower_nothing_piles_up(server: FakeApiServer) -> None:
    """Nodes and budgets are only looked up."""
    make(server, "a")
    async with connected(server) as api:
        watch = ListWatch(
            api,
            PODS,
            Pod,
            clock=SystemClock(),
            chance=random.Random(1),
            is_followed=False,
            settings=CALM,
            namespace="ns",
        )
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(watch.run())
            await watch.wait_synced()
            for turn in range(30):
                touch(server, "a", str(turn))
            async with asyncio.timeout(DEADLINE_S):
                while watch.revision != str(server.store.revision):
                    await asyncio.sleep(0.005)
            assert watch.pending_count == 0
            with pytest.raises(RuntimeError, match="without a follower"):
                await anext(watch.changes())
            running.cancel()
