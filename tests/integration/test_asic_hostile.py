"""What miners must not be able to do to the agent: replies that are cut, wrong, huge or absurd, at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from swingbus_agent.adapters.asic.client import AsicDriver, AsicSettings, boottime_s
from swingbus_agent.domain.miner import (
    Hung,
    MinerAddress,
    MinerFirmware,
    MinerOutcome,
    MinerReading,
    OperatingState,
    Unavailable,
    UnavailableReason,
    WriteVerdict,
)
from swingbus_sim.miners.luxos import LuxosApi
from swingbus_sim.miners.server import RPC_PORT
from swingbus_sim.miners.whatsminer import WhatsminerApi
from tests.fakes.miners import FakeAsic

SETTINGS = AsicSettings(read_deadline_s=1.0, write_deadline_s=1.5)
_hosts = itertools.count(1)
Mangle = Callable[[bytes, bytes], bytes]  # (request, right reply) -> what goes out


class HostileMiner:
    """The right protocol, with every reply going through `mangle`."""

    def __init__(self, firmware: MinerFirmware) -> None:
        self.asic = FakeAsic(model="S19k Pro" if firmware is MinerFirmware.LUXOS else "M50S")
        luxos = firmware is MinerFirmware.LUXOS
        self._api = LuxosApi(self.asic) if luxos else WhatsminerApi(self.asic, "secret", False)
        self.mangle: Mangle = lambda request, reply: reply

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # the driver may give up first
            request = await reader.read(65536)
            reply, _ = self._api.answer(request, boottime_s())
            writer.write(self.mangle(request, reply))
            await writer.drain()
            writer.close()
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def hostile(firmware: MinerFirmware) -> AsyncIterator[tuple[HostileMiner, AsicDriver]]:
    """Serve one hostile miner on an address of its own and run a driver for it and for a healthy name beside it."""
    number = next(_hosts)
    host = f"127.72.{number // 250}.{number % 250 + 1}"
    miner = HostileMiner(firmware)
    address = MinerAddress(name="m1", host=host, firmware=firmware, password="secret")
    driver = AsicDriver([address], SETTINGS)
    server = await asyncio.start_server(miner.serve, host, RPC_PORT)
    async with server, asyncio.TaskGroup() as tasks:
        running = tasks.create_task(driver.run())
        await driver.wait_ready()
        try:
            yield miner, driver
        finally:
            running.cancel()


def fixed(reply: bytes) -> Mangle:
    """Answer everything with the same bytes."""
    return lambda request, right: reply


def edited(edit: Callable[[dict[str, Any]], object]) -> Mangle:
    """Let `edit` change each right reply's object before it goes out (NaN and infinity are written as Python does)."""

    def mangle(request: bytes, right: bytes) -> bytes:
        body = json.loads(right.rstrip(b"\0"))
        edit(body)
        return json.dumps(body).encode() + b"\0"

    return mangle


def with_watts(value: object) -> Mangle:
    """Put `value` where the watts are, in either firmware's replies."""

    def edit(body: dict[str, Any]) -> None:
        for section, key in (("POWER", "Watts"), ("SUMMARY", "Power")):
            if key in body.get(section, [{}])[0]:
                body[section][0][key] = value

    return edited(edit)


RUBBISH = {
    "nothing": b"",
    "nul": b"\0",
    "half an object": b'{"STATUS":[{"STATUS":"S"}],"CONFIG":[{"Curt',
    "bad UTF-8": b'{"STATUS":[{"STATUS":"S","Msg":"\xff\xfe\xfa"}]}\0',
    "bare infinity": b'{"STATUS":[{"STATUS":"S"}],"CONFIG":[{"Watts":Infinity}]}\0',
    "bare nan": b'{"STATUS":[{"STATUS":"S"}],"SUMMARY":[{"GHS 5s":nan}]}\0',
    "missing comma": b'{"STATUS":[{"STATUS":"S"}]"CONFIG":[]}\0',
    "two objects": b'{"STATUS":[{"STATUS":"S"}]}{"CONFIG":[]}\0',
    "an array": b"[1,2,3]\0",
    "a number": b"42\0",
    "html": b"<html><body>502</body></html>\n",
    "deep nesting": b"[" * 100_000 + b"\0",
    "nested object": b'{"a":' * 50_000 + b"\0",
    "too long": b'{"STATUS":"' + b"x" * 2_000_000 + b'"}\0',
    "empty object": b"{}\0",
    "wrong shapes": b'{"STATUS":7,"CONFIG":{"CurtailMode":[]},"SUMMARY":"no","POWER":null,"Msg":3}\0',
}


def is_honest_failure(outcome: MinerOutcome) -> bool:
    """Say whether the outcome is an absence with a reason."""
    return isinstance(outcome, Hung) or (isinstance(outcome, Unavailable) and bool(outcome.detail))


