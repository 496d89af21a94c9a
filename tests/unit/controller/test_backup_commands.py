"""`swingbus-controller backup` and `restore` as typed: whole or not at all, and never over what is not theirs."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from swingbus.faults import WrongState
from swingbus_controller.adapters.storage.copying import copy_journal
from swingbus_controller.adapters.storage.holding import JournalHold
from swingbus_controller.adapters.storage.journal import SqliteJournal
from swingbus_controller.backup_commands import Teller
from swingbus_controller.main import main
from tests.fakes.controllers import TestSite
from tests.fakes.journals import entry, everything, fill, kinds, limit_set

COMMAND = [sys.executable, "-m", "swingbus_controller.main"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data folder with a journal of 200 entries."""
    folder = tmp_path / "data"
    fill(folder, *(entry() for _ in range(200)))
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Run a command line that fails; return its exit code and what it says."""
    capsys.readouterr()
    code = main([*argv])
    said = capsys.readouterr()
    assert code != 0 and not said.out, said.out
    return code, said.err


# Backup.


def test_backup_is_private_whole_and_alone(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file that only its owner reads, with everything in it; what it holds is told on standard error."""
    copy = tmp_path / "copy"
    assert main(["backup", str(copy), "--data-dir", str(data)]) == 0
    said = capsys.readouterr()
    assert said.out == "" and "site north to event 200 of 2026-11-18" in said.err and "epoch 1" in said.err
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "data"]
    assert len(kinds(copy)) == 200


def test_backup_of_a_journal_that_is_written_is_one_moment(data: Path, tmp_path: Path) -> None:
    """A controller appends three entries at a time and waits for nobody: each copy has whole appends, and all that was there before."""
    stop, appended = threading.Event(), [200]

    def write() -> None:
        with closing(SqliteJournal(data / "journal.sqlite")) as journal:
            journal.claim_epoch("writer", 0)
            while not stop.is_set():
                journal.append([entry(), entry(), entry()])
                appended[0] += 3

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(20):
            before = appended[0]
            facts = copy_journal(data, tmp_path / f"copy{number}", lambda what, ratio: None)
            assert facts.revision >= before
            assert (facts.revision - 200) % 3 == 0
    finally:
        stop.set()
        writer.join()
    assert appended[0] > 200 + 3 * 20, "nothing was written meanwhile: the test shows nothing"


def test_backup_overwrites_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An older backup stays, a dangling link too."""
    (tmp_path / "copy").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("copy", "link"):
        code, said = refusal(capsys, "backup", str(tmp_path / name), "--data-dir", str(data))
        assert code == 1 and "FILE_EXISTS" in said and name in said
    assert (tmp_path / "copy").read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_backup_says_what_is_missing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No folder to write to, no journal to read, a file in its place."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for argv, reason in (
        ((str(tmp_path / "none" / "copy"), "--data-dir", str(data)), "NO_DIRECTORY"),
        ((str(tmp_path / "file" / "copy"), "--data-dir", str(data)), "NO_DIRECTORY"),
        ((str(tmp_path / "copy"), "--data-dir", str(tmp_path / "empty")), "NO_JOURNAL"),
        ((str(tmp_path / "copy"), "--data-dir", str(tmp_path / "none")), "NO_JOURNAL"),
        ((str(tmp_path / "copy"), "--data-dir", str(tmp_path / "file")), "NO_JOURNAL"),
        (("-", "--data-dir", str(tmp_path / "none")), "NO_JOURNAL"),
    ):
        code, said = refusal(capsys, "backup", *argv)
        assert code == 1 and reason in said and "Traceback" not in said
    assert not (tmp_path / "copy").exists()


def test_backup_of_a_damaged_journal_is_none(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so and leaves nothing that looks like a backup."""
    path = data / "journal.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\x55" * 4096 + whole[12288:])
    code, said = refusal(capsys, "backup", str(tmp_path / "copy"), "--data-dir", str(data))
    assert code == 1 and "DATABASE_DAMAGED" in said and str(path) in said
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data"]


