"""Small durable records as files: written beside, fsynced, renamed over, folder fsynced."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from swingbus.faults import Unreachable


class FileStateStore:
    """Records in one folder, one file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # One thread: records land in the order in which they were handed over, also where nobody waits for the first any more.
        self._writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")

    def load(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unreachable(
                f"{self._folder / name}: cannot be read: {error}; mend its rights", reason="STATE_FAILED"
            ) from error

    async def save(self, name: str, record: bytes) -> None:
        # Shielded: a record that is half on its way when we are told to leave must land or stay away as a whole.
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writing, self._write, name, record))

    def _write(self, name: str, record: bytes) -> None:
        path = self._folder / name
        beside = path.with_name(f".{name}.new")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with beside.open("wb") as file:
                file.write(record)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise Unreachable(
                f"{path}: cannot be stored: {error}; free disk space or mend rights (nothing is raised meanwhile)",
                reason="STATE_FAILED",
            ) from error
