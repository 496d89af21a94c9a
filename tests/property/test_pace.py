"""Rests between rounds: what comes in has four times the time of rounds, within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swingbus_controller.app.pace import LONGEST_REST_S, SHORTEST_REST_S, Pace

ROUNDS = st.lists(st.floats(0.0, 30.0), max_size=40)


def paced(rounds_s: list[float]) -> Pace:
    """Return the pace after rounds."""
    pace = Pace()
    for took_s in rounds_s:
        pace = pace.after_round(took_s)
    return pace


@given(ROUNDS)
def test_rests_are_bounded_and_no_longer_while_pods_come(rounds_s: list[float]) -> None:
    """Whatever rounds took, also where one stood still for half a minute."""
    pace = paced(rounds_s)
    assert SHORTEST_REST_S <= pace.rest_s(is_gathering=False) <= LONGEST_REST_S
    assert SHORTEST_REST_S <= pace.rest_s(is_gathering=True) <= pace.rest_s(is_gathering=False)


@given(ROUNDS, st.floats(0.02, 0.09))
def test_reports_have_four_fifths_of_the_time_of_a_busy_site(before_s: list[float], took_s: float) -> None:
    """Within some twenty rounds, whatever was before."""
    pace = paced([*before_s, *[took_s] * 50])
    assert pace.rest_s(is_gathering=False) == pytest.approx(4.0 * took_s, rel=0.02)
    assert pace.rest_s(is_gathering=True) == pytest.approx(max(SHORTEST_REST_S, 2.0 * took_s), rel=0.02)


def test_one_long_round_is_not_yet_a_busy_site() -> None:
    """A plan of a tenth of a second between rounds of five milliseconds costs no more than a short rest."""
    assert paced([*[0.005] * 20, 0.1]).rest_s(is_gathering=False) < 3 * SHORTEST_REST_S
