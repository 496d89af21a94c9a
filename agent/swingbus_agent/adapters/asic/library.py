"""One miner through pyasic-rs: identified once, then read by field.

The only module that imports the library. Decides which fields are read every time and which now and then, and turns the
library's units into ours (it gives H/s or TH/s as it pleases). Invariant: nothing but `None` stands for what the miner
did not say; the library's `is_mining` (true when nobody answered) and its writes (true when refused) are not used.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pyasic_rs import MinerFactory
from pyasic_rs.asic_rs import DataField, HashRateUnit

from swingbus_agent.adapters.asic import luxos, whatsminer
from swingbus_agent.adapters.asic.rows import Row, Vitals
from swingbus_agent.adapters.asic.rpc import RpcFault
from swingbus_agent.adapters.asic.whatsminer import WhatsminerWrites

_ALL = [getattr(DataField, name) for name in dir(DataField) if name[0].isupper()]
_FAST = {
    "luxos": ("Wattage", "Hashrate", "Uptime"),  # `power`, `stats`; profile and sleep come with our own `config`
    # all of them in `summary`
    "whatsminer": ("Wattage", "Hashrate", "Uptime", "ExpectedHashrate", "Fans", "FluidTemperature", "TuningTarget"),
}
_SLOW = ("ExpectedHashrate", "Fans", "Hashboards", "Pools", "Messages")
IDENTIFY_S = 10


def _all_but(wanted: tuple[str, ...]) -> list[Any]:
    keep = {repr(getattr(DataField, name)) for name in wanted}
    return [item for item in _ALL if repr(item) not in keep]


class LibraryMiner:
    """One configured miner; finds out who answers on first contact and keeps that until it stops making sense."""

    def __init__(self, host: str, firmware: str, password: str | None) -> None:
        self.host = host
        self.firmware = firmware
        self._writes = WhatsminerWrites(host, password) if firmware == "whatsminer" and password is not None else None
        self._miner: Any = None
        self._is_v3 = False
        self._vitals = Vitals()
        self._ask_next = True  # whether the next reading asks for sleep and profile, whatever the library says
        self._profile: str | None = None
        self._profiles: dict[str, tuple[float, float]] = {}
        self._exclude_fast = _all_but(_FAST[firmware])
        self._exclude_slow = _all_but(tuple({*_FAST[firmware], *_SLOW}))

    @property
    def is_known(self) -> bool:
        """Whether somebody has been identified at this address."""
        return self._miner is not None

    @property
    def lacks_vitals(self) -> bool:
        """Whether the slow part has never been read."""
        return self._vitals.ended_s is None

    async def contact(self, deadline_s: float) -> None:
        """Identify the miner unless that is done; raises `RpcFault`.

        A dead or hung miner costs one question within `deadline_s`. One that answers is then identified, which takes the
        library up to four questions in a row, so up to `IDENTIFY_S`.
        """
        if self._miner is not None:
            return
        refusal: RpcFault | None = None
        try:
            if self.firmware == "whatsminer":
                self._is_v3 = await whatsminer.speaks_v3(self.host, deadline_s)
            else:
                await luxos.read_config(self.host, deadline_s)
        except RpcFault as fault:
            if fault.reason != "error_reply":
                raise
            refusal = fault  # it speaks, but another language: let the library say which
        found = await _awaited(MinerFactory().with_identification_timeout_secs(IDENTIFY_S).get_miner(self.host))
        if found is None:
            raise refusal or RpcFault("garbage", "answers, but not as any firmware that pyasic-rs knows")
        if self.firmware not in found.firmware.lower().replace(" ", ""):
            raise RpcFault("wrong_firmware", f"configured as {self.firmware}, answers as {found.firmware}")
        if refusal is not None:
            raise refusal
        self._miner = found

    def forget(self) -> None:
        """Identify anew at the next contact: the board may have been swapped or flashed."""
        self._miner = None
        self._profiles = {}

    async def read(self, deadline_s: float, now: Any, vitals_due: bool) -> Row:
        """Look at the miner; raises `RpcFault` or `TimeoutError`."""
        await self.contact(deadline_s)
        started_s = now()
        exclude = self._exclude_slow if vitals_due else self._exclude_fast
        if vitals_due or self._ask_next:
            async with asyncio.TaskGroup() as tasks:
                own = tasks.create_task(self._ask_state(deadline_s))
                theirs = tasks.create_task(_get_data(self._miner, exclude))
            data, says_asleep = theirs.result(), own.result()
            hashrate_ths = _terahashes(data.hashrate)
        else:
            data = await _get_data(self._miner, exclude)
            hashrate_ths = _terahashes(data.hashrate)
            # One that says it hashes says it is awake; only the others need the question, at twice the cost of a reading.
            says_asleep = False if hashrate_ths else await self._ask_state(deadline_s)
        self._ask_next = not hashrate_ths
        if self.firmware == "luxos" and not self._profiles:
            await self._learn_profiles(deadline_s)
        ended_s = now()
        if vitals_due:
            self._vitals = _vitals_of(data, ended_s)
        limit_w = data.tuning_target.watts if data.tuning_target is not None else None
        fast = self._vitals
        if self.firmware == "luxos":
            known = self._profiles.get(self._profile or "")
            if known is not None:
                limit_w, fast.expected_hashrate_ths = known
        else:
            fast.expected_hashrate_ths = _terahashes(data.expected_hashrate)
            fast.fan_speeds_rpm = [fan.rpm for fan in data.fans]
        row = Row(
            started_s=started_s,
            ended_s=ended_s,
            says_asleep=says_asleep,
            power_w=data.wattage,
            hashrate_ths=hashrate_ths,
            uptime_s=data.uptime.total_seconds() if data.uptime is not None else None,
            profile=self._profile,
            power_limit_w=limit_w,
            inlet_temperature_c=data.fluid_temperature,
            vitals=fast,
        )
        if row.power_w is None and row.hashrate_ths is None:
            raise RpcFault("no_fields", "answers, but gives neither watts nor hashrate")
        return row

    async def identify(self, deadline_s: float) -> list[Any]:
        """Return make, model, firmware, its version, MAC and serial number."""
        await self.contact(deadline_s)
        data = await _get_data(self._miner, _all_but(("FirmwareVersion", "Mac", "SerialNumber")))
        miner = self._miner
        return [miner.make, miner.model, miner.firmware, data.firmware_version, data.mac, data.serial_number]

    async def write(self, verb: str, argument: Any, deadline_s: float) -> str:
        """Carry out one verb and return the miner's words; raises `RpcFault` or `TimeoutError`."""
        self._ask_next = True
        if self.firmware == "luxos":
            command, word = {
                "sleep": ("curtail", "sleep"),
                "wake": ("curtail", "wakeup"),
                "profile": ("profileset", str(argument)),
            }[verb]
            return await luxos.write(self.host, command, word, deadline_s)
        if self._writes is None:
            raise RpcFault("error_reply", "no password configured: Whatsminer takes no writes without one")
        if self._miner is None:  # else the version is known
            self._is_v3 = await whatsminer.speaks_v3(self.host, deadline_s)
        return await self._writes.write(self._is_v3, verb, argument, deadline_s)

    async def _learn_profiles(self, deadline_s: float) -> None:
        try:
            profiles = await luxos.read_profiles(self.host, deadline_s)
        except RpcFault:
            return  # the reading stands without a limit; asked again at the next one
        self._profiles = {name: (watts, rate) for name, watts, rate in profiles}

    async def _ask_state(self, deadline_s: float) -> bool | None:
        if self.firmware == "whatsminer":
            return await whatsminer.says_asleep(self.host, self._is_v3, deadline_s)
        config = await luxos.read_config(self.host, deadline_s)
        profile = config.get("Profile")
        self._profile = profile[:64] if isinstance(profile, str) and profile else None
        return luxos.says_asleep(config)


