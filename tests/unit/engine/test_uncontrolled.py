"""Loads without an agent: counted at what the meter leaves over where that is asked for, at their ratings whenever it is not known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swingbus_controller.domain.fleet.orders import Mode
from swingbus_controller.domain.power.tree import PowerTree
from swingbus_controller.domain.site.sitefile import SiteFile
from tests.fakes.site import HOUSE_W, VirtualSite, settled_site
from tests.fakes.site_files import make_site

U_MAX_W, STEP_W, WINDOW_S = 50_000.0, 3000.0, 120.0
WINDOW = f'uncontrolled_window_s = {{value = {WINDOW_S}, why = "tests"}}'


def measured_site(*, is_measured: bool = True) -> SiteFile:
    """Return a site whose grid has loads of 50 kW beside its banks, of which 1.5 kW run."""
    made = make_site(protocol=WINDOW)
    grid = replace(
        made.tree.feeder("grid"),
        uncontrolled_max_w=U_MAX_W,
        uncontrolled_step_w=STEP_W,
        measures_uncontrolled=is_measured,
    )
    return replace(made, tree=PowerTree([grid if f.name == "grid" else f for f in made.tree.feeders.values()]))


def grown_site() -> VirtualSite:
    """Return a site that has grown into what its loads do not take."""
    site = settled_site(measured_site())
    before = mining(site)
    assert site.run(400, lambda: u_w(site) < U_MAX_W / 2.0), site.explain()
    assert site.run(400, lambda: mining(site) >= before + 8 and site.is_quiet()), site.explain()
    return site


def u_w(site: VirtualSite) -> float:
    """Return U at the grid as it counts now."""
    return site.state.ledger.uncontrolled_w("grid", site.clock.s)


def mining(site: VirtualSite) -> int:
    """Return ASICs that truly mine."""
    return sum(site.count(bank, Mode.MINING) for bank in ("edge1/asics", "edge2/asics"))


def safety_cuts(site: VirtualSite) -> int:
    """Return grants that guard has cut."""
    return sum(r.entry.facts.get("kind") == "safety" for r in site.journal.read() if r.entry.kind == "grant_issued")


def test_site_grows_into_watts_that_its_loads_do_not_take_and_stays_there() -> None:
    """U falls once the history is full and machines start. Losses and meter error of what they draw may cost the last one; no more."""
    site = settled_site(measured_site())
    assert u_w(site) == U_MAX_W
    before = mining(site)
    site.run(3 * WINDOW_S)
    cuts = safety_cuts(site)
    site.run(10 * WINDOW_S)
    assert HOUSE_W + STEP_W <= u_w(site) <= HOUSE_W + STEP_W + 4000.0
    assert mining(site) >= before + 8, site.explain()
    assert safety_cuts(site) == cuts <= 2, site.explain()
    assert site.state.ledger.i1_holds(site.clock.s)
    site.verdicts.assert_clean()


def test_ratings_count_where_nobody_asked_for_less() -> None:
    """Without u_measured the engine counts U_max for ever."""
    site = settled_site(measured_site(is_measured=False))
    site.run(3 * WINDOW_S)
    assert u_w(site) == U_MAX_W
    site.verdicts.assert_clean()


def test_surge_of_load_makes_guard_reduce() -> None:
    """20 kW start beside the banks: I1 is false, machines rest until it is true, and growth waits until the surge has left the history."""
    site = grown_site()
    before = mining(site)
    site.house_w += 20_000.0
    site.excuse(15.0)
    assert site.run(20, lambda: not site.state.ledger.i1_holds(site.clock.s)), site.explain()
    assert site.run(60, lambda: site.state.ledger.i1_holds(site.clock.s)), site.explain()
    assert mining(site) <= before - 5
    site.house_w -= 20_000.0
    site.run(WINDOW_S / 2.0)
    assert mining(site) <= before - 5
    assert site.run(600, lambda: mining(site) >= before - 1), site.explain()
    site.verdicts.assert_clean()


@pytest.mark.parametrize("feeder", ["grid", "c2"])
def test_dead_meter_brings_the_ratings_back(feeder: str) -> None:
    """The feeder's own meter, or a bank's whose watts may then be anybody's: U is U_max until a whole history is there again."""
    site = grown_site()
    site.dead_meters.add(feeder)
    assert site.run(20, lambda: u_w(site) == U_MAX_W)
    site.run(60)
    site.dead_meters.clear()
    site.run(WINDOW_S - 5.0)
    assert u_w(site) == U_MAX_W
    assert site.run(600, lambda: u_w(site) < U_MAX_W / 2.0), site.explain()
    site.verdicts.assert_clean()


def test_restart_begins_with_the_ratings() -> None:
    """Nothing of U is on the record: the next controller counts U_max, sheds what does not fit after its grace, and measures anew."""
    site = grown_site()
    site.restart_controller()
    assert u_w(site) == U_MAX_W
    site.run(WINDOW_S - 5.0)
    assert u_w(site) == U_MAX_W and site.state.ledger.i1_holds(site.clock.s), site.explain()
    assert site.run(600, lambda: u_w(site) < U_MAX_W / 2.0), site.explain()
    assert not any("uncontrolled" in str(r.entry.payload) for r in site.journal.read())
    site.verdicts.assert_clean()
