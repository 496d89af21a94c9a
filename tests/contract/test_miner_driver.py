"""One suite for every `MinerDriver`: the fake, and the real adapter against simulated miners of each firmware on TCP."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import pytest

from swingbus.faults import NotFound
from swingbus_agent.adapters.asic.client import AsicDriver, AsicSettings, boottime_s
from swingbus_agent.domain.miner import (
    Hung,
    MinerAddress,
    MinerFirmware,
    MinerOutcome,
    MinerReading,
    OperatingState,
    PowerSource,
    Unavailable,
    UnavailableReason,
    Unsupported,
    WriteVerdict,
)
from swingbus_agent.ports.miner import MinerDriver
from swingbus_sim.miners import Firmware, ServedMiner, serve_miners
from swingbus_sim.ports import NetworkFault
from tests.fakes.miners import FakeAsic, FakeMinerDriver

KINDS = ("fake-luxos", "fake-whatsminer", "luxos", "whatsminer", "whatsminer-v3")
PASSWORD = "not-the-factory-one"
SETTINGS = AsicSettings(read_deadline_s=1.0, write_deadline_s=1.5)
SOON_S = 5.0  # how long a test waits for the listening socket to follow the weather
_hosts = itertools.count(1)


@dataclass(slots=True)
class Site:
    """One miner `m1` behind a driver."""

    driver: MinerDriver
    asic: FakeAsic

    async def read(self) -> MinerReading:
        """Look at the miner and insist on a reading."""
        outcome = await self.driver.read("m1")
        assert isinstance(outcome, MinerReading), outcome
        return outcome

    async def read_until(self, is_met: Callable[[MinerOutcome], bool]) -> MinerOutcome:
        """Look again until `is_met`; returns the outcome that met it, fails after a while."""
        async with asyncio.timeout(SOON_S):
            while True:
                outcome = await self.driver.read("m1")
                if is_met(outcome):
                    return outcome
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def a_site(kind: str, asic: FakeAsic | None = None, password: str | None = PASSWORD) -> AsyncIterator[Site]:
    """Yield a site of one miner; `password` is what the driver believes, the miner's own is always `PASSWORD`."""
    luxos = kind.endswith("luxos")
    asic = asic if asic is not None else FakeAsic()
    asic.model = {"luxos": "S19k Pro", "whatsminer": "M50S"}.get(kind, "M60S")
    firmware = MinerFirmware.LUXOS if luxos else MinerFirmware.WHATSMINER
    if kind.startswith("fake"):
        fake = FakeMinerDriver({"m1": (asic, firmware)}, boottime_s, read_deadline_s=SETTINGS.read_deadline_s)
        fake.refuse_writes_with = None if password == PASSWORD else "check token error"
        yield Site(fake, asic)
        return
    number = next(_hosts)
    host = f"127.71.{number // 250}.{number % 250 + 1}"
    served = ServedMiner(asic=asic, firmware=Firmware(kind), host=host, password=PASSWORD)
    driver = AsicDriver([MinerAddress(name="m1", host=host, firmware=firmware, password=password)], SETTINGS)
    async with serve_miners([served], boottime_s), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(driver.run())
        await driver.wait_ready()
        try:
            yield Site(driver, asic)
        finally:
            running.cancel()


pytestmark = pytest.mark.parametrize("kind", KINDS)


async def test_mining_machine_reads_its_watts_and_hashrate(kind: str) -> None:
    """A healthy miner gives watts with their source, hashrate in TH/s and times that enclose the request."""
    async with a_site(kind) as site:
        before_s = boottime_s()
        reading = await site.read()
        assert reading.state is OperatingState.MINING
        assert reading.power_w == pytest.approx(2794.0, abs=1)
        assert reading.power_source is PowerSource.MINER
        assert reading.hashrate_ths == pytest.approx(121.8, abs=0.1)
        assert reading.expected_hashrate_ths == pytest.approx(121.8, abs=0.1)
        assert reading.uptime_s == 1000.0
        assert before_s <= reading.started_s <= reading.ended_s <= boottime_s()


