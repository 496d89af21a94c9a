"""The figure of a list works, and is in the order of magnitude that the design rests on."""

from __future__ import annotations

from tests.benchmarks.kube_list import AIM_US, measure_kube_list
from tests.benchmarks.settings import Settings


def test_a_list_costs_microseconds_per_pod() -> None:
    """A short run asserts its result; the limit is wide, a typed model would cost 500 us."""
    (figure,) = measure_kube_list(Settings(quick=True, runs=1))
    assert figure.asserted
    assert 0 < figure.value < 5 * AIM_US
