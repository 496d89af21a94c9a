"""The worked examples of the economics note, and the refusals of nonsense."""

from __future__ import annotations

import doctest

import pytest

from swingbus.faults import InvalidInput
from swingbus_controller.domain.planning import economics, market


@pytest.mark.parametrize("module", [economics, market])
def test_worked_examples_in_the_docstrings_hold(module: object) -> None:
    """Every example in the module runs, and there are some."""
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(
    ("j_per_th", "strikes"),
    [
        (30.5, (47, 54, 62, 74, 107)),
        (21.3, (67, 77, 89, 105, 153)),
        (17.5, (82, 93, 108, 128, 187)),
        (15.0, (95, 109, 127, 150, 218)),
        (13.5, (106, 121, 141, 166, 242)),
        (9.5, (150, 172, 200, 236, 344)),
    ],
)
def test_break_even_table_of_the_note(j_per_th: float, strikes: tuple[int, ...]) -> None:
    """Six machines at five hashprices, 2 % pool fee, within 1 USD/MWh of the table (it rounds J/TH)."""
    for hashprice, strike in zip((0.035, 0.040, 0.0465, 0.055, 0.080), strikes, strict=True):
        found = economics.break_even_usd_per_mwh(hashprice_usd_per_th_day=hashprice * 0.98, j_per_th=j_per_th)
        assert found == pytest.approx(strike, abs=1.0)


def test_half_width_grows_with_the_cube_root() -> None:
    """An eighth of the cost halves the band."""
    wide = economics.hysteresis_half_width_usd_per_h(round_trip_cost_usd=0.8, margin_variance_usd2_per_h3=0.01)
    narrow = economics.hysteresis_half_width_usd_per_h(round_trip_cost_usd=0.1, margin_variance_usd2_per_h3=0.01)
    assert wide / narrow == pytest.approx(2.0)


def test_break_even_is_where_energy_eats_the_hashprice() -> None:
    """The two formulas meet at the strike, with overhead too."""
    strike = economics.break_even_usd_per_mwh(hashprice_usd_per_th_day=0.05, j_per_th=20.0, overhead_ratio=1.1)
    cost = economics.energy_cost_usd_per_th_day(j_per_th=20.0, power_price_usd_per_mwh=strike, overhead_ratio=1.1)
    assert cost == pytest.approx(0.05)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_difficulty_is_refused(bad: float) -> None:
    """No division by a machine that cannot be."""
    with pytest.raises(InvalidInput, match="difficulty"):
        economics.blocks_per_th_day(bad)
