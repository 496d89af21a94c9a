"""How a story ends: with its scenario, or, where banks were pinned before, when the last open flip is over."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import grpc
import grpc.aio
import pytest

from swingbus.capacity.v1alpha import capacity_pb2
from swingbus.fleet.v1alpha import fleet_pb2
from swingbus_sim.demo import story as story_module
from swingbus_sim.demo.processes import Processes
from swingbus_sim.demo.story import Run, Story
from swingbus_sim.demo.watcher import Seen, Watcher
from swingbus_sim.scenario_file import load_scenario

DURATION_S = 0.1


class Eyes:
    """Stands in for the watcher: one flip is open for the first looks."""

    def __init__(self, open_looks: int) -> None:
        self.seen = Seen()
        self.unix_at_zero = time.time()
        self.open_looks = open_looks
        self.looks = 0
        self.pins: list[str] = []

    async def poll(self) -> None:
        await asyncio.sleep(3600)

    async def watch(self) -> None:
        await asyncio.sleep(3600)

    async def push(self, values: dict[str, float], *, request_id: str) -> None:
        pass

    async def pin(self, bank: str, *, reason: str) -> None:
        self.pins.append(bank)
        if len(self.pins) <= 2:
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="killed"
            )

    async def flips(self) -> list[capacity_pb2.Flip]:
        self.looks += 1
        flip = capacity_pb2.Flip(bank="sites/small/agents/g1/banks/gpus", phase=capacity_pb2.FLIP_PHASE_STARTING)
        flip.deadline_time.FromMilliseconds(round((self.unix_at_zero + 30.0) * 1000))
        if self.looks > self.open_looks:
            flip.end_time.GetCurrentTime()
        return [flip]


@pytest.mark.parametrize(("pin_before_end_s", "looks"), [(0.05, 2), (None, 0)])
async def test_pinned_site_is_watched_until_its_last_flip_is_over(
    pin_before_end_s: float | None, looks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that decides until the end has always something open: it just ends."""
    monkeypatch.setattr(story_module, "MEND_MODEL_S", 3600.0)
    run = _run(tmp_path)
    story = Story(run, pin_before_end_s=pin_before_end_s)
    eyes = Eyes(open_looks=1)
    story.watcher = cast("Watcher", eyes)
    async with asyncio.timeout(10.0):
        await story.play()
    assert eyes.looks == looks
    assert (run.waited_for_flips_s > 0.0) == (looks > 0)
    assert any("waiting for" in words for _, words in run.diary) == (looks > 0)


async def test_bank_that_cannot_be_pinned_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller that was killed a moment before answers later; it is told once that it did not, and when all are pinned."""
    monkeypatch.setattr(story_module, "PIN_AGAIN_S", 0.01)
    story = Story(_run(tmp_path), pin_before_end_s=DURATION_S)
    eyes = Eyes(open_looks=0)
    eyes.seen.banks = [fleet_pb2.Bank(name=name) for name in ("b1", "b2")]
    story.watcher = cast("Watcher", eyes)
    async with asyncio.timeout(10.0):
        await story._pin_before_end()
    assert eyes.pins == ["b1", "b2", "b1", "b2"]
    assert [words.split(":")[0] for _, words in story.run.diary] == [
        "b1 is not pinned yet",
        "b2 is not pinned yet",
        "every bank pinned",
    ]


def _run(folder: Path) -> Run:
    return Run(
        scenario=replace(load_scenario("small"), duration_s=DURATION_S, events=()),
        scenario_name="small",
        folder=folder,
        data=None,
        shift=0,
        processes=Processes(folder / "logs"),
        t0_s=time.clock_gettime(time.CLOCK_BOOTTIME),
    )
