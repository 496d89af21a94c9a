"""The site file changes while the site runs: limits count at once and are on the record, all else waits for a start and is told."""

from __future__ import annotations

from dataclasses import replace

from swingbus_controller.domain.power.limits import Limit
from swingbus_controller.domain.power.tree import PowerTree
from swingbus_controller.domain.site.sitefile import SiteFile
from swingbus_controller.ports.journal import JournalEntry
from tests.fakes.site import TrueLimit, VirtualSite, settled_site


def with_limits(site: SiteFile, *limits: Limit) -> SiteFile:
    """Return the site with other limits of its grid."""
    feeders = [
        replace(each, limits=limits) if each.name == site.tree.root else each for each in site.tree.feeders.values()
    ]
    return replace(site, tree=PowerTree(feeders))


def grid_limit(limit_w: float, name: str = "contract", source: str = "contract 2027") -> Limit:
    """Return a limit as a file declares it."""
    return Limit(name=name, limit_w=limit_w, source=source)


def look(site: VirtualSite) -> list[JournalEntry]:
    """Let the controller look at its file; return what that put on the record."""
    assert site.deciding is not None
    before = site.journal.newest_revision()
    site.deciding.watch.look()
    return recorded(site, before)


def recorded(site: VirtualSite, after_revision: int) -> list[JournalEntry]:
    """Return what is on the record since."""
    return [each.entry for each in site.journal.read(after_revision)]


def in_force(site: VirtualSite) -> dict[str, float]:
    """Return the limits of the grid as the ledger has them."""
    return {limit.name: limit.limit_w for limit in site.state.ledger.limits("grid")}


def test_lower_limit_is_journaled_and_obeyed() -> None:
    """Watts that truly flow are below it within seconds; the record says where it came from."""
    site = settled_site()
    drawn_w = site.true_w()["grid"]
    lower_w = drawn_w * 0.8
    site.written.site = with_limits(site.site, grid_limit(lower_w))
    entries = look(site)
    kinds = {(each.kind, each.author, each.subject) for each in entries}
    assert ("limit_set", "site file", "sites/north/feeders/grid") in kinds, kinds
    site.limits.append(TrueLimit("grid", lower_w, site.clock.s + 15.0, 1e18))
    assert site.run(30, lambda: site.true_w()["grid"] <= lower_w), site.explain()
    site.run(30)
    site.verdicts.assert_clean()
    assert look(site) == []


def test_higher_limit_is_used() -> None:
    """What may be drawn more is drawn."""
    site = settled_site()
    site.written.site = with_limits(site.site, grid_limit(site.true_w()["grid"] * 0.8))
    look(site)
    site.run(60)
    less_w = site.true_w()["grid"]
    site.written.site = site.site
    look(site)
    assert site.run(200, lambda: site.true_w()["grid"] > less_w * 1.1), site.explain()
    site.verdicts.assert_clean()


def test_file_with_a_fault_changes_nothing_and_is_told_once() -> None:
    """Half written, or wrong: what runs goes on; the next good one counts."""
    site = settled_site()
    before = in_force(site)
    site.written.fault = "line 3: limit_w must be a number"
    told = [each for _ in range(3) for each in look(site)]
    assert [(each.kind, each.message) for each in told] == [("site_file_refused", "line 3: limit_w must be a number")]
    assert in_force(site) == before
    site.written.fault = ""
    site.written.site = with_limits(site.site, grid_limit(100_000.0))
    look(site)
    assert in_force(site) == {"contract": 100_000.0}


def test_what_only_a_start_can_take_is_named_and_limits_count_all_the_same() -> None:
    """A bank less, another tariff, another port of the program: told once, by the file's own words."""
    site = settled_site()
    changed = replace(with_limits(site.site, grid_limit(100_000.0)), banks=site.site.banks[:-1], price_zone="other")
    site.written.site, site.written.besides = changed, ("[controller]",)
    told = [each for _ in range(3) for each in look(site) if each.kind == "site_file_needs_start"]
    assert len(told) == 1
    assert "other banks, price_zone, [controller] now" in told[0].message
    assert in_force(site) == {"contract": 100_000.0}
    assert len(site.state.site.banks) == len(site.site.banks)


def test_limit_that_is_no_more_in_the_file_is_taken_away_and_others_stay() -> None:
    """An operator's limit and a curtailment are nobody's file's; the file's own go with it."""
    site = settled_site()
    site.commands.set_feeder_limit(site.order("hand"), feeder="grid", limit_w=110_000.0)
    site.curtail(90_000.0, notice_s=600.0, duration_s=600.0, id="later")
    others = set(in_force(site)) - {"contract"}
    site.written.site = with_limits(site.site, grid_limit(120_000.0), grid_limit(115_000.0, "season"))
    look(site)
    assert set(in_force(site)) == {"contract", "season", *others}
    site.written.site = with_limits(site.site, grid_limit(120_000.0))
    (entry,) = look(site)
    assert entry.kind == "limit_removed"
    assert set(in_force(site)) == {"contract", *others}


def test_after_a_restart_the_file_counts_and_not_what_the_journal_knows_of_older_ones() -> None:
    """Changed while it runs, changed again while it is down: the newest file is the limit, and that is on the record too."""
    site = settled_site()
    site.written.site = with_limits(site.site, grid_limit(100_000.0), grid_limit(99_000.0, "season"))
    look(site)
    site.kill_controller()
    site.written.site = with_limits(site.site, grid_limit(105_000.0))
    site.start_controller()
    assert in_force(site) == {"contract": 105_000.0}
    before = site.journal.newest_revision()
    site.restart_controller()
    assert not [each for each in recorded(site, before) if each.kind.startswith("limit_")]
