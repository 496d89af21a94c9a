"""What an ASIC miner is asked and what it can answer.

Decides the vocabulary of a miner's reading and of a write's outcome; refuses to know protocols and libraries. Invariants:
what the miner did not say is `None`; a state nobody reported is `UNKNOWN`, never mining; a `WriteOutcome` says what became of
the request, never what became of the machine - that is for later readings to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum


class MinerFirmware(Enum):
    """The firmwares this agent can drive, as its configuration names them."""

    LUXOS = "luxos"
    WHATSMINER = "whatsminer"  # API 2 (port 4028) or 3 (port 4433), told apart by asking


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerAddress:
    """Where one miner is and how to speak to it; from the agent's own configuration, never from the controller.

    `password` is needed for Whatsminer's writes only; it is left out of `repr`.
    """

    name: str
    host: str
    firmware: MinerFirmware
    password: str | None = field(default=None, repr=False)


class OperatingState(Enum):
    """What the miner itself says it is doing."""

    MINING = "mining"
    SLEEPING = "sleeping"
    BOOTING = "booting"  # awake, hashing nothing yet
    UNKNOWN = "unknown"  # it did not say, or contradicts itself


class PowerSource(Enum):
    """Who measured the watts: miners are off by 5 to 20 %, so the tag travels with the number."""

    METER = "meter"
    PDU = "pdu"
    MINER = "miner"
    NONE = "none"


class UnavailableReason(Enum):
    """Why there is no reading, as far as can be told from outside."""

    REFUSED = "refused"  # nobody listens: the control board is rebooting or off
    UNREACHABLE = "unreachable"  # no route, or no answer to the connection attempt
    TRUNCATED = "truncated"  # the connection closed in the middle of an answer
    GARBAGE = "garbage"  # an answer that is not the firmware's protocol
    ERROR_REPLY = "error_reply"  # the firmware answered with an error
    NO_FIELDS = "no_fields"  # it answered, but nothing of it could be used
    WRONG_FIRMWARE = "wrong_firmware"  # another firmware than the configuration says
    DRIVER_DOWN = "driver_down"  # the agent's own driver process is restarting


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerReading:
    """One look at one miner.

    `started_s` and `ended_s` are seconds since boot of this host (CLOCK_BOOTTIME) around all requests of the fast part:
    state, watts, hashrate, uptime, limit. The slow part (board and chip temperatures, fans on LuxOS, pool, errors) is read
    less often; `vitals_ended_s` says when. A LuxOS miner's profile is asked for with the slow part, whenever it does not
    hash, and in the first reading after one of our own writes.
    """

    name: str
    started_s: float
    ended_s: float
    state: OperatingState
    power_w: float | None
    power_source: PowerSource
    hashrate_ths: float | None
    expected_hashrate_ths: float | None
    uptime_s: float | None
    profile: str | None
    power_limit_w: float | None
    inlet_temperature_c: float | None
    board_temperatures_c: tuple[float | None, ...]
    chip_temperatures_c: tuple[float | None, ...]
    fan_speeds_rpm: tuple[float | None, ...]
    pool_is_alive: bool | None
    accepted_shares: int | None
    rejected_shares: int | None
    errors: tuple[str, ...]
    vitals_ended_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """This can never be read or done on this miner; `detail` says why."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """No reading this time; `detail` is for people."""

    reason: UnavailableReason
    detail: str
    started_s: float
    ended_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hung:
    """It takes connections (or did) and does not answer; `since_s` is when the first unanswered request began."""

    since_s: float
    ended_s: float


MinerOutcome = MinerReading | Unsupported | Unavailable | Hung


class WriteVerdict(Enum):
    """What became of a request to change something."""

    ACCEPTED = "accepted"  # the miner said yes; it may still not obey
    REFUSED = "refused"  # the miner said no, or could not be asked: nothing was sent that it could obey
    TIMED_OUT = "timed_out"  # sent, no answer: it may or may not obey
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOutcome:
    """The answer to one write: never evidence that the machine changed."""

    verdict: WriteVerdict
    detail: str
    ended_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerProfile:
    """One operating point of the miner's own table."""

    name: str
    power_w: float
    hashrate_ths: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerIdentity:
    """Who answers at an address; `None` where the firmware does not tell."""

    make: str
    model: str
    firmware: str
    firmware_version: str | None
    mac: str | None
    serial_number: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerCapabilities:
    """Which verbs the driver has for a firmware."""

    can_sleep: bool
    can_set_profile: bool
    can_set_power_limit: bool


CAPABILITIES = {
    MinerFirmware.LUXOS: MinerCapabilities(can_sleep=True, can_set_profile=True, can_set_power_limit=False),
    MinerFirmware.WHATSMINER: MinerCapabilities(can_sleep=True, can_set_profile=False, can_set_power_limit=True),
}


def largest_profile_within(profiles: Sequence[MinerProfile], limit_w: float) -> MinerProfile | None:
    """Return the profile with the most hashrate that draws at most `limit_w`, or `None` if all draw more.

    >>> low = MinerProfile(name="low", power_w=1657.0, hashrate_ths=80.5)
    >>> high = MinerProfile(name="default", power_w=2794.0, hashrate_ths=121.8)
    >>> largest_profile_within([low, high], 2000.0).name
    'low'
    """
    fitting = [profile for profile in profiles if profile.power_w <= limit_w]
    return max(fitting, key=lambda profile: (profile.hashrate_ths, -profile.power_w), default=None)


def merge_state(says_asleep: bool | None, hashrate_ths: float | None) -> OperatingState:
    """Return the state from what the firmware claims and what it hashes; contradiction and silence are `UNKNOWN`.

    >>> merge_state(True, 0.0), merge_state(False, 0.0), merge_state(True, 90.0)
    (<OperatingState.SLEEPING: 'sleeping'>, <OperatingState.BOOTING: 'booting'>, <OperatingState.UNKNOWN: 'unknown'>)
    """
    if says_asleep is None or (hashrate_ths is None and not says_asleep):
        return OperatingState.UNKNOWN
    if says_asleep:
        return OperatingState.UNKNOWN if hashrate_ths else OperatingState.SLEEPING
    return OperatingState.MINING if hashrate_ths else OperatingState.BOOTING
