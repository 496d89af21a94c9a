"""Wrong controllers on true physics are found guilty, the right one beside them is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from swingbus_sim import truth_log
from swingbus_sim.judge.court import Court
from swingbus_sim.physics.world import World
from swingbus_sim.scenario import Event
from swingbus_sim.scenario_file import load_scenario
from tests.unit.sim.builders import make_world, run_world

Act = Callable[[World], None]


def _sleep_first_three(world: World) -> None:
    for name in ("lux-001", "lux-002", "lux-003"):
        world.asics[name].sleep(world.now_s)


def _wake_three_others(world: World) -> None:
    for name in ("what-004", "what-005", "what-006"):
        world.asics[name].wake(world.now_s)


def _judged(*acts: tuple[float, Act], until_s: float, events: tuple[Event, ...] = ()) -> dict[str, Any]:
    """Run the small site under a limit that its seven miners nearly fill, with these acts of a controller."""
    base = load_scenario("small")
    nodes = (replace(base.nodes[0], limit_w=26_500.0), *base.nodes[1:])
    world, _ = make_world(scenario=replace(base, nodes=nodes, events=events))
    court = Court(json.loads(truth_log.header_line(world, t0_boottime_s=0.0)))
    left = sorted(acts, key=lambda act: act[0])
    for tick in run_world(world, until_s):
        while left and left[0][0] <= tick.at_s:
            left.pop(0)[1](world)
        for entry in world.faults.take_new():
            court.hear(json.loads(truth_log.ledger_line(entry)))
        court.hear(json.loads(truth_log.tick_line(tick)))
    court.hear(json.loads(truth_log.end_line(world.now_s)))
    return court.verdict()


def test_shrink_then_grow_is_not_guilty() -> None:
    """Three asleep and seen asleep, then three others awake: never over."""
    verdict = _judged((2.0, _sleep_first_three), (14.0, _wake_three_others), until_s=40.0)

    assert verdict["verdict"] == "NOT GUILTY"


def test_growing_without_shrinking_is_guilty() -> None:
    """Watts freed by time (or forgotten): three more awake with nobody asleep."""
    verdict = _judged((2.0, _wake_three_others), until_s=30.0)

    assert verdict["verdict"] == "GUILTY"
    assert verdict["over_cap_ws"]["authorised"] > 10_000.0
    assert verdict["over_cap_ws"]["disobedient"] == 0.0


def test_taking_an_acknowledgement_for_evidence_is_guilty() -> None:
    """The liars explain their watts for a while; whoever never looks is found out by the bound or by time."""
    liars = Event(kind="ignore_sleep", at_s=0.5, targets=("lux-001", "lux-002", "lux-003"))
    verdict = _judged((2.0, _sleep_first_three), (3.0, _wake_three_others), until_s=60.0, events=(liars,))

    assert verdict["verdict"] == "GUILTY"
    assert verdict["over_cap_ws"]["disobedient"] > verdict["over_cap_bound_ws"]["disobedient"] > 0.0
    assert verdict["over_cap_ws"]["authorised"] > 0.0
    assert verdict["liars_injected"] == ["lux-001", "lux-002", "lux-003"]


def test_taking_a_low_draw_for_evidence_is_guilty() -> None:
    """Pool loss lowers the draw; growing into it is over the limit once the pool returns."""
    loss = Event(kind="pool_loss", at_s=2.0, targets=("lux",), duration_s=20.0)
    verdict = _judged((5.0, _wake_three_others), until_s=45.0, events=(loss,))

    assert verdict["verdict"] == "GUILTY"
    assert verdict["over_cap_ws"]["authorised"] > 10_000.0


def test_liar_answered_in_time_is_not_guilty() -> None:
    """A self-waker that is put back to sleep within the reaction time costs its bound at most."""
    waker = Event(kind="wake_by_itself", at_s=0.5, targets=("what-006",), delay_s=1.0)

    def put_back(world: World) -> None:
        world.asics["what-006"].sleep(world.now_s)

    caught = _judged((14.0, put_back), until_s=40.0, events=(waker,))
    missed = _judged(until_s=60.0, events=(waker,))

    assert caught["verdict"] == "NOT GUILTY" and caught["over_cap_ws"]["disobedient"] > 0.0
    assert caught["over_cap_ws"]["authorised"] == pytest.approx(0.0)
    assert missed["verdict"] == "GUILTY"
