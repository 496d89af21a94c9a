"""A restore that is killed, or whose disk refuses, at each of its steps: the journal is the one before or the restored one, whole."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from swingbus.faults import WrongState
from swingbus_controller.adapters.storage.journal import SqliteJournal
from swingbus_controller.main import main
from tests.fakes.journals import entry, fill, kinds

OLD = ["bank_placed"] * 30 + ["limit_set"]
NEW = ["bank_placed"] * 30 + ["journal_restored"]

# Restores into a fresh copy of a folder, killed before its first call that changes names or makes them durable, then before its second,
# and so on until one comes to its end.
KILLED_AT_EACH_STEP = """
import os, shutil, signal, sys
from pathlib import Path
from swingbus.clock import SystemClock
from swingbus_controller.adapters.storage.restoring import restore_journal

source, copy, out = map(Path, sys.argv[1:])
left = 0

def counted(real):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call

for step in range(1, 100):
    shutil.copytree(source, out / str(step))
    child = os.fork()
    if child == 0:
        left = step
        for name in ("fsync", "link", "mkdir", "rename", "rmdir", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        with copy.open("rb") as file:
            restore_journal(file, "copy", out / str(step), SystemClock(), lambda what, ratio: None)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
else:
    sys.exit("never came to its end")
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a backup of a journal of 30 entries, which has gone on by one in the folder `killed`, whose controller was killed."""
    fill(tmp_path / "data", *(entry() for _ in range(30)))
    assert main(["backup", str(tmp_path / "copy"), "--data-dir", str(tmp_path / "data")]) == 0
    with closing(SqliteJournal(tmp_path / "data" / "journal.sqlite")) as journal:
        journal.claim_epoch("one", 0)
        journal.append([entry("limit_set")])
        shutil.copytree(tmp_path / "data", tmp_path / "killed")
    assert (tmp_path / "killed" / "journal.sqlite-wal").stat().st_size > 0
    return tmp_path / "copy"


@pytest.fixture
def killed(copy: Path) -> Path:
    """Return that folder: the newest entry is in the write-ahead log alone."""
    return copy.parent / "killed"


def kept_in(folder: Path) -> list[Path]:
    """Return the replaced journals of a folder, without their logs."""
    return [path for path in folder.glob("journal.sqlite.replaced-*") if not path.name.endswith(("-wal", "-shm"))]


def restore(copy: Path, folder: Path) -> int:
    """Run the command."""
    return main(["restore", str(copy), "--data-dir", str(folder)])


def kill_at_each_step(copy: Path, folder: Path, out: Path) -> list[Path]:
    """Return what is left of a folder by a restore that was killed at its first step, its second and so on; the last was not killed."""
    out.mkdir()
    command = [sys.executable, "-c", KILLED_AT_EACH_STEP, str(folder), str(copy), str(out)]
    subprocess.run(command, timeout=120, check=True, capture_output=True)
    return sorted(out.iterdir(), key=lambda each: int(each.name))


def test_a_kill_at_any_step_leaves_one_of_the_two_whole(copy: Path, killed: Path, tmp_path: Path) -> None:
    """By SIGKILL. Where the restored one is there the one before is kept; the next restore needs nothing and removes what was left."""
    found: list[list[str]] = []
    for folder in kill_at_each_step(copy, killed, tmp_path / "out"):
        after = tmp_path / "after" / folder.name
        shutil.copytree(folder, after)
        found.append(kinds(after / "journal.sqlite"))
        if found[-1] == NEW:
            assert [kinds(kept) for kept in kept_in(after)] == [OLD], folder.name
        assert restore(copy, folder) == 0, folder.name
        assert not list(folder.glob(".*")), folder.name
        assert kinds(folder / "journal.sqlite") == NEW
        assert sorted(kinds(kept) for kept in kept_in(folder)) == sorted([OLD] if found[-1] == OLD else [OLD, NEW])
    changed = found.index(NEW)
    assert found == [OLD] * changed + [NEW] * (len(found) - changed)
    assert changed >= 5 and len(found) - changed >= 3, "too few steps: the test shows nothing"


class Refusing:
    """A call of the operating system that fails once, the nth time; counts calls."""

    def __init__(self, real: Callable[..., Any], nth: int, code: int) -> None:
        self._real, self._nth, self._code, self.count = real, nth, code, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Fail or do it."""
        self.count += 1
        if self.count == self._nth:
            raise OSError(self._code, os.strerror(self._code))
        return self._real(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "nth", "is_replaced"),
    [("fsync", 1, False), ("link", 1, False), ("fsync", 2, False), ("rename", 1, False), ("fsync", 3, True)],
)
def test_a_disk_that_refuses_leaves_one_of_the_two_and_says_which(
    name: str,
    nth: int,
    is_replaced: bool,
    copy: Path,
    killed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the rename nothing has changed and nothing is left over; after it the message names the file that is kept."""
    refusing = Refusing(getattr(os, name), nth, errno.EIO)
    monkeypatch.setattr(os, name, refusing)
    assert restore(copy, killed) == 3
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert refusing.count >= nth and "CANNOT_WRITE" in said and "nothing is kept" not in said
    assert not list(killed.glob(".*"))
    if is_replaced:
        (kept,) = kept_in(killed)
        assert f"is kept: {kept}" in said and kinds(kept) == OLD
    else:
        assert "what it was before" in said and not kept_in(killed)
    assert kinds(killed / "journal.sqlite") == (NEW if is_replaced else OLD)


def test_a_file_system_without_second_names_gets_a_copy(
    copy: Path, killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some network disks: what is kept is the same."""
    monkeypatch.setattr(os, "link", Refusing(os.link, 1, errno.EOPNOTSUPP))
    assert restore(copy, killed) == 0
    (kept,) = kept_in(killed)
    assert kinds(kept) == OLD and kinds(killed / "journal.sqlite") == NEW


def test_two_restores_within_a_second_keep_both(copy: Path, killed: Path) -> None:
    """No kept file takes the place of another."""
    for _ in range(3):
        assert restore(copy, killed) == 0
    assert sorted(kinds(kept) for kept in kept_in(killed)) == sorted([OLD, NEW, NEW])


def test_the_log_of_a_damaged_journal_stays_with_it_and_away_from_the_restored_one(copy: Path, killed: Path) -> None:
    """Byte for byte: somebody may want to save what is in it."""
    damaged = damage(killed)
    assert restore(copy, killed) == 0
    (kept,) = kept_in(killed)
    assert file_and_log(kept) == damaged
    assert kinds(killed / "journal.sqlite") == NEW


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_kill_at_any_step_loses_nothing_of_a_damaged_journal(
    copy: Path, killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_reversed: bool
) -> None:
    """After the next restore file and log are beside each other, byte for byte; until then no controller takes it for whole.

    In whichever order a folder lists its files.
    """
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *words: iter(sorted(listed(*words), reverse=is_reversed)))
    damaged, seen = damage(killed), 0
    for folder in kill_at_each_step(copy, killed, tmp_path / "out"):
        file, log = file_and_log(folder / "journal.sqlite")
        if file == damaged[0]:
            with pytest.raises(WrongState, match="damaged"):
                SqliteJournal(shutil.copytree(folder, tmp_path / "looked" / folder.name) / "journal.sqlite")
        else:
            assert not log
        seen += file == damaged[0] and not log
        assert restore(copy, folder) == 0
        assert damaged in [file_and_log(kept) for kept in kept_in(folder)], folder.name
        assert kinds(folder / "journal.sqlite") == NEW and not list(folder.glob(".*"))
    assert seen, "it was never killed between the log and the file: the test shows nothing of that"


