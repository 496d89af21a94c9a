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
    for _ in range(2):  # what is seen once may be half written
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


def test_file_that_is_just_being_written_counts_when_it_stays_as_it_is() -> None:
    """Two looks have to see the same."""
    site = settled_site()
    before = in_force(site)
    assert site.deciding is not None
    for limit_w in (4.0, 40_000.0, 140_000.0):
        site.written.site = with_limits(site.site, grid_limit(limit_w))
        site.deciding.watch.look()
        assert in_force(site) == before
    site.deciding.watch.look()
    assert in_force(site) == {"contract": 140_000.0}


def test_file_that_changes_while_the_controller_starts_is_seen() -> None:
    """Read before storage is opened, looked at long after."""
    site = settled_site()
    before = in_force(site)
    site.kill_controller()
    site.written.read()
    site.written.site = with_limits(site.site, grid_limit(100_000.0))
    site.written.is_read_before = True
    site.start_controller()
    assert in_force(site) == before
    look(site)
    assert in_force(site) == {"contract": 100_000.0}


def test_fault_that_comes_back_is_told_again() -> None:
    """A good file in between, and the same mistake once more."""
    site = settled_site()
    for _ in range(2):
        site.written.fault = "line 3: limit_w must be a number"
        assert [each.kind for each in look(site)] == ["site_file_refused"]
        site.written.fault = ""
        assert look(site) == []


def test_file_of_another_site_is_refused() -> None:
    """The wrong one is mounted: its feeders may have our names, its limits are not ours."""
    site = settled_site()
    before = in_force(site)
    site.written.site = replace(with_limits(site.site, grid_limit(1_000.0)), name="south")
    (told,) = look(site)
    assert (told.kind, told.message) == (
        "site_file_refused",
        "it is the file of site south; this controller runs north",
    )
    assert in_force(site) == before


def test_what_only_a_start_can_take_is_named_and_limits_count_all_the_same() -> None:
    """Another price zone, another port of the program: told once, by the file's own words."""
    site = settled_site()
    site.written.site = replace(with_limits(site.site, grid_limit(150_000.0)), price_zone="other")
    site.written.besides = ("[controller]",)
    told = [each for _ in range(3) for each in look(site) if each.kind == "site_file_needs_start"]
    assert [each.message for each in told] == [
        "the site file has other price_zone, [controller] now; they count after the controller's next start."
    ]
    assert in_force(site) == {"contract": 150_000.0}


def test_limits_only_fall_while_what_they_lean_on_waits_for_a_start() -> None:
    """More watts with a larger load that is not counted yet would be over the limit; fewer never are."""
    site = settled_site()
    grid = site.site.tree.feeder("grid")
    loads = PowerTree(
        [
            replace(each, uncontrolled_max_w=grid.uncontrolled_max_w + 20_000.0) if each.name == "grid" else each
            for each in site.site.tree.feeders.values()
        ]
    )
    before = in_force(site)
    site.written.site = with_limits(replace(site.site, tree=loads), grid_limit(165_000.0))
    (told,) = look(site)
    assert told.message.endswith(
        "other feeders now; they count after the controller's next start, and with them the limits grid/contract."
    )
    assert in_force(site) == before
    site.written.site = with_limits(replace(site.site, tree=loads), grid_limit(120_000.0), grid_limit(119_000.0, "new"))
    look(site)
    assert in_force(site) == {"contract": 120_000.0, "new": 119_000.0}
    site.restart_controller()
    assert in_force(site) == {"contract": 120_000.0, "new": 119_000.0}


def test_file_that_lacks_what_runs_changes_nothing_before_a_start() -> None:
    """Cut off by a full disk it may be whole TOML: its last number is no limit."""
    site = settled_site()
    before = in_force(site)
    site.written.site = replace(with_limits(site.site, grid_limit(400.0)), banks=site.site.banks[:-1])
    (told,) = look(site)
    assert "other banks now" in told.message and "the limits grid/contract" in told.message
    assert in_force(site) == before
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
