"""The bench works: every measure runs short, and each asserts its own result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.figure import Figure, WrongResult, check, percentile
from tests.benchmarks.runner import main


@pytest.mark.slow
@pytest.mark.parametrize(
    ("only", "names"),
    [
        (
            ["wire", "decisions"],
            {
                "wire_snapshot",
                "wire_snapshot_real",
                "plan_and_admit",
                "engine_per_meter_sample",
                "engine_cut_all",
                "prove_histories",
            },
        ),
        (["ingest"], {"ingest"}),
        (["fanout"], {"fanout_p99"}),
        (["kube-list"], {"kube_list_cpu_per_pod"}),
        (["agent-gpu"], {"agent_gpu_pss", "agent_gpu_alone", "agent_gpu_cpu"}),
    ],
    ids=["pure", "ingest", "fanout", "kube_list", "agent"],
)
def test_quick_bench_asserts_and_writes_its_figures(tmp_path: Path, only: list[str], names: set[str]) -> None:
    """A short run of real processes ends without a wrong result and leaves a file with every figure."""
    out = tmp_path / "bench.json"
    arguments = ["--quick", "--out", str(out)]
    for name in only:
        arguments += ["--only", name]
    assert main(arguments) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["quick"] is True and not record["failures"]
    assert {figure["name"] for figure in record["figures"]} == names
    for figure in record["figures"]:
        assert figure["value"] > 0 and figure["asserted"], figure


def test_wrong_result_gives_no_figure() -> None:
    """What a figure rests on is checked, also where Python's assert is off."""
    with pytest.raises(WrongResult, match="12 were lost"):
        check(False, "12 were lost")


def test_ratio_is_the_share_of_the_bound_whichever_way_the_unit_runs() -> None:
    """Half the throughput and twice the time are both a ratio of 0.5; the median counts."""
    more = Figure(name="a", unit="x/s", runs=(40.0, 50.0, 900.0), asserted=("x",), bound=100.0, aim=40.0)
    less = Figure(name="b", unit="ms", runs=(200.0,), asserted=("x",), bound=100.0, aim=250.0, is_lower_better=True)
    assert more.ratio == less.ratio == 0.5
    assert more.record()["meets_aim"] and less.record()["meets_aim"]


def test_percentile_is_a_value_that_was_seen() -> None:
    """The 99th of 100 is the 99th smallest; of one it is that one."""
    assert percentile([float(n) for n in range(100, 0, -1)], 0.99) == 99.0
    assert percentile([5.0], 0.99) == 5.0
