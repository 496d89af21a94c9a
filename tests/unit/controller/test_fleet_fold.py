"""The fleet's fold, the meters' states, the recorder and ingest with a disk that refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swingbus.clock import SystemClock
from swingbus.faults import Unreachable
from swingbus_controller.adapters.metrics import ControllerMetrics
from swingbus_controller.adapters.storage.journal import SqliteJournal
from swingbus_controller.adapters.storage.telemetry import SqliteTelemetry
from swingbus_controller.api import codec
from swingbus_controller.app.ingest import Hello, Ingest, IngestSettings
from swingbus_controller.app.recorder import Recorder
from swingbus_controller.app.sums import columns_of, read_bank, restarted_rows
from swingbus_controller.app.watching import look
from swingbus_controller.domain.fleet.fleet import HISTORY_MAX, BankReading, Fleet, Liveness, Newest, PowerHistory
from swingbus_controller.domain.fleet.frames import AgentInventory, BankFrame, BatchFrame, MeterFrame
from swingbus_controller.domain.fleet.meter_view import MeterView
from swingbus_controller.domain.fleet.sequences import SequenceSet
from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_controller.domain.power.tree import MeterSpec
from swingbus_controller.domain.site.sitefile import SiteFile
from swingbus_controller.ports.telemetry_store import BatchRecord, SpoolState, WriteOutcome
from swingbus_controller.settings import load_configuration
from tests.fakes.controllers import SITE
from tests.fakes.link_agent import make_batch, make_inventory

NAN = float("nan")


@pytest.fixture
def site(tmp_path: Path) -> SiteFile:
    """The test site."""
    (tmp_path / "site.toml").write_text(SITE, encoding="utf-8")
    return load_configuration(tmp_path / "site.toml", environment={}).site


def inventory_of(meters: Sequence[tuple[str, str]] = (("m-grid", "grid"),)) -> AgentInventory:
    """Return the test agent's inventory."""
    return codec.inventory_from_proto("edge-1", make_inventory(meters=meters))


def batch_of(
    fleet: Fleet, inventory: AgentInventory, sequence: int, at_s: float, *, power_w: float, meter_w: float
) -> BatchFrame:
    """Return a decoded batch at a moment of the agent's clock."""
    layout = codec.layout_of(inventory, lambda meter: fleet.meter_feeder("edge-1", meter))
    message = make_batch(sequence, boottime_s=at_s, power_w=power_w, meter_w=meter_w)
    return codec.batch_from_proto(message, layout, newest=Newest())


def take(fleet: Fleet, batch: BatchFrame, now_s: float) -> None:
    """Fold a batch with its sums."""
    readings = {
        frame.bank: BankReading(
            power_w=float(sum(frame.values[0::3])), hashrate_ths=None, answered_count=len(frame.modes)
        )
        for frame in batch.banks
    }
    fleet.take_batch(batch, readings, now_s=now_s, unix_offset_s=0.0)


def test_unattributed_compares_the_same_stretch_of_time(site: SiteFile) -> None:
    """Devices' sums are taken over the meter's own window: a step after the window is not held against it."""
    fleet = Fleet(site, period_s=1.0)
    inventory = inventory_of()
    fleet.take_inventory(inventory)
    for n in range(1, 5):
        take(
            fleet,
            batch_of(fleet, inventory, n, 100.0 + n, power_w=3000.0, meter_w=9_500.0 + n),
            now_s=500.0 + n,
        )
    reading = fleet.feeder_reading("grid", 504.0)
    assert (reading.meter_state, reading.metered_w, reading.attributed_w) == ("live", 9_504.0, 9_000.0)
    assert reading.unattributed_w == pytest.approx(504.0)
    assert reading.age_s == pytest.approx(0.0)
    assert fleet.feeder_reading("c1", 504.0).meter_state == "none"