def test_backup_on_a_full_disk_leaves_nothing(data: Path, tmp_path: Path) -> None:
    """Cut off after 16 kB: exit 3, with the next step."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))

    done = subprocess.run(
        [*COMMAND, "backup", str(tmp_path / "copy"), "--data-dir", str(data)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=small_files,
    )
    assert done.returncode == 3 and "free space" in done.stderr and "Traceback" not in done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data"]


def test_backup_to_standard_output_needs_no_other_place(data: Path, tmp_path: Path) -> None:
    """As in a pod whose root file system is read-only: no TMPDIR, no home, nothing left in the data folder."""
    before = everything(data)
    env = {"PATH": "/nowhere", "TMPDIR": "/nowhere", "HOME": "/nowhere", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*COMMAND, "backup", "-", "--data-dir", str(data)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=env, cwd="/")
    assert done.returncode == 0, done.stderr
    (tmp_path / "copy").write_bytes(done.stdout)
    assert len(kinds(tmp_path / "copy")) == 200
    assert everything(data) == before


def test_backup_to_a_reader_that_is_full_fails(data: Path) -> None:
    """The file behind `>` may hold a part: the exit code says that it is none."""
    before = everything(data)
    with Path("/dev/full").open("wb") as full:
        command = [*COMMAND, "backup", "-", "--data-dir", str(data)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 3 and "CANNOT_WRITE" in done.stderr and "whole" not in done.stderr
    assert everything(data) == before


def test_long_work_is_told_every_two_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """Short work is not."""

    class Clock:
        s = 0.0

        def monotonic_s(self) -> float:
            return self.s

    clock = Clock()
    teller = Teller(clock)  # type: ignore[arg-type]  # of a clock it reads this alone
    for step in range(50):
        clock.s = step / 10
        teller.tell("copying", step / 50)
    assert capsys.readouterr().err.splitlines() == ["copying: 40%", "copying: 80%"]
    clock.s = 10.0
    teller.tell("checking", None)
    assert capsys.readouterr().err == "checking\n"


def test_progress_is_asked_for_while_it_copies(data: Path, tmp_path: Path) -> None:
    """SQLite calls back in the middle of its work, so that there is something to tell."""
    fill(data, *(entry() for _ in range(20_000)))
    told: list[tuple[str, float | None]] = []
    copy_journal(data, tmp_path / "copy", lambda what, ratio: told.append((what, ratio)))
    copied = [ratio for what, ratio in told if what == "copying" and ratio is not None]
    assert len(copied) > 5 and copied == sorted(copied) and copied[-1] > 0.5
    assert ("checking", None) in told


# Restore.


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """Return a backup of the first 200 entries; the journal has gone on since, by one of a person's."""
    path = tmp_path / "copy"
    assert main(["backup", str(path), "--data-dir", str(data)]) == 0
    fill(data, entry(), limit_set(90_000.0))
    return path


