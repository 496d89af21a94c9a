"""A node that was rebooted: limits at their defaults, kubelet and agent side by side, pods that start again without any gate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swingbus_agent.domain.readings import Condition
from tests.integration.test_agent_pods import PodRack, pod_rack

FLOOR_W = 200.0
LISTENS_S = 5  # ADR 0001, 15


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[PodRack]:
    """Return a rack with a miner on unit 0 and a customer on unit 1, as ordered and read back, just before its host goes down."""
    async with pod_rack(tmp_path) as rack:
        rack.bring("mining", "m-0", 0, 1)
        rack.bring("customers", "llm", 2, 3)
        await rack.adopt()
        await rack.order(mine=2, serve=2)
        await rack.until(lambda: rack.report().applied_generation == 1 and rack.report().held_count == 4)
        assert limits(rack) == [300.0, 300.0, 600.0, 600.0]
        yield rack


def limits(rack: PodRack) -> list[float]:
    """Return what each GPU enforces."""
    return [gpu.enforced_limit_w for gpu in rack.gpus.gpus]


async def look_on(rack: PodRack) -> None:
    """Look for a while with pods that started again: nothing rises, and no workload is started."""
    rack.work(0, 1, 2, 3)
    for _ in range(12):
        before = limits(rack)
        await rack.look()
        assert all(now_w <= was_w for now_w, was_w in zip(limits(rack), before, strict=True))
    assert rack.report().is_lapsed and rack.starts() == []


async def test_first_look_after_a_reboot_brings_limits_back_to_the_last_grant(rack: PodRack) -> None:
    """Before anybody is heard: no GPU stays at its default, and together they fit what was granted last."""
    rack.reboot()
    assert limits(rack) == [700.0] * 4
    await rack.look()
    assert limits(rack) == [300.0, 300.0, 600.0, 600.0]
    assert rack.report().is_lapsed and rack.report().allowed_w <= rack.report().grant_w


async def test_without_a_controller_limits_go_to_the_safe_share_and_customers_are_not_stopped(rack: PodRack) -> None:
    """Listening is short: then all are at their floor (the safe share here is 0), the miner is to leave, the customer is only capped."""
    rack.reboot()
    for _ in range(LISTENS_S):
        await rack.look()
    assert limits(rack) == [FLOOR_W] * 4
    assert [line for line in rack.log if line.startswith("stop_workload")] == ["stop_workload 0 "]
    await look_on(rack)
    assert limits(rack) == [FLOOR_W] * 4


async def test_kubelet_that_is_not_up_yet_holds_no_limit_up(rack: PodRack) -> None:
    """Who holds what is not known: limits go down all the same, no unit counts as free, and nothing is started on one."""
    rack.reboot()
    await rack.kubelet.stop()
    await rack.look()
    assert sorted(limits(rack)) == [300.0, 300.0, 600.0, 600.0]
    assert rack.report().released_units == ()
    for _ in range(LISTENS_S):
        await rack.look()
    assert limits(rack) == [FLOOR_W] * 4 and rack.report().released_units == ()
    await rack.kubelet.start()
    await look_on(rack)


async def test_gpu_that_is_dead_after_a_reboot_holds_no_other_up(rack: PodRack) -> None:
    """With one that does not answer the last grant can't be seen to fit: the others go to the safe share at the first look."""
    rack.reboot()
    rack.gpus.gpus[1].condition = Condition.LOST
    await rack.look()
    assert [limits(rack)[index] for index in (0, 2, 3)] == [FLOOR_W] * 3
    await look_on(rack)


async def test_controller_that_is_heard_in_time_gets_its_watts_back_without_a_stop(rack: PodRack) -> None:
    """A newer grant within the listening: limits stand at it, and neither pod was ever told to go."""
    rack.reboot()
    await rack.look()
    await rack.order(mine=2, serve=2)
    await rack.until(lambda: rack.report().applied_generation == 2)
    assert limits(rack) == [300.0, 300.0, 600.0, 600.0] and not rack.report().is_lapsed
    assert not [line for line in rack.log if line.startswith("stop_workload")]


async def test_first_start_on_a_node_changes_no_limit(rack: PodRack, tmp_path: Path) -> None:
    """Nobody has ever said what this node may draw: it counts at its ceiling, and only the host's own unit sets floors there."""
    (tmp_path / "new").mkdir()
    rack.reboot()
    fresh = PodRack(tmp_path / "new", clock=rack.clock, gpus=rack.gpus, make_driver=rack.make_driver)
    for _ in range(LISTENS_S * 2):
        await fresh.look()
    assert limits(rack) == [700.0] * 4 and fresh.log == []
    assert fresh.report().reported_w is None