def test_agent_is_dark_after_three_of_its_own_periods(site: SiteFile, tmp_path: Path) -> None:
    """An agent that samples every 5 s is not dark after 3 s."""
    fleet = Fleet(site, period_s=1.0)
    inventory = inventory_of()
    fleet.take_inventory(inventory)
    view = fleet.agent("edge-1")
    assert fleet.liveness(view, 0.0) is Liveness.NEVER_SEEN
    for n in range(1, 4):
        take(fleet, batch_of(fleet, inventory, n, 5.0 * n, power_w=1.0, meter_w=1.0 + n), now_s=5.0 * n)
    assert fleet.liveness(view, 15.0 + 14.9) is Liveness.LIVE
    assert fleet.liveness(view, 15.0 + 15.1) is Liveness.DARK
    journal = SqliteJournal(tmp_path / "j")
    snapshot = look(fleet, journal, 100.0)
    journal.close()
    assert snapshot.agents == {"dark": 1} and snapshot.banks == {}


def test_meter_counts_only_from_the_agent_that_the_site_names(site: SiteFile) -> None:
    """Another agent that claims the grid's meter moves no feeder."""
    fleet = Fleet(site, period_s=1.0)
    assert fleet.meter_feeder("edge-1", "m-grid") == "grid"
    assert fleet.meter_feeder("edge-2", "m-grid") == ""
    assert fleet.meter_feeder("edge-1", "m-other") == ""


def test_unknown_bank_is_unmanaged_and_not_attributed(site: SiteFile) -> None:
    """Watts of a bank that the site file does not know stay unexplained."""
    fleet = Fleet(site, period_s=1.0)
    inventory = codec.inventory_from_proto("edge-1", make_inventory(bank="extra"))
    fleet.take_inventory(inventory)
    take(fleet, batch_of(fleet, inventory, 1, 100.0, power_w=3000.0, meter_w=9_000.0), now_s=500.0)
    assert not fleet.agent("edge-1").banks["extra"].is_managed
    assert fleet.feeder_reading("grid", 500.0).attributed_w is None


def meter_frame(n: int, power_w: float | None, energy_j: float | None, **rest: float) -> MeterFrame:
    """Return reading number n, one second each."""
    return MeterFrame(
        meter="m",
        feeder="grid",
        measurement_count=n,
        window_start_boottime_s=float(n - 1),
        window_end_boottime_s=float(n),
        marker=0,
        marker_epoch=0,
        power_w=power_w,
        energy_j=energy_j,
        voltage_v=rest.get("voltage_v"),
        current_a=rest.get("current_a"),
        power_factor=rest.get("power_factor"),
        fault="" if power_w is not None else "no answer",
    )


@pytest.mark.parametrize(
    ("frames", "now_s", "state"),
    [
        ([meter_frame(n, 1000.0 + n, 1000.0 * n) for n in range(1, 8)], 7.0, "live"),
        ([meter_frame(n, 1000.0, 5.0) for n in range(1, 8)], 7.0, "frozen"),
        ([meter_frame(n, 1000.0, 1000.0 * n) for n in range(1, 8)], 7.0, "live"),
        ([meter_frame(n, 1000.0 + n, 9000.0 * n) for n in range(1, 8)], 7.0, "disagrees"),
        ([meter_frame(n, 1000.0 + n, 1000.0 * n) for n in range(1, 8)], 99.0, "dead"),
        ([meter_frame(1, None, None)], 1.0, "dead"),
        (
            [meter_frame(n, 6900.0 + n, None, voltage_v=230.0, current_a=10.0, power_factor=1.0) for n in (1, 2, 3)],
            3.0,
            "live",
        ),
        (
            [meter_frame(n, 65_000.0 + n, None, voltage_v=230.0, current_a=10.0, power_factor=1.0) for n in (1, 2, 3)],
            3.0,
            "disagrees",
        ),
    ],
    ids=["live", "frozen", "steady", "energy", "silent", "failed", "three phases", "swapped words"],
)
def test_meter_state_is_what_its_readings_show(frames: list[MeterFrame], now_s: float, state: str) -> None:
    """Live, frozen, dead and disagreeing meters are told apart."""
    view = MeterView(meter="m", feeder="grid", agent="a", spec=MeterSpec(reader="a", energy_count_j=100.0))
    for frame in frames:
        view.take(frame, "boot", frame.window_end_boottime_s, 0.0)
    assert view.state(now_s, ProtocolSettings()) == state


