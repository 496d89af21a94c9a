"""What happens when watts are short or machines misbehave: limits, curtailments, silence, liars, blips."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swingbus_controller.domain.fleet.orders import Mode
from swingbus_controller.domain.flips.flip import Phase, WattState
from swingbus_controller.domain.power.bank import BankState
from swingbus_controller.domain.site.curtailment import CurtailmentState
from tests.fakes.site import TrueLimit, VirtualSite, settled_site
from tests.fakes.site_files import make_site

ASICS = ("edge1/asics", "edge2/asics")


def mining(site: VirtualSite) -> int:
    """Return ASICs that truly mine."""
    return sum(site.count(bank, Mode.MINING) for bank in ASICS)


@pytest.mark.parametrize(("notice_s", "ramp_s"), [(60.0, 0.0), (30.0, 30.0), (20.0, 0.0), (0.0, 60.0)])
def test_curtailment_is_met_from_notice_and_ramp_on(notice_s: float, ramp_s: float) -> None:
    """True watts are under the limit from notice + ramp on, CURTAILED is said only after that, and END gives everything back."""
    site = settled_site()
    before = mining(site)
    made = site.curtail(90_000.0, notice_s=notice_s, ramp_s=ramp_s, duration_s=120.0)
    due_s = site.clock.s + notice_s + ramp_s
    states: list[tuple[float, CurtailmentState]] = []
    for _ in range(int(notice_s + ramp_s) + 110):
        site.step()
        states.append((site.clock.s, site.state.curtailments[made.id].state))
    met = [at_s for at_s, state in states if state is CurtailmentState.CURTAILED]
    assert met and met[0] >= due_s + 10.0, states
    assert met[0] <= due_s + 15.0
    proof = site.state.curtailments[made.id].windows
    assert len(proof) >= 3 and all(w.upper_power_w <= 90_000.0 for w in proof)
    assert site.run(60, lambda: site.state.curtailments[made.id].state is CurtailmentState.ENDED)
    assert site.run(200, lambda: mining(site) == before and site.is_quiet()), site.explain()
    assert not site.flips(Phase.FAILED)
    site.verdicts.assert_clean()


def test_curtailment_without_notice_is_met_within_the_reaction_time() -> None:
    """No notice at all: watts are under the limit after the reaction time, and nobody sheds more than was asked."""
    site = settled_site()
    site.excuse(12.0)
    made = site.curtail(90_000.0, notice_s=0.0, duration_s=200.0)
    site.run(90)
    assert site.state.curtailments[made.id].state is CurtailmentState.CURTAILED, site.explain()
    assert site.claimed_ratio() >= 0.90, site.explain()
    site.verdicts.assert_clean()


def test_curtailment_to_nothing_rests_everything_that_can_rest() -> None:
    """A limit below what resting machines draw is told as unmet, and all that can rest does."""
    site = settled_site()
    site.excuse(1000.0)
    made = site.curtail(1000.0, notice_s=30.0, duration_s=300.0)
    site.run(120)
    assert mining(site) == 0, site.explain()
    assert site.state.curtailments[made.id].state is CurtailmentState.SHEDDING
    assert site.run(600, lambda: mining(site) >= 28 and site.is_quiet()), site.explain()


def test_overlapping_curtailments_hold_the_lowest() -> None:
    """Two orders on one feeder: the lower holds while it lasts, then the other."""
    site = settled_site()
    site.curtail(110_000.0, notice_s=60.0, duration_s=300.0, id="a")
    site.curtail(80_000.0, notice_s=90.0, duration_s=60.0, id="b")
    site.run(420)
    assert {c.state for c in site.state.curtailments.values()} <= {CurtailmentState.ENDED, CurtailmentState.CURTAILED}
    site.verdicts.assert_clean()


def test_curtailment_cancelled_gives_back_at_once() -> None:
    """An operator ends it early: the limit goes, machines return."""
    site = settled_site()
    before = mining(site)
    made = site.curtail(90_000.0, notice_s=30.0, duration_s=600.0)
    site.run(80)
    site.commands.end_curtailment(site.order("end"), curtailment=made.id)
    site.limits.pop()
    assert site.run(150, lambda: mining(site) == before), site.explain()
    assert site.state.curtailments[made.id].state is CurtailmentState.CANCELLED
    site.verdicts.assert_clean()


def test_curtailment_during_growth_to_inference_withdraws_it() -> None:
    """A limit that falls while units start to serve cancels the growth instead of being broken by it."""
    site = settled_site()
    site.banks["gpu1/gpus"].slow["llm"] = 25.0
    site.banks["gpu2/gpus"].slow["llm"] = 25.0
    site.market.demand = 32.0
    assert site.run(100, lambda: len(site.flips(Phase.STARTING)) >= 2), site.explain()
    site.excuse(15.0)
    site.curtail(16_000.0, notice_s=0.0, duration_s=100.0)
    site.run(100)
    assert site.true_w()["grid"] <= 16_000.0
    for name in ("gpu1/gpus", "gpu2/gpus"):
        site.banks[name].slow.clear()
    assert site.run(500, lambda: site.is_quiet() and mining(site) > 20), site.explain()
    site.verdicts.assert_clean()


def test_operator_limit_sheds_and_its_removal_restores() -> None:
    """The operator's own limit counts beside the declared one; clearing it brings the machines back."""
    site = settled_site()
    before = mining(site)
    site.excuse(12.0)
    site.commands.set_feeder_limit(site.order("low"), feeder="grid", limit_w=100_000.0)
    site.limits.append(TrueLimit("grid", 100_000.0, site.clock.s, site.clock.s + 100.0))
    site.run(99)
    assert mining(site) < before
    site.commands.set_feeder_limit(site.order("clear"), feeder="grid", limit_w=None)
    assert site.run(150, lambda: mining(site) == before), site.explain()
    site.verdicts.assert_clean()


