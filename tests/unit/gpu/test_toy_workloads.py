"""The toy inference server's answers, and its arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from swingbus.faults import NotFound
from swingbus_sim.nvml.layout import GpuIdentity
from swingbus_sim.nvml.shelf import Shelf
from swingbus_sim.workloads import Inference, find_visible, parse_gpus


def test_server_is_ready_only_after_its_weights_are_loaded() -> None:
    """503 while loading, 200 after; the GPUs are a little busy meanwhile."""
    state = Inference(ready_at_s=10.0, fails_ready=False, load_ratio=0.8)
    assert state.answer("GET", "/health/ready", 9.0)[0] == 503
    assert 0 < state.seat_load(9.0) < 0.8
    assert state.answer("GET", "/health/ready", 10.0)[0] == 200
    assert state.seat_load(10.0) == 0.8


def test_server_told_to_fail_never_gets_ready() -> None:
    """`--fail-ready` answers 503 for ever."""
    state = Inference(ready_at_s=0.0, fails_ready=True, load_ratio=1.0)
    assert state.answer("GET", "/health/ready", 1e9)[0] == 503


@pytest.mark.parametrize("target", ["/load", "/load?ratio=", "/load?ratio=two", "/load?ratio=1.5", "/load?ratio=nan"])
def test_bad_load_is_refused_and_changes_nothing(target: str) -> None:
    """Anything but a number from 0 to 1 answers 400."""
    state = Inference(ready_at_s=0.0, fails_ready=False, load_ratio=0.3)
    assert state.answer("POST", target, 1.0)[0] == 400
    assert state.load_ratio == 0.3


def test_load_is_set() -> None:
    """POST /load?ratio=0.4 changes how busy the GPUs are."""
    state = Inference(ready_at_s=0.0, fails_ready=False, load_ratio=1.0)
    assert state.answer("POST", "/load?ratio=0.4", 1.0) == (200, "0.400")
    assert state.seat_load(1.0) == 0.4


def test_gpu_lists_are_parsed_and_nonsense_is_refused() -> None:
    """Numbers, ranges and both; words, nothing and negative numbers are refused."""
    assert parse_gpus("0,2,4-6") == (0, 2, 4, 5, 6)
    for text in ("", "a", "1,,2", "5-3", "-1"):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_gpus(text)


def test_visible_gpus_are_found_by_uuid_on_their_host(tmp_path: Path) -> None:
    """In a pod the environment names UUIDs; one that the host does not have, or none, is said."""
    assert parse_gpus("visible") is None
    path = tmp_path / "shelf"
    with Shelf.create(path, [GpuIdentity(uuid=f"GPU-{n}", name="n", bus_id="b") for n in range(3)]):
        assert find_visible(path, "GPU-2,GPU-0") == (2, 0)
        for uuids in ("GPU-0,GPU-9", ""):
            with pytest.raises(NotFound, match="device plugin"):
                find_visible(path, uuids)
