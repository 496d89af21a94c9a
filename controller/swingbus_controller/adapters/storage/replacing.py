"""Replace a database that nobody has open by another file, so that a kill or a refusing disk leaves one of the two, whole.

Decides the order of steps. Refuses to know what is in the files. Invariants: at each moment the name has the old database, all that its
write-ahead log held included, or the new one; the old one is kept under another name before the new one takes its place; no log of the old
one is ever beside the new one, for SQLite would play it into that.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from swingbus.faults import Unreachable, WrongState
from swingbus_controller.adapters.storage.database import BUSY_TIMEOUT_S
from swingbus_controller.adapters.storage.unfinished import sync

# What may hold something of a database besides its file. The -shm is made anew from the -wal.
_LOGS = ("-wal", "-journal")
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNREADABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ)


def replace_database(path: Path, new: Path, suffix: str) -> Path | None:
    """Make a file durable and give it a database's name; return where the old one is kept, None where there was none.

    Args:
        new: a whole database without a log, on the same file system.
        suffix: what the old one's new name ends in.

    Raises:
        Unreachable: the disk refuses; says which of the two has the name. WrongState: somebody has the old one open.
    """
    kept: Path | None = None
    try:
        sync(new)
        _remove_second_names(path)
        if path.exists():
            logs = _fold_logs(path)
            kept = _free_name(path, suffix)
            for tail in ("", *logs):
                _keep(_beside(path, tail), _beside(kept, tail))
            sync(path.parent)
            for tail in logs:
                _beside(path, tail).unlink()
        elif logs := _logs_of(path):
            aside = _free_name(path, suffix)
            for tail in logs:
                _beside(path, tail).rename(_beside(aside, tail))
            sync(path.parent)
        _beside(path, "-shm").unlink(missing_ok=True)
        new.rename(path)
        sync(path.parent)
    except BaseException as error:
        is_replaced = not new.exists()
        if kept is not None and not is_replaced:
            with suppress(OSError):
                _put_back(path, kept)
        if isinstance(error, OSError):
            raise _refused(path, kept, error, is_replaced=is_replaced) from error
        raise
    return kept


def drop_empty_log(path: Path) -> None:
    """Remove what a look at a database leaves beside it; a log that holds something stays with its file."""
    log = _beside(path, "-wal")
    if log.exists() and log.stat().st_size == 0:
        log.unlink()
        _beside(path, "-shm").unlink(missing_ok=True)


def _fold_logs(path: Path) -> Sequence[str]:
    """Bring into the file what its logs hold; return the tails of logs that can't be: then the file is damaged, and they stay with it."""
    if _logs_of(path) and path.stat().st_size > 0:  # to an empty file SQLite counts no log, and removes it
        try:
            # Whether it can be read is tried without a change: to close a damaged one may remove its log.
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
                database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as database:
                database.execute("PRAGMA synchronous=FULL")
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0)
            if code & 0xFF not in _DAMAGED and code not in _UNREADABLE:
                raise Unreachable(
                    f"cannot bring the write-ahead log of {path} into it: {error}; nothing was changed. Check the disk and its free space.",
                    reason="CANNOT_WRITE",
                    metadata={"path": str(path)},
                ) from error
            return _logs_of(path)
        drop_empty_log(path)
        if _beside(path, "-wal").exists():
            raise WrongState(
                f"somebody reads {path} (a backup of it?): nothing was changed. Try again when that is done.",
                reason="JOURNAL_HELD",
                metadata={"path": str(path)},
            )
    return _logs_of(path)


def _logs_of(path: Path) -> Sequence[str]:
    return tuple(tail for tail in _LOGS if _beside(path, tail).exists())


def _remove_second_names(path: Path) -> None:
    """Remove what a run left that was killed after it had kept the file and before it replaced it."""
    if not path.exists():
        return
    names = list(path.parent.glob(f"{path.name}.replaced-*"))
    for other in names:  # what is put back takes its logs along, which are no files to be compared
        if not other.name.endswith(_LOGS) and other.samefile(path):
            _put_back(path, other)


def _free_name(path: Path, suffix: str) -> Path:
    name, number = _beside(path, f".{suffix}"), 1
    while name.exists():
        number += 1
        name = _beside(path, f".{suffix}-{number}")
    return name


def _keep(old: Path, kept: Path) -> None:
    """Give a file a second name, or make a copy where the file system knows no second names."""
    try:
        os.link(old, kept)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(old, kept)
        sync(kept)


def _put_back(path: Path, kept: Path) -> None:
    """Undo what was done to keep a file that was not replaced."""
    for tail in _logs_of(kept):
        log, kept_log = _beside(path, tail), _beside(kept, tail)
        if not log.exists():
            kept_log.rename(log)
        elif kept_log.samefile(log):
            kept_log.unlink()
    kept.unlink(missing_ok=True)


def _refused(path: Path, kept: Path | None, error: OSError, *, is_replaced: bool) -> Unreachable:
    why = error.strerror or str(error)
    if not is_replaced:
        words = f"cannot write {path}: {why}; it is what it was before. Check the disk and its free space."
    else:
        words = (
            f"{path} is the restored one, but the disk does not confirm that it stays so: {why}. Check the disk, then restore again."
            + ("" if kept is None else f" The one before is kept: {kept}.")
        )
    return Unreachable(words, reason="CANNOT_WRITE", metadata={"path": str(path)})


def _beside(path: Path, tail: str) -> Path:
    return path.with_name(path.name + tail)
