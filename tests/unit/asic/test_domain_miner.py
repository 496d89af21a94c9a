"""The pure words about miners."""

from __future__ import annotations

import pytest

from swingbus_agent.domain.miner import MinerProfile, OperatingState, largest_profile_within, merge_state

LOW = MinerProfile(name="low", power_w=1657.0, hashrate_ths=80.5)
DEFAULT = MinerProfile(name="default", power_w=2794.0, hashrate_ths=121.8)


@pytest.mark.parametrize(
    ("says_asleep", "hashrate_ths", "state"),
    [
        (True, 0.0, OperatingState.SLEEPING),
        (True, None, OperatingState.SLEEPING),
        (True, 1.0, OperatingState.UNKNOWN),
        (False, 100.0, OperatingState.MINING),
        (False, 0.0, OperatingState.BOOTING),
        (False, None, OperatingState.UNKNOWN),
        (None, 100.0, OperatingState.UNKNOWN),
        (None, None, OperatingState.UNKNOWN),
    ],
)
def test_state_follows_claim_and_hashrate(
    says_asleep: bool | None, hashrate_ths: float | None, state: OperatingState
) -> None:
    """Silence and contradiction are unknown; nothing unsaid is mining."""
    assert merge_state(says_asleep, hashrate_ths) is state


@pytest.mark.parametrize(("limit_w", "found"), [(1656.9, None), (1657.0, LOW), (2793.0, LOW), (9000.0, DEFAULT)])
def test_profile_within_limit_is_the_fastest_that_fits(limit_w: float, found: MinerProfile | None) -> None:
    """A limit is kept even where that means no profile at all."""
    assert largest_profile_within([DEFAULT, LOW], limit_w) == found