def test_restore_puts_it_back_keeps_the_other_and_says_what_is_lost(
    data: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The journal is the backup and one entry more; what a person had set since is told, with its watts."""
    newer = everything(data)["journal.sqlite"]
    capsys.readouterr()
    assert main(["restore", str(copy), "--data-dir", str(data)]) == 0
    out = capsys.readouterr().out
    assert "limit_set feeders/grid by dana: operator limit 90.0 kW" in out
    assert "authority is advise" in out and "swingctl authority set control" in out
    (kept,) = data.glob("journal.sqlite.replaced-*")
    assert kept.read_bytes() == newer and str(kept) in out
    assert kinds(data / "journal.sqlite") == ["bank_placed"] * 200 + ["journal_restored"]
    assert stat.S_IMODE((data / "journal.sqlite").stat().st_mode) == 0o600
    assert not list(data.glob(".journal*"))


def test_restore_takes_standard_input_and_an_empty_volume(copy: Path, tmp_path: Path) -> None:
    """A new host: the folder is made, and what nobody can tell is said."""
    new = tmp_path / "new" / "data"
    command = [*COMMAND, "restore", "-", "--data-dir", str(new)]
    with copy.open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "not known here" in done.stdout and "is kept" not in done.stdout
    assert kinds(new / "journal.sqlite")[-1] == "journal_restored"


def test_restore_in_place_of_a_damaged_journal_keeps_it_too(
    data: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damage is the usual reason to restore."""
    (data / "journal.sqlite").write_bytes(b"\x00" * 5000)
    assert main(["restore", str(copy), "--data-dir", str(data)]) == 0
    assert "not known here" in capsys.readouterr().out
    (kept,) = data.glob("journal.sqlite.replaced-*")
    assert kept.read_bytes() == b"\x00" * 5000


def cut(path: Path) -> None:
    """Lose the end, as a stream that broke."""
    os.truncate(path, path.stat().st_size // 2)


def scribble(path: Path) -> None:
    """Damage one page in the middle."""
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\x55" * 4096 + whole[12288:])


def make_newer(path: Path) -> None:
    """Write a format that this program does not know."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version=99")


def make_foreign(path: Path) -> None:
    """Put another program's database there."""
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE entries (revision INTEGER)")


def make_text(path: Path) -> None:
    """Put something else there."""
    path.write_text("not a database, but long enough to be looked at" * 100)


def make_void(path: Path) -> None:
    """Put nothing there."""
    path.write_bytes(b"")


def of_another_site(path: Path) -> None:
    """Put the journal of another site there."""
    path.unlink()
    fill(path.parent / "south", entry(site="south"))
    assert main(["backup", str(path), "--data-dir", str(path.parent / "south")]) == 0


@pytest.mark.parametrize(
    ("harm", "code", "reason"),
    [
        (cut, 1, "DATABASE_DAMAGED"),
        (scribble, 1, "DATABASE_DAMAGED"),
        (make_newer, 1, "DATABASE_NEWER"),
        (make_foreign, 2, "NO_JOURNAL"),
        (make_text, 1, "DATABASE_DAMAGED"),
        (make_void, 2, "NO_JOURNAL"),
        (of_another_site, 1, "OTHER_SITE"),
        (Path.unlink, 1, "NO_BACKUP"),
    ],
)
def test_restore_refuses_what_is_no_backup_of_this_site(
    harm: Callable[[Path], None], code: int, reason: str, data: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing in the data folder is changed by it."""
    before = everything(data)
    harm(copy)
    seen, said = refusal(capsys, "restore", str(copy), "--data-dir", str(data))
    assert (seen, reason in said) == (code, True), said
    assert str(copy) in said and "Traceback" not in said
    assert everything(data) == before


def test_restore_waits_for_no_controller(data: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One runs, or two do while one takes over: refused at once, with how to stop it."""
    before = everything(data)
    first, second = JournalHold(data, alone=False), JournalHold(data, alone=False)
    first.close()
    code, said = refusal(capsys, "restore", str(copy), "--data-dir", str(data))
    assert code == 1 and "JOURNAL_HELD" in said and "scale" in said
    assert everything(data) == before
    second.close()
    assert main(["restore", str(copy), "--data-dir", str(data)]) == 0


async def test_restore_is_refused_by_a_controller_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real one: a backup can be taken from it, none put under it."""
    site = TestSite(tmp_path)
    async with site.serve():
        data, copy = str(tmp_path / "data"), str(tmp_path / "copy")
        assert await asyncio.to_thread(main, ["backup", copy, "--data-dir", data]) == 0
        code, said = await asyncio.to_thread(refusal, capsys, "restore", copy, "--data-dir", data)
        assert code == 1 and "JOURNAL_HELD" in said
    assert await asyncio.to_thread(main, ["restore", copy, "--data-dir", data]) == 0
    async with site.serve() as controller:
        assert controller.journal.epoch > 1_700_000_000


def test_controller_does_not_start_under_a_restore(data: Path) -> None:
    """systemd may start it meanwhile: it says why not, and is started again."""
    hold = JournalHold(data, alone=True)
    with pytest.raises(WrongState) as refused:
        JournalHold(data, alone=False)
    assert refused.value.reason == "JOURNAL_REPLACED"
    hold.close()
    JournalHold(data, alone=False).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can do what is refused here")
def test_root_leaves_no_file_that_the_controller_cannot_read(
    data: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is another user's: restore as that one."""
    os.chown(data, 65_532, 65_532)
    code, said = refusal(capsys, "restore", str(copy), "--data-dir", str(data))
    assert code == 1 and "OTHER_USER" in said and "runuser -u swingbus" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read another user's journal")
def test_backup_by_root_leaves_nothing_that_the_controller_cannot_open(data: Path, tmp_path: Path) -> None:
    """What SQLite keeps beside a journal that it only reads belongs to the journal's owner."""
    for path in (data, *data.iterdir()):
        os.chown(path, 65_532, 65_532)
    assert main(["backup", str(tmp_path / "copy"), "--data-dir", str(data)]) == 0
    assert {path.stat().st_uid for path in data.iterdir()} == {65_532}
