"""The ASIC child killed, stopped and overloaded: the agent goes on, and good miners do not wait for bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from swingbus.faults import InvalidInput, Unreachable
from swingbus_agent.adapters.asic import client
from swingbus_agent.adapters.asic.client import AsicDriver, AsicSettings, boottime_s
from swingbus_agent.domain.miner import (
    Hung,
    MinerAddress,
    MinerFirmware,
    MinerOutcome,
    MinerReading,
    Unavailable,
    UnavailableReason,
    WriteVerdict,
)
from swingbus_sim.catalogue import ASIC_CLASSES
from swingbus_sim.miners import Firmware, ServedMiner, serve_miners
from swingbus_sim.ports import NetworkFault
from tests.fakes.miners import FakeAsic

SETTINGS = AsicSettings(read_deadline_s=1.0, write_deadline_s=1.5, restart_pause_s=(0.05, 0.2))


@contextlib.asynccontextmanager
async def a_bank(net: int, asics: Sequence[FakeAsic], settings: AsicSettings = SETTINGS) -> AsyncIterator[AsicDriver]:
    """Serve a LuxOS bank on 127.`net`.0.x and run a driver for it; miners are named m0, m1 and so on."""
    served = [
        ServedMiner(asic=asic, firmware=Firmware.LUXOS, host=f"127.{net}.0.{number + 1}")
        for number, asic in enumerate(asics)
    ]
    addresses = [
        MinerAddress(name=f"m{number}", host=miner.host, firmware=MinerFirmware.LUXOS)
        for number, miner in enumerate(served)
    ]
    driver = AsicDriver(addresses, settings)
    async with serve_miners(served, boottime_s), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(driver.run())
        await driver.wait_ready()
        try:
            yield driver
        finally:
            running.cancel()


async def sweep(driver: AsicDriver, count: int) -> dict[int, tuple[MinerOutcome, float]]:
    """Read all miners at once; return each outcome and how long it took."""
    found: dict[int, tuple[MinerOutcome, float]] = {}

    async def one(number: int) -> None:
        began_s = boottime_s()
        found[number] = (await driver.read(f"m{number}"), boottime_s() - began_s)

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(one(number))
    return found


async def read_again(driver: AsicDriver, miner: str = "m0") -> MinerReading:
    """Read until there is a reading again; fails after a while."""
    async with asyncio.timeout(15.0):
        while True:
            outcome = await driver.read(miner)
            if isinstance(outcome, MinerReading):
                return outcome
            await asyncio.sleep(0.05)


async def test_killed_child_is_replaced_and_calls_say_so() -> None:
    """Calls that wait on a killed child end at once with a reason, and the next child reads again."""
    asic = FakeAsic()
    async with a_bank(73, [asic]) as driver:
        await driver.read("m0")
        asic.set_weather(NetworkFault.HUNG)
        first = driver.child_pid
        assert first is not None
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(driver.read("m0"))
            writing = tasks.create_task(driver.sleep("m0"))
            await asyncio.sleep(0.1)
            os.kill(first, signal.SIGKILL)
        outcome = waiting.result()
        assert isinstance(outcome, Unavailable)
        assert outcome.reason is UnavailableReason.DRIVER_DOWN
        assert writing.result().verdict is WriteVerdict.TIMED_OUT  # it may have gone out before
        asic.set_weather(NetworkFault.NONE)
        assert (await read_again(driver)).power_w == 2794.0
        assert driver.child_pid != first
        assert driver.restarts == 1


async def test_stopped_child_is_noticed_killed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is there but silent is ended by force."""
    monkeypatch.setattr(client, "SILENCE_S", 2.0)
    async with a_bank(74, [FakeAsic()]) as driver:
        await driver.read("m0")
        stopped = driver.child_pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        assert (await read_again(driver)).power_w == 2794.0
        assert driver.child_pid != stopped
        with pytest.raises(ProcessLookupError):
            os.kill(stopped, 0)


