"""swingctl's writes: what is sent, who is asked, what a viewer gets, what happens when the answer is lost."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from swingbus.capacity.v1alpha import capacity_pb2 as capacity
from swingbus.faults import WrongState
from swingbus.fleet.v1alpha import fleet_pb2 as fleet
from swingbus.link.v1alpha import link_pb2 as link
from swingctl.main import OK, REFUSED, UNREACHABLE, USAGE, run
from tests.fakes.site_services import NOON, at
from tests.fakes.terminal import FakeTerminal, NoonClock
from tests.integration.test_swingctl_reads import Site, authority, bundles, site

__all__ = ["authority", "bundles", "site"]  # fixtures

# Every write, with the role that it takes and facts that must arrive.
WRITES: list[tuple[str, str, str, dict[str, Any]]] = [
    (
        "curtail start --site north --limit 400kW --for 1h",
        "operator",
        "StartCurtailmentRequest",
        {"parent": "sites/north", "limit_w": 400_000.0, "duration.seconds": 3600, "feeder": ""},
    ),
    (
        "curtail start --feeder c1 --limit 90kW --for 30m --notice 10m --ramp 5m --window 15m --payment 180 --penalty 900.50",
        "operator",
        "StartCurtailmentRequest",
        {
            "feeder": "c1",
            "notice.seconds": 600,
            "ramp.seconds": 300,
            "window.seconds": 900,
            "payment_usd_per_mwh": "180",
            "penalty_usd_per_mwh": "900.50",
        },
    ),
    ("curtail end ct-6", "operator", "EndCurtailmentRequest", {"name": "sites/north/curtailments/ct-6"}),
    ("pin set edge-1/s19j --for 2h", "operator", "SetPinRequest", {"pinned": True, "duration.seconds": 7200}),
    ("pin lift edge-1/s19j", "operator", "SetPinRequest", {"pinned": False}),
    ("lockout set edge-1/s19j", "operator", "SetLockoutRequest", {"locked_out": True}),
    (
        "lockout lift edge-1/s19j --cleared-by Dana",
        "admin",
        "SetLockoutRequest",
        {"locked_out": False, "cleared_by": "Dana"},
    ),
    (
        "limit set grid 380kW",
        "admin",
        "SetFeederLimitRequest",
        {"name": "sites/north/feeders/grid", "limit_w": 380_000.0},
    ),
    ("limit clear grid", "admin", "SetFeederLimitRequest", {"name": "sites/north/feeders/grid"}),
    (
        "authority set observe",
        "admin",
        "SetAuthorityRequest",
        {"name": "sites/north", "authority": fleet.AUTHORITY_OBSERVE},
    ),
    (
        "flip request gpu-3/h100 --count 8 --from mining --to inference",
        "operator",
        "RequestFlipRequest",
        {
            "bank": "sites/north/agents/gpu-3/banks/h100",
            "device_count": 8,
            "from_mode": link.MODE_MINING,
            "to_mode": link.MODE_INFERENCE,
        },
    ),
    ("flip cancel fl-5", "operator", "CancelFlipRequest", {"name": "sites/north/flips/fl-5"}),
    (
        "reservation create acme-2 --class h100 --gpus 8 --for 30d --price 2.10 --uptime 0.999 --credit 0.99:0.1",
        "operator",
        "CreateReservationRequest",
        {
            "reservation_id": "acme-2",
            "reservation.gpu_count": 8,
            "reservation.start_time.seconds": NOON,
            "reservation.end_time.seconds": NOON + 30 * 86_400,
            "reservation.price_usd_per_gpu_h": "2.10",
        },
    ),
    ("reservation end acme-1", "operator", "EndReservationRequest", {"name": "sites/north/reservations/acme-1"}),
    ("market push power_price_usd_per_mwh 71.5", "operator", "PushSignalsRequest", {"parent": "sites/north"}),
]
LINES = [write[0] for write in WRITES]


def options(request: Any) -> Any:
    """Return what carries request id, reason and validate_only."""
    return request.options if hasattr(request, "options") else request


def fact(message: Any, path: str) -> Any:
    """Return a field by its dotted path."""
    for part in path.split("."):
        message = getattr(message, part)
    return message


@pytest.mark.parametrize(("line", "role", "kind", "facts"), WRITES, ids=LINES)
async def test_write_arrives_with_author_reason_and_a_request_id(
    site: Site, line: str, role: str, kind: str, facts: dict[str, Any]
) -> None:
    """Once, not validate-only, with the typed facts in canonical units."""
    code, screen = await site.ctl(f"{line} --yes", role=role)
    assert code == OK, screen.stderr.getvalue()
    assert screen.stdout.getvalue()
    ((author, request),) = site.fake.writes
    assert type(request).__name__ == kind
    assert author.startswith(role)
    sent = options(request)
    assert len(sent.request_id) == 36 and not sent.validate_only
    assert sent.reason == "swingctl " + " ".join(line.split()[:2])
    for path, value in facts.items():
        assert fact(request, path) == value, path


@pytest.mark.parametrize(("line", "role"), [write[:2] for write in WRITES], ids=LINES)
async def test_dry_run_is_checked_by_the_controller_and_changes_nothing(site: Site, line: str, role: str) -> None:
    """Every write offers it; it needs no --yes."""
    code, screen = await site.ctl(f"{line} --dry-run", role=role)
    assert code == OK, screen.stderr.getvalue()
    assert [options(request).validate_only for _, request in site.fake.writes] == [True]
    assert "would" in screen.stdout.getvalue()
    assert "nothing was changed" in screen.stderr.getvalue()


@pytest.mark.parametrize(("line", "role"), [write[:2] for write in WRITES], ids=LINES)
async def test_write_without_terminal_or_yes_sends_nothing(site: Site, line: str, role: str) -> None:
    """A script has to say that it means it."""
    code, screen = await site.ctl(line, role=role)
    assert code == USAGE and "--yes" in screen.stderr.getvalue()
    assert site.fake.writes == []


@pytest.mark.parametrize("line", LINES)
async def test_viewer_is_refused_every_write(site: Site, line: str) -> None:
    """Exit code 1 with the role that it takes; the servicer never hears of it."""
    code, screen = await site.ctl(f"{line} --yes")
    assert code == REFUSED
    assert "reason: ROLE_NOT_ALLOWED" in screen.stderr.getvalue()
    assert "required_role: " in screen.stderr.getvalue()
    assert site.fake.writes == []


async def test_operator_is_refused_what_takes_an_admin(site: Site) -> None:
    """Limits, authority and lifting a lockout."""
    for line, role, *_ in WRITES:
        if role == "admin":
            code, _ = await site.ctl(f"{line} --yes", role="operator")
            assert code == REFUSED, line
    assert site.fake.writes == []


async def test_terminal_shows_the_check_and_asks_before_it_writes(site: Site) -> None:
    """The preview comes from the controller; yes sends the same under another id, no sends nothing."""
    line = "curtail start --limit 400kW --for 1h"
    code, screen = await site.ctl(line, role="operator", terminal=FakeTerminal(answers=("n",)))
    assert code == REFUSED and "nothing was changed" in screen.stderr.getvalue()
    assert "40 mining to standby, 112 kW" in screen.stdout.getvalue()
    assert screen.questions == ["Start this curtailment? [y/N] "]
    assert [options(r).validate_only for _, r in site.fake.writes] == [True]
    code, screen = await site.ctl(line, role="operator", terminal=FakeTerminal(answers=("y",)))
    assert code == OK and "started ct-7" in screen.stdout.getvalue()
    checked, written = (options(r) for _, r in site.fake.writes[1:])
    assert checked.validate_only and not written.validate_only
    assert checked.request_id != written.request_id


async def test_refused_check_asks_nothing(site: Site) -> None:
    """The person is not asked to confirm what cannot happen."""
    site.fake.fail_with.append(WrongState("authority is OBSERVE", reason="AUTHORITY_TOO_LOW"))
    code, screen = await site.ctl(
        "curtail start --site north --limit 400kW --for 1h", role="operator", terminal=FakeTerminal(answers=("y",))
    )
    assert code == REFUSED and screen.questions == []
    assert "reason: AUTHORITY_TOO_LOW" in screen.stderr.getvalue()


async def test_given_reason_and_request_id_are_sent(site: Site) -> None:
    """For the record, and for a safe repeat."""
    bundle = str(site.bundles["operator"])
    argv = ["--bundle", bundle, "flip", "cancel", "fl-5", "--yes", "--reason", "customer left", "--request-id", "abc"]
    assert await run(argv, terminal=FakeTerminal(), clock=NoonClock()) == OK
    ((_, request),) = site.fake.writes
    assert (options(request).reason, options(request).request_id) == ("customer left", "abc")


async def test_lost_answer_of_a_write_names_the_id_to_repeat_with(site: Site) -> None:
    """It may have been carried out: only the id makes asking again safe."""
    site.fake.delay_s = 2.0
    code, screen = await site.ctl(
        "curtail end ct-6 --site north --yes --request-id abc --timeout 300ms", role="operator"
    )
    assert code == UNREACHABLE
    assert "--request-id abc" in screen.stderr.getvalue()


async def test_written_json_is_the_answer(site: Site) -> None:
    """Scripts get the name of what they made."""
    _, screen = await site.ctl("curtail start --limit 400kW --for 1h --yes --output json", role="operator")
    assert screen.json["curtailment"]["name"] == "sites/north/curtailments/ct-7"
    assert screen.json["curtailment"]["limit_w"] == 400_000.0


async def test_curtail_wait_returns_when_the_meter_has_proven_it(site: Site) -> None:
    """Each change of state is told, the evidence is shown."""
    task = asyncio.create_task(site.ctl("curtail start --limit 400kW --for 1h --wait --yes", role="operator"))
    await asyncio.sleep(0.3)
    order = site.fake.curtailments[0]
    order.state = "SHEDDING"
    await asyncio.sleep(0.2)
    order.state = "CURTAILED"
    order.met_time.CopyFrom(at(12))
    order.evidence.append(capacity.Evidence(group="c1", settled=True))
    async with asyncio.timeout(10):
        code, screen = await task
    assert code == OK
    assert "met" in screen.stdout.getvalue() and "c1" in screen.stdout.getvalue()
    assert "SHEDDING" in screen.stderr.getvalue()


async def test_curtail_wait_fails_when_it_ends_unmet(site: Site) -> None:
    """Exit code 1: nothing was proven."""
    task = asyncio.create_task(site.ctl("curtail start --limit 400kW --for 1h --wait --yes", role="operator"))
    await asyncio.sleep(0.3)
    site.fake.curtailments[0].state = "ENDED"
    async with asyncio.timeout(10):
        code, screen = await task
    assert code == REFUSED and "not yet, by evidence" in screen.stdout.getvalue()


@pytest.mark.parametrize(
    ("phase", "code"), [(capacity.FLIP_PHASE_ACTIVE, OK), (capacity.FLIP_PHASE_ROLLED_BACK, REFUSED)]
)
async def test_flip_wait_ends_with_the_flip(site: Site, phase: capacity.FlipPhase, code: int) -> None:
    """0 only when it is ACTIVE."""
    line = "flip request gpu-3/h100 --count 8 --from mining --to inference --wait --yes"
    task = asyncio.create_task(site.ctl(line, role="operator"))
    await asyncio.sleep(0.3)
    site.fake.flips[0].phase = phase
    async with asyncio.timeout(10):
        got, _ = await task
    assert got == code


GOOD = "signal,value,valid_time\npower_price_usd_per_mwh,71.5,2026-11-23T12:00:00Z\npower_price_usd_per_mwh,80,2026-11-23T13:00:00+01:00\n"


async def test_market_push_reads_a_csv(site: Site, tmp_path: Path) -> None:
    """Times with zones become UTC."""
    path = tmp_path / "p.csv"
    path.write_text(GOOD)
    code, _ = await site.ctl(f"market push --file {path} --yes", role="operator")
    assert code == OK
    ((_, request),) = site.fake.writes
    values: Any = request
    assert [(v.value, v.valid_time.seconds - NOON) for v in values.values] == [("71.5", 0), ("80", 0)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1 must be the header"),
        ("a,b\n", "line 1 must be the header"),
        (GOOD.replace("71.5", "cheap"), "line 2: 'cheap' is not a decimal"),
        (GOOD.replace("71.5", "nan"), "line 2: 'nan' is not a decimal"),
        (GOOD.replace("12:00:00Z", "12:00:00"), "line 2: .*no zone"),
        (GOOD.replace("2026-11-23T13:00:00+01:00", "soon"), "line 3: 'soon' is not a time"),
        (GOOD + "x,1\n", "line 4 has 2 cells"),
        (GOOD.replace("power_price_usd_per_mwh,71.5", ",71.5"), "line 2: the signal has no name"),
        ("signal,value,valid_time\n", "holds 0 values"),
    ],
)
async def test_bad_csv_names_its_line_and_sends_nothing(site: Site, tmp_path: Path, text: str, problem: str) -> None:
    """What, where, next step."""
    path = tmp_path / "p.csv"
    path.write_text(text)
    code, screen = await site.ctl(f"market push --file {path} --yes", role="operator")
    assert code == USAGE and site.fake.writes == []
    assert re.search(problem, screen.stderr.getvalue()), screen.stderr.getvalue()


@pytest.mark.parametrize(
    "line",
    [
        "curtail start --limit 400 --for 1h --yes",
        "curtail start --limit 400mW --for 1h --yes",
        "curtail start --limit 400kW --for 60 --yes",
        "curtail start --limit 400kW --yes",
        "curtail start --limit 400kW --for 1h --feeder C1 --yes",
        "authority set everything --yes",
        "flip request gpu-3/h100 --count 8 --from mining --to mars --yes",
        "reservation create acme-2 --class h100 --gpus 8 --for 1d --price free --yes",
        "reservation create acme-2 --class h100 --gpus 8 --for 1d --price 2 --uptime 99.9 --yes",
        "reservation create acme-2 --class h100 --gpus 8 --price 2 --yes",
        "site list --endpoint http://x",
        "nonsense",
        "",
    ],
)
async def test_bad_argument_is_a_usage_error_before_anything_is_sent(site: Site, line: str) -> None:
    """Found by the parser: exit code 2."""
    code, _ = await site.ctl(line, role="operator")
    assert code == USAGE
    assert site.fake.writes == []


async def test_reservation_that_ends_before_it_starts_is_a_usage_error(site: Site) -> None:
    """Checked here, where the times were typed."""
    line = "reservation create a-1 --class h100 --gpus 8 --end 2020-01-01T00:00:00Z --price 2 --yes"
    code, screen = await site.ctl(line, role="operator")
    assert code == USAGE and "before it starts" in screen.stderr.getvalue()
