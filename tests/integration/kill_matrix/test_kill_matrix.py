"""Kill and stop controller and agents at each phase of a flip and of a curtailment; restart both on old, lost and torn records.

One real site (controller, three agents, simulator, judge: processes, mutual TLS, SQLite) goes through the cases one after the other.
By default a reduced matrix runs (each phase with a killed controller, each other fault in at least one phase, both curtailment phases,
every kind of bad record); `--full-matrix` runs every phase with every fault. Each case leaves the site at rest or the cases behind it
fail too: that is meant. What each case hit and how it ended is printed at the end (`-s`, without workers).

DRAINING is over in the round in which it begins (workloads under the agent drain inside their own stop grace): a controller is killed
there by ending the journal at that entry; an agent struck there is struck while its tenant leaves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from swingbus.fleet.v1alpha import fleet_pb2
from swingbus_sim.control import ask
from tests.integration.kill_matrix.files import ASICS, GPUS, TTL_S
from tests.integration.kill_matrix.running import CONTROLLER, OVER, Ending, TinySite, phase_of

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("kill_matrix"),
    pytest.mark.e2e,
    pytest.mark.slow,
]

MINERS = 4
BOUND_S = 60.0
CURTAILED_TO_W = 18_500.0
LOWERED_TO_W = 20_000.0
NOTICE_S, CURTAILED_FOR_S = 2.0, 26.0
# Longer than three missed reports: the agent's banks are DARK meanwhile.
SHORT_STOP_S, LONG_STOP_S = 4.0, TTL_S + 2.0
TENANTS = {"mining": ["mining"], "inference": ["inference"], "standby": []}


@dataclass(frozen=True, slots=True)
class Case:
    """One phase and what happens in it."""

    phase: str
    fault: str
    origin: str = "mining"
    aim: str = "inference"
    is_default: bool = False

    @property
    def name(self) -> str:
        """Return the case's name."""
        return f"{self.fault}-in-{self.phase}-{self.origin}-to-{self.aim}"


def _flip_cases() -> Iterator[Case]:
    """Yield the matrix; a flip from work to work does not settle, so SETTLING is that of a flip to rest."""
    yield Case("planned", "controller-killed", is_default=True)
    yield Case("settling", "controller-killed", "inference", "standby", is_default=True)
    yield Case("draining", "controller-killed", is_default=True)
    yield Case("released", "controller-killed", "inference", "mining", is_default=True)
    yield Case("starting", "controller-killed", is_default=True)
    yield Case("verifying", "controller-killed", "inference", "mining", is_default=True)
    yield Case("verifying", "controller-killed")
    yield Case("released", "controller-killed")
    yield Case("starting", "agent-killed", is_default=True)
    yield Case("released", "agent-killed", "inference", "mining", is_default=True)
    yield Case("verifying", "agent-killed", is_default=True)
    yield Case("settling", "agent-killed", "inference", "standby")
    yield Case("planned", "agent-killed")
    yield Case("draining", "agent-killed", "inference", "mining")
    yield Case("released", "agent-killed")
    yield Case("starting", "agent-stopped", "inference", "mining", is_default=True)
    yield Case("starting", "agent-stopped")
    yield Case("settling", "agent-stopped", "inference", "standby")
    yield Case("planned", "agent-stopped")
    yield Case("verifying", "agent-stopped", "inference", "mining")
    yield Case("draining", "agent-stopped")
    yield Case("released", "agent-stopped", "inference", "mining")
    yield Case("released", "agent-stopped-for-longer-than-its-grant")
    yield Case("starting", "agent-stopped-for-longer-than-its-grant", "inference", "mining")
    yield Case("starting", "controller-stopped")
    yield Case("settling", "controller-stopped", "inference", "standby")
    yield Case("planned", "controller-stopped")
    yield Case("draining", "controller-stopped", "inference", "mining")
    yield Case("released", "controller-stopped")
    yield Case("verifying", "controller-stopped", "inference", "mining", is_default=True)


@dataclass(frozen=True, slots=True)
class CurtailmentCase:
    """What happens when the first shed is ordered, and what once the proof is there; "" for nothing."""

    in_shedding: str
    in_curtailed: str
    is_default: bool = False

    @property
    def name(self) -> str:
        """Return the case's name."""
        told = (("shedding", self.in_shedding), ("curtailed", self.in_curtailed))
        return "-and-".join(f"{fault}-in-{phase}" for phase, fault in told if fault)


CURTAILMENTS = (
    CurtailmentCase("controller-killed", "miners-agent-killed", is_default=True),
    CurtailmentCase("miners-agent-killed", "controller-killed", is_default=True),
    CurtailmentCase("miners-agent-stopped", "controller-stopped"),
    CurtailmentCase("controller-stopped", "miners-agent-stopped"),
)


