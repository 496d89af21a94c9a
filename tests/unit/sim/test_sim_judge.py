"""The judge can fail: one planted violation of each kind, and the innocent run beside it."""

from __future__ import annotations

import pytest

from swingbus.faults import InvalidInput
from swingbus_sim.judge.attribution import Sample, attribute
from swingbus_sim.judge.court import Court
from tests.unit.sim.builders import MadeTruth, make_header

_LIAR = [0, 3000.0, 10.0, "ignore_sleep"]


def test_run_under_the_limit_is_not_guilty() -> None:
    """Nothing over the limit, nothing to answer for; the mean use of the limit is told."""
    truth = MadeTruth()
    truth.tell(20.0, 95_000.0)
    verdict = truth.verdict()

    assert verdict["verdict"] == "NOT GUILTY" and verdict["reasons"] == []
    assert verdict["limit_used_ratio"] == pytest.approx(0.95)
    assert verdict["energy_kwh"]["meter"] == pytest.approx(95.0 * 20 / 3600, abs=1e-3)
    assert verdict["energy_kwh"]["other"] == pytest.approx(9.5 * 20 / 3600, abs=1e-3)


def test_unexplained_excess_is_authorised_and_guilty() -> None:
    """One second 2 kW over with nothing in the ledger: 2,000 W·s authorised."""
    truth = MadeTruth()
    truth.tell(5.0, 95_000.0)
    truth.tell(1.0, 102_000.0)
    truth.tell(5.0, 95_000.0)
    verdict = truth.verdict()

    assert verdict["verdict"] == "GUILTY"
    assert verdict["over_cap_ws"]["authorised"] == pytest.approx(2000.0)
    assert "authorised" in verdict["reasons"][0]


def test_spike_shorter_than_a_second_is_told_but_not_guilty() -> None:
    """A 100 ms spike whose 1 s mean fits is the breaker's business: counted beside."""
    truth = MadeTruth()
    truth.tell(5.0, 95_000.0)
    truth.tell(0.1, 103_000.0)
    truth.tell(4.9, 95_000.0)
    verdict = truth.verdict()

    assert verdict["verdict"] == "NOT GUILTY"
    assert verdict["nodes"]["grid"]["over_ws"]["100ms"]["authorised"] == pytest.approx(300.0)


def test_excess_is_counted_in_the_limits_own_window() -> None:
    """A mean over the limit's window that 1 s means hide at their edges is caught, and the other way round."""
    truth = MadeTruth(make_header(window_s=0.5))
    truth.tell(4.5, 95_000.0)
    truth.tell(0.5, 104_000.0)
    verdict = truth.verdict()

    assert verdict["nodes"]["grid"]["over_ws"]["1s"]["authorised"] == 0.0
    assert verdict["nodes"]["grid"]["over_ws"]["window"]["authorised"] == pytest.approx(2000.0)
    assert verdict["verdict"] == "GUILTY"


def test_fresh_liar_explains_its_own_watts_and_no_more() -> None:
    """A 3 kW liar explains 3 of 5 kW; the rest was authorised."""
    truth = MadeTruth()
    truth.tell(10.0, 95_000.0)
    truth.tell(2.0, 105_000.0, disobedient=[_LIAR])
    truth.tell(5.0, 95_000.0, disobedient=[_LIAR])
    verdict = truth.verdict()

    assert verdict["over_cap_ws"]["disobedient"] == pytest.approx(6000.0)
    assert verdict["over_cap_ws"]["authorised"] == pytest.approx(4000.0)
    assert verdict["liars_injected"] == ["a"]


def test_liar_met_within_the_reaction_time_is_not_guilty() -> None:
    """Excess that ends within T_r stays within excess x T_r."""
    truth = MadeTruth()
    truth.tell(10.0, 95_000.0)
    truth.tell(8.0, 102_000.0, disobedient=[_LIAR])
    truth.tell(10.0, 95_000.0, disobedient=[_LIAR])
    verdict = truth.verdict()

    assert verdict["verdict"] == "NOT GUILTY"
    assert verdict["over_cap_ws"]["disobedient"] == pytest.approx(16_000.0)
    assert verdict["over_cap_bound_ws"]["disobedient"] == pytest.approx(20_000.0)