def test_limit_on_a_lower_feeder_sheds_only_below_it() -> None:
    """A limit on one container leaves the other alone."""
    site = settled_site()
    site.commands.set_feeder_limit(site.order("low"), feeder="c2", limit_w=50_000.0)
    site.run(90)
    assert site.true_w()["c2"] <= 50_000.0
    assert site.count("edge1/asics", Mode.MINING) >= 10, site.explain()
    site.verdicts.assert_clean()


def test_silent_agent_keeps_its_claim_and_returns() -> None:
    """An edge box dies, its miners hash on: DARK, the claim stays; when it is back so is everything."""
    site = settled_site()
    before = mining(site)
    claim_w = site.state.ledger.claim_w("edge2/asics")
    site.agents["edge2"].is_alive = False
    site.run(60)
    assert site.state.ledger.state("edge2/asics", site.clock.s) is BankState.DARK
    assert site.state.ledger.claim_w("edge2/asics") == claim_w
    site.agents["edge2"].restart()
    assert site.run(150, lambda: mining(site) == before and site.is_quiet()), site.explain()
    site.verdicts.assert_clean()


def test_link_cut_for_longer_than_the_grant_falls_to_the_safe_share_and_returns() -> None:
    """The agent lives but hears nobody: it sheds by itself; the claim stays until it reports, then all is restored."""
    site = settled_site()
    before = mining(site)
    claim_w = site.state.ledger.claim_w("edge2/asics")
    site.agents["edge2"].is_linked = False
    site.run(60)
    assert site.count("edge2/asics", Mode.MINING) == 0
    assert site.state.ledger.claim_w("edge2/asics") == claim_w
    site.agents["edge2"].is_linked = True
    site.agents["edge2"].said_hello = False
    assert site.run(200, lambda: mining(site) == before and site.is_quiet()), site.explain()
    site.verdicts.assert_clean()


def test_dark_bank_that_has_to_give_is_made_up_for_by_others() -> None:
    """A limit falls while the better container is silent: the others shed for it, nobody counts on the silent one."""
    site = settled_site()
    site.agents["edge2"].is_alive = False
    site.run(20)
    site.curtail(100_000.0, notice_s=60.0, duration_s=120.0)
    site.run(150)
    assert site.count("edge2/asics", Mode.MINING) == 20
    assert site.count("edge1/asics", Mode.MINING) == 0, site.explain()
    site.agents["edge2"].restart()
    assert site.run(400, lambda: site.is_quiet() and site.claimed_ratio() > 0.95), site.explain()
    site.verdicts.assert_clean()