async def test_first_reading_has_temperatures_fans_and_pool(kind: str) -> None:
    """The slow part comes with the first reading and says when it was read."""
    async with a_site(kind) as site:
        reading = await site.read()
        assert len(reading.board_temperatures_c) == len(reading.chip_temperatures_c) == 3
        assert all(c is not None and 50 < c < 90 for c in reading.board_temperatures_c + reading.chip_temperatures_c)
        assert reading.fan_speeds_rpm[0] == 4200.0
        assert reading.pool_is_alive is True
        assert reading.vitals_ended_s is not None


async def test_miner_without_power_sensor_says_none_not_zero(kind: str) -> None:
    """Watts that the miner does not give stay missing."""
    async with a_site(kind, FakeAsic(says_power=False)) as site:
        reading = await site.read()
        assert reading.power_w is None
        assert reading.power_source is PowerSource.NONE
        assert reading.state is OperatingState.MINING


async def test_sleep_is_shown_by_later_readings(kind: str) -> None:
    """After an obeyed sleep the readings show standby watts, no hashrate and the state; after wake they mine again."""
    async with a_site(kind) as site:
        outcome = await site.driver.sleep("m1")
        assert outcome.verdict is WriteVerdict.ACCEPTED, outcome
        reading = await site.read()
        assert reading.started_s >= outcome.ended_s - SETTINGS.write_deadline_s
        assert (reading.state, reading.power_w, reading.hashrate_ths) == (OperatingState.SLEEPING, 25.0, 0.0)
        assert (await site.driver.wake("m1")).verdict is WriteVerdict.ACCEPTED
        assert (await site.read()).state is OperatingState.MINING
        assert site.asic.commands == ["sleep", "wake"]


async def test_waking_machine_is_booting_until_it_hashes(kind: str) -> None:
    """Awake without hashrate is neither asleep nor mining."""
    async with a_site(kind, FakeAsic(boots_for_s=3600.0)) as site:
        await site.driver.sleep("m1")
        await site.driver.wake("m1")
        assert (await site.read()).state is OperatingState.BOOTING


async def test_ignored_sleep_is_accepted_and_shown_as_mining(kind: str) -> None:
    """A liar says yes; the readings go on showing what it does."""
    async with a_site(kind, FakeAsic(ignores_sleep=True)) as site:
        assert (await site.driver.sleep("m1")).verdict is WriteVerdict.ACCEPTED
        reading = await site.read()
        assert reading.state is OperatingState.MINING
        assert reading.power_w == pytest.approx(2794.0, abs=1)


async def test_self_waker_is_shown_awake(kind: str) -> None:
    """A miner that wakes by itself is seen doing so."""
    async with a_site(kind) as site:
        await site.driver.sleep("m1")
        assert (await site.read()).state is OperatingState.SLEEPING
        site.asic.wakes_at_s = boottime_s()
        assert (await site.read()).state is OperatingState.MINING


async def test_hung_miner_is_hung_since_the_first_unanswered_question(kind: str) -> None:
    """No answer is `Hung` with an unchanging start, a write then times out, and a good answer ends it."""
    async with a_site(kind) as site:
        await site.read()
        site.asic.set_weather(NetworkFault.HUNG)
        first = await site.driver.read("m1")
        second = await site.driver.read("m1")
        assert isinstance(first, Hung)
        assert isinstance(second, Hung)
        assert second.since_s == first.since_s
        assert (await site.driver.sleep("m1")).verdict in (WriteVerdict.TIMED_OUT, WriteVerdict.REFUSED)
        site.asic.set_weather(NetworkFault.NONE)
        assert isinstance(await site.read_until(lambda outcome: isinstance(outcome, MinerReading)), MinerReading)


async def test_late_answer_within_the_deadline_is_a_reading(kind: str) -> None:
    """Slow is not broken."""
    async with a_site(kind) as site:
        await site.read()
        site.asic.set_weather(NetworkFault.LATE, 0.3)
        assert (await site.read()).state is OperatingState.MINING


async def test_answer_after_the_deadline_is_hung(kind: str) -> None:
    """Slower than the deadline is no answer."""
    async with a_site(kind) as site:
        await site.read()
        site.asic.set_weather(NetworkFault.LATE, 3 * SETTINGS.read_deadline_s)
        assert isinstance(await site.driver.read("m1"), Hung)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(NetworkFault.TRUNCATED, UnavailableReason.TRUNCATED), (NetworkFault.REFUSED, UnavailableReason.REFUSED)],
)
async def test_broken_answer_is_unavailable_with_its_reason(
    kind: str, fault: NetworkFault, reason: UnavailableReason
) -> None:
    """A cut-off reply and a closed port are told apart, and end when the weather does."""
    async with a_site(kind) as site:
        await site.read()
        site.asic.set_weather(fault)
        outcome = await site.read_until(lambda seen: isinstance(seen, Unavailable) and seen.reason is reason)
        assert isinstance(outcome, Unavailable)
        assert outcome.detail
        site.asic.set_weather(NetworkFault.NONE)
        assert isinstance(await site.read_until(lambda seen: isinstance(seen, MinerReading)), MinerReading)


