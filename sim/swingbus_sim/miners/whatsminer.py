"""The Whatsminer API 2.0 of one simulated miner: plain JSON reads, writes in an AES envelope with a token.

Decides which command means what; knows no sockets and no physics. Shapes follow the vendor's API document and what
pyasic-rs 0.8.6 reads. Invariant: no write without a valid token made from the operator's password, and the factory's
password is refused for writes unless the miner is told otherwise.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.base import AEADCipherContext, CipherContext
from cryptography.hazmat.primitives.ciphers.modes import ECB

from swingbus_sim.miners.md5crypt import md5crypt_hash
from swingbus_sim.ports import Asic, AsicReading, AsicState

FACTORY_PASSWORD = "admin"
FIRMWARE_VERSION = "20230911.12.REL"
TOKEN_LIFE_S = 1800.0
MAX_TOKENS = 32
# A hash board's type is not on the sticker; these are common ones of each model.
_VARIANTS = {
    "M20S": "M20S_V10",
    "M21S": "M21S_V20",
    "M30S": "M30S_VE10",
    "M30S+": "M30S+_VF20",
    "M30S++": "M30S++_VH60",
    "M50": "M50_VH50",
    "M50S": "M50S_VH50",
    "M50S++": "M50S++_VK30",
    "M60S+": "M60S+_VK30",
}
_VARIANTS |= {"M53": "M53_VH30", "M56": "M56_VH30", "M60": "M60_VK10", "M60S": "M60S_VK30", "M63S": "M63S_VK30"}
Reply = dict[str, Any]


def whatsminer_type(model: str) -> str:
    """Return the type with the board variant, such as `M50S_VH50`, that the API gives for a model name."""
    name = model.removeprefix("Whatsminer").strip()
    return _VARIANTS.get(name, name if "V" in name else f"{name}_VH50")


class _Envelope:
    """AES-256-ECB with zero padding, key = SHA-256 of the password hash, in base64: the vendor's scheme."""

    def __init__(self, password_hash: str) -> None:
        key = hashlib.sha256(password_hash.encode()).digest()
        self._cipher = Cipher(algorithms.AES(key), ECB())

    def open(self, data: str) -> bytes:
        return self._run(self._cipher.decryptor(), base64.b64decode(data)).rstrip(b"\0")

    def close(self, data: bytes) -> str:
        return base64.b64encode(self._run(self._cipher.encryptor(), data + b"\0" * (-len(data) % 16))).decode()

    @staticmethod
    def _run(context: CipherContext | AEADCipherContext, data: bytes) -> bytes:
        return context.update(data) + context.finalize()


