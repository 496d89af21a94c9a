"""After the story: what is waited for, for how long, and what is called stuck."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grpc
import pytest

from swingbus.capacity.v1alpha import capacity_pb2
from swingbus_controller.domain.planning.policy import FlipTimes
from swingbus_sim.demo.files import FLIP_TIMES, longest_flip_s
from swingbus_sim.demo.last_flips import LATE_S, wait_for_flips

AT_ZERO = 1_790_000_000.0
END_S = 322.0
LONGEST_S = 200.0


def flip(deadline_s: float, phase: capacity_pb2.FlipPhase = capacity_pb2.FLIP_PHASE_SETTLING) -> capacity_pb2.Flip:
    """Return a shed that is open, as the API tells it."""
    made = capacity_pb2.Flip(
        bank="sites/demo/agents/c1-edge/banks/asics", device_count=2, from_point="mine", to_point="standby", phase=phase
    )
    made.deadline_time.FromMilliseconds(round((AT_ZERO + deadline_s) * 1000))
    return made


def ended() -> capacity_pb2.Flip:
    """Return one that is over."""
    made = capacity_pb2.Flip(bank="sites/demo/agents/c1-edge/banks/asics", phase=capacity_pb2.FLIP_PHASE_ACTIVE)
    made.end_time.FromMilliseconds(round((AT_ZERO + 300.0) * 1000))
    return made


class Site:
    """A controller whose flips are written in advance, and a clock that only sleeping moves.

    `tale` says what is there from which second on; None where nobody answers.
    """

    def __init__(self, *tale: tuple[float, Sequence[capacity_pb2.Flip] | None]) -> None:
        self.now_s = END_S
        self.notes: list[str] = []
        self._tale = tale

    def now(self) -> float:
        return self.now_s

    async def sleep(self, span_s: float) -> None:
        self.now_s += span_s

    async def flips(self) -> Sequence[capacity_pb2.Flip]:
        found = [flips for since_s, flips in self._tale if since_s <= self.now_s][-1]
        if found is None:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
        return found

    async def wait(self) -> float:
        """Play the end of a story."""
        return await wait_for_flips(
            self.flips,
            longest_s=LONGEST_S,
            unix_at_zero=AT_ZERO,
            now=self.now,
            note=self.notes.append,
            sleep=self.sleep,
        )


async def test_where_none_is_open_nothing_is_waited_for() -> None:
    """Those that are over say nothing."""
    site = Site((0.0, [ended()]))
    assert await site.wait() == 0.0
    assert site.notes == []


async def test_open_flip_is_waited_for_until_it_ends_and_each_phase_is_told_once() -> None:
    """A shed in its settling when the story ends, as after a kill shortly before: it ends in its time."""
    verifying = flip(420.0, capacity_pb2.FLIP_PHASE_VERIFYING)
    site = Site((0.0, [flip(378.0), ended()]), (370.0, [verifying]), (381.0, [ended(), ended()]))
    assert await site.wait() == 59.0
    assert site.notes == [
        "the story is over; waiting for 2 of c1-edge/asics from mine to standby (settling, until second 378)",
        "the story is over; waiting for 2 of c1-edge/asics from mine to standby (verifying, until second 420)",
    ]


async def test_flip_that_outlives_its_deadline_is_stuck() -> None:
    """Nobody waits for the whole road then: a few rounds more, and it counts as left open."""
    site = Site((0.0, [flip(340.0)]))
    assert 340.0 + LATE_S < END_S + await site.wait() <= 340.0 + LATE_S + 1.0
    assert site.notes[-1].startswith("stuck, after 29 s more: 2 of c1-edge/asics")


async def test_flip_whose_deadline_is_put_off_for_ever_is_stuck_too() -> None:
    """However lively it looks: no honest flip is open for longer than its whole road."""
    site = Site(*((float(second), [flip(second + 60.0)]) for second in range(300, 900, 30)))
    assert await site.wait() == LONGEST_S
    assert site.notes[-1].startswith("stuck, after 200 s more")


async def test_one_that_is_stuck_does_not_end_the_wait_for_others() -> None:
    """The other one still has its time, and is not counted as stuck."""
    stuck = flip(325.0)
    site = Site((0.0, [stuck, flip(380.0)]), (350.0, [stuck]))
    assert await site.wait() == 28.0
    assert "until second 325" in site.notes[-1] and "380" not in site.notes[-1]


@pytest.mark.parametrize(("back_s", "waited_s"), [(340.0, 18.0), (9_999.0, LONGEST_S)])
async def test_controller_that_does_not_answer_is_waited_for(back_s: float, waited_s: float) -> None:
    """What is open is unknown until it is back; one that stays away ends the wait like a flip that is stuck."""
    site = Site((0.0, None), (back_s, [ended()]))
    assert await site.wait() == waited_s
    assert site.notes[0] == "the story is over; waiting for the controller, which does not answer"


def test_longest_flip_is_the_whole_road_and_back() -> None:
    """Every phase that the product has is in it, so that a new one is not forgotten."""
    assert set(FLIP_TIMES) == {each.name for each in dataclasses.fields(FlipTimes)}
    back = ("released_s", "settling_s", "starting_s", "verifying_s")
    assert longest_flip_s() >= sum(FLIP_TIMES.values()) + sum(FLIP_TIMES[name] for name in back)
