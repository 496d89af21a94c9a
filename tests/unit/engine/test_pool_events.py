"""Events of a site in virtual time: each is told once, none holds up anything, and calls that somebody waits for go first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from swingbus.faults import Unreachable, WrongState
from swingbus_controller.app.pool_reporter import MOST_STORIES, PoolReporter
from swingbus_controller.domain.cluster.facts import PodRef
from swingbus_controller.domain.cluster.pod_moves import DeleteMiner
from swingbus_controller.domain.cluster.pool_words import Story
from swingbus_controller.ports.cluster import CallAnswer, CallOutcome
from tests.fakes.reported_site import ReportedSite, tell_waiting
from tests.fakes.site import VirtualSite

Settled = Callable[..., ReportedSite]


class Stop(Exception):
    """Ends a loop that has none."""


def test_event_that_fails_is_dropped_and_the_next_is_told(settled: Settled) -> None:
    """Nothing waits for an event; without a permit none is told at all."""
    site = settled()
    failing: list[Exception] = [Unreachable("away")]

    async def tell(story: Story) -> CallOutcome:
        if failing:
            raise failing.pop()
        site.cluster.stories.append(story)
        return CallOutcome(answer=CallAnswer.TAKEN)

    site.cluster.tell = tell  # type: ignore[method-assign]
    site.cluster.stories.clear()
    reporter = _reporter_with(site, 3)
    site._loop.run_until_complete(tell_waiting(reporter))
    assert [story.about for story in site.cluster.stories] == ["n1", "n2"]
    failing.append(WrongState("no permit"))
    reporter = _reporter_with(site, 3)
    site._loop.run_until_complete(tell_waiting(reporter))
    assert len(site.cluster.stories) == 2


def test_events_that_wait_are_bounded(settled: Settled) -> None:
    """A burst loses its last ones; told is how many, in the log."""
    site = settled()
    site.cluster.stories.clear()
    reporter = _reporter_with(site, MOST_STORIES + 50)
    site._loop.run_until_complete(tell_waiting(reporter))
    assert len(site.cluster.stories) == MOST_STORIES


def test_loop_looks_once_a_second_and_tells_beside_it(settled: Settled) -> None:
    """Events do not wait for the next look, nor looks for events."""
    site = settled()
    site.cluster.stories.clear()
    slept_s: list[float] = []

    class Steps:
        """The site's clock, whose time passes when somebody sleeps."""

        def __getattr__(self, name: str) -> Any:
            return getattr(site.clock, name)

        async def sleep(self, span_s: float) -> None:
            slept_s.append(span_s)
            site.cluster.step()
            VirtualSite.step(site)
            await asyncio.sleep(0)
            if len(slept_s) > 4:
                raise Stop

    clock: Any = Steps()
    reporter = PoolReporter(engine=site.engine, cluster=site.cluster, clock=clock)
    _queue_stories(reporter, 3)
    before = site.writes_count()
    with pytest.raises(ExceptionGroup) as ended:
        site._loop.run_until_complete(reporter.run())
    assert ended.group_contains(Stop)
    assert slept_s == [1.0] * 5
    assert site.writes_count() == before + 1, "a reporter that comes up offers its words once"
    assert [story.about for story in site.cluster.stories] == ["n0", "n1", "n2"]


def test_calls_that_somebody_waits_for_go_before_events(settled: Settled) -> None:
    """An event is told half a second after the last call of a burst; where calls never end, three seconds late."""
    site = settled()
    site.cluster.stories.clear()
    sight = site.engine.desk.sights["gpu1/gpus"]
    calls_until_s = site.clock.s + 1.01

    class Steps:
        """The site's clock, whose time passes when somebody sleeps; a call ends at least every fifth of a second while they last."""

        def __getattr__(self, name: str) -> Any:
            return getattr(site.clock, name)

        async def sleep(self, span_s: float) -> None:
            step_s = min(span_s, 0.2)
            site.clock.s += step_s
            if site.clock.s <= calls_until_s:
                await call_ends()

    async def call_ends() -> None:
        miner = PodRef(namespace="miners", name="m", uid=f"m{site.clock.s}")
        await reporter.take_move(sight, DeleteMiner(miner), CallOutcome(answer=CallAnswer.GONE))

    told_s: list[float] = []

    async def tell(story: Story) -> CallOutcome:
        told_s.append(site.clock.s)
        if len(told_s) == 2:
            raise Stop
        return CallOutcome(answer=CallAnswer.TAKEN)

    site.cluster.tell = tell  # type: ignore[method-assign]
    clock: Any = Steps()
    reporter = PoolReporter(engine=site.engine, cluster=site.cluster, clock=clock)
    began_s = site.clock.s
    _queue_stories(reporter, 2, at_unix_s=site.clock.now().timestamp())
    site._loop.run_until_complete(call_ends())
    with pytest.raises(Stop):
        site._loop.run_until_complete(reporter._tell_for_ever())
    assert [round(moment_s - began_s, 3) for moment_s in told_s] == [1.5, 1.5]
    told_s.clear()
    calls_until_s = float("inf")
    began_s = site.clock.s
    _queue_stories(reporter, 3, at_unix_s=site.clock.now().timestamp(), first=2)
    site._loop.run_until_complete(call_ends())
    with pytest.raises(Stop):
        site._loop.run_until_complete(reporter._tell_for_ever())
    assert [round(moment_s - began_s, 3) for moment_s in told_s] == [3.0, 3.0]


def _reporter_with(site: ReportedSite, count: int) -> PoolReporter:
    reporter = PoolReporter(engine=site.engine, cluster=site.cluster, clock=site.clock)
    _queue_stories(reporter, count)
    return reporter


def _queue_stories(reporter: PoolReporter, count: int, *, at_unix_s: float = 1.0, first: int = 0) -> None:
    told = {"kind": "Node", "flip": "f", "reason": "R", "action": "A", "text": "t", "at_unix_s": at_unix_s}
    for number in range(first, first + count):
        reporter._queue(Story(about=f"n{number}", uid=f"u{number}", **told))  # type: ignore[arg-type]
