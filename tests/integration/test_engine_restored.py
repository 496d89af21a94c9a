"""A controller goes on from a backup of its journal: what was decided since is not in it, and nothing is broken by that.

In virtual time, with the real journal on a disk and the real backup and restore; a judge looks at every second.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from swingbus_controller.adapters.storage.copying import JOURNAL, copy_journal
from swingbus_controller.adapters.storage.journal import SqliteJournal
from swingbus_controller.adapters.storage.restoring import Restored, restore_journal
from swingbus_controller.domain.fleet.orders import Mode
from swingbus_controller.domain.flips.flip import Phase
from swingbus_controller.domain.site.curtailment import CurtailmentState
from tests.fakes.site import Authority, TrueLimit, VirtualSite, settled_site

GPUS = ("gpu1/gpus", "gpu2/gpus")
ASICS = ("edge1/asics", "edge2/asics")


# docs/operations.md says these.
FULL_AGAIN_S = 120.0
BYTES_PER_FLIP = 20_000


class BackedUp:
    """A site on a real journal, with one backup of it."""

    def __init__(self, folder: Path) -> None:
        self.data, self.copy = folder / "data", folder / "copy"
        self.data.mkdir()
        self.site: VirtualSite = settled_site(open_journal=lambda: SqliteJournal(self.data / JOURNAL))

    def back_up(self) -> None:
        """Copy the journal while the controller runs."""
        copy_journal(self.data, self.copy, lambda what, ratio: None)

    def cut_copy_after(self, kind: str) -> None:
        """Make the copy one of an earlier moment: right after the first event of a kind about GPUs that go to inference."""
        with closing(sqlite3.connect(self.copy)) as database, database:
            (revision,) = database.execute(
                "SELECT min(revision) FROM entries WHERE kind = ? AND json_extract(facts, '$.to_mode') = 'inference'",
                (kind,),
            ).fetchone()
            database.execute("DELETE FROM entries WHERE revision > ?", (revision,))
            database.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'entries'", (revision,))

    def restore(self, *, is_lost: bool = False) -> Restored:
        """Kill the controller, put the copy in the journal's place and start on it; `is_lost`: the volume is gone with the journal."""
        self.site.kill_controller()
        if is_lost:
            for path in self.data.iterdir():
                path.unlink()
        with self.copy.open("rb") as file:
            done = restore_journal(file, "copy", self.data, self.site.clock, lambda what, ratio: None)
        self.site.forget_grants()
        self.site.start_controller()
        return done

    def take_control(self) -> None:
        """Say the admin's word."""
        self.site.commands.set_authority(self.site.order("control again"), authority=Authority.CONTROL)

    def mining(self) -> int:
        """Return how many machines truly mine."""
        return sum(self.site.count(bank, Mode.MINING) for bank in ASICS)


@pytest.fixture
def backed(tmp_path: Path) -> BackedUp:
    """Return a settled site."""
    return BackedUp(tmp_path)


def issued(journal: Any) -> set[tuple[str, int, int]]:
    """Return the numbers of all grants of a journal."""
    events = [(row.entry.payload or {}).get("budget", {}) for row in journal.read()]
    return {(e["bank"], e["epoch"], e["generation"]) for e in events if e.get("event") == "GrantIssued"}


def named(journal: Any) -> set[str]:
    """Return the ids of all flips and curtailments of a journal."""
    loads = [row.entry.payload or {} for row in journal.read()]
    return {load[kind]["id"] for load in loads for kind in ("flip", "curtailment") if kind in load}


def lower_for_good(site: VirtualSite, limit_w: float) -> None:
    """An operator's limit, of which the judge knows too; it need not hold at once."""
    site.commands.set_feeder_limit(site.order(f"limit-{site.clock.s}"), feeder="grid", limit_w=limit_w)
    site.limits.append(TrueLimit("grid", limit_w, site.clock.s + 30.0, 1e18))