def test_bank_not_heard_of_since_a_start_keeps_others_from_growing_and_from_nothing_else() -> None:
    """The controller starts while an agent is away: what that bank may hold unknown to it is no reason to rest anybody who works."""
    site = settled_site()
    before, beside = mining(site), site.count("edge1/asics", Mode.MINING)
    site.agents["gpu2"].is_alive = False
    site.restart_controller()
    revision = site.journal.newest_revision()
    for _ in range(45):
        site.run(1)
        assert site.count("edge1/asics", Mode.MINING) == beside, site.explain()
    assert site.state.ledger.state("gpu2/gpus", site.clock.s) is BankState.DARK
    grown = [r.entry.subject for r in site.journal.read(revision) if r.entry.facts.get("kind") == "grow"]
    assert not grown
    site.agents["gpu2"].restart()
    assert site.run(200, lambda: mining(site) == before and site.is_quiet()), site.explain()
    site.verdicts.assert_clean()


@pytest.mark.parametrize("comes", ["before", "after"])
def test_demand_is_served_beside_a_bank_not_heard_of_since_a_start(comes: str) -> None:
    """GPUs are asked for just before or after the start: as many miners rest as make room for them and for the doubt, and no more."""
    site = settled_site()
    beside = site.count("edge1/asics", Mode.MINING)
    site.agents["gpu2"].is_alive = False
    if comes == "before":
        site.market.demand = 8.0
        site.engine.replan()
        site.step()
    site.restart_controller()
    site.market.demand = 8.0
    assert site.run(45, lambda: site.count("gpu1/gpus", Mode.INFERENCE) == 8), site.explain()
    assert site.state.ledger.state("gpu2/gpus", site.clock.s) is BankState.DARK
    assert site.run(45, lambda: site.count("edge1/asics", Mode.MINING) == beside - 2), site.explain()
    site.run(30)
    assert site.count("edge1/asics", Mode.MINING) == beside - 2
    site.agents["gpu2"].restart()
    assert site.run(200, lambda: site.count("edge1/asics", Mode.MINING) == beside - 1 and site.is_quiet()), (
        site.explain()
    )
    site.verdicts.assert_clean()


def test_agent_that_lost_its_memory_is_taken_back() -> None:
    """A wiped state directory: its machines count at the ceiling until they settle, then the bank grows again."""
    site = settled_site()
    before = mining(site)
    site.agents["edge1"].restart(loses_memory=True)
    assert site.run(300, lambda: mining(site) == before and site.is_quiet()), site.explain()
    site.verdicts.assert_clean()


def test_group_that_draws_more_than_granted_is_named_and_others_shed() -> None:
    """Machines that draw more than they report: the group counts at its reading, is accused, others make room."""
    site = settled_site()
    site.excuse(25.0)
    site.is_disobedient.add("edge2/asics")
    for device in site.banks["edge2/asics"].devices:
        device.extra_w = 800.0
    site.run(30)
    assert "exceeds_grant" in site.state.accusations.get("feeders/c2", ())
    assert site.state.ledger.state("edge2/asics", site.clock.s) is BankState.DISOBEYING
    site.run(60)
    site.verdicts.assert_clean()
    for device in site.banks["edge2/asics"].devices:
        device.extra_w = 0.0
    assert site.run(300, lambda: site.is_quiet() and site.claimed_ratio() > 0.95), site.explain()
    site.verdicts.assert_clean()


def test_miner_that_ignores_sleep_is_accused_and_the_rest_still_rests() -> None:
    """One liar of twenty: nineteen rest, the liar is named and paid for, nothing is confirmed for it."""
    site = settled_site()
    liar = next(d for d in site.banks["edge1/asics"].devices if d.mode is Mode.MINING)
    liar.ignores_sleep = True
    site.market.power = 90.0
    assert site.run(200, lambda: site.count("edge1/asics", Mode.MINING) == 1 and not site.state.open_flips()), (
        site.explain()
    )
    subject = f"agents/edge1/banks/asics/devices/{liar.name}"
    assert site.state.accusations.get(subject) == ("ignored_write",)
    assert site.state.holdings["edge1/asics"].count_at("standby") == 19, site.explain()
    assert not [s for s in site.state.accusations if s.startswith("agents/") and s != subject]
    liar.ignores_sleep = False
    liar.attempts = 0
    site.market.power = 40.0
    assert site.run(200, lambda: mining(site) >= 29 and site.is_quiet()), site.explain()
    site.verdicts.assert_clean()


