"""What moves machines when nothing is wrong: cold start, price, demand, caps, workloads that fail."""

from __future__ import annotations

from swingbus_controller.domain.fleet.orders import Mode
from swingbus_controller.domain.flips.flip import Direction, Phase
from tests.fakes.site import VirtualSite, settled_site
from tests.fakes.site_files import make_site


def serving(site: VirtualSite) -> int:
    """Return GPUs that truly serve."""
    return site.count("gpu1/gpus", Mode.INFERENCE) + site.count("gpu2/gpus", Mode.INFERENCE)


def test_cold_start_with_running_machines_adopts_without_shedding() -> None:
    """Machines that ran before the first controller run on; claims fall from the ceilings by evidence alone."""
    site = VirtualSite(mining=15)
    site.start_controller()
    ceilings_w = {name: site.state.ledger.claim_w(name) for name in site.banks}
    assert site.claimed_ratio() > 1.1
    lowest = 40
    for _ in range(60):
        site.step()
        if not site.state.flips:
            lowest = min(lowest, site.count("edge1/asics", Mode.MINING) + site.count("edge2/asics", Mode.MINING))
    assert lowest == 30, site.explain()
    assert not [f for f in site.state.flips.values() if f.is_safety]
    assert site.state.ledger.claim_w("edge1/asics") < ceilings_w["edge1/asics"]
    assert site.state.ledger.i1_holds(site.clock.s)
    site.verdicts.assert_clean()


def test_settled_site_is_filled_to_the_limit() -> None:
    """With every tenant worth its power the tightest feeder is claimed to at least 95 %."""
    site = settled_site()
    assert 0.95 <= site.claimed_ratio() <= 1.0, site.explain()
    assert not site.flips(Phase.FAILED)
    site.verdicts.assert_clean()


def test_price_above_the_worse_strike_rests_the_worse_asics_and_back() -> None:
    """At 90 USD/MWh the 34 J/TH machines rest and the 17.5 J/TH ones mine; at 40 all come back."""
    site = settled_site()
    before = site.count("edge1/asics", Mode.MINING)
    site.market.power = 90.0
    assert site.run(120, lambda: site.count("edge1/asics", Mode.MINING) == 0 and site.is_quiet()), site.explain()
    assert site.count("edge2/asics", Mode.MINING) == 20
    site.market.power = 40.0
    assert site.run(150, lambda: site.count("edge1/asics", Mode.MINING) == before and site.is_quiet()), site.explain()
    assert not site.flips(Phase.FAILED, Phase.ROLLED_BACK)
    site.verdicts.assert_clean()


def test_demand_flips_units_to_inference_while_the_worst_asics_make_room() -> None:
    """Every GPU goes from mining to inference and back, those whose watts are still to be made capped at first; ASICs of the worse bank
    rest for it and return.
    """
    site = settled_site()
    before = site.count("edge1/asics", Mode.MINING)
    site.market.demand = 32.0
    assert site.run(200, lambda: serving(site) == 32 and site.is_quiet()), site.explain()
    assert site.count("edge1/asics", Mode.MINING) < before
    assert site.count("edge2/asics", Mode.MINING) == 20
    there = [f for f in site.flips(Phase.ACTIVE) if f.kind == "gpu" and f.aim.mode == "inference"]
    came = [f for f in there if f.origin.mode != "inference"]
    assert len(came) == 4
    # Who came in lower, since its watts had still to be made, was raised once they were there.
    low = {(f.bank, f.unit_ids) for f in came if f.aim.name == "serve-capped"}
    raised = {(f.bank, f.unit_ids) for f in there if (f.origin.name, f.aim.name) == ("serve-capped", "serve")}
    assert low and raised == low
    site.market.demand = 0.0
    assert site.run(250, lambda: serving(site) == 0 and site.is_quiet()), site.explain()
    assert site.run(250, lambda: site.count("edge1/asics", Mode.MINING) == before), site.explain()
    assert not site.flips(Phase.FAILED)
    site.verdicts.assert_clean()


def test_workload_that_fails_its_probe_is_rolled_back_to_mining() -> None:
    """The unit whose model never gets ready goes back to mining; the other units serve."""
    site = settled_site()
    site.banks["gpu2/gpus"].broken.add("llm")
    site.market.demand = 32.0
    assert site.run(120, lambda: bool(site.flips(Phase.ROLLED_BACK, bank="gpu2/gpus"))), site.explain()
    assert site.run(60, lambda: serving(site) == 16), site.explain()
    assert not site.flips(Phase.FAILED), site.explain()
    back = site.flips(Phase.ROLLED_BACK, bank="gpu2/gpus")[0]
    assert back.direction is Direction.UNDO
    assert "probe failed" in (back.undo_cause or "")
    site.market.demand = 16.0
    assert site.run(200, lambda: site.count("gpu2/gpus", Mode.MINING) == 16), site.explain()
    site.verdicts.assert_clean()


def test_workload_that_works_after_a_failure_is_tried_again() -> None:
    """A failure of yesterday is no evidence against the next attempt."""
    site = settled_site()
    site.banks["gpu2/gpus"].broken.add("llm")
    site.market.demand = 32.0
    assert site.run(120, lambda: bool(site.flips(Phase.ROLLED_BACK, bank="gpu2/gpus"))), site.explain()
    site.banks["gpu2/gpus"].broken.clear()
    assert site.run(300, lambda: serving(site) == 32), site.explain()
    site.verdicts.assert_clean()


def test_workload_slower_than_its_deadline_is_undone() -> None:
    """A model that needs longer than the starting deadline is rolled back, not left half started."""
    site = settled_site()
    site.banks["gpu1/gpus"].slow["llm"] = 100.0
    site.market.demand = 16.0
    assert site.run(200, lambda: bool(site.flips(Phase.ROLLED_BACK))), site.explain()
    assert "took longer" in (site.flips(Phase.ROLLED_BACK)[0].undo_cause or "")
    site.banks["gpu1/gpus"].slow.clear()
    assert site.run(300, lambda: serving(site) == 16), site.explain()
    site.verdicts.assert_clean()


def test_falling_limit_caps_serving_gpus_before_it_stops_them() -> None:
    """When only inference is left to give, units are capped first; when the limit is back they are uncapped."""
    site = settled_site(make_site(is_reserved=True))
    site.market.demand = 32.0
    assert site.run(200, lambda: serving(site) == 32 and site.is_quiet()), site.explain()
    site.curtail(38_000.0, notice_s=60.0, duration_s=180.0)
    assert site.run(120, lambda: any(not f.is_mode_flip for f in site.flips(Phase.ACTIVE))), site.explain()
    assert serving(site) >= 8
    assert site.run(500, lambda: serving(site) == 32 and site.is_quiet() and site.claimed_ratio() > 0.95), (
        site.explain()
    )
    site.verdicts.assert_clean()


def test_unit_whose_undo_fails_too_is_charged_until_evidence_clears_it() -> None:
    """Neither model nor miner starts: FAILED, at rest, counted in full; once read back at rest it is free again and used."""
    site = settled_site()
    site.banks["gpu1/gpus"].broken.update({"llm", "miner"})
    site.market.demand = 16.0
    assert site.run(250, lambda: bool(site.flips(Phase.FAILED, bank="gpu1/gpus"))), site.explain()
    site.banks["gpu1/gpus"].broken.clear()
    assert site.run(60, lambda: not site.state.holdings["gpu1/gpus"].charges), site.explain()
    site.market.demand = 32.0
    assert site.run(400, lambda: serving(site) == 32 and site.is_quiet()), site.explain()
    site.verdicts.assert_clean()