@pytest.mark.parametrize("is_lost", [False, True], ids=["replaced", "lost"])
def test_restored_controller_writes_nothing_until_a_person_has_set_what_is_missing(
    backed: BackedUp, is_lost: bool
) -> None:
    """A limit was lowered after the backup: the journal does not know of it, and nothing grows into watts that are not there."""
    site = backed.site
    backed.back_up()
    lower_for_good(site, 90_000.0)
    assert site.run(200, lambda: site.is_quiet() and site.true_w()["grid"] < 90_000.0), site.explain()
    site.run(60)
    before = backed.mining()
    done = backed.restore(is_lost=is_lost)
    assert done.authority is Authority.ADVISE
    if is_lost:
        assert done.lost is None
    else:
        (lost,) = done.lost or ()
        assert (lost.entry.kind, lost.entry.author) == ("limit_set", "ada")
    limits = {limit.name for limit in site.state.ledger.limits("grid")}
    assert "operator" not in limits, "the copy knows the limit already: the test shows nothing"
    for _ in range(300):  # far longer than grants live
        site.step()
        assert site.engine.order_for("edge1") is None and site.engine.adopt_order("edge1") is None
        assert backed.mining() <= before
    site.commands.set_feeder_limit(site.order("limit again"), feeder="grid", limit_w=90_000.0)
    began_s = site.clock.s
    backed.take_control()
    assert site.run(400, lambda: site.is_quiet() and site.claimed_ratio() > 0.9), site.explain()
    print(f"the site is full again {site.clock.s - began_s:.0f} s after the admin's word")
    assert site.clock.s - began_s <= FULL_AGAIN_S
    assert backed.mining() >= before - 1
    site.verdicts.assert_clean()


def test_no_number_is_given_twice(backed: BackedUp) -> None:
    """Two restores of one backup, restarts in between, flips and curtailments in each: no id and no grant is in two journals."""
    site = backed.site
    backed.back_up()
    with_copy = SqliteJournal(backed.copy)
    known = issued(with_copy), named(with_copy)
    with_copy.close()
    grants: list[set[tuple[str, int, int]]] = []
    ids: list[set[str]] = []
    for turn in range(3):
        if turn:
            backed.restore(is_lost=turn == 2)
            site.run(5)
            backed.take_control()
        site.market.demand = 32.0 if turn % 2 else 0.0
        site.run(60)
        site.restart_controller()
        site.run(20)
        site.curtail(120_000.0, notice_s=5.0, duration_s=20.0, id=str(turn))
        assert site.run(400, site.is_quiet), site.explain()
        grants.append(issued(site.journal) - known[0])
        ids.append(named(site.journal) - known[1])
    assert all(grants) and all(ids)
    assert not grants[0] & grants[1] and not grants[1] & grants[2] and not grants[0] & grants[2]
    assert not ids[0] & ids[1] and not ids[1] & ids[2] and not ids[0] & ids[2]
    site.verdicts.assert_clean()


def test_no_number_is_given_twice_before_any_agent_is_back(backed: BackedUp) -> None:
    """What agents obey raises the epoch, but nobody is there yet: a curtailment that is ordered now has a number of its own."""
    site = backed.site
    backed.back_up()
    for _ in range(3):
        site.restart_controller()
    site.run(30)
    first = site.curtail(140_000.0, notice_s=5.0, duration_s=20.0)
    site.run(60)
    for agent in site.agents.values():
        agent.is_alive = False
    backed.restore(is_lost=True)
    backed.take_control()
    second = site.curtail(140_000.0, notice_s=5.0, duration_s=20.0)
    assert second.id.rpartition("-")[2] == first.id.rpartition("-")[2]
    assert second.id != first.id
    for agent in site.agents.values():
        agent.restart()
    assert site.run(400, site.is_quiet), site.explain()
    site.verdicts.assert_clean()


