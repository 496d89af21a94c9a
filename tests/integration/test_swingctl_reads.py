"""swingctl against a real server of fake servicers: what it prints, as tables and JSON."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from swingbus.bundle import Bundle, format_bundle, write_private
from swingbus.faults import OverBudget, Unreachable
from swingbus.fleet.v1alpha import fleet_pb2 as fleet
from swingbus.rpc.roles import Role
from swingbus_controller.adapters.pki import CertificateAuthority
from swingctl.main import OK, REFUSED, UNREACHABLE, USAGE, run
from tests.fakes.authority import issue, make_authority, serving
from tests.fakes.site_services import FakeSite, at, north
from tests.fakes.terminal import FakeTerminal, NoonClock

GOLDEN = Path(__file__).parent.parent / "golden" / "swingctl"


@dataclass
class Site:
    """A running fake site and a way to type at it."""

    fake: FakeSite
    bundles: dict[str, Path]

    async def ctl(
        self, line: str, *, role: str = "viewer", terminal: FakeTerminal | None = None
    ) -> tuple[int, FakeTerminal]:
        """Run one command line; return its exit code and what it printed."""
        screen = terminal or FakeTerminal()
        code = await run(["--bundle", str(self.bundles[role]), *line.split()], terminal=screen, clock=NoonClock())
        return code, screen


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Make one CA for the module."""
    return make_authority(tmp_path_factory.mktemp("pki") / "site")


@pytest.fixture(scope="module")
def bundles(authority: CertificateAuthority) -> dict[str, Bundle]:
    """Issue one bundle per role of people."""
    return {str(role): issue(authority, f"{role}-1", role, 1) for role in (Role.VIEWER, Role.OPERATOR, Role.ADMIN)}


@pytest.fixture
async def site(authority: CertificateAuthority, bundles: dict[str, Bundle], tmp_path: Path) -> AsyncIterator[Site]:
    """Run the fake site."""
    fake = north()
    async with serving(authority, fake.register) as port:
        paths = {}
        for role, bundle in bundles.items():
            paths[role] = tmp_path / f"{role}.toml"
            write_private(paths[role], format_bundle(replace(bundle, endpoint=f"127.0.0.1:{port}")))
        yield Site(fake, paths)


READS = {
    "site-list": "site list",
    "site-show": "site show",
    "site-check": "site check",
    "feeder-list": "feeder list",
    "feeder-show": "feeder show grid",
    "feeder-intervals": "feeder intervals grid",
    "agent-list": "agent list",
    "agent-show": "agent show edge-1",
    "bank-list": "bank list",
    "bank-show": "bank show edge-1/s19j",
    "device-list": "device list",
    "device-show": "device show edge-1/s19j/m07",
    "events-list": "events list",
    "curtail-list": "curtail list",
    "curtail-show": "curtail show ct-6",
    "pin-list": "pin list",
    "lockout-list": "lockout list",
    "authority-show": "authority show",
    "limit-list": "limit list",
    "plan-show": "plan show",
    "plan-explain": "plan explain edge-1/s19j",
    "plan-why-not": "plan why-not edge-1/s19j inference",
    "flip-list": "flip list",
    "flip-show": "flip show fl-5",
    "market-list": "market list",
    "reservation-list": "reservation list",
}


def compare(name: str, text: str) -> None:
    """Compare with a golden file; UPDATE_GOLDEN=1 writes it instead."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} changed: look, then UPDATE_GOLDEN=1"


@pytest.mark.parametrize("name", sorted(READS))
async def test_table_is_as_it_was_and_fits_100_columns(site: Site, name: str) -> None:
    """People read these; a change is looked at before it is taken."""
    code, screen = await site.ctl(READS[name], terminal=FakeTerminal(width=100))
    assert (code, screen.stderr.getvalue()) == (OK, "")
    text = screen.stdout.getvalue()
    assert all(len(line) <= 100 for line in text.splitlines() if not line.startswith("(too narrow"))
    compare(f"{name}.txt", text)


@pytest.mark.parametrize("name", sorted(READS))
async def test_json_is_as_it_was(site: Site, name: str) -> None:
    """Scripts rely on these: a changed key is a broken script."""
    code, screen = await site.ctl(f"{READS[name]} --output json")
    assert (code, screen.stderr.getvalue()) == (OK, "")
    assert isinstance(screen.json, dict) and "next_page_token" not in screen.json
    compare(f"{name}.json", screen.stdout.getvalue())


@pytest.mark.parametrize("name", sorted(READS))
async def test_narrow_terminal_never_breaks_a_line(site: Site, name: str) -> None:
    """Also at 72 columns every line of a table fits."""
    _, screen = await site.ctl(READS[name], terminal=FakeTerminal(width=72))
    assert all(
        len(line) <= 72
        for line in screen.stdout.getvalue().splitlines()
        if not line.startswith(("(too", "evidence", "one more", "  power"))
    )


async def test_global_options_count_before_and_after_the_verb(site: Site) -> None:
    """A sub-parser's default must not undo what was typed before it."""
    before = await site.ctl("--output json site list")
    after = await site.ctl("site list --output json")
    assert before[1].json == after[1].json


