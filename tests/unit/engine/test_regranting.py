"""A site whose agents all lapsed at once: they get their grants back in one record, or one by one where a ramp is to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from swingbus_controller.app import adopting
from swingbus_controller.domain.power.budget import Ledger
from swingbus_controller.domain.power.budget_events import GrantIssued, GrantKind
from swingbus_controller.ports.journal import JournalEntry
from tests.fakes.site import VirtualSite, settled_site
from tests.fakes.site_files import make_site

RAMP = """
[protocol.ramp_rate_w_per_s]
value = 160
why = "a weak grid"
"""


def lapse_all(site: VirtualSite) -> list[tuple[float, list[JournalEntry]]]:
    """Let every agent lapse and come back; return grants as they are recorded from then on, one list per record, with its time."""
    records: list[tuple[float, list[JournalEntry]]] = []
    append = site.journal.append

    def note(entries: Sequence[JournalEntry]) -> int:
        if grants := [entry for entry in entries if entry.kind == "grant_issued"]:
            records.append((site.clock.s, grants))
        revision: int = append(entries)
        return revision

    for agent in site.agents.values():
        agent.is_linked = False
    assert site.run(200, lambda: all(site.agents[b.site.agent].is_lapsed(b) for b in site.banks.values()))
    site.journal.append = note
    for agent in site.agents.values():
        agent.is_linked = True
    return records


def test_agents_that_lapsed_together_are_granted_anew_in_one_record() -> None:
    """Each record waits for the disk: a thousand of them would keep the site from everything else."""
    site = settled_site()
    records = lapse_all(site)
    site.run(10)
    assert sum(len(grants) for _, grants in records) >= len(site.banks), site.explain()
    assert max(len(grants) for _, grants in records) >= 3, records
    assert not any(site.agents[bank.site.agent].is_lapsed(bank) for bank in site.banks.values()), site.explain()
    site.verdicts.assert_clean()


@pytest.mark.parametrize(("protocol", "record_count"), [("", 1), (RAMP, 4)])
def test_grant_that_spends_the_ramp_is_recorded_before_the_next_is_asked_for(
    protocol: str, record_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a ramp no grant says anything of another's; with one, the next must see what is left."""
    site = settled_site(make_site(protocol=protocol, asics=2), mining=2)
    seen: list[int] = []

    def restore(ledger: Ledger, bank: str, now_s: float) -> GrantIssued:
        newest = ledger.newest_grant(bank)
        assert newest is not None
        seen.append(site.journal.newest_revision())
        return replace(newest, generation=newest.generation + 1, kind=GrantKind.REGRANT, ramp_w=10.0, at_s=now_s)

    monkeypatch.setattr(adopting, "decide_regrant", restore)
    records = lapse_all(site)
    assert site.run(10, lambda: bool(records)), site.explain()
    assert sum(len(grants) for _, grants in records) == 4
    assert len(records) == record_count
    assert len(set(seen)) == record_count