def test_liar_borne_longer_than_the_reaction_time_is_guilty() -> None:
    """The same excess for 14 s is beyond excess x 10 s."""
    truth = MadeTruth()
    truth.tell(10.0, 95_000.0)
    truth.tell(14.0, 102_000.0, disobedient=[_LIAR])
    verdict = truth.verdict()

    assert verdict["verdict"] == "GUILTY"
    assert "beyond the bound" in verdict["reasons"][0]


def test_old_liar_explains_nothing() -> None:
    """After three reaction times a known liar is the controller's to reckon with: its excess is authorised."""
    truth = MadeTruth()
    truth.tell(60.0, 95_000.0, disobedient=[_LIAR])
    truth.tell(1.0, 102_000.0, disobedient=[_LIAR])
    verdict = truth.verdict()

    assert verdict["over_cap_ws"]["authorised"] == pytest.approx(2000.0)
    assert verdict["verdict"] == "GUILTY"


def test_blip_restarts_are_allowed_the_catch_time() -> None:
    """Machines that an outage woke explain their watts for T_catch, 15 s here."""
    truth = MadeTruth()
    truth.tell(10.0, 95_000.0)
    truth.tell(14.0, 102_000.0, disobedient=[[0, 3000.0, 10.0, "outage"]])
    truth.tell(5.0, 95_000.0)
    verdict = truth.verdict()

    assert verdict["verdict"] == "NOT GUILTY"
    assert verdict["over_cap_bound_ws"]["disobedient"] == pytest.approx(30_000.0)


def test_surge_explains_while_it_is_young() -> None:
    """An uncontrolled load that jumps explains its own watts for a while, then no longer."""
    truth = MadeTruth()
    truth.tell(5.0, 98_000.0)
    truth.tell(5.0, 103_000.0, surges=[["hosted", 0, 5000.0, 5.0]])
    innocent = truth.verdict()
    truth = MadeTruth()
    truth.tell(40.0, 98_000.0, surges=[["hosted", 0, 5000.0, 5.0]])
    truth.tell(5.0, 103_000.0, surges=[["hosted", 0, 5000.0, 5.0]])
    late = truth.verdict()

    assert innocent["verdict"] == "NOT GUILTY"
    assert innocent["over_cap_ws"]["uncontrolled"] == pytest.approx(15_000.0)
    assert innocent["incidents"][0]["by"] == ["hosted"]
    assert late["verdict"] == "GUILTY"


def test_lowered_limit_explains_for_its_ramp_and_reaction_time() -> None:
    """8 s down to the new limit are met; 20 s are not, and the time to comply is told."""
    met = MadeTruth()
    met.tell(10.0, 95_000.0)
    met.lower_limit(60_000.0, ramp_s=5.0)
    met.tell(8.0, 95_000.0)
    met.tell(20.0, 58_000.0)
    innocent = met.verdict()
    missed = MadeTruth()
    missed.tell(10.0, 95_000.0)
    missed.lower_limit(60_000.0, ramp_s=5.0)
    missed.tell(20.0, 95_000.0)
    missed.tell(20.0, 58_000.0)
    guilty = missed.verdict()

    assert innocent["verdict"] == "NOT GUILTY"
    assert innocent["over_cap_ws"]["limit_lowered"] == pytest.approx(8 * 35_000.0)
    assert innocent["over_cap_bound_ws"]["limit_lowered"] == pytest.approx(15 * 35_000.0)
    assert innocent["curtailment_seconds_to_comply"] == pytest.approx(3.0)
    assert guilty["verdict"] == "GUILTY"
    assert guilty["over_cap_ws"]["authorised"] > 0.0


def test_lowered_limit_explains_no_more_than_it_took_away() -> None:
    """Watts above the old limit are not the curtailment's fault."""
    truth = MadeTruth()
    truth.tell(5.0, 95_000.0)
    truth.lower_limit(90_000.0)
    truth.tell(2.0, 104_000.0)
    verdict = truth.verdict()

    assert verdict["over_cap_ws"]["limit_lowered"] == pytest.approx(20_000.0)
    assert verdict["over_cap_ws"]["authorised"] == pytest.approx(8_000.0)


