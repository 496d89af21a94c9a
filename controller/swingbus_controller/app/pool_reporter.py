"""The reporter: writes what is said of each pool, when it has changed, and tells events.

Decides when something is written; what is said, `domain.cluster.pool_status` and `pool_stories` decide. Invariants: nothing is written
without the permit; a pool is written at most once a second, and for words alone more seldom; an event that fails is told in the log and
dropped, and none holds up anything.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from swingbus.clock import Clock
from swingbus.faults import SwingbusError, WrongState
from swingbus_controller.app.cluster_sights import NO_PERMIT, BankSight
from swingbus_controller.app.engine import SiteEngine
from swingbus_controller.app.pool_seeing import PoolMemory, see_pools
from swingbus_controller.app.pool_stories import (
    ended_unix_s,
    path_of,
    story_of_disruption,
    story_of_flip,
    story_of_move,
)
from swingbus_controller.domain.cluster.facts import ClusterPod, PodRef, Pool
from swingbus_controller.domain.cluster.pod_moves import DeleteMiner, EvictPod, MakeMiner, PodMove
from swingbus_controller.domain.cluster.pool_status import pool_words
from swingbus_controller.domain.cluster.pool_words import PoolWords, Story
from swingbus_controller.domain.flips.flip import Flip
from swingbus_controller.domain.planning.points import Mode
from swingbus_controller.ports.cluster import CallAnswer, CallOutcome, Cluster

log = structlog.get_logger()
LOOK_EVERY_S = 1.0
# A look at the pools costs more on a big site, and a person can wait a little longer: this is the share of the time that looks may take.
LOOK_SHARE, LOOK_LATEST_S = 0.02, 5.0
# Words alone may move while nothing else does; and what somebody else wrote into a status is mended in this time.
WORDS_EVERY_S = 15.0
_AGAIN_S = 60.0
_PAUSE_BASE_S, _PAUSE_LONGEST_S = 1.0, 60.0
# Events would share the connections and the time of calls that somebody waits for: they come after a burst, or so late.
_AFTER_MOVES_S, _TOLD_LATEST_S = 0.5, 3.0
MOST_STORIES = 1000
_REMEMBERED_STORIES = 5000
# How Kubernetes calls what the Eviction API does, for us as for everybody.
OWN_DISRUPTION = "EvictionByEvictionAPI"
# A flip that ended a moment before we came up may not have been told by whoever ran before us; telling it twice does no harm.
_TOLD_BEFORE_S = 60.0


class PoolGauges(Protocol):
    """Where figures of pools go."""

    def show_pools(self, waiting: Mapping[str, PoolWords], now_unix_s: float) -> None: ...

    def flip_ended(self, pool: str, path: str, phase: str) -> None: ...

    def eviction_answered(self, answer: str) -> None: ...


@dataclass(slots=True)
class _Written:
    words: PoolWords
    at_s: float


@dataclass(slots=True)
class _Pause:
    until_s: float
    failures_count: int


class PoolReporter:
    """Reports the pools of one site. Start `run` in a task group."""

    def __init__(self, *, engine: SiteEngine, cluster: Cluster, clock: Clock, gauges: PoolGauges | None = None) -> None:
        self._engine = engine
        self._cluster = cluster
        self._clock = clock
        self._gauges = gauges
        self._memory = PoolMemory()
        self._written: dict[str, _Written] = {}
        self._pauses: dict[str, _Pause] = {}
        self._stories: deque[Story] = deque()
        self._told: dict[tuple[str, str, str], None] = {}
        self._has_stories = asyncio.Event()
        self._moved_s = float("-inf")
        self._dropped_count = 0
        self._evicted: set[PodRef] = set()
        self._began_s = clock.boottime_s()
        self._seen: list[tuple[Pool, PoolWords]] = []
        self._see_again_s = 0.0
        told_before_unix_s = clock.now().timestamp() - _TOLD_BEFORE_S
        self._over = {f.id for f in engine.state.flips.values() if f.is_over and ended_unix_s(f) < told_before_unix_s}

    async def run(self) -> None:
        """Report until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell_for_ever())
            while True:
                await self.report()
                await self._clock.sleep(LOOK_EVERY_S)

    # Moves.

    async def take_move(self, sight: BankSight, move: PodMove, outcome: CallOutcome) -> None:
        """Hear what became of a call of the mover."""
        now_s, bank = self._clock.boottime_s(), sight.model.name
        self._moved_s = now_s
        if isinstance(move, EvictPod) and outcome.answer is CallAnswer.TAKEN:
            self._evicted.add(move.pod)
        if isinstance(move, EvictPod) and self._gauges is not None:
            self._gauges.eviction_answered("overruled" if outcome.is_overruled else outcome.answer.value)
        if isinstance(move, MakeMiner):
            if outcome.answer is CallAnswer.REFUSED:
                self._memory.note_no_miner(bank, outcome.detail, now_s)
            elif outcome.answer is CallAnswer.TAKEN:
                self._memory.note_miner(bank)
        flip = self._flip_behind(sight, move.pod) if isinstance(move, DeleteMiner) else ""
        story = story_of_move(sight, move, outcome, miner_flip=flip, at_unix_s=self._clock.now().timestamp())
        if story is not None:
            self._queue(story)

    def _flip_behind(self, sight: BankSight, miner: PodRef) -> str:
        """Return the flip that takes a miner's place, where its GPUs are known."""
        units = {str(unit) for unit in sight.units.get(miner.key, frozenset())}
        leaving = (f for f in self._engine.state.open_flips(sight.model.name) if f.source.mode is Mode.MINING)
        return next((flip.id for flip in leaving if units & set(flip.unit_ids)), "")

    # Pools.

    async def report(self) -> None:
        """Look once, and write what has changed."""
        now_s, now_unix_s = self._clock.boottime_s(), self._clock.now().timestamp()
        if not self._cluster.state.is_synced:
            return
        if now_s >= self._see_again_s:
            self._see(now_s, now_unix_s)
        if self._is_too_early(now_s):
            return
        self._take_flips()
        self._take_disruptions(now_unix_s)
        for uid in self._written.keys() - {pool.uid for pool, _ in self._seen}:
            self._written.pop(uid, None)
            self._pauses.pop(uid, None)
        for pool, told in self._seen:
            if self._cluster.may_write_s() > 0 and self._is_due(pool, told, now_s):
                await self._write(pool, told, now_s)

    def _see(self, now_s: float, now_unix_s: float) -> None:
        seen = see_pools(self._engine, self._cluster.state, self._memory, now_s=now_s, now_unix_s=now_unix_s)
        self._seen = [(facts.pool, pool_words(facts, fits)) for facts, fits in seen]
        if self._gauges is not None:
            self._gauges.show_pools({pool.name: told for pool, told in self._seen}, now_unix_s)
        took_s = self._clock.boottime_s() - now_s
        # Where looks are short each second has one: only what is left of a long one's time is waited for.
        self._see_again_s = now_s + min(LOOK_LATEST_S, took_s / LOOK_SHARE)

    def _is_too_early(self, now_s: float) -> bool:
        """Tell whether what is seen of banks is only that we have just begun: a status that says so would be wrong a second later."""
        state, banks = self._engine.state, self._engine.desk.sights
        # A bank that was last seen without the permit is seen again in a moment: no status says that nothing may be written.
        if not banks or any(sight.frozen == NO_PERMIT for sight in banks.values()):
            return True
        reports = (self._engine.report_of(name) for name in banks)
        is_heard = all(report is not None and report.epoch == state.ledger.epoch for report in reports)
        return not is_heard and now_s - self._began_s < state.site.protocol.adopt_grace_s

    def _is_due(self, pool: Pool, words: PoolWords, now_s: float) -> bool:
        pause = self._pauses.get(pool.uid)
        if pause is not None and now_s < pause.until_s:
            return False
        known = self._written.get(pool.uid)
        if known is None or now_s - known.at_s >= _AGAIN_S:
            return True
        if known.words == words:
            return False
        return _without_messages(known.words) != _without_messages(words) or now_s - known.at_s >= WORDS_EVERY_S

    async def _write(self, pool: Pool, words: PoolWords, now_s: float) -> None:
        try:
            outcome = await self._cluster.calls.write_pool(pool, words)
        except WrongState:
            return  # the permit is gone: whoever holds it reports anew
        except SwingbusError as fault:
            before = self._pauses.get(pool.uid)
            failures_count = 1 if before is None else before.failures_count + 1
            asked_s = float(fault.metadata.get("retry_after_s", "0"))
            pause_s = max(asked_s, min(_PAUSE_LONGEST_S, _PAUSE_BASE_S * 2.0 ** (failures_count - 1)))
            self._pauses[pool.uid] = _Pause(now_s + pause_s, failures_count)
            log.warning("pool_not_written", pool=pool.name, again_in_s=round(pause_s, 1), message=str(fault))
            return
        self._pauses.pop(pool.uid, None)
        if outcome.answer is CallAnswer.TAKEN:
            self._written[pool.uid] = _Written(words, now_s)
        # A pool that has changed meanwhile comes round with its newest copy; one that is gone does not.

    # Events.

    def _take_flips(self) -> None:
        flips = self._engine.state.flips
        if len(self._over) > 2 * len(flips) + MOST_STORIES:
            self._over.intersection_update(flips)
        for flip in flips.values():
            if flip.is_over and flip.id not in self._over:
                self._over.add(flip.id)
                self._take_end(flip)

    def _take_end(self, flip: Flip) -> None:
        sight = self._engine.desk.sights.get(flip.bank)
        if sight is None:
            return
        if self._gauges is not None and flip.is_mode_flip:
            self._gauges.flip_ended(sight.model.declared.pool, path_of(flip), flip.phase.value)
        if sight.pool is not None and (story := story_of_flip(flip, sight.pool)) is not None:
            self._queue(story)

    def _take_disruptions(self, now_unix_s: float) -> None:
        """Tell of pods that somebody else takes away; whom we asked to leave was told of already."""
        cluster = self._cluster.state
        self._evicted = {ref for ref in self._evicted if cluster.pod(ref) is not None}
        for name, sight in self._engine.desk.sights.items():
            if sight.pool is None:
                continue
            for pod in cluster.pods_on(sight.model.declared.node):
                if not pod.disruption or pod.namespace == sight.pool.miner_namespace or self._may_be_ours(name, pod):
                    continue
                if (story := story_of_disruption(pod, sight.pool, at_unix_s=now_unix_s)) is not None:
                    self._queue(story)

    def _may_be_ours(self, bank: str, pod: ClusterPod) -> bool:
        """Tell whether an eviction is ours, also one whose answer is still on its way or that an earlier run of us asked for."""
        if pod.disruption != OWN_DISRUPTION or pod.ref in self._evicted:
            return pod.ref in self._evicted
        flips = self._engine.state.open_flips(bank)
        return bank in self._engine.state.lockouts or any(flip.pod == pod.ref for flip in flips)

    def _queue(self, story: Story) -> None:
        # The API server keeps events apart by name; who is asked again every few seconds need not be told to it every time.
        key = (story.once_for or story.flip, story.reason, story.uid)
        if key in self._told:
            return
        self._told[key] = None
        if len(self._told) > _REMEMBERED_STORIES:
            del self._told[next(iter(self._told))]
        if len(self._stories) >= MOST_STORIES:
            if not self._dropped_count:
                log.warning("events_dropped", waiting=len(self._stories), subject=str(story.about), reason=story.reason)
            self._dropped_count += 1
            return
        self._stories.append(story)
        self._has_stories.set()

    async def _tell_for_ever(self) -> None:
        while True:
            await self._has_stories.wait()
            await self._let_moves_go_first()
            await self.tell_next()

    async def _let_moves_go_first(self) -> None:
        latest_s = (
            self._stories[0].at_unix_s + _TOLD_LATEST_S - self._clock.now().timestamp() + self._clock.boottime_s()
        )
        while (wait_s := min(self._moved_s + _AFTER_MOVES_S, latest_s) - self._clock.boottime_s()) > 0:
            await self._clock.sleep(wait_s)

    @property
    def waiting_count(self) -> int:
        """How many events wait to be told."""
        return len(self._stories)

    async def tell_next(self) -> None:
        """Tell the event that waits longest; there has to be one."""
        story = self._stories.popleft()
        try:
            await self._cluster.calls.tell(story)
        except WrongState:
            self._stories.clear()  # the permit is gone, and what happened is not ours to tell any more
        except SwingbusError as fault:
            log.warning("event_not_told", subject=str(story.about), reason=story.reason, message=str(fault))
            if asked_s := float(fault.metadata.get("retry_after_s", "0")):
                await self._clock.sleep(min(_PAUSE_LONGEST_S, asked_s))
        if self._stories:
            return
        self._has_stories.clear()
        if self._dropped_count:
            log.warning("events_were_dropped", count=self._dropped_count)
            self._dropped_count = 0


def _without_messages(words: PoolWords) -> PoolWords:
    return replace(words, conditions=tuple(replace(condition, message="") for condition in words.conditions))