async def test_check_names_what_is_not_as_it_should_be(site: Site) -> None:
    """A bank whose place has no reason: it is named, and a program that asks sees it at the exit code."""
    site.fake.banks[0].explanation = ""
    code, screen = await site.ctl("site check")
    assert code == REFUSED
    (line,) = [line for line in screen.stdout.getvalue().splitlines() if " NO " in line]
    assert line.split() == ["edge-1/s19j", "NO", "no", "reason", "is", "given"]
    code, screen = await site.ctl("site check --output json")
    assert [each["asked"] for each in screen.json["checks"] if not each["is_good"]] == [site.fake.banks[0].name]
    assert code == REFUSED


async def test_every_page_is_fetched(site: Site) -> None:
    """A list is whole, however many pages the controller makes of it."""
    bank = "sites/north/agents/edge-1/banks/s19j"
    del site.fake.devices[:]
    site.fake.devices.extend(fleet.Device(name=f"{bank}/devices/m{n:04}") for n in range(1203))
    _, screen = await site.ctl("device list --bank edge-1/s19j --output json")
    names = [device["name"] for device in screen.json["devices"]]
    assert len(names) == len(set(names)) == 1203


async def test_events_list_shows_the_newest_in_order(site: Site) -> None:
    """Newest last, as in any log; filters reach the server."""
    _, screen = await site.ctl("events list --limit 2 --output json")
    assert [event["revision"] for event in screen.json["events"]] == [4, 5]
    _, screen = await site.ctl("events list --after 2 --kind flip_active --output json")
    assert [event["revision"] for event in screen.json["events"]] == [3, 5]


async def test_events_watch_follows_and_outlasts_a_lost_connection(site: Site) -> None:
    """New events come as lines; the stream goes on where it broke, nothing twice, nothing missing."""
    terminal = FakeTerminal()
    task = asyncio.create_task(site.ctl("events watch --count 3 --after 5", terminal=terminal))
    for revision in (6, 7, 8):
        await asyncio.sleep(0.1)
        site.fake.events.append(
            fleet.Event(
                revision=revision,
                event_time=at(revision),
                kind="device_self_woke",
                subject="sites/north",
                author="controller",
            )
        )
        if revision == 6:
            await asyncio.sleep(0.1)
            site.fake.fail_with.append(Unreachable("going down"))
    async with asyncio.timeout(10):
        code, _ = await task
    assert code == OK
    revisions = [line.split()[1] for line in terminal.stdout.getvalue().splitlines()]
    assert revisions == ["6", "7", "8"]
    assert "trying again" in terminal.stderr.getvalue()


async def test_events_watch_goes_on_from_the_oldest_kept_after_compaction(site: Site) -> None:
    """HISTORY_COMPACTED is told and survived; what is still kept is shown."""
    site.fake.oldest_kept_revision = 4
    terminal = FakeTerminal()
    task = asyncio.create_task(site.ctl("events watch --count 2 --after 1", terminal=terminal))
    await asyncio.sleep(0.2)
    site.fake.events.append(fleet.Event(revision=6, kind="x"))
    async with asyncio.timeout(20):
        await task
    assert [line.split()[1] for line in terminal.stdout.getvalue().splitlines()] == ["5", "6"]
    assert "up to revision 4 are no longer kept" in terminal.stderr.getvalue()


