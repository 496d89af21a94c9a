"""The site of `tests.fakes.pod_site` with the reporter beside its mover, and every status that it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swingbus_controller.app.pod_mover import PodMover
from swingbus_controller.app.pool_reporter import PoolReporter
from swingbus_controller.domain.cluster.pool_words import PoolCondition, PoolWords, Story
from tests.fakes.pod_site import PodSite
from tests.fakes.site_clock import BOOTTIME_ZERO_S


@dataclass
class CountedGauges:
    """What metrics were told."""

    pools: dict[str, PoolWords]
    flips: list[tuple[str, str, str]]
    evictions: list[str]

    def show_pools(self, pools: dict[str, PoolWords], now_unix_s: float) -> None:
        self.pools = dict(pools)

    def flip_ended(self, pool: str, path: str, phase: str) -> None:
        self.flips.append((pool, path, phase))

    def eviction_answered(self, answer: str) -> None:
        self.evictions.append(answer)


class ReportedSite(PodSite):
    """A site whose pools are reported once a second."""

    reporter: PoolReporter | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cluster.now = lambda: self.clock.now().timestamp()  # ages are told: the API's times are wall times
        self.gauges = CountedGauges({}, [], [])

    def start_controller(self, *, boot_id: str = "boot-controller") -> None:
        super().start_controller(boot_id=boot_id)
        self.reporter = PoolReporter(
            engine=self.engine,
            cluster=self.cluster,
            clock=self.clock,
            gauges=self.gauges,  # type: ignore[arg-type]
        )
        self.mover = PodMover(
            desk=self.engine.desk, cluster=self.cluster, clock=self.clock, told=self.reporter.take_move
        )

    def step(self) -> None:
        super().step()
        if self.deciding is not None and self.reporter is not None:
            self._loop.run_until_complete(self._report(self.reporter))

    async def _report(self, reporter: PoolReporter) -> None:
        await reporter.report()
        await tell_waiting(reporter)

    @property
    def words(self) -> PoolWords:
        """Return what the pool's status says now."""
        return self.cluster.words["pool"]

    def condition(self, kind: str) -> PoolCondition:
        """Return a condition of the pool."""
        return next(each for each in self.words.conditions if each.type == kind)

    def stories(self, reason: str) -> list[Story]:
        """Return events of a reason, those that the API server would take for told already left out."""
        told = {(s.once_for or s.flip, s.reason, s.uid): s for s in self.cluster.stories if s.reason == reason}
        return list(told.values())

    def writes_count(self) -> int:
        """Return how often the status was written."""
        return self.cluster.log.count("status pool")


async def tell_waiting(reporter: PoolReporter) -> None:
    """Let a reporter tell every event that waits, without a pause."""
    while reporter.waiting_count:
        await reporter.tell_next()


def settled_reported_site(**options: Any) -> ReportedSite:
    """Return a reported site that has adopted everything and come to rest."""
    made = ReportedSite(**options)
    try:
        made.start_controller()
        assert made.run(300, lambda: made.clock.s > BOOTTIME_ZERO_S + 60 and made.is_quiet()), made.explain()
        made.run(20)
    except BaseException:
        made.close()
        raise
    return made