def _chosen(cases: Any) -> list[Any]:
    return [
        pytest.param(case, id=case.name, marks=() if case.is_default else pytest.mark.full_matrix) for case in cases
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TinySite]:
    """Yield the running site, GPUs mining and four miners at work."""
    running = TinySite(tmp_path_factory.mktemp("km"))
    try:
        await running.start()
        await running.bring_gpus_to("mining")
        yield running
    finally:
        for ending in running.endings:
            print(f"  {ending.case:70} {ending.hit:10} {ending.outcome:30} {ending.seconds:5.1f} s")
        await running.aclose()


def strike(site: TinySite, fault: str, agent: str) -> str:
    """Do what a fault's name says, at once; return who was struck."""
    who = CONTROLLER if fault.startswith("controller") else agent
    if fault.endswith("killed"):
        site.kill(who)
    else:
        site.stop(who)
    return who


async def mend(site: TinySite, fault: str, who: str) -> None:
    """Let the struck one be away for as long as its fault says; return when it runs again."""
    if fault.endswith("killed"):
        await asyncio.sleep(0.5)
        if who == CONTROLLER:
            site.start_controller()
        else:
            await site.restart_agents(who)
        return
    is_long = who == CONTROLLER or fault.endswith("grant")
    await asyncio.sleep(LONG_STOP_S if is_long else SHORT_STOP_S)
    site.go_on(who)


async def recovered(site: TinySite, mode: str) -> str:
    """Check that truth and record agree: who works on the GPUs and how many miners mine; return what was lost of the miners' work.

    A bank whose grant ran out meanwhile has fallen to its safe share and may stay there: nobody buys its work back without a market.
    """
    deadline_s = time.monotonic() + 20.0
    while True:
        so = (site.tenants(), await site.mode(), await site.mining_count())
        told = dict((await site.eyes.banks())[ASICS].mode_counts).get("MINING", 0)
        if so == (TENANTS[mode], mode, told):
            break
        assert time.monotonic() < deadline_s, f"tenants, controller's mode, miners at work: {so}, not {mode}, {told}"
        await asyncio.sleep(0.2)
    site.check_bounds()
    return "" if told == MINERS else f", {told} of {MINERS} miners left at work"


@pytest.mark.parametrize("case", _chosen(_flip_cases()))
async def test_flip_that_is_struck_ends_and_leaves_one_tenant(site: TinySite, case: Case) -> None:
    """Struck in a phase, the flip is ACTIVE, ROLLED_BACK or FAILED within a minute, and truth is what the record says."""
    await site.bring_miners_to(MINERS)
    await site.bring_gpus_to(case.origin)
    if case.phase == "planned":  # no watts for the growth: it waits in PLANNED until there are
        here = await site.eyes.feeder("pdu1")
        await site.eyes.set_limit(
            "pdu1", here.claimed_power_w + here.uncontrolled_power_w + here.margin_power_w + 200.0
        )
    began_s = time.monotonic()
    flip = await site.eyes.request_flip(GPUS, case.origin, case.aim, 8)
    await site.eyes.wait_event(f"flip_{case.phase}", f"flips/{flip}", 30.0)
    who = strike(site, case.fault, "gpu")
    working = site.working()
    if case.phase == "draining" and case.fault == "controller-killed":
        # DRAINING is over in the same round: end the record there, as a kill between its two commits would.
        revision, gone = site.cut_journal_after("flip_draining", flip)
        assert set(gone) <= {"flip_released", "request_answered"}, gone
        site.eyes.rewind(revision)
    hit = site.journaled_phase(flip)
    await mend(site, case.fault, who)
    if case.phase == "planned":
        await site.eyes.set_limit("pdu1", None)
    await site.calm(BOUND_S)
    seconds = time.monotonic() - began_s
    over = {f.name.rpartition("/")[2]: phase_of(f) for f in await site.eyes.flips()}
    assert set(over.values()) <= OVER
    lost = await recovered(site, {"ACTIVE": case.aim, "ROLLED_BACK": case.origin}.get(over[flip], "standby"))
    site.endings.append(Ending(case=case.name, hit=hit, outcome=over[flip] + lost, seconds=seconds))
    if case.phase == "verifying" and over[flip] == "ACTIVE" and case.fault != "controller-stopped":
        assert site.working() == working, "the tenant that was already at work was started anew"


