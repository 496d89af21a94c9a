"""What the demo's report reads off an agent's own disk, and which seconds its means leave out."""

from __future__ import annotations

from pathlib import Path

from swingbus_agent.adapters.spool import SqliteSpool
from swingbus_agent.codec import ProtoRoundCodec
from swingbus_agent.domain.readings import Inventory, Round
from swingbus_agent.domain.spool_policy import Acknowledged, Bounds
from swingbus_sim.demo.report import mean_outside, quiet_spans, spool_facts
from swingbus_sim.scenario_file import load_scenario

INVENTORY = Inventory(
    version="1", hostname="h", banks=(), meters=(), host_fields=(), unsupported=(), writes_enabled=False
)


def test_what_comes_after_the_story_is_in_no_mean() -> None:
    """However long the last flips took; second 100 of this story is a quiet one."""
    scenario = load_scenario("demo")
    values = [(100.0, 0.98), (scenario.duration_s + 1.0, 0.5), (scenario.duration_s + 400.0, 0.5)]
    assert mean_outside(values, quiet_spans(scenario)) == 0.98


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
