"""Who holds the lease, with real processes on one folder: of two the second waits; the kernel says when the first is dead."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swingbus.clock import SystemClock
from swingbus.faults import Unreachable, WrongState
from swingbus_controller.adapters.kubernetes.identity import VolumeIdentity
from tests.fakes.other_user import GROUP, USER

FILE = "cluster-identity"
_HOLD = """
import asyncio, sys
from pathlib import Path
from swingbus.clock import SystemClock
from swingbus.logs import configure_logging
from swingbus_controller.adapters.kubernetes.identity import VolumeIdentity
identity = VolumeIdentity(Path(sys.argv[1]))
configure_logging("test", level="warning")
print("opened", identity.name, flush=True)
asyncio.run(identity.hold(SystemClock()))
print("held", flush=True)
sys.stdin.read()
"""
_OPEN = """
import os, sys
from pathlib import Path
from swingbus.faults import SwingbusError
from swingbus_controller.adapters.kubernetes.identity import VolumeIdentity
if os.geteuid() == 0:  # root may write anywhere
    os.setgroups([])
    os.setresgid(*[int(sys.argv[3])] * 3)
    os.setresuid(*[int(sys.argv[2])] * 3)
try:
    print(VolumeIdentity(Path(sys.argv[1])).name)
except SwingbusError as fault:
    print(type(fault).__name__, fault)
"""


class Holder:
    """A process that takes the identity of a folder and keeps it until it is killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdout is not None and process.stderr is not None
        self._lines, self._warnings = process.stdout, process.stderr

    @classmethod
    async def start(cls, folder: Path) -> Holder:
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", _HOLD, str(folder), stdin=pipe, stdout=pipe, stderr=pipe
            )
        )

    async def line(self, within_s: float = 30.0) -> str:
        """Return what it says next."""
        async with asyncio.timeout(within_s):
            return (await self._lines.readline()).decode().strip()

    async def warning(self) -> str:
        """Return what it warns of next."""
        async with asyncio.timeout(5.0):
            return (await self._warnings.readline()).decode()

    async def kill(self) -> None:
        """SIGKILL; return when it is dead."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[Holder, Holder]]:
    """Return the process that holds the identity, and one that has opened it."""
    first = await Holder.start(tmp_path)
    name = await first.line()
    assert await first.line() == "held"
    second = await Holder.start(tmp_path)
    assert await second.line() == name
    yield first, second
    for each in (first, second):
        await each.kill()


async def test_second_process_holds_within_a_second_of_the_firsts_death(two: tuple[Holder, Holder]) -> None:
    """It is the same holder to the cluster, so never both; killed hard, the first leaves nothing behind."""
    first, second = two
    with pytest.raises(TimeoutError):
        await second.line(within_s=2.0)
    assert "identity_awaited" in await second.warning()
    await first.kill()
    began_s = time.perf_counter()
    assert await second.line() == "held"
    assert time.perf_counter() - began_s < 1.0


async def test_one_that_ends_in_order_lets_go(tmp_path: Path) -> None:
    """Closed, another in the same process gets it at once; the name is the folder's for good."""
    first = VolumeIdentity(tmp_path)
    await first.hold(SystemClock())
    first.close()
    second = VolumeIdentity(tmp_path)
    async with asyncio.timeout(0.1):
        await second.hold(SystemClock())
    assert second.name == first.name
    assert (tmp_path / FILE).read_text() == second.name.removeprefix("swingbus-controller-") + "\n"
    second.close()


def test_each_folder_is_somebody_else(tmp_path: Path) -> None:
    """Two empty folders never make the same holder."""
    names = set()
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        made = VolumeIdentity(tmp_path / str(number))
        names.add(made.name)
        made.close()
    assert len(names) == 20


@pytest.mark.parametrize(
    "written",
    [b"hello\n", b"0123456789abcdef\n", b"0123456789ABCDEF0123456789ABCDEF\n", b"\xff" * 32, b"0" * 64],
    ids=["words", "half", "capitals", "no_text", "too_long"],
)
def test_damaged_file_is_told_and_left(tmp_path: Path, written: bytes) -> None:
    """A guess would be a second holder: it says which file, and what to do."""
    (tmp_path / FILE).write_bytes(written)
    with pytest.raises(WrongState) as seen:
        VolumeIdentity(tmp_path)
    assert seen.value.reason == "BAD_IDENTITY"
    assert str(tmp_path / FILE) in str(seen.value) and "remove it" in str(seen.value)
    assert (tmp_path / FILE).read_bytes() == written


def test_empty_file_of_a_crash_is_filled(tmp_path: Path) -> None:
    """Killed between making the file and writing it: nobody had that identity yet."""
    (tmp_path / FILE).touch()
    made = VolumeIdentity(tmp_path)
    made.close()
    assert len((tmp_path / FILE).read_text()) == 33


def test_folder_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    """And named."""
    with pytest.raises(Unreachable, match="No such file"):
        VolumeIdentity(tmp_path / "none")


def test_folder_that_cannot_be_written_is_unreachable() -> None:
    """A volume mounted for somebody else: the file is named and so is what to look at; nothing is made up, nothing is read."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o555)
        said = _open_as_nobody(folder)
        assert said.startswith(f"Unreachable cannot use {folder / FILE}: Permission denied")
        assert "check the data folder's permissions" in said
        assert list(folder.iterdir()) == []
        folder.chmod(0o755)
        VolumeIdentity(folder).close()
        (folder / FILE).chmod(0o400 if os.geteuid() else 0o600)  # a file of somebody else's
        folder.chmod(0o555)
        assert _open_as_nobody(folder).startswith("Unreachable")
        folder.chmod(0o755)


def _open_as_nobody(folder: Path) -> str:
    command = [sys.executable, "-c", _OPEN, str(folder), str(USER), str(GROUP)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
