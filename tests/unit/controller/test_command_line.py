"""The controller's command line: exit codes and messages for people."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from swingbus_controller.main import build_parser, main
from tests.fakes.controllers import SITE


def test_check_prints_the_tree_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A right file: exit 0, tables on standard output, no files made."""
    config = tmp_path / "site.toml"
    config.write_text(SITE, encoding="utf-8")
    assert main(["check", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert "FEEDER" in out and "edge-1/s19j" in out
    assert list(tmp_path.iterdir()) == [config]


def test_faulty_file_exits_2_and_lists_every_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Faults go to standard error, one a line."""
    config = tmp_path / "site.toml"
    config.write_text(SITE.replace("kind = ", "knid = "), encoding="utf-8")
    assert main(["check", "--config", str(config)]) == 2
    err = capsys.readouterr().err
    assert err.count("did you mean 'kind'") == 3 and "BAD_CONFIGURATION" in err


def test_run_without_keys_is_refused_with_the_next_step(tmp_path: Path) -> None:
    """No certificate authority yet: exit 1 and the command that makes one (a process of its own: `run` sets up logging)."""
    config = tmp_path / "site.toml"
    config.write_text(SITE, encoding="utf-8")
    command = [sys.executable, "-m", "swingbus_controller.main", "run", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "swingbus-controller init" in done.stderr and "Traceback" not in done.stderr


def test_feed_that_is_not_there_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` reads the market feed too."""
    config = tmp_path / "site.toml"
    config.write_text(SITE + '\n[market]\nfeed = "prices.toml"\n', encoding="utf-8")
    assert main(["check", "--config", str(config)]) == 1
    assert "prices.toml" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["check", "--help"]])
def test_help_has_an_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every page of help ends in something to type."""
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(words)
    assert ended.value.code == 0
    assert "swingbus-controller run --config site.toml" in capsys.readouterr().out or words[0] == "check"