async def test_child_ends_with_its_driver() -> None:
    """No process stays behind when the agent stops."""
    async with a_bank(75, [FakeAsic()]) as driver:
        await driver.read("m0")
        child = driver.child_pid
        assert child is not None
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


PARENT = """
import asyncio
from swingbus_agent.adapters.asic.client import AsicDriver
async def main():
    driver = AsicDriver([])
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(driver.run())
        await driver.wait_ready()
        print(driver.child_pid, flush=True)
asyncio.run(main())
"""


async def test_child_of_a_killed_agent_ends_by_itself() -> None:
    """An agent that dies without a word leaves no process behind."""
    path = os.pathsep.join(path for path in sys.path if path)
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE, env={"PYTHONPATH": path}
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    await parent.wait()
    for _ in range(200):
        if not is_running(child):
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"process {child} outlived its agent by 10 s")


def is_running(pid: int) -> bool:
    """Say whether a process is there and no zombie that nobody has collected yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


async def test_two_readers_of_one_miner_both_get_a_reading() -> None:
    """A second look while the first is under way is no sign of a hung miner, however many are asked at once."""
    asics = [FakeAsic(name=f"m{number}") for number in range(40)]
    async with a_bank(81, asics) as driver:
        for asic in asics:
            asic.set_weather(NetworkFault.LATE, 0.1)
        async with asyncio.TaskGroup() as tasks:
            sweeps = [tasks.create_task(sweep(driver, len(asics))) for _ in range(2)]
        for found in sweeps:
            assert all(isinstance(outcome, MinerReading) for outcome, _ in found.result().values())


async def test_taken_address_is_a_clear_error() -> None:
    """A second simulator on the same addresses is told what to look for."""
    miner = ServedMiner(asic=FakeAsic(), firmware=Firmware.LUXOS, host="127.82.0.1")
    async with serve_miners([miner], boottime_s):
        with pytest.raises(Unreachable, match=r"127\.82\.0\.1:4028.*another simulator"):
            async with serve_miners([miner], boottime_s):
                pass


async def test_child_that_cannot_start_leaves_miners_unavailable() -> None:
    """A broken installation is a reason on every miner, not a crash."""
    address = MinerAddress(name="m0", host="127.76.0.1", firmware=MinerFirmware.LUXOS)
    for command in (["/nonexistent/python"], [sys.executable, "-c", "print('hello')"]):
        driver = AsicDriver([address], SETTINGS, command=command)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(driver.run())
            await asyncio.sleep(0.3)
            outcome = await driver.read("m0")
            assert isinstance(outcome, Unavailable)
            assert outcome.reason is UnavailableReason.DRIVER_DOWN
            assert (await driver.sleep("m0")).verdict in (WriteVerdict.TIMED_OUT, WriteVerdict.REFUSED)
            running.cancel()


async def test_many_hung_miners_delay_no_good_one() -> None:
    """With two thirds of a bank hung, the good third answers at once, and each hung one keeps getting its turn."""
    asics = [FakeAsic(name=f"m{number}") for number in range(60)]
    settings = AsicSettings(read_deadline_s=1.0, max_concurrent=48, suspect_places=8)
    async with a_bank(77, asics, settings) as driver:
        await sweep(driver, len(asics))
        for asic in asics[20:]:
            asic.set_weather(NetworkFault.HUNG)
        await sweep(driver, len(asics))  # the first sweep finds them out
        for _ in range(3):
            found = await sweep(driver, len(asics))
            slowest_s = max(found[number][1] for number in range(20))
            assert all(isinstance(found[number][0], MinerReading) for number in range(20))
            assert slowest_s < settings.read_deadline_s, slowest_s
            assert all(isinstance(found[number][0], Hung) for number in range(20, 60))
        for asic in asics[20:]:
            asic.set_weather(NetworkFault.NONE)
        async with asyncio.timeout(20.0):
            while True:
                found = await sweep(driver, len(asics))
                if all(isinstance(outcome, MinerReading) for outcome, _ in found.values()):
                    break
                await asyncio.sleep(0.2)


async def test_shed_of_a_whole_bank_goes_out_at_once() -> None:
    """Writes do not queue behind reads of hung miners: sixty sleeps are accepted within a second or so."""
    asics = [FakeAsic(name=f"m{number}") for number in range(60)]
    async with a_bank(78, asics) as driver:
        await sweep(driver, len(asics))
        asics[0].set_weather(NetworkFault.HUNG)
        began_s = boottime_s()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(driver.read("m0"))
            calls = [tasks.create_task(driver.sleep(f"m{number}")) for number in range(1, 60)]
            results = [await call for call in calls]
            took_s = boottime_s() - began_s
        assert all(result.verdict is WriteVerdict.ACCEPTED for result in results)
        assert took_s < 5.0  # 0.2 s on an idle machine
        found = await sweep(driver, len(asics))
        asleep = [
            outcome for outcome, _ in found.values() if isinstance(outcome, MinerReading) and outcome.power_w == 25.0
        ]
        assert len(asleep) == 59


async def test_session_held_by_another_tool_does_not_stop_a_shed() -> None:
    """LuxOS has one session; one that an operator's page holds is used and left open."""
    asic = FakeAsic()
    async with a_bank(79, [asic]) as driver:
        reader, writer = await asyncio.open_connection("127.79.0.1", 4028)
        writer.write(b'{"command":"logon"}\n')
        assert b"SessionID" in await reader.read(4096)
        writer.close()
        await writer.wait_closed()
        assert (await driver.sleep("m0")).verdict is WriteVerdict.ACCEPTED
        assert asic.commands == ["sleep"]