@pytest.mark.parametrize("case", _chosen(CURTAILMENTS))
async def test_curtailment_that_is_struck_is_met_and_ends(site: TinySite, case: CurtailmentCase) -> None:
    """Struck while it sheds and while it is proven: true watts come below the limit, the proof is given, the end is told."""
    await site.bring_gpus_to("inference")
    await site.bring_miners_to(MINERS)
    began_s = time.monotonic()
    name = await site.eyes.curtail(CURTAILED_TO_W, notice_s=NOTICE_S, duration_s=CURTAILED_FOR_S)
    event = {"kind": "limit", "label": case.name, "targets": ["grid"], "limit_w": CURTAILED_TO_W}
    event |= {"notice_s": NOTICE_S, "ramp_s": 0.0, "for_s": CURTAILED_FOR_S}
    await ask(site.folder / "sim", {"do": "inject", "event": event})
    subject = name.rpartition("/")[2]
    await site.eyes.wait_event("curtailment_shedding", subject, 15.0)
    await mend(site, case.in_shedding, strike(site, case.in_shedding, "edge"))
    await site.eyes.wait_event("curtailment_curtailed", subject, CURTAILED_FOR_S + 5.0)
    met_s = time.monotonic() - began_s - NOTICE_S
    assert await site.true_w() <= CURTAILED_TO_W
    await mend(site, case.in_curtailed, strike(site, case.in_curtailed, "edge"))
    await site.eyes.wait_event("curtailment_ended", subject, CURTAILED_FOR_S + 30.0)
    found = await site.eyes.curtailment(name)
    assert found.state == "ENDED" and found.HasField("met_time")
    site.endings.append(Ending(case=case.name, hit="", outcome=f"proven {met_s:.0f} s after notice", seconds=met_s))
    await site.bring_miners_to(MINERS)
    await site.bring_gpus_to("inference")
    await recovered(site, "inference")


@asynccontextmanager
async def nothing_rises(site: TinySite) -> AsyncIterator[None]:
    """Check that meanwhile no sleeping machine wakes and that the GPUs' tenant stays the process that it was."""
    sleeping = (await site.truth())["states"].get("S", 0)
    working = site.working()
    seen: list[tuple[int, tuple[int, ...]]] = []
    done = asyncio.Event()

    async def look() -> None:
        while not done.is_set():
            seen.append(((await site.truth())["states"].get("S", 0), site.working()))
            await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as group:
        group.create_task(look())
        try:
            yield
        finally:
            done.set()
    assert min(count for count, _ in seen) >= sleeping, "a sleeping machine woke"
    assert {now for _, now in seen} == {working}, f"the tenant {working} did not work on undisturbed"


@contextmanager
def timed(site: TinySite, case: str, outcome: str) -> Iterator[None]:
    """Note how long a case took to recover."""
    began_s = time.monotonic()
    yield
    site.endings.append(Ending(case=case, hit="", outcome=outcome, seconds=time.monotonic() - began_s))


async def test_controller_with_a_lost_journal_refuses_then_adopts_what_it_finds(site: TinySite) -> None:
    """Without the person's word it does not start; with it every bank counts at its ceiling until settled, and nothing moves."""
    await site.bring_gpus_to("inference")
    await site.bring_miners_to(MINERS)
    with timed(site, "controller-with-lost-journal", "refused, then adopted"):
        async with nothing_rises(site):
            site.kill(CONTROLLER)
            site.remove_journal()
            site.start_controller()
            status, words = await site.wait_exit(CONTROLLER, 20.0)
            assert status == 1 and "JOURNAL_MISSING" in words and "--adopt-empty" in words, words
            site.eyes.rewind(0)
            site.start_controller(adopt_empty=True)
            await site.calm(BOUND_S)
    await recovered(site, "inference")


async def test_controller_with_a_torn_journal_refuses_then_adopts_what_it_finds(site: TinySite) -> None:
    """The same for a file that is cut in half: it is set aside, never deleted."""
    with timed(site, "controller-with-torn-journal", "refused, then adopted"):
        async with nothing_rises(site):
            site.kill(CONTROLLER)
            site.tear_journal()
            site.start_controller()
            status, words = await site.wait_exit(CONTROLLER, 20.0)
            assert status == 1 and "DATABASE_DAMAGED" in words and "--adopt-empty" in words, words
            site.eyes.rewind(0)
            site.start_controller(adopt_empty=True)
            await site.calm(BOUND_S)
    assert list(site.journal.parent.glob("journal.sqlite.damaged-*"))
    await recovered(site, "inference")


