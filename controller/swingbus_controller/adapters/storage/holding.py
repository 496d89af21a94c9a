"""Who has the journal: any controller that runs on a data folder shares it, one who replaces the file needs it alone.

Decides nothing. Two controllers may share it: which of them may write is decided by epoch. The lock lies beside the journal, never on
it: to close any descriptor of SQLite's own file would drop SQLite's locks. Invariant: no file is replaced under a living controller; the
kernel drops the lock of one that dies, however.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from swingbus.faults import Unreachable, WrongState

_FILE = "journal.lock"


class JournalHold:
    """A hold on one data folder, from the making of the object until `close`."""

    def __init__(self, data_dir: Path, *, alone: bool) -> None:
        """Take the hold or raise at once: WrongState where another has it, Unreachable where the disk refuses."""
        path = data_dir / _FILE
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unreachable(
                f"cannot use {path}: {error.strerror}; check the data folder's disk and permissions.",
                reason="DATABASE_UNREACHABLE",
                metadata={"path": str(path)},
            ) from error
        try:
            fcntl.flock(self._file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise _held(data_dir, alone=alone) from None
        except OSError as error:
            os.close(self._file)
            raise Unreachable(
                f"cannot lock {path}: {error.strerror}; the data folder needs a file system with locks.",
                reason="DATABASE_UNREACHABLE",
                metadata={"path": str(path)},
            ) from error

    def close(self) -> None:
        """Let it go."""
        os.close(self._file)


def _held(data_dir: Path, *, alone: bool) -> WrongState:
    if alone:
        return WrongState(
            f"a controller runs on {data_dir}: stop it first (`systemctl stop swingbus-controller`; in a cluster scale its "
            "Deployment to 0).",
            reason="JOURNAL_HELD",
            metadata={"path": str(data_dir)},
        )
    return WrongState(
        f"the journal in {data_dir} is being replaced by `swingbus-controller restore`: start again when that is done.",
        reason="JOURNAL_REPLACED",
        metadata={"path": str(data_dir)},
    )
