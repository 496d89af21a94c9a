"""Random walks over everything that can happen to a site: the limit holds, every flip ends, the site comes to rest and fills up."""

from __future__ import annotations

import random

import pytest

from swingbus_controller.domain.flips.flip import Phase
from tests.fakes.memory_journal import Crashed
from tests.fakes.site import VirtualSite, settled_site
from tests.fakes.site_clock import BOOTTIME_ZERO_S
from tests.fakes.site_files import make_site

WALK_S = 400
OPEN_TOO_LONG_S = 600.0


def shake(site: VirtualSite, chance: random.Random) -> None:
    """Do one of the things that happen to a site; nothing here excuses watts over a limit."""
    agent = site.agents[chance.choice(("edge1", "edge2", "gpu1", "gpu2"))]
    match chance.randrange(12):
        case 0 | 1:
            site.market.power = chance.choice((15.0, 40.0, 75.0, 90.0, 200.0))
        case 2 | 3:
            site.market.demand = chance.choice((0.0, 8.0, 20.0, 32.0))
        case 4:
            if site.deciding is not None and len(site.state.open_curtailments()) < 2:
                site.curtail(
                    chance.choice((30_000.0, 70_000.0, 110_000.0)),
                    notice_s=chance.choice((40.0, 80.0)),
                    ramp_s=chance.choice((0.0, 30.0)),
                    duration_s=chance.choice((40.0, 120.0)),
                    id=str(chance.random()),
                )
        case 5:
            agent.is_alive = False
        case 6:
            agent.is_linked = not agent.is_linked
            agent.said_hello = False
        case 7:
            for other in site.agents.values():
                if not other.is_alive:
                    other.restart(loses_memory=chance.random() < 0.2)
        case 8:
            if site.deciding is not None:
                site.kill_controller()
        case 9:
            if site.deciding is not None:
                site.journal.crash_after = chance.randrange(6)
        case 10:
            broken = site.banks[chance.choice(("gpu1/gpus", "gpu2/gpus"))].broken
            broken.symmetric_difference_update({"llm"})
        case _:
            site.voltage_v = chance.choice((230.0, 230.0, 190.0))


def calm(site: VirtualSite) -> None:
    """End everything that was done to the site."""
    for agent in site.agents.values():
        if not agent.is_alive:
            agent.restart()
        if not agent.is_linked:
            agent.is_linked, agent.said_hello = True, False
    for bank in site.banks.values():
        bank.broken.clear()
    site.market.power, site.market.demand, site.voltage_v = 40.0, 16.0, 230.0
    if site.deciding is None:
        site.start_controller()
    site.journal.crash_after = None


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_the_limit_holds_and_every_flip_ends(seed: int) -> None:
    """Prices, demand, curtailments, deaths of agents and controllers, blips: authorised watts over the limit are 0 and nothing is stuck."""
    chance = random.Random(seed)
    site = settled_site(make_site(is_reserved=seed % 2 == 0), seed=seed)
    dead_s = 0
    for second in range(WALK_S):
        site.step()
        if chance.random() < 0.06:
            try:
                shake(site, chance)
            except Crashed:
                site.kill_controller()
        if site.deciding is None:
            dead_s += 1
            if dead_s > 3 + chance.randrange(30):
                site.start_controller()
                dead_s = 0
        elif second % 50 == 0:
            now_s = site.clock.s
            stuck = [f for f in site.state.open_flips() if now_s - f.created_at_s > OPEN_TOO_LONG_S]
            assert not stuck, (seed, second, [f.story() for f in stuck])
        assert not site.verdicts.over_cap, (seed, second, site.verdicts.over_cap[0])
    calm(site)
    assert site.run(700, lambda: site.is_quiet() and site.claimed_ratio() > 0.95), f"seed {seed}\n{site.explain()}"
    assert not site.flips(Phase.PLANNED)
    assert site.clock.s > BOOTTIME_ZERO_S + WALK_S
    site.verdicts.assert_clean()