def test_miner_known_to_ignore_sleep_costs_its_own_watts_and_no_neighbours() -> None:
    """A curtailment that rests its whole bank leaves the liar its watts: the cut is proven at once, the other bank mines on."""
    site = settled_site()
    liar = next(d for d in site.banks["edge1/asics"].devices if d.mode is Mode.MINING)
    liar.ignores_sleep = True
    site.market.power = 90.0
    assert site.run(200, lambda: site.count("edge1/asics", Mode.MINING) == 1 and site.is_quiet()), site.explain()
    site.market.power = 40.0
    assert site.run(200, lambda: mining(site) >= 29 and site.is_quiet()), site.explain()
    made = site.curtail(90_000.0, notice_s=30.0, duration_s=120.0)
    due_s = site.clock.s + 30.0
    curtailment = site.state.curtailments
    assert site.run(60, lambda: curtailment[made.id].state is CurtailmentState.CURTAILED), site.explain()
    assert site.clock.s <= due_s + 15.0
    assert site.claimed_ratio() >= 0.90, site.explain()
    site.run(60)
    assert site.claimed_ratio() >= 0.90, site.explain()
    assert site.count("edge1/asics", Mode.MINING) == 1
    site.restart_controller()
    assert set(site.state.ignoring["edge1/asics"]) == {liar.name}
    site.verdicts.assert_clean()


def test_miner_that_was_mended_is_asked_again_in_the_end() -> None:
    """What a machine ignored is held against it for an hour, or until it is seen asleep."""
    site = settled_site()
    liar = next(d for d in site.banks["edge1/asics"].devices if d.mode is Mode.MINING)
    liar.ignores_sleep = True
    site.market.power = 90.0
    assert site.run(200, lambda: site.count("edge1/asics", Mode.MINING) == 1 and site.is_quiet()), site.explain()
    liar.ignores_sleep, liar.attempts = False, 0
    site.run(300)
    assert site.count("edge1/asics", Mode.MINING) == 1, site.explain()
    assert site.run(3600, lambda: site.count("edge1/asics", Mode.MINING) == 0 and site.is_quiet()), site.explain()
    assert not site.state.ignoring["edge1/asics"]
    site.verdicts.assert_clean()


def test_miners_that_wake_by_themselves_are_accused_by_name() -> None:
    """Self-wakers are named by their agent's report; the group is put back and settles again."""
    site = settled_site()
    asleep = [d for d in site.banks["edge1/asics"].devices if d.mode is Mode.STANDBY][:2]
    site.excuse(25.0)
    site.is_disobedient.add("edge1/asics")
    for device in asleep:
        device.mode, device.enforced_w, device.woke = Mode.MINING, device.rated_w, True
        device.boot_until_s = site.clock.s + 6.0
    site.run(30)
    for device in asleep:
        assert site.state.accusations[f"agents/edge1/banks/asics/devices/{device.name}"] == ("self_woke",)
    assert site.run(120, site.is_quiet), site.explain()
    site.verdicts.assert_clean()


def test_disturbance_stops_growth_and_evidence_then_everything_recovers() -> None:
    """A sag: nothing is settled and nothing grows for its time; the machines that restarted come back after it."""
    site = settled_site()
    before = mining(site)
    site.voltage_v = 190.0
    site.step()
    site.voltage_v = 230.0
    assert site.state.ledger.disturbed_until_s > site.clock.s
    revision = site.journal.newest_revision()
    site.market.power = 90.0
    site.run(10)
    kinds = [(r.entry.kind, r.entry.facts.get("kind")) for r in site.journal.read(revision)]
    assert ("grant_issued", "grow") not in kinds and "group_settled" not in {k for k, _ in kinds}
    site.market.power = 40.0
    assert site.run(200, lambda: mining(site) == before and site.is_quiet()), site.explain()
    site.verdicts.assert_clean()