async def test_every_model_of_the_simulator_is_known_to_the_library() -> None:
    """A catalogue entry that the library cannot place would have no boards; each one is placed, read and put to sleep."""
    asics = [
        (
            FakeAsic(name=kind.name, model=kind.model, profiles=kind.profiles, profile=kind.default_profile),
            kind.firmware,
        )
        for kind in ASIC_CLASSES.values()
    ]
    served = [
        ServedMiner(asic=asic, firmware=Firmware(firmware), host=f"127.80.0.{number + 1}", password="secret")
        for number, (asic, firmware) in enumerate(asics)
    ]
    addresses = [
        MinerAddress(name=miner.asic.name, host=miner.host, firmware=MinerFirmware(firmware), password="secret")
        for miner, (_, firmware) in zip(served, asics, strict=True)
    ]
    driver = AsicDriver(addresses, SETTINGS)
    async with serve_miners(served, boottime_s), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(driver.run())
        await driver.wait_ready()
        for asic, _ in asics:
            reading = await driver.read(asic.name)
            assert isinstance(reading, MinerReading), reading
            assert len(reading.board_temperatures_c) == 3
            assert (await driver.sleep(asic.name)).verdict is WriteVerdict.ACCEPTED
            assert asic.commands == ["sleep"]
        running.cancel()


def test_deadline_beyond_the_librarys_own_is_refused() -> None:
    """Settings that cannot work are refused with what to change."""
    with pytest.raises(InvalidInput, match="asic"):
        AsicSettings(read_deadline_s=7.0)


def test_password_is_in_no_representation() -> None:
    """A password never reaches a log by way of `repr`."""
    address = MinerAddress(name="m0", host="127.0.0.9", firmware=MinerFirmware.WHATSMINER, password="hush-hush")
    assert "hush-hush" not in repr(address)
    assert "hush-hush" not in str([address])


def test_two_miners_of_one_name_are_refused() -> None:
    """Names are how everybody speaks of a miner: they must differ."""
    address = MinerAddress(name="m0", host="127.0.0.9", firmware=MinerFirmware.LUXOS)
    with pytest.raises(InvalidInput, match="same name"):
        AsicDriver([address, address])
