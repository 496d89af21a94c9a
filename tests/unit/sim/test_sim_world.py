"""The whole site's physics: sums, limits, the fault ledger, repeatability."""

from __future__ import annotations

import pytest

from swingbus.faults import InvalidInput
from swingbus_sim.physics.tree import PowerTree
from swingbus_sim.scenario import EVENT_KINDS, Event, Node
from swingbus_sim.scenario_file import load_scenario
from swingbus_sim.show import sizing
from tests.unit.sim.builders import make_world, run_world


def _node(name: str, parent: str | None, loss_ratio: float) -> Node:
    return Node(
        name=name,
        parent=parent,
        limit_w=None,
        window_s=1.0,
        loss_ratio=loss_ratio,
        overload_ratio=1.0,
        reaction_s=1.0,
        catch_s=1.0,
    )


def test_tree_adds_losses_on_the_way_up() -> None:
    """A watt below costs its losses at every feeder above."""
    tree = PowerTree([_node("grid", None, 0.01), _node("c1", "grid", 0.02), _node("pdu", "c1", 0.0)])

    assert tree.sum([0.0, 100.0, 50.0]) == pytest.approx([154.53, 153.0, 50.0])
    assert [index for index, _ in tree.burden("pdu")] == [2, 1, 0]
    assert [factor for _, factor in tree.burden("pdu")] == pytest.approx([1.0, 1.02, 1.0302])
    assert tree.below("c1") == frozenset({1, 2})


def test_same_seed_gives_the_same_truth() -> None:
    """A run can be replayed exactly."""
    first, _ = make_world()
    second, _ = make_world()

    assert [t.node_w for t in run_world(first, 3.0)] == [t.node_w for t in run_world(second, 3.0)]


def test_root_carries_every_device_cooling_load_and_loss() -> None:
    """The root's watts are the sum of what hangs below it, plus a few percent of losses."""
    world, _ = make_world()
    tick = list(run_world(world, 5.0))[-1]
    asics_w = sum(tick.device_w[: len(world.asics)])
    host_w = world.hosts["g1"].power_w
    below_w = asics_w + host_w + world.loads["office"].power_w + sum(plant.power_w for _, plant, *_ in world._plants)

    assert below_w < tick.node_w[0] < below_w * 1.012


def test_cooling_follows_late() -> None:
    """After everything sleeps the fans come down over their lag, not at once."""
    world, _ = make_world()
    list(run_world(world, 2.0))
    plant = world._plants[0][1]
    before_w = plant.power_w
    for asic in world.asics.values():
        asic.sleep(world.now_s)
    list(run_world(world, 12.0))
    soon_w = plant.power_w
    list(run_world(world, 150.0))

    assert before_w > 1000.0
    assert soon_w > 0.6 * before_w
    assert plant.power_w < 0.35 * before_w


def test_outage_takes_all_watts_and_wakes_volatile_sleepers() -> None:
    """Two seconds without voltage: nothing at the root, then boots, then whoever forgot its sleep mines."""
    world, _ = make_world(Event(kind="outage", at_s=2.0, duration_s=2.0, targets=("grid",)))
    ticks = list(run_world(world, 30.0))

    assert max(t.node_w[0] for t in ticks if 2.2 < t.at_s < 3.9) == 0.0
    assert ticks[25].voltage_ratio == 0.0
    last = ticks[-1]
    names = {world.device_names[d.device] for d in last.disobedient}
    assert names == {"what-004", "what-005", "what-006"}
    assert all(d.cause == "outage" for d in last.disobedient)


def test_sag_reboots_only_a_share() -> None:
    """A 200 ms dip reboots the share of machines that the scenario says."""
    world, _ = make_world(Event(kind="sag", at_s=1.0, duration_s=0.2, targets=("grid",), voltage_ratio=0.7, ratio=0.5))
    list(run_world(world, 2.0))
    rebooted = sum(1 for a in world.asics.values() if a.reading(world.now_s).uptime_s < 5)

    assert 1 <= rebooted < len(world.asics)


def test_limit_comes_after_its_notice_and_goes_after_its_time() -> None:
    """A curtailment is announced, in force, over; the lowest of two rules."""
    long = Event(
        kind="limit", at_s=1.0, notice_s=1.0, duration_s=3.0, targets=("grid",), limit_w=20_000.0, is_disturbance=True
    )
    short = Event(kind="limit", at_s=2.5, duration_s=1.0, targets=("grid",), limit_w=10_000.0)
    world, _ = make_world(long, short)
    seen = {round(t.at_s, 1): t.limit_w[0] for t in run_world(world, 6.0)}

    assert (seen[1.5], seen[2.2], seen[3.0], seen[4.0], seen[5.5]) == (38_000.0, 20_000.0, 10_000.0, 20_000.0, 38_000.0)
    phases = [(e.kind, e.phase) for e in world.faults.entries]
    assert phases[:2] == [("limit", "announced"), ("limit", "started")]


def test_armed_self_waker_is_written_when_it_happens() -> None:
    """The ledger tells planting from happening."""
    world, _ = make_world(Event(kind="wake_by_itself", at_s=0.5, targets=("lux-006",), delay_s=2.0))
    list(run_world(world, 4.0))

    assert [(e.phase, e.targets) for e in world.faults.entries] == [("armed", ("lux-006",)), ("started", ("lux-006",))]


def test_pick_chooses_machines_in_that_state_and_a_vain_pick_is_skipped() -> None:
    """A pick takes machines that are like that now; where none is, the timeline goes on and says so."""
    world, _ = make_world(
        Event(kind="ignore_sleep", at_s=0.2, targets=("lux:mining",), pick_count=2),
        Event(kind="pool_loss", at_s=0.4, targets=("lux:asleep",), pick_count=1, duration_s=5.0),
    )
    list(run_world(world, 1.0))
    assert [e.targets for e in world.faults.entries] == [("lux-001", "lux-002"), ("lux-005",)]

    for asic in world.asics.values():
        asic.wake(world.now_s)
    list(run_world(world, 8.0))
    with pytest.raises(InvalidInput, match="no machine is like lux:asleep"):
        world.faults.inject(Event(kind="pool_loss", at_s=0.0, targets=("lux:asleep",), duration_s=1.0))


def test_load_surge_is_kept_apart_from_the_ordinary_course() -> None:
    """The judge can tell a planted surge from the load's own waves."""
    world, _ = make_world(Event(kind="load_surge", at_s=1.0, targets=("office",), power_w=900.0, duration_s=2.0))
    ticks = list(run_world(world, 5.0))

    assert next(round(t.at_s, 1) for t in ticks if t.surges) == 1.0
    assert ticks[-1].surges == ()
    assert ticks[20].node_w[0] - ticks[5].node_w[0] > 700.0


def test_demo_is_sized_as_the_issue_asks() -> None:
    """The demo wants at least 115 % of its limit, and a blip stays within what the feeder bears (I3)."""
    size = sizing(load_scenario("demo"))

    assert size.demand_ratio >= 1.15
    assert size.blip_holds


def test_demo_plants_every_kind_of_fault() -> None:
    """Every kind of Step 2.5 (and the story's own) comes at least once, in six minutes."""
    scenario = load_scenario("demo")
    kinds = {e.kind for e in scenario.events}

    assert kinds >= set(EVENT_KINDS) - {"sag", "meter_word_swap", "meter_power_freeze"}
    assert scenario.duration_s <= 360.0
    assert any(m.word_order == "little" for m in scenario.meters)
