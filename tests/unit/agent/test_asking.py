"""Who ignores what it is asked is named, also when no order lasts long; who is only slow is not."""

from __future__ import annotations

import itertools

from swingbus_agent.domain.views import Verb
from tests.fakes.asked_miner import FULL, LOW, REST, AskedMiner


def test_liar_within_one_order_is_named() -> None:
    """Asked three times for rest, and hashing on."""
    miner = AskedMiner(sleep_s=None)
    miner.order(REST, 50)
    assert miner.named == ["write_ignored"]


def test_liar_asked_briefly_again_and_again_is_named() -> None:
    """No order lasts long enough for a second try; over orders it is named, once."""
    miner = AskedMiner(sleep_s=None)
    for _ in range(5):
        miner.order(REST, 4)
        miner.order(FULL, 90)
    assert miner.named == ["write_ignored"]
    assert "asked 3 times for standby" in miner.notices[0].message


def test_asks_of_an_order_are_kept_when_it_ends() -> None:
    """Two tries in one order and one in the next make three."""
    miner = AskedMiner(sleep_s=None)
    miner.order(REST, 20)
    miner.order(FULL, 60)
    assert miner.named == []
    miner.order(REST, 2)
    assert miner.named == ["write_ignored"]


def test_late_sleeper_that_obeys_each_time_is_never_named() -> None:
    """It rests only after the order is over, and is woken: it obeyed."""
    miner = AskedMiner(sleep_s=14.0)
    for _ in range(6):
        miner.order(REST, 5)
        miner.order(FULL, 200)
    assert miner.named == []
    assert [verb for _, verb in miner.asked] == [Verb.SLEEP, Verb.WAKE] * 6


def test_obeying_in_between_starts_the_count_anew() -> None:
    """Ignored, seen at rest, ignored again and asked once more: not named."""
    miner = AskedMiner(sleep_s=None)
    miner.order(REST, 4)
    miner.order(FULL, 90)
    miner.sleep_s = 2.0
    miner.order(REST, 20)
    miner.order(FULL, 200)
    miner.sleep_s = None
    miner.order(REST, 4)
    miner.order(FULL, 90)
    miner.order(REST, 4)
    assert miner.named == []


def test_another_ask_says_nothing_of_the_one_before() -> None:
    """A sleep that a new profile followed at once had no time of its own."""
    miner = AskedMiner(sleep_s=None)
    for _ in range(5):
        miner.order(REST, 3)
        miner.order(LOW, 100)
        miner.order(REST, 3)
        miner.order(FULL, 100)
    assert miner.named == []


def test_resting_miner_is_asked_for_its_profile_once_a_reading() -> None:
    """Asking again before a look tells nothing new: profile, look, wake; where it is slow, once more after each look."""
    miner = AskedMiner(set_s=2.0, period_s=10.0)
    miner.order(REST, 23)
    miner.asked.clear()
    miner.order(LOW, 100)
    assert [verb for _, verb in miner.asked] == [Verb.SET_POWER, Verb.WAKE]
    miner.order(REST, 23)
    miner.asked.clear()
    miner.set_s = 24.0
    miner.order(FULL, 20)  # looked at twice
    assert [verb for _, verb in miner.asked] == [Verb.SET_POWER] * 3
    miner.asked.clear()
    miner.order(LOW, 1)  # a new order waits for no look
    assert [verb for _, verb in miner.asked] == [Verb.WAKE]


def test_restart_says_nothing_of_the_ask_before() -> None:
    """What was asked just before a restart may be lost with it."""
    miner = AskedMiner(sleep_s=None)
    for _ in range(5):
        miner.order(REST, 4)
        miner.restart()
        miner.order(FULL, 90)
    assert miner.named == []


def test_known_liar_is_asked_no_more_often_for_new_orders() -> None:
    """Once named it is asked once a minute at most, and others need not wait for it."""
    miner = AskedMiner(sleep_s=None)
    miner.order(REST, 50)
    assert miner.execution.is_stuck("m", miner.now_s)
    miner.asked.clear()
    for _ in range(40):
        miner.order(REST, 3)
        miner.order(None, 3)
    times_s = [at_s for at_s, _ in miner.asked]
    assert len(times_s) >= 3
    assert all(later_s - before_s >= 60.0 for before_s, later_s in itertools.pairwise(times_s))
    assert miner.named == ["write_ignored"]


def test_liar_that_obeys_is_told() -> None:
    """Seen at rest at last it is no liar any more, whether it was asked just then or not."""
    miner = AskedMiner(sleep_s=None)
    miner.order(REST, 50)
    miner.sleep_s = 2.0
    miner.order(REST, 70)
    assert miner.named == ["write_ignored", "device_obeyed_again"]
    assert not miner.execution.is_stuck("m", miner.now_s)
