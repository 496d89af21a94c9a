"""What the demo's report reads off an agent's own disk, which seconds its means leave out, and what it says of flips left open."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from swingbus.capacity.v1alpha import capacity_pb2
from swingbus_agent.adapters.spool import SqliteSpool
from swingbus_agent.codec import ProtoRoundCodec
from swingbus_agent.domain.readings import Inventory, Round
from swingbus_agent.domain.spool_policy import Acknowledged, Bounds
from swingbus_sim.demo.report import bars, flip_rows, mean_outside, quiet_spans, spool_facts
from swingbus_sim.scenario_file import load_scenario

INVENTORY = Inventory(
    version="1", hostname="h", banks=(), meters=(), host_fields=(), unsupported=(), writes_enabled=False
)


def test_what_comes_after_the_story_is_in_no_mean() -> None:
    """However long the last flips took; second 100 of this story is a quiet one."""
    scenario = load_scenario("demo")
    values = [(100.0, 0.98), (scenario.duration_s + 1.0, 0.5), (scenario.duration_s + 400.0, 0.5)]
    assert mean_outside(values, quiet_spans(scenario)) == 0.98


def test_flip_that_was_left_open_breaks_its_bar_and_is_named() -> None:
    """One that failed is over: it is charged and named, and nobody waits for it."""
    failed = capacity_pb2.Flip(bank="sites/demo/agents/g1/banks/gpus", phase=capacity_pb2.FLIP_PHASE_FAILED)
    failed.end_time.GetCurrentTime()
    stuck = capacity_pb2.Flip(
        bank="sites/demo/agents/c1-edge/banks/asics", device_count=2, phase=capacity_pb2.FLIP_PHASE_SETTLING
    )

    def bar(*flips: capacity_pb2.Flip) -> tuple[bool, str]:
        report: defaultdict[str, object] = defaultdict(int, flips=flip_rows(flips))
        report |= {
            "over_cap_ws": {},
            "over_cap_bound_ws": {},
            "under_reporting_groups_injected": [],
            "groups_named": [],
        }
        ((_, kept, figure),) = [row for row in bars(report) if row[0] == "no flip left open"]
        return kept, figure

    assert bar(failed) == (True, "0")
    assert bar(failed, stuck) == (False, "2 of c1-edge/asics SETTLING")


async def test_numbers_inside_a_mean_that_is_still_held_are_not_acknowledged(tmp_path: Path) -> None:
    """Only what the spool holds no more, alone or in a mean, may be asked of the controller."""
    spool = SqliteSpool(tmp_path, codec=ProtoRoundCodec(), bounds=Bounds(max_bytes=700, max_age_s=1e6))
    await spool.open()
    await spool.announce(INVENTORY)
    for n in range(1, 61):
        await spool.append(Round(sample_unix_s=1e9 + n, sample_boottime_ns=n, boot_id="b"))
    await spool.acknowledge(Acknowledged(up_to=4, ranges=((58, 59),)))
    merged, dropped = await spool.relieve(1e9 + 60, ())
    assert merged > 0 and dropped == 0
    await spool.aclose()
    _, ranges = spool_facts(tmp_path)
    assert ranges == [1, 4, 58, 59]