def test_dead_meter_stops_growth_of_its_group_only() -> None:
    """A container's meter falls silent: its bank can't grow; the others can, and it grows again when the meter is back."""
    site = settled_site()
    site.market.power = 90.0
    assert site.run(120, lambda: site.count("edge1/asics", Mode.MINING) == 0 and site.is_quiet())
    site.dead_meters.add("c1")
    site.run(20)
    site.market.power = 40.0
    site.run(100)
    assert site.count("edge1/asics", Mode.MINING) == 0, site.explain()
    site.dead_meters.clear()
    assert site.run(200, lambda: site.count("edge1/asics", Mode.MINING) >= 8), site.explain()
    site.verdicts.assert_clean()


def test_pin_holds_against_money_and_yields_to_a_limit() -> None:
    """Pinned machines stay when the price says go, and go when the limit says so."""
    site = settled_site()
    before = site.count("edge1/asics", Mode.MINING)
    site.commands.set_pin(site.order("pin"), bank="edge1/asics", pinned=True, duration_s=None)
    site.market.power = 90.0
    site.run(100)
    assert site.count("edge1/asics", Mode.MINING) == before, site.explain()
    site.curtail(90_000.0, notice_s=60.0, duration_s=60.0)
    site.run(110)
    assert mining(site) < before + 20
    site.verdicts.assert_clean()


def test_growth_that_only_waits_for_watts_ends_when_its_bank_is_pinned() -> None:
    """A pinned bank stays as it is: nothing may come there for a plan of before the pin, however long its watts take."""
    site = settled_site()
    site.market.power = 90.0
    assert site.run(120, lambda: site.count("edge1/asics", Mode.MINING) == 0 and site.is_quiet())
    site.dead_meters.add("c1")
    site.run(20)
    site.market.power = 40.0
    assert site.run(60, lambda: bool(site.state.open_flips("edge1/asics"))), site.explain()
    assert all(flip.watts is WattState.ASKED for flip in site.state.open_flips("edge1/asics"))
    site.commands.set_pin(site.order("pin"), bank="edge1/asics", pinned=True, duration_s=None)
    site.run(7)
    assert not site.state.open_flips("edge1/asics"), site.explain()
    site.dead_meters.clear()
    site.run(100)
    assert site.count("edge1/asics", Mode.MINING) == 0
    site.verdicts.assert_clean()


def test_lockout_rests_a_bank_until_a_named_person_clears_it() -> None:
    """Hands inside: off at once, not woken by price, plan, restart or a lapse; lifted only by `cleared_by`."""
    site = settled_site()
    before = mining(site)
    site.commands.set_lockout(site.order("lock"), bank="edge2/asics", locked_out=True, cleared_by="")
    site.run(10)
    assert site.count("edge2/asics", Mode.MINING) == 0, site.explain()
    site.market.power = 10.0
    for _ in range(100):
        site.step()
        assert site.count("edge2/asics", Mode.MINING) == 0
    site.restart_controller()
    site.agents["edge2"].restart()
    for _ in range(100):
        site.step()
        assert site.count("edge2/asics", Mode.MINING) == 0
    site.market.power = 40.0
    site.commands.set_lockout(site.order("lift"), bank="edge2/asics", locked_out=False, cleared_by="grace")
    assert site.run(300, lambda: mining(site) == before and site.is_quiet()), site.explain()
    site.verdicts.assert_clean()


def test_lockout_in_the_middle_of_flips_leaves_none_open() -> None:
    """A bank locked out while its units flip: nothing serves there, every flip ends."""
    site = settled_site()
    site.market.demand = 32.0
    assert site.run(60, lambda: bool(site.flips(Phase.STARTING, bank="gpu1/gpus"))), site.explain()
    site.commands.set_lockout(site.order("lock"), bank="gpu1/gpus", locked_out=True, cleared_by="")
    site.run(10)
    for _ in range(150):
        site.step()
        assert site.count("gpu1/gpus", Mode.STANDBY) == 16, site.explain()
    assert site.run(200, lambda: not site.flips_open("gpu1/gpus")), site.explain()
    site.commands.set_lockout(site.order("lift"), bank="gpu1/gpus", locked_out=False, cleared_by="grace")
    assert site.run(400, lambda: site.count("gpu1/gpus", Mode.INFERENCE) == 16), site.explain()
    site.verdicts.assert_clean()