def test_repeated_measurement_covers_no_time() -> None:
    """The same measurement read twice is one reading; an overlap counts once."""
    view = MeterView(meter="m", feeder="grid", agent="a", spec=MeterSpec(reader="a"))
    assert view.take(meter_frame(5, 1.0, None), "boot", 5.0, 0.0) == 1.0
    assert view.take(meter_frame(5, 1.0, None), "boot", 6.0, 0.0) == 0.0
    assert view.take(meter_frame(4, 1.0, None), "boot", 6.0, 0.0) == 0.0


def test_sums_leave_out_who_did_not_answer() -> None:
    """NaN is nobody's watts; a column of NaN has no sum."""
    columns = columns_of(inventory_of().banks[0])
    # An array is a sequence of numbers here, which numpy's stubs do not say.
    values: Any = np.array([100.0, NAN, 1.0, NAN, NAN, 1.0, 50.0, NAN, 1.0], dtype=np.float32)
    frame = BankFrame(
        bank="s19j",
        values=values,
        counters=[1.0, 2.0, 3.0],
        conditions=[1, 2, 1],
        modes=[1, 1, 1],
        read_boottime_ns=[1] * 3,
    )
    assert read_bank(frame, columns) == BankReading(power_w=150.0, hashrate_ths=None, answered_count=2)


def test_restart_is_an_uptime_that_fell() -> None:
    """A missing uptime is no restart."""
    before, after = np.array([100.0, 100.0, 100.0, NAN]), np.array([101.0, 3.0, NAN, 2.0])
    assert restarted_rows(before, after) == [1]
    assert restarted_rows(None, after) == []


def test_chatty_source_is_thinned_and_counted(tmp_path: Path) -> None:
    """A source may say 20 things at once; what it says beyond that is counted in its next entry."""

    class Stopped(SystemClock):
        at_s = 0.0

        def boottime_s(self) -> float:
            return self.at_s

    clock = Stopped()
    journal = SqliteJournal(tmp_path / "j")
    journal.claim_epoch("one", 0)
    metrics = ControllerMetrics("north")
    recorder = Recorder(journal, clock, metrics, burst=20, refill_s=3.0)
    noted = [recorder.note("device_hung", subject="s", source="edge", message="m") for _ in range(50)]
    assert noted.count(True) == 20
    assert recorder.note("device_hung", subject="s", source="other", message="m")
    clock.at_s = 3.0
    assert recorder.note("device_hung", subject="s", source="edge", message="m")
    recorder.flush()
    entries = [journaled.entry for journaled in journal.read()]
    assert len(entries) == 22 and entries[-1].facts == {"suppressed_before": "30"}
    assert metrics.registry.get_sample_value("swingbus_controller_events_suppressed_total", {"site": "north"}) == 30.0
    journal.close()


class RefusingStore:
    """A store whose disk is full until somebody makes room."""

    def __init__(self) -> None:
        self.is_full = True
        self.kept: list[BatchRecord] = []
        self.attempt_count = 0

    def open_spool(self, agent: str, spool_uid: str) -> SpoolState:
        return SpoolState(spool_id=1, stored=SequenceSet(), sample_count=0)

    def close_numbers(self, spool_id: int, last: int) -> None:
        return

    def keep_inventory(self, spool_id: int, payload: bytes) -> int:
        return 1

    def write(self, batches: Sequence[BatchRecord]) -> WriteOutcome:
        self.attempt_count += 1
        if self.is_full:
            raise Unreachable("the disk is full", reason="TELEMETRY_UNREACHABLE")
        self.kept += batches
        return WriteOutcome(stored_count=len(batches), repeated_count=0, conflicts=())

    def prune(self, *, before_unix_s: float, max_bytes: int, limit: int) -> int:
        return 0


