"""The command line: what it prints and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swingbus_sim.main import main


def test_list_and_show_tell_the_sizing(capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints demand against the limit, I3, and every event."""
    assert main(["list"]) == 0
    assert main(["show", "demo"]) == 0
    out = capsys.readouterr().out

    assert "117% of it" in out and "I3 holds" in out
    assert "kill_controller" in out and "(by the runner)" in out


def test_bad_input_is_a_usage_error_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Unknown scenario, bad JSON, nobody listening: codes 2, 2, 3, and no traceback."""
    assert main(["show", "nosuch"]) == 2
    assert main(["ask", "--dir", str(tmp_path), "{"]) == 2
    assert main(["ask", "--dir", str(tmp_path), '{"do": "status"}']) == 3
    assert main(["money", "--truth", str(tmp_path / "x.jsonl"), "--scenario", "small"]) == 2
    err = capsys.readouterr().err

    assert len(err.strip().splitlines()) == 4
    assert "there are" in err and "not JSON" in err and "swingbus-sim run" in err


def test_baseline_writes_what_it_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The result is one JSON object by policy."""
    text = (Path(__file__).parents[3] / "sim/swingbus_sim/scenarios/small.toml").read_text(encoding="utf-8")
    short = tmp_path / "short.toml"
    short.write_text(text.replace("duration_s = 600", "duration_s = 5"), encoding="utf-8")
    out = tmp_path / "baseline.json"

    assert main(["baseline", str(short), "--policy", "gpu-filler-only", "--out", str(out)]) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written == json.loads(capsys.readouterr().out)
    assert set(written) == {"gpu-filler-only"} and written["gpu-filler-only"]["energy_kwh"] > 0.0