@pytest.mark.parametrize("phase", [Phase.PLANNED, Phase.DRAINING, Phase.RELEASED, Phase.STARTING, Phase.VERIFYING])
def test_flip_that_was_open_in_the_backup_ends(backed: BackedUp, phase: Phase) -> None:
    """The units went there and back since: what the copy thinks is under way ends by evidence, and what works is what is recorded."""
    site = backed.site

    def all_mine() -> bool:
        return site.is_quiet() and sum(site.count(bank, Mode.MINING) for bank in GPUS) == 32

    site.market.demand = 32.0
    assert site.run(300, lambda: sum(site.count(bank, Mode.INFERENCE) for bank in GPUS) == 32), site.explain()
    site.market.demand = 0.0
    assert site.run(600, all_mine), site.explain()
    backed.back_up()
    backed.cut_copy_after(f"flip_{phase.value.lower()}")
    backed.restore()
    site.run(5)
    assert site.state.open_flips(), "no flip is open in the copy: the test shows nothing"
    backed.take_control()
    assert site.run(900, all_mine), site.explain()
    assert not site.flips(Phase.FAILED), [f.story() for f in site.flips(Phase.FAILED)]
    site.verdicts.assert_clean()


def test_curtailment_of_the_backup_is_proven_anew_or_not_called_so(backed: BackedUp) -> None:
    """CURTAILED when it was copied, cancelled since: the restored controller does not say it before meters show it."""
    site = backed.site
    made = site.curtail(90_000.0, notice_s=5.0, duration_s=3_000.0)
    assert site.run(200, lambda: site.state.curtailments[made.id].state is CurtailmentState.CURTAILED), site.explain()
    backed.back_up()
    site.commands.end_curtailment(site.order("over"), curtailment=made.id)
    site.limits.pop()
    site.run(200)
    assert site.true_w()["grid"] > 90_000.0
    backed.restore()
    site.excuse(400)  # the copy's limit counts again, from one second to the next
    assert site.state.curtailments[made.id].state is CurtailmentState.SHEDDING
    for second in range(400):
        if second == 20:
            backed.take_control()
        site.step()
        found = site.state.curtailments[made.id]
        assert found.state is CurtailmentState.SHEDDING or site.true_w()["grid"] <= 90_000.0
    assert found.state is CurtailmentState.CURTAILED
    site.verdicts.assert_clean()


def test_curtailment_is_not_called_proven_below_control(backed: BackedUp) -> None:
    """An admin takes control away: the agents rise or fall by themselves, nobody looks, nobody says CURTAILED."""
    site = backed.site
    made = site.curtail(90_000.0, notice_s=5.0, duration_s=3_000.0)
    assert site.run(200, lambda: site.state.curtailments[made.id].state is CurtailmentState.CURTAILED), site.explain()
    site.commands.set_authority(site.order("hands off"), authority=Authority.ADVISE)
    assert site.state.curtailments[made.id].state is CurtailmentState.SHEDDING
    site.run(30)
    assert site.state.curtailments[made.id].state is CurtailmentState.SHEDDING
    backed.take_control()
    assert site.run(200, lambda: site.state.curtailments[made.id].state is CurtailmentState.CURTAILED), site.explain()
    site.verdicts.assert_clean()


def test_lower_authority_of_the_backup_is_not_raised(backed: BackedUp) -> None:
    """An admin had said observe before the backup."""
    backed.site.commands.set_authority(backed.site.order("hands off"), authority=Authority.OBSERVE)
    backed.back_up()
    assert backed.restore().authority is Authority.OBSERVE
    assert backed.site.state.authority is Authority.OBSERVE


def test_journal_grows_with_what_is_decided_and_not_with_time(backed: BackedUp) -> None:
    """What a backup takes: some kilobytes a flip, with its grants and proofs; nothing for an hour at rest."""
    site = backed.site

    def size_bytes() -> int:
        backed.copy.unlink(missing_ok=True)
        return copy_journal(backed.data, backed.copy, lambda what, ratio: None).size_bytes

    began, flips = size_bytes(), len(site.flips())
    for turn in range(6):
        site.market.demand = 0.0 if turn % 2 else 32.0
        site.run(150)
    grown, flips = size_bytes() - began, len(site.flips()) - flips
    assert flips >= 20
    print(f"{grown / flips:.0f} bytes a flip")
    assert grown / flips <= BYTES_PER_FLIP
    resting = site.journal.newest_revision()
    site.run(3600)
    assert site.journal.newest_revision() == resting