async def test_write_to_a_closed_port_is_refused_and_changes_nothing(kind: str) -> None:
    """What cannot be asked is refused, not accepted and not left open."""
    async with a_site(kind) as site:
        await site.read()
        site.asic.set_weather(NetworkFault.REFUSED)
        await site.read_until(lambda seen: isinstance(seen, Unavailable) and seen.reason is UnavailableReason.REFUSED)
        assert (await site.driver.sleep("m1")).verdict is WriteVerdict.REFUSED
        assert site.asic.commands == []


async def test_wrong_password_is_refused_and_reads_go_on(kind: str) -> None:
    """A wrong password is a refusal with words (LuxOS has no password, so there it is none)."""
    async with a_site(kind, password="a-wrong-one") as site:
        outcome = await site.driver.sleep("m1")
        if kind == "luxos":
            assert outcome.verdict is WriteVerdict.ACCEPTED
            return
        assert outcome.verdict is WriteVerdict.REFUSED
        assert outcome.detail
        assert site.asic.commands == []
        assert (await site.read()).state is OperatingState.MINING


async def test_profile_or_limit_moves_the_watts(kind: str) -> None:
    """Each firmware has one way to run at less, says the other is unsupported, and the readings show the change."""
    async with a_site(kind) as site:
        can = site.driver.capabilities("m1")
        by_profile = await site.driver.set_profile("m1", "410MHz")
        by_limit = await site.driver.set_power_limit("m1", 1657.0)
        assert (by_profile.verdict is WriteVerdict.ACCEPTED) == can.can_set_profile
        assert (by_limit.verdict is WriteVerdict.ACCEPTED) == can.can_set_power_limit
        unsupported = by_limit if can.can_set_profile else by_profile
        assert unsupported.verdict is WriteVerdict.UNSUPPORTED
        reading = await site.read()
        assert reading.power_w == pytest.approx(1657.0, abs=1)
        assert reading.power_limit_w == pytest.approx(1657.0, abs=1)


async def test_unknown_profile_and_absurd_limit_are_refused(kind: str) -> None:
    """What the miner does not know, or no miner can draw, is refused."""
    async with a_site(kind) as site:
        can = site.driver.capabilities("m1")
        if can.can_set_profile:
            assert (await site.driver.set_profile("m1", "9000MHz")).verdict is WriteVerdict.REFUSED
        if can.can_set_power_limit:
            assert (await site.driver.set_power_limit("m1", -5.0)).verdict is WriteVerdict.REFUSED
        assert site.asic.commands == []


async def test_profiles_come_least_watts_first_or_are_unsupported(kind: str) -> None:
    """The profile table is the miner's own, sorted; a firmware without one says so."""
    async with a_site(kind) as site:
        profiles = await site.driver.profiles("m1")
        if not site.driver.capabilities("m1").can_set_profile:
            assert isinstance(profiles, Unsupported)
            return
        assert isinstance(profiles, tuple)
        assert [profile.name for profile in profiles] == ["410MHz", "default", "735MHz"]
        assert profiles[0].power_w == 1657.0


async def test_identity_names_maker_and_hardware_address(kind: str) -> None:
    """Who answers can be told apart from its neighbour."""
    async with a_site(kind, replace(FakeAsic(), mac="02:00:00:00:00:7f")) as site:
        identity = await site.driver.identify("m1")
        assert not isinstance(identity, Unavailable | Hung)
        assert identity.make in ("Antminer", "Whatsminer")
        assert identity.mac is not None
        assert identity.mac.lower() == "02:00:00:00:00:7f"


async def test_unknown_miner_name_raises_not_found(kind: str) -> None:
    """A name outside the configuration is the caller's error."""
    async with a_site(kind) as site:
        with pytest.raises(NotFound, match="m2"):
            await site.driver.read("m2")
