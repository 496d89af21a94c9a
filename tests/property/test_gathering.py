"""Gathering of waiting pods: news are planned for soon, once, and a burst costs few plans."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swingbus_controller.domain.cluster.gathering import GATHER_S, QUIET_S, Gathering, Wanted

LOOKS = st.lists(st.tuples(st.floats(0.01, 2.0), st.integers(0, 3)), min_size=1, max_size=60)


def wanted(count: int) -> Wanted:
    """Return so many places, for a pod each."""
    return Wanted(places={"h100": count}, at_most={"n1/gpus": count}, waiting_count=count)


@given(LOOKS)
def test_news_are_planned_for_soon_and_never_twice(looks: list[tuple[float, int]]) -> None:
    """Whatever comes when: a plan is due only for what is new, and nothing new waits longer than `GATHER_S` and one look."""
    gathering, now_s, new_since_s = Gathering(), 100.0, None
    for after_s, count in looks:
        now_s += after_s
        gathering = gathering.look(wanted(count), now_s)
        is_new = not wanted(count).is_within(gathering.planned_for)
        assert is_new or not gathering.is_due
        if not is_new:
            new_since_s = None
            continue
        new_since_s = now_s if new_since_s is None else new_since_s
        assert gathering.is_due or now_s - new_since_s < GATHER_S
        if gathering.is_due:
            gathering, new_since_s = gathering.planned(), None
            assert not gathering.is_due


@given(st.floats(0.01, 0.1), st.integers(1, 60))
def test_burst_costs_one_plan_at_once_and_few_after_it(period_s: float, count: int) -> None:
    """Pods that come with every look after a silence: the first has its plan at once, the others one per `GATHER_S`, and one at the end."""
    gathering, now_s, planned = Gathering().look(Wanted(), 0.0), QUIET_S, []
    for number in range(1, count + 2):
        gathering = gathering.look(wanted(min(number, count)), now_s)
        if gathering.is_due:
            gathering = gathering.planned()
            planned.append(number)
        now_s += period_s
    assert planned[0] == 1
    assert gathering.planned_for == wanted(count)
    assert len(planned) <= 2 + count * period_s / GATHER_S


def test_what_a_plan_brought_about_is_no_news() -> None:
    """Two banks could have had the pod; once a flip brings it to one, the other has nobody in line: as much is wanted, and nowhere more."""
    before = Wanted(places={"h100": 1}, at_most={"n1/gpus": 1, "n2/gpus": 1})
    after = Wanted(places={"h100": 1}, at_most={"n1/gpus": 1, "n2/gpus": 0})
    gathering = Gathering().look(before, 10.0).planned().look(after, 12.0)
    assert not gathering.is_due
    assert not gathering.look(after, 20.0).is_due
    elsewhere = Wanted(places={"h100": 1}, at_most={"n1/gpus": 0, "n2/gpus": 1})
    assert gathering.look(elsewhere, 21.0).is_due, "who waits now can go nowhere but there"


def test_pod_that_comes_alone_is_planned_for_at_its_look() -> None:
    """The next of its kind within the second waits for one look without news."""
    gathering = Gathering().look(wanted(0), 10.0).planned().look(wanted(1), 20.0)
    assert gathering.is_due
    gathering = gathering.planned().look(wanted(2), 20.1)
    assert not gathering.is_due
    assert gathering.look(wanted(2), 20.2).is_due


@given(st.integers(2, 64), st.integers(0, 10))
def test_pods_that_come_together_wait_for_those_on_their_way(count: int, waiting: int) -> None:
    """Several at one look after a silence: a plan for all as soon as a look shows no more of them. One pod of many GPUs is one."""
    silent = Gathering().look(wanted(waiting), 10.0).planned()
    gathering = silent.look(wanted(waiting + count), 20.0)
    assert not gathering.is_due
    assert gathering.look(wanted(waiting + count), 20.05).is_due
    more = gathering.look(wanted(waiting + count + 1), 20.05)
    assert not more.is_due
    assert more.look(wanted(waiting + count + 2), 20.0 + GATHER_S).is_due
    large = Wanted(places={"h100": waiting + count}, at_most={"n1/gpus": waiting + count}, waiting_count=waiting + 1)
    assert silent.look(large, 20.0).is_due


def test_first_of_a_burst_is_young_and_the_next_are_not_for_long() -> None:
    """A pod that comes after a silence; more come all the time; a silence; one more. Time alone ends it, whether anybody looks or not."""
    gathering = Gathering().look(wanted(0), 10.0).look(wanted(0), 11.0)
    assert not gathering.is_young(11.0)
    gathering = gathering.look(wanted(1), 20.0)
    assert gathering.is_young(20.2)
    assert not gathering.is_young(20.3)
    for number in range(2, 8):
        gathering = gathering.look(wanted(number), 20.0 + 0.05 * number)
    assert not gathering.is_young(20.35), "for 0.25 s at most"
    assert gathering.look(wanted(9), 25.0).is_young(25.1)