async def _get_data(miner: Any, exclude: list[Any]) -> Any:
    return await _awaited(miner.get_data(exclude=exclude))


async def _awaited(call: Any) -> Any:
    """Await a library call; a panic inside it (a `BaseException` of its own) becomes an ordinary fault."""
    try:
        return await call
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise RpcFault("garbage", f"pyasic-rs: {type(error).__name__}: {str(error)[:160]}") from error


def _terahashes(rate: Any) -> float | None:
    return None if rate is None else float(rate.as_unit(HashRateUnit.TeraHash).value)


def _vitals_of(data: Any, ended_s: float) -> Vitals:
    pools = [pool for group in data.pools for pool in group.pools]
    alive = [pool.alive for pool in pools if pool.alive is not None]
    accepted = [pool.accepted_shares for pool in pools if pool.accepted_shares is not None]
    rejected = [pool.rejected_shares for pool in pools if pool.rejected_shares is not None]
    return Vitals(
        ended_s=ended_s,
        expected_hashrate_ths=_terahashes(data.expected_hashrate),
        board_temperatures_c=[board.board_temperature for board in data.hashboards],
        chip_temperatures_c=[board.outlet_chip_temperature for board in data.hashboards],
        fan_speeds_rpm=[fan.rpm for fan in data.fans],
        pool_is_alive=any(alive) if alive else None,
        accepted_shares=sum(accepted) if accepted else None,
        rejected_shares=sum(rejected) if rejected else None,
        errors=[f"{message.severity} {message.code} {message.message}"[:160] for message in data.messages],
    )