def test_reserved_inference_is_capped_and_not_stopped() -> None:
    """A reservation of one unit is served through a deep curtailment, at its cap."""
    site = settled_site(make_site(is_reserved=True))
    assert site.run(200, lambda: site.count("gpu1/gpus", Mode.INFERENCE) + site.count("gpu2/gpus", Mode.INFERENCE) >= 8)
    site.curtail(30_000.0, notice_s=60.0, duration_s=120.0)
    for _ in range(240):
        site.step()
        served = site.count("gpu1/gpus", Mode.INFERENCE) + site.count("gpu2/gpus", Mode.INFERENCE)
        assert served >= 8, site.explain()
    site.verdicts.assert_clean()


def test_growth_that_waits_for_watts_gives_way_before_anybody_rests_for_it() -> None:
    """A flip that has touched nothing is taken back where a lowered limit has no room for it; the other bank mines on."""
    site = settled_site()
    site.market.power = 90.0
    assert site.run(200, lambda: site.count("edge1/asics", Mode.MINING) == 0 and site.is_quiet()), site.explain()
    site.dead_meters.add("c1")
    site.market.power = 40.0
    assert site.run(30, lambda: bool(site.state.open_flips("edge1/asics"))), site.explain()
    made = site.curtail(90_000.0, notice_s=10.0, duration_s=150.0)
    curtailments = site.state.curtailments
    assert site.run(60, lambda: curtailments[made.id].state is CurtailmentState.CURTAILED), site.explain()
    assert not site.state.open_flips("edge1/asics"), site.explain()
    site.run(60)
    assert site.claimed_ratio() >= 0.90, site.explain()
    site.dead_meters.clear()
    assert site.run(300, lambda: mining(site) >= 29 and site.is_quiet()), site.explain()
    site.verdicts.assert_clean()


def test_shed_under_a_dead_meter_does_not_shed_more_and_more() -> None:
    """A container whose meter is dead can't prove its shed: others give after the deadline, but nobody rests for it again and again."""
    site = settled_site()
    site.dead_meters.add("c1")
    site.curtail(125_000.0, notice_s=40.0, duration_s=300.0)
    site.run(250)
    assert site.count("edge1/asics", Mode.MINING) + site.count("edge2/asics", Mode.MINING) >= 18, site.explain()
    site.dead_meters.clear()
    assert site.run(400, lambda: site.is_quiet() and mining(site) >= 29), site.explain()
    site.verdicts.assert_clean()


def test_gpu_that_ignores_its_cap_is_never_confirmed_as_capped() -> None:
    """A cap is read back on every GPU of the unit: one that stays above it makes the flip fail, the others are capped."""
    site = settled_site(make_site(is_reserved=True))
    site.market.demand = 32.0
    assert site.run(200, lambda: site.count("gpu1/gpus", Mode.INFERENCE) == 16 and site.is_quiet()), site.explain()
    liar = site.banks["gpu1/gpus"].devices[11]
    liar.ignores_limit = True
    site.excuse(600.0)
    site.curtail(38_000.0, notice_s=60.0, duration_s=200.0)
    site.run(200)
    capped = [f for f in site.flips(bank="gpu1/gpus") if f.aim.name == "serve-capped"]
    assert {f.phase for f in capped if f.unit_ids == ("1",)} <= {Phase.STARTING, Phase.FAILED}, [
        f.story() for f in capped
    ]
    assert any(f.unit_ids == ("1",) for f in capped), site.explain()
    assert site.state.accusations[f"agents/gpu1/banks/gpus/devices/{liar.name}"] == ("ignored_write",)
    liar.ignores_limit = False
    assert site.run(500, lambda: site.is_quiet() and site.count("gpu1/gpus", Mode.INFERENCE) == 16), site.explain()


def test_agent_with_more_devices_than_declared_is_left_alone_and_the_rest_runs() -> None:
    """A report that contradicts the site file adopts nothing and stops nobody: that bank counts at its ceiling."""
    site = VirtualSite(mining=5)
    bank = site.banks["edge1/asics"]
    bank.devices.append(replace(bank.devices[0], name="d99"))
    site.is_disobedient.add("edge1/asics")
    site.start_controller()
    site.run(100)
    ledger = site.state.ledger
    assert ledger.claim_w("edge1/asics") == ledger.ceiling_w("edge1/asics"), site.explain()
    assert "edge1/asics" not in site.state.holdings
    assert site.count("edge2/asics", Mode.MINING) > 5, site.explain()
    site.verdicts.assert_clean()