def test_disturbances_stay_out_of_the_time_means() -> None:
    """The curtailment and the minute after it do not spoil the mean use of the limit."""
    truth = MadeTruth(make_header(measure_from_s=5.0))
    truth.tell(5.0, 10_000.0)
    truth.tell(10.0, 90_000.0)
    truth.lower_limit(60_000.0)
    truth.tell(30.0, 50_000.0)
    verdict = truth.verdict()

    assert verdict["limit_used_ratio"] == pytest.approx(0.9, abs=0.005)
    assert verdict["quiet_seconds"] == pytest.approx(10.0, abs=0.2)


def test_time_means_end_with_the_scenario_and_limits_do_not() -> None:
    """A run that goes on for an open flip keeps its means; what it draws over a limit then is counted as before."""
    truth = MadeTruth(measure_to_s=10.0)
    truth.tell(10.0, 90_000.0)
    truth.tell(20.0, 50_000.0)
    truth.tell(2.0, 104_000.0)
    verdict = truth.verdict()

    assert verdict["limit_used_ratio"] == pytest.approx(0.9)
    assert verdict["quiet_seconds"] == pytest.approx(10.0)
    assert verdict["over_cap_ws"]["authorised"] == pytest.approx(8_000.0)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"at_s": 12.0, "kind": "settled", "node": "c1", "claimed_w": 40_000.0}, "drew 45000 W"),
        ({"at_s": 22.0, "kind": "settled", "node": "c1", "claimed_w": 40_000.0}, "may draw 45000 W"),
        ({"boottime_s": 1012.0, "kind": "curtailed", "node": "grid", "claimed_w": 80_000.0}, "drew 90000 W"),
        ({"at_s": 12.0, "kind": "mode", "group": "c1", "mode": "STANDBY", "count": 1}, "0 of 1"),
        ({"at_s": 12.0, "kind": "mode", "group": "c9", "mode": "STANDBY", "count": 1}, "missing or unknown"),
        ({"at_s": 500.0, "kind": "settled", "node": "c1", "claimed_w": 1.0}, "outside the run"),
        ({"at_s": 12.0, "kind": "hoped"}, "unknown"),
    ],
)
def test_false_confirmation_is_guilty(line: dict[str, object], reason: str) -> None:
    """A claim below the truth, or below what the machines may draw at once again, is false."""
    truth = MadeTruth()
    truth.tell(15.0, 90_000.0)
    truth.tell(15.0, 60_000.0, potential_w=90_000.0)
    truth.court.check_confirmations([line])
    verdict = truth.verdict()

    assert verdict["false_confirmations"] == 1
    assert reason in verdict["false_confirmation_reasons"][0]
    assert verdict["verdict"] == "GUILTY"


def test_true_confirmations_and_young_liars_are_believed() -> None:
    """True claims pass; a machine that began to lie seconds ago is not held against one."""
    truth = MadeTruth()
    truth.tell(15.0, 90_000.0)
    truth.tell(5.0, 93_000.0, disobedient=[[0, 3000.0, 15.0, "wake_by_itself"]], potential_w=96_000.0)
    truth.court.check_confirmations(
        [
            {"at_s": 12.0, "kind": "settled", "node": "c1", "claimed_w": 45_000.0},
            {"at_s": 12.0, "kind": "mode", "group": "c2", "mode": "MINING", "count": 2},
            {"at_s": 18.0, "kind": "settled", "node": "c1", "claimed_w": 45_500.0},
        ]
    )
    verdict = truth.verdict()

    assert (verdict["confirmations_checked"], verdict["false_confirmations"]) == (3, 0)
    assert verdict["verdict"] == "NOT GUILTY"


@pytest.mark.parametrize(
    ("at_s", "group", "mode", "reason"),
    [
        (20.3, "c1", "MINING", None),
        (22.2, "c1", "MINING", None),
        (22.4, "c1", "MINING", "0 of 2"),
        (21.5, "c1", "STANDBY", "0 of 2"),
        (21.5, "c2", "MINING", "1 of 2"),
    ],
    ids=["said at once", "last moment", "a reading later", "never was", "off for another reason"],
)
def test_mode_said_in_the_moment_of_an_outage_is_what_was_before(
    at_s: float, group: str, mode: str, reason: str | None
) -> None:
    """Who goes dark is not held against a claim of that moment; who was off, or is known to be dark, is."""
    truth = MadeTruth()
    truth.tell(20.3, 90_000.0, states="MMOM")
    truth.cut_supply("c1")
    truth.tell(8.0, 22_500.0, states="OOOM")
    truth.court.check_confirmations([{"at_s": at_s, "kind": "mode", "group": group, "mode": mode, "count": 2}])
    verdict = truth.verdict()

    if reason is None:
        assert verdict["verdict"] == "NOT GUILTY"
    else:
        assert reason in verdict["false_confirmation_reasons"][0]


