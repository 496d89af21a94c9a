"""The controller is killed at every phase and comes back from its journal: whole, lost, old, or beside another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from swingbus.faults import WrongState
from swingbus_controller.adapters.storage.journal import SqliteJournal
from swingbus_controller.domain.fleet.orders import Mode
from swingbus_controller.domain.flips.flip import Phase
from swingbus_controller.domain.site.curtailment import CurtailmentState
from swingbus_controller.ports.journal import JournalEntry
from tests.fakes.memory_journal import JournalFile, MemoryJournal
from tests.fakes.site import VirtualSite, settled_site

GPUS = ("gpu1/gpus", "gpu2/gpus")
FORWARD = (Phase.PLANNED, Phase.DRAINING, Phase.RELEASED, Phase.STARTING, Phase.VERIFYING)


def serving(site: VirtualSite) -> int:
    """Return GPUs that truly serve."""
    return sum(site.count(bank, Mode.INFERENCE) for bank in GPUS)


def kill_at(site: VirtualSite, kind: str, phase: Phase, *, is_undo: bool = False, down_s: float = 3.0) -> None:
    """Kill the controller right after a flip's step into a phase is durable, leave it dead for a while, start it again."""

    def is_it(entry: JournalEntry) -> bool:
        flip = (entry.payload or {}).get("flip", {})
        return bool(
            flip.get("kind") == kind
            and flip["phase"] == phase.value
            and flip["origin"]["mode"] != flip["aim"]["mode"]
            and (flip["direction"] == "undo") == is_undo
        )

    site.journal.crash_when = is_it
    assert site.run(200, lambda: site.deciding is None), site.explain()
    site.run(down_s)
    site.start_controller()


def ends_well(site: VirtualSite, goal: Callable[[], bool], seconds: float = 400) -> None:
    """Check that every flip ends, the goal is reached and nothing was broken on the way."""
    assert site.run(seconds, lambda: goal() and site.is_quiet()), site.explain()
    assert not site.flips(Phase.FAILED), [f.story() for f in site.flips(Phase.FAILED)]
    site.verdicts.assert_clean()


@pytest.mark.parametrize("phase", FORWARD)
def test_controller_killed_in_a_flip_to_inference_ends_it(phase: Phase) -> None:
    """Mining to inference, killed in each phase: all units serve in the end, over no limit."""
    site = settled_site()
    site.market.demand = 32.0
    kill_at(site, "gpu", phase)
    ends_well(site, lambda: serving(site) == 32)


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.RELEASED, Phase.STARTING, Phase.VERIFYING])
def test_controller_killed_in_a_flip_from_inference_ends_it(phase: Phase) -> None:
    """Inference to mining, killed in each phase: all units mine in the end."""
    site = settled_site()
    site.market.demand = 32.0
    assert site.run(200, lambda: serving(site) == 32 and site.is_quiet()), site.explain()
    site.market.demand = 0.0
    kill_at(site, "gpu", phase)
    ends_well(site, lambda: sum(site.count(bank, Mode.MINING) for bank in GPUS) == 32)


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.RELEASED, Phase.SETTLING])
def test_controller_killed_in_an_asic_flip_to_rest_ends_it(phase: Phase) -> None:
    """Mining to standby, killed in each phase."""
    site = settled_site()
    site.market.power = 90.0
    kill_at(site, "asic", phase)
    ends_well(site, lambda: site.count("edge1/asics", Mode.MINING) == 0)


@pytest.mark.parametrize("phase", [Phase.SETTLING, Phase.STARTING, Phase.VERIFYING])
def test_controller_killed_in_an_asic_flip_to_mining_ends_it(phase: Phase) -> None:
    """Standby to mining, killed in each phase."""
    site = settled_site()
    before = site.count("edge1/asics", Mode.MINING)
    site.market.power = 90.0
    assert site.run(200, lambda: site.count("edge1/asics", Mode.MINING) == 0 and site.is_quiet()), site.explain()
    site.market.power = 40.0
    kill_at(site, "asic", phase)
    ends_well(site, lambda: site.count("edge1/asics", Mode.MINING) == before)


