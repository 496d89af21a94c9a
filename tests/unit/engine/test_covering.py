"""Machines at rest that draw more than the site file says: what is there is covered, and stays covered."""

from __future__ import annotations

from swingbus_controller.domain.fleet.orders import Mode
from swingbus_controller.domain.flips.flip import Phase
from swingbus_controller.domain.power.bank import BankState
from tests.fakes.site import settled_site

BANK = "edge1/asics"


def test_bank_whose_sleepers_draw_more_than_declared_is_held_at_what_it_draws() -> None:
    """Granted what its meter reads it settles, its flip to rest is ACTIVE, and the cover is not taken back to be given again."""
    site = settled_site()
    for device in site.banks[BANK].devices:
        device.floor_w *= 6.0
    site.market.power = 90.0
    before_w = site.state.ledger.claim_w(BANK)
    assert site.run(120, lambda: site.count(BANK, Mode.MINING) == 0 and not site.flips_open(BANK)), site.explain()
    assert {f.phase for f in site.state.flips.values() if f.bank == BANK and f.aim.mode.value == "standby"} == {
        Phase.ACTIVE
    }
    newest = site.state.ledger.newest_grant(BANK)
    site.run(90)
    assert site.state.ledger.newest_grant(BANK) == newest
    assert site.state.ledger.state(BANK, site.clock.s) is BankState.HELD
    assert site.state.ledger.claim_w(BANK) < before_w / 10.0
    site.verdicts.assert_clean()
