"""The wall clock jumps, the controller restarts, its host reboots: open flips keep their time."""

from __future__ import annotations

import pytest

from swingbus_controller.domain.flips.flip import Flip, Phase
from swingbus_controller.domain.planning.points import Mode
from tests.fakes.site import VirtualSite, settled_site
from tests.fakes.site_clock import UNIX_ZERO_S

GPU = "gpu1/gpus"
STARTING_S = 30.0
DAY_S = 86_400.0


def flip_that_waits() -> tuple[VirtualSite, Flip]:
    """Return a site whose model never answers its probe, and the flip that waits for it in STARTING."""
    site = settled_site()
    site.market.demand = None
    site.banks[GPU].slow["llm"] = 1e6
    made = site.commands.request_flip(site.order("r"), bank=GPU, count=8, from_mode=Mode.MINING, to_mode=Mode.INFERENCE)
    assert site.run(120, lambda: site.state.flips[made.id].phase is Phase.STARTING), site.explain()
    return site, site.state.flips[made.id]


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_jump_of_the_wall_clock_neither_ends_nor_prolongs_a_flip(jump_s: float) -> None:
    """The phase ends when its seconds have passed, not a second earlier or later."""
    site, flip = flip_that_waits()
    site.clock.wall_offset_s += jump_s
    left_s = flip.since_s + STARTING_S - site.clock.s
    site.run(left_s - 1.0)
    assert site.state.flips[flip.id].phase is Phase.STARTING
    site.run(2.0)
    assert site.state.flips[flip.id].undo_cause == "starting took longer than 30 s"


def test_restart_in_the_same_boot_records_no_new_times() -> None:
    """Even with the wall clock a day off: the axis of the boot is the same."""
    site, flip = flip_that_waits()
    site.kill_controller()
    site.clock.wall_offset_s -= DAY_S
    site.start_controller()
    assert site.state.flips[flip.id] == flip


def test_reboot_rebases_open_flips_once() -> None:
    """After a reboot that took a minute by the wall clock the phase began that much earlier; the next start changes nothing."""
    site, flip = flip_that_waits()
    site.kill_controller()
    site.clock.wall_offset_s += 60.0
    site.start_controller(boot_id="boot-after")
    again = site.state.flips[flip.id]
    assert (again.axis.boot_id, again.since_s) == ("boot-after", flip.since_s - 60.0)
    site.kill_controller()
    site.start_controller(boot_id="boot-after")
    assert site.state.flips[flip.id] == again
    assert [r.entry.kind for r in site.journal.read()].count("flip_rebased") == 1
    site.banks[GPU].slow.clear()
    assert site.run(300, lambda: site.state.flips[flip.id].is_over and site.is_quiet()), site.explain()
    site.verdicts.assert_clean()


def test_devices_dwell_from_the_end_of_their_flip_by_the_wall_clock() -> None:
    """Dwell is kept in Unix seconds, whatever clock the flip ran on."""
    site = settled_site()
    held = site.state.holdings["edge1/asics"].placements
    assert all(UNIX_ZERO_S < p.since_s <= site.clock.now().timestamp() for p in held)