async def test_watch_redraws_the_site_and_shows_what_is_lost(site: Site) -> None:
    """One screen with everything; after a loss the old screen stays, marked."""
    terminal = FakeTerminal(width=120)
    code, _ = await site.ctl("watch --count 1", terminal=terminal)
    assert code == OK
    screen = terminal.stdout.getvalue()
    for word in ("sites/north", "grid", "edge-1/s19j", "fl-5", "ct-6", "event number 5"):
        assert word in screen
    compare("watch.txt", screen)
    # The site is named, so that the first call of the run is the screen's own.
    site.fake.fail_with.extend([Unreachable("gone")])
    terminal = FakeTerminal(width=120)
    await site.ctl("watch --count 2 --site north --interval 200ms", terminal=terminal)
    first, second = terminal.stdout.getvalue().split("\x1b[H\x1b[J")[1:]
    assert first.startswith("NOT CURRENT") and second.startswith("sites/north")


async def test_watch_without_a_terminal_prints_event_lines(site: Site) -> None:
    """A pipe gets lines, not screens."""
    terminal = FakeTerminal()
    task = asyncio.create_task(site.ctl("watch --count 1", terminal=terminal))
    await asyncio.sleep(0.2)
    site.fake.events.append(
        fleet.Event(revision=6, kind="agent_connected", subject="sites/north/agents/edge-1", author="controller")
    )
    async with asyncio.timeout(10):
        await task
    assert terminal.stdout.getvalue().count("\n") == 1 and "agent_connected  edge-1" in terminal.stdout.getvalue()


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("bank show edge-1/none", REFUSED, ("refused: there is no", "reason: NOT_FOUND", "next: ")),
        ("bank show s19j", USAGE, ("usage:", "AGENT/BANK")),
        ("bank show Edge-1/s19j", USAGE, ("try 'edge-1'", "next: swingctl bank --help")),
        ("bank show sites/north/agents/edge-1", USAGE, ("banks/{bank}",)),
        ("site show --site south", REFUSED, ("NOT_FOUND",)),
        ("site list --endpoint 127.0.0.1:1", UNREACHABLE, ("unreachable:", "127.0.0.1:1", "is the controller running")),
    ],
)
async def test_error_says_what_where_and_the_next_step(
    site: Site, line: str, code: int, words: tuple[str, ...]
) -> None:
    """And only on standard error, with its exit code."""
    got, screen = await site.ctl(line)
    assert (got, screen.stdout.getvalue()) == (code, "")
    assert all(word in screen.stderr.getvalue() for word in words), screen.stderr.getvalue()


async def test_error_as_json_is_machine_readable(site: Site) -> None:
    """With the same facts."""
    site.fake.fail_with.append(OverBudget("queue full", metadata={"retry_after_s": "2"}))
    code, screen = await site.ctl("site list --output json")
    assert code == REFUSED and screen.stdout.getvalue() == ""
    assert '"reason": "OVER_BUDGET"' in screen.stderr.getvalue()
    assert "try again in 2 s" in screen.stderr.getvalue()


async def test_slow_answer_is_waited_for_aloud_and_times_out_as_unreachable(site: Site) -> None:
    """Progress after two seconds; exit code 3 when there is no answer."""
    site.fake.delay_s = 2.4
    code, screen = await site.ctl("site list --timeout 10s")
    assert code == OK and "waiting for 127.0.0.1" in screen.stderr.getvalue()
    site.fake.delay_s = 5.0
    code, screen = await site.ctl("site list --timeout 200ms")
    assert code == UNREACHABLE and "did not answer in time" in screen.stderr.getvalue()


async def test_several_sites_ask_which_one(site: Site) -> None:
    """Guessing would be worse than asking."""
    site.fake.sites.append(fleet.Site(name="sites/south"))
    code, screen = await site.ctl("bank list")
    assert code == USAGE and "--site" in screen.stderr.getvalue() and "north, south" in screen.stderr.getvalue()
    code, _ = await site.ctl("bank list --site north")
    assert code == OK


async def test_empty_site_says_so(site: Site) -> None:
    """An empty table is no answer."""
    del site.fake.flips[:]
    _, screen = await site.ctl("flip list --open")
    assert screen.stdout.getvalue() == "no open flips\n"


async def test_bundle_show_and_export(site: Site, tmp_path: Path) -> None:
    """For grpcurl and others; the key stays private."""
    code, screen = await site.ctl("bundle show --output json")
    assert code == OK and screen.json["bundle"]["role"] == "viewer"
    code, _ = await site.ctl(f"bundle export {tmp_path / 'pem'}")
    assert code == OK
    assert sorted(p.name for p in (tmp_path / "pem").iterdir()) == ["ca.pem", "certificate.pem", "key.pem"]
    assert (tmp_path / "pem" / "key.pem").stat().st_mode & 0o777 == 0o600
