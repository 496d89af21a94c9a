"""The journal and the telemetry ring: durable, fenced, honest about damage."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from swingbus.faults import HistoryCompacted, NotFound, SwingbusError, WrongState
from swingbus_controller.adapters.storage.journal import SqliteJournal
from swingbus_controller.adapters.storage.telemetry import SqliteTelemetry
from swingbus_controller.domain.fleet.intervals import BankPoint, MeterPoint
from swingbus_controller.main import open_storage
from swingbus_controller.ports.journal import JournalEntry
from swingbus_controller.ports.telemetry_store import BatchRecord


def entry(kind: str = "agent_connected", at_unix_s: float = 1000.0, **payload: object) -> JournalEntry:
    """Return an entry, with a payload if any is given."""
    return JournalEntry(
        kind=kind,
        subject="sites/north",
        author="controller",
        reason="r",
        message="m",
        at_unix_s=at_unix_s,
        facts={"a": "b"},
        payload=payload or None,
    )


def test_journal_reopened_has_every_entry(tmp_path: Path) -> None:
    """What was appended is read back as it was, payload and facts included."""
    journal = SqliteJournal(tmp_path / "j")
    assert journal.was_created
    assert journal.claim_epoch("one", 0) == 1
    assert journal.append([entry(watts=[1, 2.5]), entry("flip_planned")]) == 2
    journal.close()
    again = SqliteJournal(tmp_path / "j")
    assert not again.was_created
    found = list(again.read())
    assert [(e.revision, e.epoch, e.entry.kind) for e in found] == [(1, 1, "agent_connected"), (2, 1, "flip_planned")]
    assert found[0].entry == entry(watts=[1, 2.5])
    assert again.newest_revision() == 2
    again.close()


def test_older_holder_is_fenced_by_a_newer_epoch(tmp_path: Path) -> None:
    """Two controllers on one journal: from the newer claim on, the older one's append stores nothing."""
    old, new = SqliteJournal(tmp_path / "j"), SqliteJournal(tmp_path / "j")
    old.claim_epoch("old", 0)
    old.append([entry()])
    assert new.claim_epoch("new", 7) == 8
    with pytest.raises(WrongState) as fenced:
        old.append([entry(), entry()])
    assert fenced.value.reason == "FENCED" and fenced.value.metadata["instance"] == "new"
    with pytest.raises(WrongState, match="must stop"):
        old.check_epoch()
    new.check_epoch()
    assert new.append([entry()]) == 2
    assert len(list(new.read())) == 2
    old.close()
    new.close()


def test_append_before_an_epoch_is_refused(tmp_path: Path) -> None:
    """Nobody writes without a term."""
    journal = SqliteJournal(tmp_path / "j")
    with pytest.raises(WrongState, match="before an epoch"):
        journal.append([entry()])
    journal.close()


def test_append_that_cannot_be_encoded_stores_nothing(tmp_path: Path) -> None:
    """All or none: a NaN in the second payload keeps the first out too."""
    journal = SqliteJournal(tmp_path / "j")
    journal.claim_epoch("one", 0)
    with pytest.raises(ValueError, match="JSON"):
        journal.append([entry(), entry(watts=float("nan"))])
    assert journal.newest_revision() == 0 and not list(journal.read())
    journal.close()


def test_find_pages_both_ways_and_by_kind(tmp_path: Path) -> None:
    """Events can be read newest first, between revisions, and by kind."""
    journal = SqliteJournal(tmp_path / "j")
    journal.claim_epoch("one", 0)
    journal.append([entry("a" if n % 2 else "b") for n in range(1, 11)])
    assert [e.revision for e in journal.find(newest_first=True, limit=3)] == [10, 9, 8]
    assert [e.revision for e in journal.find(newest_first=True, before_revision=8, limit=2)] == [7, 6]
    assert [e.revision for e in journal.find(kinds=("a",), after_revision=4)] == [5, 7, 9]
    assert [e.revision for e in journal.read(7, limit=2)] == [8, 9]
    journal.close()


