"""No honest machine is named, however slow within its firmware's times and however its orders come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swingbus_agent.domain.selection import Target
from tests.fakes.asked_miner import FULL, LOW, REST, TIMES, AskedMiner

_ORDERS = st.lists(st.tuples(st.sampled_from([FULL, LOW, REST, None]), st.integers(1, 90)), min_size=1, max_size=15)


@given(
    orders=_ORDERS,
    sleep_s=st.integers(0, int(TIMES.verify_s)),
    boot_s=st.integers(0, int(TIMES.boot_s)),
    set_s=st.integers(0, int(TIMES.verify_s)),
    period_s=st.integers(1, 10),
)
def test_honest_machine_is_never_named(
    orders: list[tuple[Target | None, int]], sleep_s: int, boot_s: int, set_s: int, period_s: int
) -> None:
    """It does what it is asked within verify_s and boot_s: that is enough."""
    miner = AskedMiner(sleep_s=sleep_s, boot_s=boot_s, set_s=set_s, period_s=period_s)
    for target, lasts_s in orders:
        miner.order(target, lasts_s)
    assert miner.named == []
    assert not miner.execution.is_stuck("m", miner.now_s)


@given(rests_s=st.lists(st.tuples(st.integers(1, 40), st.integers(40, 90)), min_size=4, max_size=8))
def test_liar_is_named_however_brief_its_orders(rests_s: list[tuple[int, int]]) -> None:
    """Four orders to rest, each followed by time enough to see that nothing came of it."""
    miner = AskedMiner(sleep_s=None)
    for rest_s, full_s in rests_s:
        miner.order(REST, rest_s)
        miner.order(FULL, full_s)
    assert miner.named == ["write_ignored"]
