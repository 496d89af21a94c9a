"""Hands inside: a locked-out bank lends no watts, and a lockout outlives the journal that it was written in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swingbus.faults import InvalidInput
from swingbus_controller.domain.fleet.orders import Mode
from swingbus_controller.domain.flips.flip import Phase
from swingbus_controller.domain.flips.placement import resting_w
from swingbus_controller.domain.power.budget_events import GrantKind
from tests.fakes.memory_journal import JournalFile
from tests.fakes.site import VirtualSite, settled_site
from tests.fakes.site_files import make_site

ASICS, GPU = "edge2/asics", "gpu1/gpus"


def lock(site: VirtualSite, bank: str) -> None:
    """Lock a bank out as an operator."""
    site.commands.set_lockout(site.order(f"lock-{site.clock.s}"), bank=bank, locked_out=True, cleared_by="")


def lift(site: VirtualSite, bank: str, *, cleared_by: str = "grace") -> None:
    """Lift a lockout on somebody's word."""
    order = site.order(f"lift-{site.clock.s}-{cleared_by}")
    site.commands.set_lockout(order, bank=bank, locked_out=False, cleared_by=cleared_by)


def granted_w(site: VirtualSite, bank: str) -> float:
    """Return the newest grant."""
    newest = site.state.ledger.newest_grant(bank)
    assert newest is not None, site.explain()
    return newest.grant_w


def rest_w(site: VirtualSite, bank: str) -> float:
    """Return the grant of the bank at rest, with a watt of tolerance."""
    return resting_w(site.state.models[bank]) + 1.0


def test_locked_out_bank_gives_its_grant_back_at_once_and_its_claim_by_evidence() -> None:
    """Others grow into its watts while hands are inside; lifted, it grows back by plan."""
    site = settled_site()
    before = site.count("edge1/asics", Mode.MINING)
    mined = site.count(ASICS, Mode.MINING)
    lock(site, ASICS)
    site.run(1)
    assert granted_w(site, ASICS) <= rest_w(site, ASICS)
    for _ in range(150):
        site.step()
        assert granted_w(site, ASICS) <= rest_w(site, ASICS), site.explain()
    assert site.state.ledger.claim_w(ASICS) <= rest_w(site, ASICS), site.explain()
    assert site.count("edge1/asics", Mode.MINING) > before
    lift(site, ASICS)
    assert site.run(400, lambda: site.count(ASICS, Mode.MINING) == mined and site.is_quiet()), site.explain()
    site.verdicts.assert_clean()


def test_sleeper_that_ignores_a_lockout_is_covered_by_what_is_read_back_and_no_more() -> None:
    """Two machines mine on: the claim stays until evidence, the grant never exceeds what is read back to be held."""
    site = settled_site()
    for device in site.banks[ASICS].devices[:2]:
        device.ignores_sleep = True
    lock(site, ASICS)
    for _ in range(200):
        site.step()
        held_w = max(site.banks[ASICS].counted_w(), 1.03 * site.banks[ASICS].true_w(site.clock.s))
        assert granted_w(site, ASICS) <= max(held_w, rest_w(site, ASICS)), site.explain()
    assert site.count(ASICS, Mode.MINING) == 2
    assert granted_w(site, ASICS) > rest_w(site, ASICS)
    site.verdicts.assert_clean()


def test_lapse_of_a_locked_out_bank_brings_no_watts_back() -> None:
    """Its agent is cut off, lapses and comes back: it is regranted what it fell to, never what it mined with."""
    site = settled_site()
    agent = site.agents["edge2"]
    agent.is_linked = False
    site.run(25)
    lock(site, ASICS)
    agent.is_linked = True
    for _ in range(100):
        site.step()
        assert granted_w(site, ASICS) <= rest_w(site, ASICS) or site.clock.s < agent.lost_s + 3.0, site.explain()
        assert site.count(ASICS, Mode.MINING) == 0
    site.verdicts.assert_clean()


def test_locked_out_bank_that_fell_is_not_covered_up_to_what_it_mined_with() -> None:
    """Regranted what it fell to, it counts at its old claim: without hands inside it would be given that back."""
    for is_locked in (False, True):
        site = settled_site()
        newest = site.state.ledger.newest_grant(ASICS)
        assert newest is not None
        fallen = replace(
            newest, generation=newest.generation + 1, grant_w=600.0, kind=GrantKind.REGRANT, at_s=site.clock.s
        )
        site.engine.recorder.record(site.engine.recorder.budget(fallen))
        if is_locked:
            lock(site, ASICS)
        site.run(1)
        assert granted_w(site, ASICS) == pytest.approx(600.0 if is_locked else newest.grant_w, abs=1.0)
        site.run(60)
        assert not is_locked or granted_w(site, ASICS) <= rest_w(site, ASICS), site.explain()
        site.verdicts.assert_clean()


def test_locked_out_bank_rests_what_was_sold_firm_too() -> None:
    """People before reservations: nothing serves, the grant is what rest takes, no flip fails."""
    site = settled_site(make_site(is_reserved=True))
    assert site.run(200, lambda: site.count(GPU, Mode.INFERENCE) >= 8 and site.is_quiet()), site.explain()
    lock(site, GPU)
    site.run(10)
    for _ in range(100):
        site.step()
        assert site.count(GPU, Mode.STANDBY) == 16 and granted_w(site, GPU) <= rest_w(site, GPU), site.explain()
    assert not site.flips(Phase.FAILED), [f.story() for f in site.flips(Phase.FAILED)]
    assert not site.flips_open(GPU), site.explain()
    site.verdicts.assert_clean()


def test_lockout_outlives_a_lost_journal() -> None:
    """Only the agent's disk remembers it: the new controller takes it up in the agent's name, and a person's word alone lifts it."""
    site = settled_site()
    lock(site, ASICS)
    site.run(60)
    site.kill_controller()
    site.journal_file = JournalFile()
    site.forget_grants()
    site.agents["edge2"].restart()
    site.start_controller()
    for _ in range(150):
        site.step()
        assert site.count(ASICS, Mode.MINING) == 0, site.explain()
    lockout = site.state.lockouts[ASICS]
    assert lockout.author == "edge2" and "journal does not know it" in lockout.reason
    assert list(site.state.lockouts) == [ASICS]
    assert [r.entry.author for r in site.journal.read() if r.entry.kind == "lockout_set"] == ["edge2"]
    with pytest.raises(InvalidInput) as unnamed:
        lift(site, ASICS, cleared_by="")
    assert unnamed.value.reason == "NOT_CLEARED"
    lift(site, ASICS)
    assert site.run(400, lambda: site.count(ASICS, Mode.MINING) > 0), site.explain()
    site.verdicts.assert_clean()


def test_lockout_that_an_older_journal_lacks_is_taken_up() -> None:
    """The journal was restored from before the lockout."""
    site = settled_site()
    rows = len(site.journal_file.rows)
    lock(site, ASICS)
    site.run(60)
    site.kill_controller()
    site.journal_file = site.journal_file.copy(rows)
    site.forget_grants()
    site.start_controller()
    for _ in range(100):
        site.step()
        assert site.count(ASICS, Mode.MINING) == 0, site.explain()
    assert site.state.lockouts[ASICS].author == "edge2"


def test_lockout_lifted_and_heard_of_stays_lifted() -> None:
    """Once its agent has taken the order that lifts it, no restart brings it back."""
    site = settled_site()
    lock(site, ASICS)
    site.run(60)
    lift(site, ASICS)
    site.run(10)
    site.restart_controller()
    site.run(20)
    assert not site.state.lockouts
