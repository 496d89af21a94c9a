"""Files that are not whole yet: made in a folder of their own, which does not outlive who makes them.

Decides: whose folder may be removed. Refuses to know: what is written. Invariant: a folder is removed by who made it, however that ends,
or, where that was killed, by the next of the same user who works in the same place; one that somebody still works in is left alone.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swingbus.faults import Unreachable

PARTIAL = "partial"
_PREFIX = ".swingbus-"
_PATTERN = _PREFIX + "[0-9a-f]" * 8
_LOCK = "lock"
# All that is ever in such a folder; where something else is, it stays. The lock goes last.
_FILES = (PARTIAL, *(PARTIAL + tail for tail in ("-wal", "-shm", "-journal")), _LOCK)
_NEXT_STEP = "Make room, or name another place."


@contextmanager
def unfinished(place: Path, target: Path, *, next_step: str = _NEXT_STEP) -> Iterator[Path]:
    """Give the name of an empty file of mode 0600 to write; all of it is gone afterwards, unless it was renamed.

    Args:
        place: the folder to write it in; target: what messages name.

    Raises:
        Unreachable: the disk refused, here or while it was written.
    """
    try:
        remove_leftovers(place)
        folder, lock = _make_folder(place)
        try:
            partial = folder / PARTIAL
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            yield partial
        finally:
            with suppress(OSError):
                _remove(folder)
            os.close(lock)
    except OSError as error:
        raise cannot_write(target, error.strerror or str(error), next_step=next_step) from error


def remove_leftovers(place: Path) -> None:
    """Remove what killed runs left in a folder, as far as it is ours; what can't be removed is left."""
    with suppress(OSError):
        for folder in place.glob(_PATTERN):
            with suppress(OSError):
                _remove_if_left(folder)


def sync(path: Path) -> None:
    """Make a file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(target: Path | str, why: str, *, next_step: str = _NEXT_STEP) -> Unreachable:
    """Return the fault for a disk, or a reader, that refuses."""
    return Unreachable(
        f"cannot write {target}: {why}; nothing is kept of it. {next_step}",
        reason="CANNOT_WRITE",
        metadata={"path": str(target)},
    )


def _make_folder(place: Path) -> tuple[Path, int]:
    """Make a folder and hold it; return it with the descriptor that holds it."""
    while True:
        folder = place / f"{_PREFIX}{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        # Somebody may take it for left while it is not held yet: then another one is made.
        with suppress(FileNotFoundError):
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with suppress(OSError):  # a file system without locks: nobody else gets one either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / _LOCK).exists():
                return folder, lock
            os.close(lock)


def _remove_if_left(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        folder.rmdir()
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(folder)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