@pytest.mark.parametrize("phase", [Phase.RELEASED, Phase.STARTING, Phase.VERIFYING])
def test_controller_killed_in_an_undo_ends_it(phase: Phase) -> None:
    """The road back from a model that fails its probe, killed in each phase: ROLLED_BACK and mining again."""
    site = settled_site()
    for bank in GPUS:
        site.banks[bank].broken.add("llm")
    site.market.demand = 8.0
    kill_at(site, "gpu", phase, is_undo=True)
    site.market.demand = 0.0
    ends_well(site, lambda: sum(site.count(bank, Mode.MINING) for bank in GPUS) == 32)
    assert site.flips(Phase.ROLLED_BACK)


@pytest.mark.parametrize(
    ("at_s", "down_s"),
    [(1, 3), (12, 15), (20, 3), (30, 3), (45, 3), (45, 12), (70, 3), (100, 15), (125, 3), (165, 3)],
)
def test_controller_killed_in_a_curtailment_meets_it(at_s: float, down_s: float) -> None:
    """Killed before, in and after notice, ramp and the event itself: true watts hold, the order ends, all is restored."""
    site = settled_site()
    before = site.count("edge1/asics", Mode.MINING) + site.count("edge2/asics", Mode.MINING)
    made = site.curtail(90_000.0, notice_s=40.0, ramp_s=20.0, duration_s=100.0)
    site.run(at_s)
    site.kill_controller()
    site.run(down_s)
    site.start_controller()
    site.run(240.0 - at_s - down_s)
    found = site.state.curtailments[made.id]
    assert found.state is CurtailmentState.ENDED
    assert found.met_unix_s is not None
    ends_well(
        site, lambda: site.count("edge1/asics", Mode.MINING) + site.count("edge2/asics", Mode.MINING) == before, 300
    )


def test_controller_down_for_longer_than_the_grants_comes_back() -> None:
    """Every agent has fallen to its safe share; the next controller restores them without breaking the limit."""
    site = settled_site()
    before = site.count("edge1/asics", Mode.MINING)
    site.kill_controller()
    site.run(60)
    assert site.count("edge2/asics", Mode.MINING) == 0
    site.start_controller()
    ends_well(site, lambda: site.count("edge1/asics", Mode.MINING) == before)


def test_controller_down_past_the_end_of_a_curtailment_closes_it() -> None:
    """Nobody was there when it ended: the next controller says ENDED and takes the limit away."""
    site = settled_site()
    made = site.curtail(90_000.0, notice_s=30.0, duration_s=40.0)
    site.run(50)
    site.kill_controller()
    site.run(60)
    site.start_controller()
    ends_well(site, lambda: site.claimed_ratio() > 0.95)
    assert site.state.curtailments[made.id].state is CurtailmentState.ENDED


def test_flip_of_an_agent_that_never_comes_back_ends() -> None:
    """Killed in mid-flip, and the flip's own agent is dead when the next controller starts: the flip is not open for ever."""
    site = settled_site()
    site.market.demand = 32.0
    assert site.run(100, lambda: bool(site.flips(Phase.STARTING, bank="gpu1/gpus"))), site.explain()
    site.agents["gpu1"].is_alive = False
    site.restart_controller()
    assert site.run(600, lambda: not site.flips_open("gpu1/gpus")), site.explain()
    site.agents["gpu1"].restart()
    site.market.demand = 0.0
    assert site.run(600, lambda: site.is_quiet() and site.count("gpu1/gpus", Mode.MINING) == 16), site.explain()
    site.verdicts.assert_clean()


