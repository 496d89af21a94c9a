"""A lie steps; fans, errors and late reports do not."""

from __future__ import annotations

from swingbus_controller.domain.fleet.accusing import GapWatch, Step


def _feed(watch: GapWatch, pairs: list[tuple[float, float, float]]) -> list[Step]:
    return [step for pair in pairs if (step := watch.take(*pair)) is not None]


def test_hidden_draw_steps_up_and_is_found_once() -> None:
    """A machine that begins to draw 2.6 kW more than it says is found, once."""
    watch = GapWatch(1_600.0)
    pairs = [(float(t), 200_000.0 + (2_600.0 if t >= 40 else 0.0), 190_000.0 + (t % 3) * 100.0) for t in range(120)]

    steps = _feed(watch, pairs)

    assert len(steps) == 1
    assert 2_400.0 < steps[0].rise_w < 2_800.0


def test_cooling_that_follows_slowly_accuses_nobody() -> None:
    """Fans that ramp by 3 kW over a minute and a half are no step."""
    watch = GapWatch(1_600.0)

    assert _feed(watch, [(float(t), 200_000.0 + min(t, 90) * 33.0, 190_000.0) for t in range(150)]) == []


def test_reports_that_move_accuse_nobody() -> None:
    """Machines that lose their pool drop in the reports later than at the meter."""
    watch = GapWatch(1_600.0)
    pairs = []
    for t in range(100):
        metered_w = 170_000.0 if 40 <= t < 48 else 200_000.0
        reported_w = 160_000.0 if 42 <= t < 50 else 190_000.0
        pairs.append((float(t), metered_w, reported_w))

    assert _feed(watch, pairs) == []


def test_disturbed_watch_forgets_what_was_before() -> None:
    """A step across an order is not held against the group."""
    watch = GapWatch(1_600.0)
    _feed(watch, [(float(t), 200_000.0, 190_000.0) for t in range(40)])
    watch.disturb()

    assert _feed(watch, [(float(t), 203_000.0, 190_000.0) for t in range(40, 80)]) == []
