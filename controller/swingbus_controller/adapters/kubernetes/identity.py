"""Who holds the lease: the volume that the journal is on, and of the processes on it the one that holds its lock.

A controller that was killed and started again on the same volume is the same holder, so it need not wait for its own lease to end. Decides
nothing. Invariant: two living processes never use one identity at the same time; the kernel drops the lock of one that dies, however.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path

from swingbus.clock import Clock
from swingbus.faults import Unreachable, WrongState
from swingbus.logs import get_logger

_FILE = "cluster-identity"
_TRY_S = 0.2


class VolumeIdentity:
    """The identity of one data folder; made once, never changed."""

    def __init__(self, folder: Path) -> None:
        """Open or make the file. Raises Unreachable where the disk refuses, WrongState where somebody wrote into it."""
        path = folder / _FILE
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            known = os.read(self._file, 64).decode("ascii", "replace").strip()
            if not known:
                known = uuid.uuid4().hex
                os.write(self._file, f"{known}\n".encode())
                os.fsync(self._file)
        except OSError as error:
            raise Unreachable(f"cannot use {path}: {error.strerror}; check the data folder's permissions") from error
        if len(known) != 32 or not all(character in "0123456789abcdef" for character in known):
            os.close(self._file)
            raise WrongState(f"{path} holds no identity; remove it and a new one is made", reason="BAD_IDENTITY")
        self.name = f"swingbus-controller-{known}"

    async def hold(self, clock: Clock) -> None:
        """Return when no other process on this volume uses the identity: one that was overtaken ends within a second."""
        is_told = False
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not is_told:
                    is_told = True
                    get_logger().warning(
                        "identity_awaited", message="another controller lives on this volume; it has to end first"
                    )
            await clock.sleep(_TRY_S)

    def close(self) -> None:
        """Let the identity go."""
        os.close(self._file)
