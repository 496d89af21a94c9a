"""Backups and restores that are ended in the middle: nothing of theirs is left, and nothing of those that still run is touched.

Real processes, held in the middle by a reader or a writer that does not go on.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from swingbus_controller.main import main
from tests.fakes.journals import entry, everything, fill, kinds

COMMAND = [sys.executable, "-m", "swingbus_controller.main"]
ENTRIES_COUNT = 2_000  # 400 kB: no pipe holds that much

# Ends itself while SQLite works: there the exception is lost, and SQLite says that it was interrupted.
ENDED_BY_ITSELF = """
import os, signal, sys
from swingbus_controller import backup_commands
from swingbus_controller.main import main

def tell(self, what, ratio):
    if what == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGTERM)

backup_commands.Teller.tell = tell
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data folder with a journal."""
    folder = tmp_path / "data"
    fill(folder, *(entry() for _ in range(ENTRIES_COUNT)))
    return folder


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """Return a backup of it."""
    assert main(["backup", str(tmp_path / "copy"), "--data-dir", str(data)]) == 0
    return tmp_path / "copy"


def left_in(folder: Path) -> list[str]:
    """Return hidden files and folders."""
    return [path.name for path in folder.glob(".*")]


@contextmanager
def started(*words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command; it is gone afterwards."""
    pipe = subprocess.PIPE
    with subprocess.Popen([*COMMAND, *map(str, words)], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def half_read(data: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start `backup -`, and wait until it waits for its reader."""
    with started("backup", "-", "--data-dir", data) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 60.0)[0], "it wrote nothing"
        assert left_in(data), "it does not work in the data folder: the test shows nothing"
        yield process


@contextmanager
def half_written(data: Path, copy: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start `restore -` and send half of the backup."""
    with started("restore", "-", "--data-dir", data) as process:
        assert process.stdin is not None
        whole = copy.read_bytes()
        process.stdin.write(whole[: len(whole) // 2])  # more than a pipe holds: when this is done it has begun to read
        process.stdin.flush()
        assert left_in(data), "it does not work in the data folder: the test shows nothing"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)  # now it waits for the rest
        yield process


HALVES = pytest.mark.parametrize("half", ["backup", "restore"])


def begun(half: str, data: Path, copy: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Start one of the two and return in its middle."""
    return half_read(data) if half == "backup" else half_written(data, copy)


@HALVES
def test_sigterm_leaves_nothing(half: str, data: Path, copy: Path) -> None:
    """As systemd, a cluster or a caller's timeout ends it."""
    before = everything(data)
    with begun(half, data, copy) as process:
        process.send_signal(signal.SIGTERM)
        process.wait(10.0)  # nobody reads on, or writes on
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM and b"Traceback" not in said, said
    assert left_in(data) == [] and everything(data) == before


@HALVES
def test_what_sigkill_left_is_removed_by_the_next_run(half: str, data: Path, copy: Path, tmp_path: Path) -> None:
    """Whichever of the two it is, and wherever its backup goes."""
    before = everything(data)
    for next_run in (
        ["backup", str(tmp_path / "another")],
        ["restore", str(copy)],
    ):
        with begun(half, data, copy) as process:
            process.kill()
            process.wait(60.0)
        assert left_in(data) and shown_in(data) == before
        assert main([*next_run, "--data-dir", str(data)]) == 0
        assert left_in(data) == []


def shown_in(data: Path) -> dict[str, bytes]:
    """Return the files that are not hidden."""
    beside = ("journal.lock", "-shm", "-wal")
    return {
        path.name: path.read_bytes()
        for path in data.iterdir()
        if not path.name.startswith(".") and not path.name.endswith(beside)
    }


def test_a_killed_backup_beside_its_target_is_removed_by_the_next_to_the_same_folder(
    data: Path, tmp_path: Path
) -> None:
    """Backups by a timer have another name each time."""
    out = tmp_path / "out"
    out.mkdir()
    script = ENDED_BY_ITSELF.replace("SIGTERM", "SIGKILL")
    command = [sys.executable, "-c", script, "checking", "backup", str(out / "monday"), "--data-dir", str(data)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    assert left_in(out)
    assert main(["backup", str(out / "tuesday"), "--data-dir", str(data)]) == 0
    assert [path.name for path in out.iterdir()] == ["tuesday"]


def test_a_run_does_not_touch_what_another_works_in(data: Path, tmp_path: Path) -> None:
    """Two backups at once, a third between: each is whole."""
    with half_read(data) as first, half_read(data) as second:
        assert main(["backup", str(tmp_path / "third"), "--data-dir", str(data)]) == 0
        assert len(left_in(data)) == 2
        for number, process in enumerate((first, second)):
            whole, said = process.communicate(timeout=60.0)
            assert process.returncode == 0, said
            (tmp_path / f"copy{number}").write_bytes(whole)
            assert len(kinds(tmp_path / f"copy{number}")) == ENTRIES_COUNT
    assert left_in(data) == []


def test_only_what_is_surely_ours_is_removed(data: Path, tmp_path: Path) -> None:
    """Somebody's folder of such a name stays with what is in it, and what a link leads to."""
    mine, linked = data / ".swingbus-00000001", data / ".swingbus-00000002"
    mine.mkdir()
    (mine / "lock").touch()
    (mine / "diary").write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("lock", "partial"):
        (elsewhere / name).write_text("mine")
    linked.symlink_to(elsewhere)
    assert main(["backup", str(tmp_path / "copy"), "--data-dir", str(data)]) == 0
    assert (mine / "diary").read_text() == "mine" and linked.is_symlink()
    assert sorted(path.name for path in elsewhere.iterdir()) == ["lock", "partial"]


@pytest.mark.parametrize(("verb", "when"), [("backup", "copying"), ("backup", "checking"), ("restore", "checking")])
def test_sigterm_while_sqlite_works_is_no_fault_of_the_disk(verb: str, when: str, data: Path, tmp_path: Path) -> None:
    """SQLite swallows the exception and says that it was interrupted."""
    fill(data, *(entry() for _ in range(20_000)))  # SQLite tells of longer work only
    copy = tmp_path / "copy"
    if verb == "restore":
        assert main(["backup", str(copy), "--data-dir", str(data)]) == 0
    before = everything(data)
    command = [sys.executable, "-c", ENDED_BY_ITSELF, when, verb, str(copy), "--data-dir", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 128 + signal.SIGTERM and done.stderr == "", done.stderr
    assert left_in(data) == [] and left_in(tmp_path) == [] and everything(data) == before
    assert copy.exists() == (verb == "restore")


def test_the_signal_is_left_as_it_was(data: Path, tmp_path: Path) -> None:
    """Only these two commands take it."""
    before = signal.getsignal(signal.SIGTERM)
    assert main(["backup", str(tmp_path / "copy"), "--data-dir", str(data)]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


# Which disk it was.


def test_a_data_folder_that_refuses_is_not_called_standard_output(
    data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No right to write there, or no room."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(sys, "stdout", open(os.dup(1), "w", encoding="utf-8"))  # noqa: SIM115  # a file, not pytest's
    try:
        assert main(["backup", "-", "--data-dir", str(data)]) == 3
    finally:
        sys.stdout.close()
    said = capfd.readouterr().err
    assert "CANNOT_WRITE" in said and str(data) in said and "Permission denied" in said
    assert "standard output" not in said


# Whose journal it was.


@pytest.mark.parametrize("is_newer", [False, True])
def test_a_journal_that_cannot_be_read_was_not_compared_and_that_is_said(
    is_newer: bool, data: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have been another site's; the restore goes on, for damage is why it is done."""
    path = data / "journal.sqlite"
    if is_newer:
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA user_version=99")
    else:
        path.write_bytes(b"\x00" * 5000)
    capsys.readouterr()
    assert main(["restore", str(copy), "--data-dir", str(data)]) == 0
    out = capsys.readouterr().out
    (warning,) = [line for line in out.splitlines() if line.startswith("WARNING")]
    assert ("DATABASE_NEWER" if is_newer else "NO_JOURNAL") in warning or "DATABASE_DAMAGED" in warning
    assert "site north" in warning
    assert main(["restore", str(copy), "--data-dir", str(data)]) == 0
    assert "WARNING" not in capsys.readouterr().out