@pytest.mark.parametrize("firmware", list(MinerFirmware))
async def test_rubbish_from_the_start_is_unavailable_with_a_reason(firmware: MinerFirmware) -> None:
    """Whatever an address answers, there is a reason and no reading; the child survives all of it."""
    async with hostile(firmware) as (miner, driver):
        child = driver.child_pid
        for name, reply in RUBBISH.items():
            miner.mangle = fixed(reply)
            outcome = await driver.read("m1")
            assert is_honest_failure(outcome), f"{name}: {outcome}"
        assert driver.child_pid == child
        miner.mangle = lambda request, reply: reply
        assert isinstance(await driver.read("m1"), MinerReading)


@pytest.mark.parametrize("firmware", list(MinerFirmware))
async def test_rubbish_from_a_known_miner_is_never_a_reading_of_zeros(firmware: MinerFirmware) -> None:
    """A miner that went mad after identification gives reasons, not zeros, and is back when its answers are."""
    async with hostile(firmware) as (miner, driver):
        assert isinstance(await driver.read("m1"), MinerReading)
        child = driver.child_pid
        for name, reply in RUBBISH.items():
            miner.mangle = fixed(reply)
            outcome = await driver.read("m1")
            assert is_honest_failure(outcome), f"{name}: {outcome}"
            written = await driver.sleep("m1")
            assert written.verdict in (WriteVerdict.REFUSED, WriteVerdict.TIMED_OUT), f"{name}: {written}"
        assert miner.asic.commands == [] or firmware is MinerFirmware.LUXOS
        assert driver.child_pid == child
        miner.mangle = lambda request, reply: reply
        assert isinstance(await driver.read("m1"), MinerReading)


@pytest.mark.parametrize("firmware", list(MinerFirmware))
@pytest.mark.parametrize(
    "value", ["inf", "nan", "2794", None, True, [], {}, -5, 1e9, 1e300, float("inf"), float("nan")]
)
async def test_absurd_watts_are_missing_never_zero(firmware: MinerFirmware, value: object) -> None:
    """Watts that are no believable number become `None`; the rest of the reading stands where it can."""
    async with hostile(firmware) as (miner, driver):
        assert isinstance(await driver.read("m1"), MinerReading)
        miner.mangle = with_watts(value)
        outcome = await driver.read("m1")
        if isinstance(outcome, MinerReading):
            assert outcome.power_w is None
            # infinity and NaN spoil the whole reply they are in; Whatsminer's watts and hashrate share one
            assert outcome.state in (OperatingState.MINING, OperatingState.UNKNOWN)
        else:
            assert is_honest_failure(outcome)


async def test_out_of_range_numbers_are_named_in_errors() -> None:
    """A number outside physics is reported, not clipped."""
    async with hostile(MinerFirmware.LUXOS) as (miner, driver):
        await driver.read("m1")
        miner.mangle = with_watts(-5)
        outcome = await driver.read("m1")
        assert isinstance(outcome, MinerReading)
        assert any("power_w out of range: -5" in error for error in outcome.errors)


async def test_asleep_but_hashing_is_unknown_with_an_error() -> None:
    """A miner that contradicts itself is neither asleep nor mining."""

    def claim_sleep(body: dict[str, Any]) -> None:
        for config in body.get("CONFIG", []):
            config["CurtailMode"] = "Sleep"

    async with hostile(MinerFirmware.LUXOS) as (miner, driver):
        miner.mangle = edited(claim_sleep)
        outcome = await driver.read("m1")
        assert isinstance(outcome, MinerReading)
        assert outcome.state is OperatingState.UNKNOWN
        assert any("says it is asleep" in error for error in outcome.errors)


async def test_no_hashrate_and_no_sleep_flag_is_unknown() -> None:
    """A miner that neither hashes nor says whether it sleeps is not taken for a booting one."""

    def forget_flags(body: dict[str, Any]) -> None:
        for config in body.get("CONFIG", []):
            config.pop("CurtailMode"), config.pop("IsPowerSupplyOn")

    async with hostile(MinerFirmware.LUXOS) as (miner, driver):
        miner.asic.sleep(boottime_s())
        miner.mangle = edited(forget_flags)
        outcome = await driver.read("m1")
        assert isinstance(outcome, MinerReading)
        assert outcome.state is OperatingState.UNKNOWN


async def test_nothing_usable_answered_is_no_fields() -> None:
    """Answers without watts and without hashrate are no reading."""

    def empty(body: dict[str, Any]) -> None:
        for section in ("POWER", "STATS", "SUMMARY"):
            if section in body:
                body[section] = [{}, {}]

    async with hostile(MinerFirmware.LUXOS) as (miner, driver):
        await driver.read("m1")
        miner.mangle = edited(empty)
        outcome = await driver.read("m1")
        assert isinstance(outcome, Unavailable)
        assert outcome.reason is UnavailableReason.NO_FIELDS


async def test_other_firmware_than_configured_is_said_so() -> None:
    """A flashed or swapped machine is named, not driven by the wrong protocol."""
    async with hostile(MinerFirmware.LUXOS) as (miner, driver):
        whatsminer = WhatsminerApi(FakeAsic(model="M50S"), "secret", False)
        miner.mangle = lambda request, reply: whatsminer.answer(request, 0.0)[0]
        outcome = await driver.read("m1")
        assert isinstance(outcome, Unavailable)
        assert outcome.reason is UnavailableReason.WRONG_FIRMWARE
        assert "WhatsMiner" in outcome.detail