def test_compacting_keeps_what_state_is_rebuilt_from(tmp_path: Path) -> None:
    """Old events go, old entries with a payload stay, and a reader of the gap is told so."""
    journal = SqliteJournal(tmp_path / "j")
    journal.claim_epoch("one", 0)
    journal.append([entry(at_unix_s=1.0), entry(at_unix_s=2.0, keep=1), entry(at_unix_s=3.0), entry(at_unix_s=100.0)])
    assert journal.compact(before_unix_s=50.0) == 2
    assert [e.revision for e in journal.read()] == [2, 4]
    with pytest.raises(HistoryCompacted):
        list(journal.read(1))
    assert journal.append([entry()]) == 5  # revisions are never reused
    journal.close()


async def test_waiter_wakes_on_append(tmp_path: Path) -> None:
    """wait_newer returns with the append, and at once where there is something newer."""
    journal = SqliteJournal(tmp_path / "j")
    journal.claim_epoch("one", 0)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(journal.wait_newer(0))
        await asyncio.sleep(0)
        journal.append([entry()])
    assert waiting.result() == 1
    assert await journal.wait_newer(0) == 1
    journal.close()


@pytest.mark.parametrize(
    "torn", [b"", b"SQLite format 3\x00 but no more", b"\x00" * 5000], ids=["cut", "head", "zeros"]
)
def test_damaged_journal_is_never_taken_for_an_empty_one(tmp_path: Path, torn: bytes) -> None:
    """A torn file stops the start with the next step; --adopt-empty moves it aside and keeps it."""
    journal, telemetry = open_storage(tmp_path, "x", adopt_empty=False)
    journal.claim_epoch("one", 0)
    journal.append([entry() for _ in range(200)])
    journal.close()
    telemetry.close()
    path = tmp_path / "journal.sqlite"
    whole = path.read_bytes()
    for tail in ("-wal", "-shm"):
        path.with_name(path.name + tail).unlink(missing_ok=True)
    path.write_bytes(torn or whole[: len(whole) // 2 + 100])
    with pytest.raises(WrongState) as refused:
        open_storage(tmp_path, "x", adopt_empty=False)
    assert refused.value.reason == "DATABASE_DAMAGED" and "--adopt-empty" in str(refused.value)
    journal, telemetry = open_storage(tmp_path, "aside", adopt_empty=True)
    assert journal.was_created and journal.newest_revision() == 0
    assert (tmp_path / "journal.sqlite.aside").exists()
    journal.close()
    telemetry.close()


def test_journal_gone_beside_telemetry_is_not_a_first_start(tmp_path: Path) -> None:
    """A lost journal is told from a new site by the telemetry that is still there."""
    for database in open_storage(tmp_path, "x", adopt_empty=False):
        database.close()
    for path in tmp_path.glob("journal.sqlite*"):
        path.unlink()
    with pytest.raises(WrongState) as refused:
        open_storage(tmp_path, "x", adopt_empty=False)
    assert refused.value.reason == "JOURNAL_MISSING"
    journal, telemetry = open_storage(tmp_path, "x", adopt_empty=True)
    assert journal.was_created
    journal.close()
    telemetry.close()


def test_newer_format_is_refused(tmp_path: Path) -> None:
    """A file of a newer version is not touched."""
    journal = SqliteJournal(tmp_path / "j")
    journal._db.execute("PRAGMA user_version=99")
    journal.close()
    with pytest.raises(WrongState) as refused:
        SqliteJournal(tmp_path / "j")
    assert refused.value.reason == "DATABASE_NEWER"


def record(
    store: SqliteTelemetry, sequence: int, *, spool: int = 1, boot_ns: int | None = None, first: int | None = None
) -> BatchRecord:
    """Return a batch of 3 samples with one meter reading and one bank sum; from `first` on it is a mean."""
    inventory = store.keep_inventory(spool, b"inventory")
    at_s = 9000.0 + sequence
    return BatchRecord(
        spool_id=spool,
        sequence=sequence,
        first_sequence=first or sequence,
        inventory_id=inventory,
        boot_id="boot",
        sample_boottime_ns=boot_ns or sequence,
        sample_unix_s=at_s,
        received_unix_s=at_s,
        sample_count=3,
        payload=b"p" * 100,
        meter_points=(
            MeterPoint(meter="m", end_unix_s=at_s, weight_s=1.0, power_w=1000.0, energy_j=1000.0 * sequence),
        ),
        bank_points=(BankPoint(agent="a", bank="b", at_unix_s=at_s, power_w=900.0),),
    )


def test_stored_batches_are_found_by_number_and_repeats_change_nothing(tmp_path: Path) -> None:
    """Numbers, samples and intervals count once however often a batch comes, also after a restart."""
    store = SqliteTelemetry(tmp_path / "t")
    spool = store.open_spool("edge", "s")
    first = store.write([record(store, n, spool=spool.spool_id) for n in (1, 2, 5)])
    assert (first.stored_count, first.repeated_count) == (3, 0)
    store.close()
    store = SqliteTelemetry(tmp_path / "t")
    again = store.write([record(store, n, spool=spool.spool_id) for n in (2, 5, 6)])
    assert (again.stored_count, again.repeated_count, again.conflicts) == (1, 2, ())
    found = store.verify("edge", "s", [(1, 3), (5, 8)], 10)
    assert (found.stored_count, found.sample_count, found.missing) == (4, 12, (3, 7, 8))
    assert store.open_spool("edge", "s").stored.pairs() == [1, 2, 5, 6]
    assert store.open_spool("edge", "s").sample_count == 12
    total = store.meter_totals("m", 0.0, 9)[0]
    assert (total.covered_s, total.first_energy_j, total.last_energy_j) == (4.0, 1000.0, 6000.0)
    assert store.bank_intervals(0.0, 1e9)[0].sample_count == 4
    store.close()


def test_number_with_another_content_is_a_conflict(tmp_path: Path) -> None:
    """The stored batch stays; the other one is named."""
    store = SqliteTelemetry(tmp_path / "t")
    spool = store.open_spool("edge", "s").spool_id
    store.write([record(store, 1, spool=spool)])
    outcome = store.write([record(store, 1, spool=spool, boot_ns=77), record(store, 2, spool=spool)])
    assert outcome.conflicts == ((spool, 1),) and outcome.stored_count == 1
    store.close()


def test_mean_stores_every_number_it_stands_for_once(tmp_path: Path) -> None:
    """The audit tells numbers inside a mean from those that are there and those that are nowhere, also after a restart."""
    store = SqliteTelemetry(tmp_path / "t")
    spool = store.open_spool("edge", "s").spool_id
    assert store.write([record(store, 3, spool=spool), record(store, 9, first=6, spool=spool)]).stored_count == 2
    store.close()
    store = SqliteTelemetry(tmp_path / "t")
    again = store.write([record(store, 9, first=6, spool=spool), record(store, 7, spool=spool, boot_ns=70)])
    assert again.stored_count == 0  # the mean is a repeat; a number inside it was stored with it
    assert store.open_spool("edge", "s").stored.pairs() == [3, 3, 6, 9]
    found = store.verify("edge", "s", [(1, 10)], 99)
    assert (found.stored_count, found.merged_count, found.missing) == (2, 3, (1, 2, 4, 5, 10))
    inside = store.verify("edge", "s", [(5, 7)], 99)
    assert (inside.stored_count, inside.merged_count, inside.missing) == (0, 2, (5,))
    assert store.prune(before_unix_s=9009.5, max_bytes=10**9, limit=9) == 1  # all but the newest
    store.write([record(store, 20, spool=spool)])
    assert store.prune(before_unix_s=9019.5, max_bytes=10**9, limit=9) == 1
    assert store.verify("edge", "s", [(1, 10)], 99).merged_count == 0  # gone with their mean
    store.close()


def test_mean_replaces_its_last_round_that_was_stored_alone(tmp_path: Path) -> None:
    """The acknowledgement of a round was lost and the agent merged it with others since: they are not lost behind its number."""
    store = SqliteTelemetry(tmp_path / "t")
    spool = store.open_spool("edge", "s").spool_id
    store.write([record(store, 9, spool=spool)])
    wide = replace(record(store, 9, first=5, spool=spool), payload=b"mean")
    assert store.write([wide, wide]).stored_count == 1
    assert [last.payload for last in store.last_batches()] == [b"mean"]
    assert store.open_spool("edge", "s").stored.pairs() == [5, 9]
    assert store.write([record(store, 9, spool=spool)]).repeated_count == 1  # and is not replaced by less
    found = store.verify("edge", "s", [(5, 9)], 9)
    assert (found.stored_count, found.merged_count, found.missing) == (1, 4, ())
    store.close()


def test_closed_numbers_are_done_with_but_not_stored(tmp_path: Path) -> None:
    """They count in no audit, survive a restart, and do not cost the spool its newest batch when the ring is cut."""
    store = SqliteTelemetry(tmp_path / "t")
    spool = store.open_spool("edge", "s").spool_id
    store.write([record(store, n, spool=spool) for n in (2, 5)])
    store.close_numbers(spool, 8)
    store.close()
    store = SqliteTelemetry(tmp_path / "t")
    assert store.open_spool("edge", "s").stored.pairs() == [1, 8]
    found = store.verify("edge", "s", [(1, 8)], 9)
    assert (found.stored_count, found.merged_count, found.missing) == (2, 0, (1, 3, 4, 6, 7, 8))
    store.prune(before_unix_s=1e12, max_bytes=10**9, limit=9)
    assert [last.sequence for last in store.last_batches()] == [5]
    store.close()


def test_pruned_numbers_stay_acknowledged_and_do_not_come_back(tmp_path: Path) -> None:
    """The ring lets go of the oldest but for the newest of each spool; what it let go is a repeat, not news."""
    store = SqliteTelemetry(tmp_path / "t")
    spool = store.open_spool("edge", "s").spool_id
    store.write([record(store, n, spool=spool) for n in range(1, 11)])
    assert store.prune(before_unix_s=9008.5, max_bytes=10**9, limit=100) == 8
    assert store.prune(before_unix_s=1e12, max_bytes=10**9, limit=100) == 1
    assert [last.sequence for last in store.last_batches()] == [10]
    assert store.write([record(store, 1, spool=spool)]).repeated_count == 1
    assert store.verify("edge", "s", [(1, 10)], 100).stored_count == 1
    assert store.open_spool("edge", "s").stored.pairs() == [1, 10]
    store.close()


def test_ring_is_cut_by_size(tmp_path: Path) -> None:
    """Too large a ring loses its oldest batches, whatever their age."""
    store = SqliteTelemetry(tmp_path / "t")
    spool = store.open_spool("edge", "s").spool_id
    store.write([record(store, n, spool=spool) for n in range(1, 101)])
    assert store.prune(before_unix_s=0.0, max_bytes=1, limit=60) == 60
    assert store.verify("edge", "s", [(1, 100)], 100).missing == tuple(range(1, 61))
    store.close()


def test_write_that_fails_changes_neither_disk_nor_memory(tmp_path: Path) -> None:
    """All or none: a row that the database refuses leaves nothing stored, and nothing is taken for a repeat."""
    store = SqliteTelemetry(tmp_path / "t")
    spool = store.open_spool("edge", "s").spool_id
    bad = record(store, 2, spool=spool)
    object.__setattr__(bad, "payload", None)  # what a bug would do: NOT NULL refuses it
    with pytest.raises(SwingbusError):
        store.write([record(store, 1, spool=spool), bad])
    assert store.open_spool("edge", "s").stored.pairs() == []
    assert store.verify("edge", "s", [(1, 1)], 9).stored_count == 0
    store.close()


def test_unknown_spool_is_not_found(tmp_path: Path) -> None:
    """A spool that never connected has no stored numbers to vouch for."""
    store = SqliteTelemetry(tmp_path / "t")
    with pytest.raises(NotFound):
        store.verify("edge", "nothing", [(1, 2)], 9)
    store.close()


def test_evidence_is_kept_by_kind_and_key(tmp_path: Path) -> None:
    """Proofs are replaced by key and listed newest first."""
    store = SqliteTelemetry(tmp_path / "t")
    store.keep_evidence("flip", "f-1", 1.0, {"windows": [1]})
    store.keep_evidence("flip", "f-2", 2.0, {"windows": []})
    store.keep_evidence("flip", "f-1", 3.0, {"windows": [1, 2]})
    assert store.read_evidence("flip", "f-1") == {"windows": [1, 2]}
    assert store.read_evidence("flip", "f-9") is None
    assert [key for key, _, _ in store.list_evidence("flip", 9)] == ["f-1", "f-2"]
    store.close()
