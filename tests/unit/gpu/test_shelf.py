"""The simulated host's shared file: what is published is what is laid down, whole."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from swingbus.faults import InvalidInput, NotFound, OverBudget
from swingbus_sim.nvml import layout
from swingbus_sim.nvml.layout import GpuIdentity
from swingbus_sim.nvml.processes import start_ticks_of
from swingbus_sim.nvml.shelf import Shelf
from swingbus_sim.ports import GpuShelf
from tests.fakes.gpu_host import READING

IDENTITY = GpuIdentity(uuid="GPU-1", name="NVIDIA H100", bus_id="00000000:01:00.0")


def words_of(path: Path, index: int) -> tuple[tuple[int, ...], int, int]:
    """Return GPU `index`'s newest reading as the stand-in would: words, stored checksum, true checksum."""
    content = path.read_bytes()
    base = layout.gpu_offset(index)
    (sequence,) = struct.unpack_from("<Q", content, base + layout.SEQUENCE_OFFSET)
    at = base + layout.COPIES_OFFSET + (sequence & 1) * layout.COPY_SIZE
    body = content[at : at + layout.READING.size]
    stored, low = layout.CHECK.unpack_from(content, at + layout.READING.size)
    assert low == sequence & 0xFFFFFFFF
    return layout.READING.unpack(body), stored, zlib.crc32(body)


def test_published_reading_lies_there_in_the_driver_units(tmp_path: Path) -> None:
    """Watts become milliwatts, joules millijoules, and the checksum fits."""
    with Shelf.create(tmp_path / "shelf", [IDENTITY]) as shelf:
        port: GpuShelf = shelf
        port.publish([READING])
        words, stored, true = words_of(shelf.path, 0)
    assert stored == true
    assert words[0] == 12_345_678  # mJ
    assert 612_000 in words and 640_500 in words  # mW


def test_publishing_leaves_the_copy_in_use_alone(tmp_path: Path) -> None:
    """A reader that has just looked up the newest copy still finds it whole after one more publish."""
    with Shelf.create(tmp_path / "shelf", [IDENTITY]) as shelf:
        shelf.publish([READING])
        before = shelf.path.read_bytes()
        base = layout.gpu_offset(0) + layout.COPIES_OFFSET
        (sequence,) = struct.unpack_from("<Q", before, layout.gpu_offset(0) + layout.SEQUENCE_OFFSET)
        at = base + (sequence & 1) * layout.COPY_SIZE
        shelf.publish([replace(READING, power_average_w=1.0)])
        assert shelf.path.read_bytes()[at : at + layout.COPY_SIZE] == before[at : at + layout.COPY_SIZE]


def test_driver_counts_throttled_time_and_xid_errors(tmp_path: Path) -> None:
    """Only time under the reason's bit counts; the same XID number counts again only when it is said to be new."""
    now = [0]
    with Shelf.create(tmp_path / "shelf", [IDENTITY], clock_ns=lambda: now[0]) as shelf:
        shelf.publish([replace(READING, throttle_reasons=4)])
        now[0] += 7
        shelf.publish([replace(READING, throttle_reasons=4, xid=79)])
        now[0] += 5
        shelf.publish([replace(READING, throttle_reasons=0, xid=79)])
        words, _, _ = words_of(shelf.path, 0)
        assert words[4] == 7 and words[14] == 1
        shelf.report_xid(0)
        shelf.publish([replace(READING, xid=79)])
        assert words_of(shelf.path, 0)[0][14] == 2


def test_wrong_number_of_readings_is_refused(tmp_path: Path) -> None:
    """The message says how many there must be."""
    with Shelf.create(tmp_path / "shelf", [IDENTITY]) as shelf, pytest.raises(InvalidInput, match="1 GPUs"):
        shelf.publish([READING, READING])


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    """A path without a shelf and a file of something else are told apart."""
    with pytest.raises(NotFound):
        Shelf(tmp_path / "nothing")
    foreign = tmp_path / "foreign"
    foreign.write_bytes(bytes(layout.SHELF_SIZE))
    with pytest.raises(InvalidInput):
        Shelf(foreign)
    foreign.write_bytes(b"short")
    with pytest.raises(InvalidInput):
        Shelf(foreign)


def test_seat_shows_while_its_process_lives_and_only_for_its_gpus(tmp_path: Path) -> None:
    """The table lists this process on the GPUs it took, with the load it says, until it leaves."""
    with Shelf.create(tmp_path / "shelf", [IDENTITY] * 4) as shelf:
        seat = shelf.process_table.take_seat(kind="inference", gpus=[1, 3], memory_used_bytes=5, load_ratio=0.5)
        assert [(each.gpu, each.pid, each.kind) for each in shelf.processes()] == [
            (1, os.getpid(), "inference"),
            (3, os.getpid(), "inference"),
        ]
        seat.set_load(0.25)
        assert {each.load_ratio for each in shelf.processes()} == {0.25}
        seat.leave()
        assert shelf.processes() == ()


def test_seat_of_a_dead_or_reused_number_is_empty(tmp_path: Path) -> None:
    """A slot whose process is gone, or whose number now belongs to a younger process, counts for nothing."""
    with Shelf.create(tmp_path / "shelf", [IDENTITY]) as shelf:
        for slot, (pid, ticks) in enumerate([(2**22 + 1, 5), (os.getpid(), 5)]):
            at = layout.PROCESSES_OFFSET + slot * layout.PROCESS.size
            content = layout.PROCESS.pack(ticks, 1, 0, 1.0, pid, 0)
            with open(shelf.path, "r+b") as file:
                file.seek(at)
                file.write(content)
        assert shelf.processes() == ()


def test_full_table_is_said(tmp_path: Path) -> None:
    """One more process than there are slots is refused, not silently left out."""
    parent = os.getppid()
    with Shelf.create(tmp_path / "shelf", [IDENTITY]) as shelf:
        row = layout.PROCESS.pack(start_ticks_of(parent) or 0, 1, 0, 1.0, parent, 0)
        with open(shelf.path, "r+b") as file:
            file.seek(layout.PROCESSES_OFFSET)
            file.write(row * layout.PROCESS_SLOTS)
        with pytest.raises(OverBudget):
            shelf.process_table.take_seat(kind="mining", gpus=[0], memory_used_bytes=0, load_ratio=1.0)