def damage(folder: Path) -> tuple[bytes, bytes]:
    """Damage a journal so that its log does not mend it; return both."""
    path, log = folder / "journal.sqlite", folder / "journal.sqlite-wal"
    with path.open("r+b") as file:
        file.write(b"\x00" * 100)
    log.write_bytes(log.read_bytes()[:82])
    return file_and_log(path)


def file_and_log(path: Path) -> tuple[bytes, bytes]:
    """Return both, empty where there is none."""
    log = path.with_name(path.name + "-wal")
    return path.read_bytes(), log.read_bytes() if log.exists() else b""


def test_a_log_without_its_journal_is_not_played_into_the_restored_one(copy: Path, killed: Path) -> None:
    """The file is lost, its log is not: SQLite would take it for the new file's."""
    log = (killed / "journal.sqlite-wal").read_bytes()
    (killed / "journal.sqlite").unlink()
    assert restore(copy, killed) == 0
    (kept,) = killed.glob("journal.sqlite.replaced-*-wal")
    assert kept.read_bytes() == log
    assert kinds(killed / "journal.sqlite") == NEW


def test_a_journal_that_somebody_reads_is_not_replaced(
    copy: Path, killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backup of it runs: its log cannot be brought into the file meanwhile."""
    with closing(sqlite3.connect(killed / "journal.sqlite", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries").fetchone()
        assert restore(copy, killed) == 1
        assert "JOURNAL_HELD" in capsys.readouterr().err and not kept_in(killed)
    assert kinds(killed / "journal.sqlite") == OLD