def test_outage_that_is_over_or_comes_again_excuses_no_machine_that_was_dark_before() -> None:
    """A blip of half a second leaves machines booting: a claim of its moment stands. The next one finds them so, and excuses nothing."""
    truth = MadeTruth()
    truth.tell(20.0, 90_000.0)
    truth.cut_supply("grid")
    truth.tell(0.5, 0.0, states="OOOO")
    truth.tell(1.0, 2_000.0, states="BBBB")
    truth.cut_supply("grid")
    truth.tell(6.0, 0.0, states="OOOO")
    claim = {"kind": "mode", "group": "c1", "mode": "MINING", "count": 2}
    truth.court.check_confirmations([claim | {"at_s": at_s} for at_s in (20.4, 21.4, 21.6)])
    verdict = truth.verdict()

    assert [reason.split(":")[0] for reason in verdict["false_confirmation_reasons"]] == ["line 3 at 21.6"]


def test_outage_before_the_first_tick_is_heard() -> None:
    """Nobody is known to have been anything before it."""
    truth = MadeTruth()
    truth.cut_supply("grid")
    truth.tell(3.0, 0.0, states="OOOO")
    assert truth.verdict()["verdict"] == "NOT GUILTY"


def test_server_that_rides_through_an_outage_is_dark_when_it_goes_out() -> None:
    """Its time counts from then: ten seconds into the outage, when its batteries are empty."""
    truth = MadeTruth()
    truth.tell(20.0, 90_000.0, states="MMII")
    truth.cut_supply("grid")
    truth.tell(10.5, 20_000.0, states="OOII")
    truth.tell(8.0, 0.0, states="OOOO")
    claim = {"kind": "mode", "group": "c2", "mode": "INFERENCE", "count": 2}
    truth.court.check_confirmations([claim | {"at_s": at_s} for at_s in (25.0, 32.4, 32.6)])
    verdict = truth.verdict()

    assert [reason.split(":")[0] for reason in verdict["false_confirmation_reasons"]] == ["line 3 at 32.6"]


def test_claim_of_the_last_moment_is_held_against_the_last_ticks() -> None:
    """They make no whole second, but they are what it is about."""
    truth = MadeTruth()
    truth.tell(20.0, 90_000.0)
    truth.tell(0.6, 90_000.0, states="SMMM")
    truth.verdict()
    for count in (1, 2):
        claim = {"at_s": 20.5, "kind": "mode", "group": "c1", "mode": "STANDBY", "count": count}
        truth.court.check_confirmations([claim])
    assert [r.split(": ")[1] for r in truth.verdict(ends=False)["false_confirmation_reasons"]] == [
        "1 of 2 devices were in STANDBY"
    ]


def test_truth_that_breaks_off_or_has_gaps_acquits_nobody() -> None:
    """What was not seen is not proven."""
    cut = MadeTruth()
    cut.tell(5.0, 90_000.0)
    holed = MadeTruth()
    holed.tell(5.0, 90_000.0)
    holed._step += 20
    holed.tell(5.0, 90_000.0)

    assert "ends early" in cut.verdict(ends=False)["reasons"][0]
    assert "1 gaps" in holed.verdict()["reasons"][0]


def test_stream_that_is_no_truth_is_refused() -> None:
    """A header of another format, or an unknown line, is a clear error."""
    with pytest.raises(InvalidInput, match="header of format 1"):
        Court({"type": "tick"})
    with pytest.raises(InvalidInput, match="lacks scenario"):
        Court({"type": "header", "format": 1})
    with pytest.raises(InvalidInput, match="unknown line type"):
        MadeTruth().court.hear({"type": "rumour"})


def test_attribution_order_is_limit_then_liars_then_loads() -> None:
    """Explanations are used up in a fixed order and never explain more than there is."""
    sample = Sample(power_w=110.0, limit_w=100.0, limit_lowered_w=4.0, disobedient_w=4.0, uncontrolled_w=9.0)

    assert attribute(sample) == {"limit_lowered": 4.0, "disobedient": 4.0, "uncontrolled": 2.0}