def test_lost_journal_counts_ceilings_then_adopts_above_every_epoch_seen() -> None:
    """Agents obey epoch 3, the new journal is empty: the controller takes a higher epoch, counts ceilings, adopts, fills up again."""
    site = settled_site()
    site.restart_controller()
    site.restart_controller()
    site.run(30)
    before = site.count("edge2/asics", Mode.MINING)
    site.kill_controller()
    site.journal_file = JournalFile()
    site.forget_grants()
    site.start_controller()
    assert site.state.ledger.claim_w("edge1/asics") == site.state.ledger.ceiling_w("edge1/asics")
    lowest = 99
    for _ in range(60):
        site.step()
        lowest = min(lowest, site.count("edge2/asics", Mode.MINING))
    assert lowest == before, site.explain()
    assert site.state.ledger.epoch > 3
    ends_well(site, lambda: site.claimed_ratio() > 0.95)


def test_old_journal_is_found_out_and_nothing_is_broken() -> None:
    """A copy from before the fill-up is restored: agents show newer grants, banks count at their ceilings until they settle."""
    site = settled_site()
    old = site.journal_file.copy(len(site.journal_file.rows) // 3)
    site.restart_controller()
    site.run(40)
    site.kill_controller()
    site.journal_file = old
    site.forget_grants()
    site.start_controller()
    ends_well(site, lambda: site.claimed_ratio() > 0.95)


def test_journal_torn_at_any_row_is_survived() -> None:
    """Cut anywhere, the rest of the journal still starts a controller that keeps the limit and comes to rest."""
    site = settled_site()
    site.market.demand = 32.0
    site.run(60)
    whole = site.journal_file
    for rows in range(1, len(whole.rows), max(1, len(whole.rows) // 6)):
        site.kill_controller()
        site.journal_file = whole.copy(rows)
        site.forget_grants()
        site.start_controller()
        site.run(60)
    ends_well(site, lambda: serving(site) == 32)


def test_second_controller_on_the_journal_makes_the_first_fail() -> None:
    """The older one's next write is refused; the newer one runs the site."""
    site = settled_site()
    first = site.engine
    site.start_controller()
    with pytest.raises(WrongState) as refused:
        first.recorder.record(first.recorder.entry("note", "", "still here"))
    assert refused.value.reason == "FENCED"
    ends_well(site, lambda: site.claimed_ratio() > 0.95)


def test_second_controller_with_a_journal_of_its_own_stops_the_first() -> None:
    """Two hosts, two journals: agents obey the newer; the older one stops instead of fighting for them."""
    site = settled_site()
    first = site.engine
    file = JournalFile()
    file.epoch = 10
    site.journal_file = file
    site.forget_grants()
    site.start_controller()
    site.run(10)
    with pytest.raises(WrongState) as refused:
        first.take_report(site.agents["edge1"].report(), is_hello=False, now_s=site.clock.s)
    assert refused.value.reason == "FENCED"
    with pytest.raises(WrongState):
        first.tick(site.clock.s, site.clock.now().timestamp())
    assert first.state.ledger.epoch < site.state.ledger.epoch
    ends_well(site, lambda: site.claimed_ratio() > 0.95)


def test_controller_that_crashes_at_any_append_is_rebuilt_from_what_is_durable() -> None:
    """Killed in the very write, again and again, while units flip both ways: no flip is stuck, no limit broken."""
    site = settled_site()
    for number in range(24):
        site.market.demand = 32.0 if number % 8 < 4 else 0.0
        assert isinstance(site.journal, MemoryJournal)
        site.journal.crash_after = number % 7 + 3
        assert site.run(120, lambda: site.deciding is None), number
        site.run(2)
        site.start_controller()
    site.market.demand = 32.0
    ends_well(site, lambda: serving(site) == 32)


def test_site_on_a_real_journal_survives_kills(tmp_path: Path) -> None:
    """The same over SQLite: what is read back is what was decided."""
    path = tmp_path / "journal.sqlite"
    site = settled_site(open_journal=lambda: SqliteJournal(path))
    site.market.demand = 32.0
    assert site.run(200, lambda: bool(site.flips(Phase.STARTING))), site.explain()
    site.kill_controller()
    site.run(3)
    site.start_controller()
    ends_well(site, lambda: serving(site) == 32)
    site.kill_controller()