class WhatsminerApi:
    """Answers for one miner on port 4028."""

    def __init__(
        self,
        asic: Asic,
        password: str | None,
        allow_default_password: bool,
        firmware_version: str = FIRMWARE_VERSION,
    ) -> None:
        self._asic = asic
        self._firmware_version = firmware_version
        can_write = password is not None and (password != FACTORY_PASSWORD or allow_default_password)
        self._salt = hashlib.md5(asic.serial_number.encode(), usedforsecurity=False).hexdigest()[:8]
        self._key = md5crypt_hash(password, self._salt) if password is not None and can_write else None
        self._envelope = _Envelope(self._key) if self._key is not None else None
        self._tokens: dict[str, float] = {}  # sign -> issued at
        self._reads: dict[str, Callable[[AsicReading, float], Reply]] = {
            "summary": self._summary,
            "devs": self._devs,
            "edevs": self._devs,
            "devdetails": self._devdetails,
            "pools": self._pools,
            "status": self._status_of,
            "get_version": self._version,
            "version": self._version,
            "get_psu": self._psu,
            "get_miner_info": self._miner_info,
            "get_error_code": self._error_code,
        }

    def is_whole(self, request: bytes) -> bool:
        """A JSON object or a line ends one request."""
        return request.rstrip(b" \r\n\0").endswith(b"}") or request.endswith((b"\n", b"\0"))

    def answer(self, request: bytes, now_s: float) -> tuple[bytes, bool]:
        """Return the reply; the connection closes after it."""
        try:
            body = json.loads(request.decode().strip("\0 \r\n"))
        except (UnicodeDecodeError, json.JSONDecodeError):
            body = None
        if not isinstance(body, dict):
            return self._pack(_plain(23, "Invalid JSON", now_s, "E")), False
        if body.get("enc") == 1:
            return self._pack(self._encrypted(body, now_s)), False
        command = body.get("command", body.get("cmd"))
        if command == "get_token":
            return self._pack(self._token(now_s)), False
        read = self._reads.get(command) if isinstance(command, str) else None
        if read is not None:
            return self._pack(read(self._asic.reading(now_s), now_s)), False
        if command in _WRITES:
            return self._pack(_plain(45, "Permission denied", now_s, "E")), False
        return self._pack(_plain(14, "invalid cmd", now_s, "E")), False

    @staticmethod
    def _pack(reply: Reply) -> bytes:
        return json.dumps(reply, separators=(",", ":")).encode()

    # ----- writes -------------------------------------------------------------------------------------------------

    def _token(self, now_s: float) -> Reply:
        self._tokens = {sign: at_s for sign, at_s in self._tokens.items() if now_s - at_s < TOKEN_LIFE_S}
        if len(self._tokens) >= MAX_TOKENS:
            oldest = min(self._tokens, key=lambda sign: self._tokens[sign])
            del self._tokens[oldest]
        # Four digits of time and a salt that changes with it, as the firmware does.
        time = f"{int(now_s) % 10_000:04d}"
        new_salt = hashlib.md5(f"{self._salt}{time}".encode(), usedforsecurity=False).hexdigest()[:8]
        if self._key is not None:
            self._tokens[md5crypt_hash(self._key + time, new_salt)] = now_s
        return _plain(134, {"time": time, "salt": self._salt, "newsalt": new_salt}, now_s)

    def _encrypted(self, body: Reply, now_s: float) -> Reply:
        data = body.get("data")
        if self._envelope is None or not isinstance(data, str):
            return _plain(45, "Permission denied", now_s, "E")
        try:
            inner = json.loads(self._envelope.open(data))
        except ValueError:  # base64, block length, UTF-8 or JSON: what a wrong password looks like from here
            return _plain(23, "enc json load err", now_s, "E")
        if not isinstance(inner, dict):
            return _plain(23, "enc json load err", now_s, "E")
        issued_s = self._tokens.get(str(inner.get("token")))
        if issued_s is None or now_s - issued_s >= TOKEN_LIFE_S:
            reply = _plain(135, "check token error", now_s, "E")
        else:
            reply = self._write(str(inner.get("command", inner.get("cmd"))), inner, now_s)
        return {"enc": self._envelope.close(self._pack(reply))}

    def _write(self, command: str, inner: Reply, now_s: float) -> Reply:
        match command:
            case "power_off":
                self._asic.sleep(now_s)
            case "power_on":
                self._asic.wake(now_s)
            case "reboot" | "restart_btminer":
                self._asic.reboot(now_s)
            case "adjust_power_limit":
                limit_w = _number(inner.get("power_limit"))
                if limit_w is None or not 0 < limit_w <= 99_999:
                    return _plain(132, "power_limit out of range [0-99999]", now_s, "E")
                self._asic.set_power_limit(now_s, limit_w)
            case "set_power_pct" | "set_power_pct_v2":
                percent = _number(inner.get("percent"))
                if percent is None or not 0 <= percent <= 100:
                    return _plain(132, "percent out of range [0-100]", now_s, "E")
                full_w = max((profile.power_w for profile in self._asic.profiles), default=3600.0)
                self._asic.set_power_limit(now_s, full_w * percent / 100)
            case "set_low_power" | "set_normal_power" | "set_high_power":
                points = sorted(self._asic.profiles, key=lambda profile: profile.power_w)
                if points:
                    place = {"set_low_power": 0, "set_normal_power": len(points) // 2, "set_high_power": -1}[command]
                    self._asic.set_power_limit(now_s, points[place].power_w)
            case "set_led":
                pass
            case _:
                return _plain(14, "invalid cmd", now_s, "E")
        return _plain(131, "API command OK", now_s)

    # ----- reads --------------------------------------------------------------------------------------------------

    def _summary(self, reading: AsicReading, now_s: float) -> Reply:
        rate_mhs = round(reading.hashrate_ths * 1e6, 2)
        chips_c = reading.chip_temperatures_c
        summary: Reply = {
            "Elapsed": reading.uptime_s,
            "MHS av": rate_mhs,
            "MHS 5s": rate_mhs,
            "MHS 1m": rate_mhs,
            "MHS 5m": rate_mhs,
            "MHS 15m": rate_mhs,
            "HS RT": rate_mhs,
            "Accepted": reading.accepted_shares,
            "Rejected": reading.rejected_shares,
            "Temperature": round(max(reading.board_temperatures_c, default=0.0), 2),
            "freq_avg": 600 if reading.state is AsicState.MINING else 0,
            "Fan Speed In": reading.fan_speeds_rpm[0] if reading.fan_speeds_rpm else 0,
            "Fan Speed Out": reading.fan_speeds_rpm[-1] if reading.fan_speeds_rpm else 0,
            "Uptime": reading.uptime_s,
            "Hash Stable": reading.state is AsicState.MINING,
            "Env Temp": round(reading.inlet_temperature_c, 2),
            "Power Mode": "Normal",
            "Factory GHS": round(reading.expected_hashrate_ths * 1000),
            "Chip Temp Min": round(min(chips_c, default=0.0), 2),
            "Chip Temp Max": round(max(chips_c, default=0.0), 2),
            "Chip Temp Avg": round(sum(chips_c) / max(1, len(chips_c)), 2),
            "Btminer Fast Boot": "disable",
        }
        if reading.power_w is not None:
            summary["Power"] = round(reading.power_w)
            if reading.hashrate_ths > 0:
                summary["Power Rate"] = round(reading.power_w / reading.hashrate_ths, 2)
        if reading.power_limit_w is not None:
            summary["Power Limit"] = round(reading.power_limit_w)
        return {"STATUS": [{"STATUS": "S", "Msg": "Summary"}], "SUMMARY": [summary], "id": 1}

    def _devs(self, reading: AsicReading, now_s: float) -> Reply:
        boards = max(1, len(reading.board_hashrates_ths))
        devs = [
            {
                "ASC": board,
                "Slot": board,
                "Enabled": "Y",
                "Status": "Alive",
                "Temperature": round(reading.board_temperatures_c[board], 2),
                "Chip Temp Min": round(reading.chip_temperatures_c[board] - 5, 2),
                "Chip Temp Max": round(reading.chip_temperatures_c[board], 2),
                "MHS av": round(rate_ths * 1e6, 2),
                "Factory GHS": round(reading.expected_hashrate_ths * 1000 / boards),
                "Effective Chips": 111,
                "PCB SN": f"{self._asic.serial_number}{board}",
            }
            for board, rate_ths in enumerate(reading.board_hashrates_ths)
        ]
        return {"STATUS": [{"STATUS": "S", "Msg": f"{boards} ASC(s)"}], "DEVS": devs, "id": 1}

    def _devdetails(self, reading: AsicReading, now_s: float) -> Reply:
        kind = whatsminer_type(self._asic.model)
        details = [
            {"DEVDETAILS": board, "Name": "SM", "ID": board, "Driver": "bitmicro", "Model": kind}
            for board in range(len(reading.board_hashrates_ths))
        ]
        return {"STATUS": [{"STATUS": "S", "Msg": "Device Details"}], "DEVDETAILS": details, "id": 1}

    def _pools(self, reading: AsicReading, now_s: float) -> Reply:
        pool = {
            "POOL": 1,
            "URL": "stratum+tcp://pool.invalid:3333",
            "Status": "Alive" if reading.pool_is_alive else "Dead",
            "Accepted": reading.accepted_shares,
            "Rejected": reading.rejected_shares,
            "User": f"swingbus.{self._asic.name}",
            "Stratum Active": reading.pool_is_alive,
        }
        return {"STATUS": [{"STATUS": "S", "Msg": "1 Pool(s)"}], "POOLS": [pool], "id": 1}

    def _status_of(self, reading: AsicReading, now_s: float) -> Reply:
        is_off = reading.state in (AsicState.SLEEPING, AsicState.OFF)
        message = {
            "btmineroff": "true" if is_off else "false",
            "mineroff": "true" if is_off else "false",
            "mineroff_reason": "api" if is_off else "",
            "FirmwareVersion": f"'{self._firmware_version}'",
            "power_mode": "normal",
        }
        return _plain(131, message, now_s)

    def _version(self, reading: AsicReading, now_s: float) -> Reply:
        message = {"api_ver": "2.0.5", "fw_ver": self._firmware_version, "platform": "H616", "chip": "K1C6"}
        return _plain(131, message, now_s)

    def _psu(self, reading: AsicReading, now_s: float) -> Reply:
        is_on = reading.state not in (AsicState.SLEEPING, AsicState.OFF)
        message = {
            "name": "P564B",
            "vin": "22800",
            "iin": str(round((reading.power_w or 0.0) * 1000 / 228)),
            "vout": "1480" if is_on else "0",
            "pin": str(round(reading.power_w or 0.0)),
            "fan_speed": str(reading.fan_speeds_rpm[0] if reading.fan_speeds_rpm else 0),
            "serial_no": self._asic.serial_number,
        }
        return _plain(131, message, now_s)

    def _miner_info(self, reading: AsicReading, now_s: float) -> Reply:
        message = {
            "mac": self._asic.mac,
            "hostname": self._asic.name,
            "ledstat": "auto",
            "minersn": self._asic.serial_number,
        }
        return _plain(131, message, now_s)

    def _error_code(self, reading: AsicReading, now_s: float) -> Reply:
        return _plain(131, {"error_code": []}, now_s)


_WRITES = frozenset({"power_off", "power_on", "reboot", "restart_btminer", "adjust_power_limit", "set_power_pct"})
_WRITES |= {"set_power_pct_v2", "set_low_power", "set_normal_power", "set_high_power", "set_led", "update_pools"}


def _plain(code: int, message: object, now_s: float, severity: str = "S") -> Reply:
    return {"STATUS": severity, "When": int(now_s), "Code": code, "Msg": message, "Description": ""}


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]  # whatever the client sent; the firmware takes strings and numbers
    except (TypeError, ValueError):
        return None
