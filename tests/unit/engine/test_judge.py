"""The virtual site's own judge and journal: they can fail, so that their silence means something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swingbus.faults import WrongState
from swingbus_controller.adapters.storage.journal import SqliteJournal
from swingbus_controller.ports.journal import JournalEntry
from tests.fakes.memory_journal import JournalFile, MemoryJournal
from tests.fakes.site import settled_site


def test_judge_sees_watts_over_the_limit_and_above_claims() -> None:
    """Machines that draw twice what is enforced are over both, second by second."""
    site = settled_site()
    for device in site.banks["edge2/asics"].devices:
        device.extra_w = 3000.0
    site.step()
    assert site.verdicts.over_cap and site.verdicts.above_claim
    with pytest.raises(AssertionError):
        site.verdicts.assert_clean()


def test_judge_sees_a_grant_that_is_not_in_the_journal() -> None:
    """An order with other watts than were journaled is found before it arrives."""
    site = settled_site()
    order = site.engine.order_for("edge1")
    assert order is not None
    forged = replace(
        order, generation=order.generation + 1, banks=tuple(replace(b, grant_w=b.grant_w + 1.0) for b in order.banks)
    )
    site.check_order(site.agents["edge1"], forged)
    assert site.verdicts.unjournaled


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_journals_keep_entries_and_fence_older_holders_alike(kind: str, tmp_path: Path) -> None:
    """The journal of the virtual site does what the real one does: rows in order, epochs that rise, older holders refused."""
    file = JournalFile()

    def open_one() -> Any:
        return MemoryJournal(file) if kind == "memory" else SqliteJournal(tmp_path / "journal.sqlite")

    entry = JournalEntry(
        kind="note",
        subject="s",
        author="a",
        reason="r",
        message="m",
        at_unix_s=1.5,
        facts={"a": "b"},
        payload={"n": [1]},
    )
    first = open_one()
    assert first.was_created
    with pytest.raises(WrongState) as early:
        first.append([entry])
    assert early.value.reason == "NO_EPOCH"
    assert first.claim_epoch("one", 4) == 5
    assert first.append([entry, entry]) == 2
    second = open_one()
    assert not second.was_created
    assert second.claim_epoch("two", 0) == 6
    with pytest.raises(WrongState) as late:
        first.append([entry])
    assert late.value.reason == "FENCED"
    assert second.append([entry]) == 3
    rows = list(second.read())
    assert [(r.revision, r.epoch) for r in rows] == [(1, 5), (2, 5), (3, 6)]
    assert rows[0].entry == entry
    assert [r.revision for r in second.read(1, 1)] == [2]
    assert second.newest_revision() == 3
    for journal in (first, second):
        close = getattr(journal, "close", None)
        if close is not None:
            close()