async def test_batch_that_waits_for_its_commit_is_not_counted_as_lost(site: SiteFile, tmp_path: Path) -> None:
    """The agent dropped what it had sent before it came back: what came in is stored first, only the rest is closed."""
    fleet, clock, metrics = Fleet(site, period_s=1.0), SystemClock(), ControllerMetrics("north")
    journal, store = SqliteJournal(tmp_path / "j"), SqliteTelemetry(tmp_path / "t")
    journal.claim_epoch("one", 0)
    inventory = inventory_of()
    hello = Hello(
        agent="edge-1",
        instance_uid="i",
        spool_uid="s",
        oldest_sequence=1,
        newest_sequence=6,
        inventory=inventory,
        inventory_payload=b"i",
        certificate_expire_unix_s=None,
    )
    with ThreadPoolExecutor(max_workers=1) as writer:
        ingest = Ingest(
            fleet=fleet,
            store=store,
            recorder=Recorder(journal, clock, metrics),
            clock=clock,
            settings=IngestSettings(credit=4, commit_interval_s=9.0, keep_s=1e9, keep_bytes=10**12, max_agents=1),
            metrics=metrics,
            writer=writer,
        )
        session = await ingest.open_session(hello)
        ingest.accept(session, batch_of(fleet, inventory, 3, 103.0, power_w=1.0, meter_w=5.0), b"x")
        again = await ingest.open_session(replace(hello, oldest_sequence=5))
    assert again.stored.pairs() == [1, 4]
    assert store.verify("edge-1", "s", [(1, 4)], 9).missing == (1, 2, 4)
    told = [e.entry.facts["lost_count"] for e in journal.read() if e.entry.kind == "batches_lost"]
    assert told == ["3"]
    journal.close()
    store.close()


async def test_full_disk_acknowledges_nothing_and_loses_nothing(site: SiteFile, tmp_path: Path) -> None:
    """While the disk refuses, batches wait in order and nothing is acknowledged; then all are stored."""
    fleet, clock, metrics, store = Fleet(site, period_s=1.0), SystemClock(), ControllerMetrics("north"), RefusingStore()
    journal = SqliteJournal(tmp_path / "j")
    journal.claim_epoch("one", 0)
    with ThreadPoolExecutor(max_workers=1) as writer:
        ingest = Ingest(
            fleet=fleet,
            store=store,
            recorder=Recorder(journal, clock, metrics),
            clock=clock,
            settings=IngestSettings(credit=4, commit_interval_s=0.01, keep_s=1e9, keep_bytes=10**12, max_agents=1),
            metrics=metrics,
            writer=writer,
        )
        inventory = inventory_of()
        session = await ingest.open_session(
            Hello(
                agent="edge-1",
                instance_uid="i",
                spool_uid="s",
                oldest_sequence=1,
                newest_sequence=0,
                inventory=inventory,
                inventory_payload=b"i",
                certificate_expire_unix_s=None,
            )
        )
        running = asyncio.get_running_loop().create_task(ingest.run())
        for n in range(1, 5):
            ingest.accept(session, batch_of(fleet, inventory, n, 100.0 + n, power_w=1.0, meter_w=5.0), b"x")
        blocked = asyncio.get_running_loop().create_task(ingest.wait_room(session))
        await asyncio.sleep(0.1)
        assert store.attempt_count >= 1 and session.stored.cumulative() == 0
        assert session.in_flight == 4 and not blocked.done()  # credit is used up: the stream is not read on
        assert fleet.agent("edge-1").banks["s19j"].frame is not None  # protection saw it all the same
        store.is_full = False
        async with asyncio.timeout(10):
            await blocked
        assert [record.sequence for record in store.kept] == [1, 2, 3, 4]
        assert session.stored.cumulative() == 4
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    journal.close()


def test_a_history_means_over_a_window_else_takes_the_nearest_and_forgets_the_oldest() -> None:
    history = PowerHistory()
    assert history.mean_w(0.0, 10.0) is None
    for second in range(HISTORY_MAX + 10):
        history.add(float(second), 100.0 + second)
    newest_s = HISTORY_MAX + 9.0
    assert history.mean_w(newest_s - 1.0, newest_s) == 100.0 + newest_s - 0.5
    assert history.mean_w(newest_s + 0.2, newest_s + 0.8) == 100.0 + newest_s
    assert history.mean_w(0.0, 9.5) == 110.0  # the ten oldest are gone: the nearest stands for them
    assert history.mean_w(newest_s + 20.0, newest_s + 21.0) is None