async def test_controller_with_an_old_journal_is_found_out_and_comes_to_rest(site: TinySite, tmp_path: Path) -> None:
    """A copy from before the last flip: agents show newer grants than it knows, so it counts ceilings, then what is there."""
    await site.bring_gpus_to("mining")
    old = tmp_path / "journal.sqlite"
    revision = site.copy_journal(old)
    await site.bring_gpus_to("inference")
    with timed(site, "controller-with-old-journal", "doubted, adopted"):
        async with nothing_rises(site):
            site.kill(CONTROLLER)
            site.restore_journal(old)
            site.eyes.rewind(revision)
            site.start_controller()
            await site.calm(BOUND_S)
    assert any(e.kind == "journal_doubted" for e in site.eyes.events)
    await recovered(site, await site.mode())


async def test_controller_on_a_backup_waits_for_a_person_and_breaks_nothing(site: TinySite, tmp_path: Path) -> None:
    """Flips, grants and a lower limit came after the backup: it writes nothing until they are set again, then all obey it."""
    await site.bring_miners_to(MINERS)
    await site.bring_gpus_to("mining")
    backup = tmp_path / "journal.backup"
    revision = site.back_up(backup)
    await site.bring_gpus_to("inference")
    await site.eyes.set_limit("grid", LOWERED_TO_W)
    await site.calm(BOUND_S)
    site.kill(CONTROLLER)
    killed_s = time.monotonic()
    said = site.restore(backup)
    assert "limit_set feeders/grid by chief" in said and "authority is advise" in said
    site.eyes.rewind(revision)
    site.start_controller()
    restored_unix_s = time.time()
    # Grants run out: the agents are at their safe share, and nothing that was asleep woke.
    most = (await site.mining_count(), len(site.tenants()))
    while time.monotonic() < killed_s + LONG_STOP_S + 5.0:
        now = (await site.mining_count(), len(site.tenants()))
        assert now <= most, f"{now} work, {most} did"
        most = now
        await asyncio.sleep(0.2)
    assert most[0] == 0, "the miners' grant ran out, and they mine"
    assert not any(site.grants_since(bank, restored_unix_s) for bank in (ASICS, GPUS))
    with timed(site, "controller-on-a-backup", "controls again"):
        await site.eyes.set_limit("grid", LOWERED_TO_W)
        await site.eyes.set_authority(fleet_pb2.AUTHORITY_CONTROL)
        await site.calm(BOUND_S)
        assert all(site.grants_since(bank, restored_unix_s) for bank in (ASICS, GPUS))
        await site.bring_gpus_to("inference")
    assert await site.true_w() <= LOWERED_TO_W
    await site.eyes.set_limit("grid", None)
    await site.bring_miners_to(MINERS)
    await recovered(site, "inference")


@pytest.mark.parametrize("harm", ["old", "lost", "torn"])
async def test_agents_with_bad_records_raise_nothing_and_are_brought_back(
    site: TinySite, harm: str, tmp_path: Path
) -> None:
    """Both agents killed, their grants, orders and spools lost, old or torn: they hold what they hold until granted anew."""
    await site.bring_miners_to(MINERS)
    if harm == "old":  # a copy of a richer time; older than a grant lives, as any copy that somebody carries back is
        await site.bring_gpus_to("inference")
        copied_s = time.monotonic()
        for agent in ("edge", "gpu"):
            site.copy_records(agent, tmp_path / agent)
        await site.bring_gpus_to("mining")
        await asyncio.sleep(max(0.0, copied_s + LONG_STOP_S - time.monotonic()))
    struck_unix_s = time.time()
    with timed(site, f"agents-with-{harm}-records", "brought back"):
        async with nothing_rises(site):
            for agent in ("edge", "gpu"):
                site.kill(agent)
                match harm:
                    case "lost":
                        site.lose_records(agent)
                    case "old":
                        site.restore_records(agent, tmp_path / agent)
                    case _:
                        site.tear_records(agent)
            await site.restart_agents("edge", "gpu")
            await site.calm(BOUND_S)
    if harm != "old":
        for bank in (ASICS, GPUS):
            assert site.grants_since(bank, struck_unix_s), f"{bank} holds its old grant although its agent forgot it"
    await recovered(site, await site.mode())


async def test_judge_finds_nothing_authorised_and_no_false_confirmation(site: TinySite) -> None:
    """Over all cases: 0 W·s authorised over any limit, each thing that was called proven was true, each curtailment met."""
    verdict = await site.judged()
    assert verdict["is_complete"] and verdict["seconds"] > 30.0
    assert verdict["over_cap_ws"]["authorised"] == 0.0, verdict["reasons"]
    assert verdict["false_confirmations"] == 0, verdict["false_confirmation_reasons"]
    assert verdict["confirmations_checked"] > 10
    assert all(c["seconds_to_comply"] is not None for c in verdict["curtailments"]), verdict["curtailments"]
    assert verdict["verdict"] == "NOT GUILTY", verdict["reasons"]
