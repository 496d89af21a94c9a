"""The Whatsminer API 3 of one simulated miner: JSON after a four-byte little-endian length, writes with a salted token.

Decides which command means what; knows no sockets and no physics. Shapes follow what pyasic-rs 0.8.6 reads. Invariant:
a write needs the token that only the owner of the password can make.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import Any

from swingbus_sim.miners.whatsminer import FACTORY_PASSWORD, whatsminer_type
from swingbus_sim.ports import Asic, AsicReading, AsicState

ACCOUNT = "super"
FIRMWARE_VERSION = "20250115.10.REL"
Reply = dict[str, Any]


class WhatsminerV3Api:
    """Answers for one miner on port 4433."""

    def __init__(self, asic: Asic, password: str | None, allow_default_password: bool) -> None:
        self._asic = asic
        can_write = password is not None and (password != FACTORY_PASSWORD or allow_default_password)
        self._password = password if can_write else None
        self._salt = hashlib.md5(asic.serial_number.encode(), usedforsecurity=False).hexdigest()[:8]

    def is_whole(self, request: bytes) -> bool:
        """The first four bytes say how long the request is."""
        return len(request) >= 4 and len(request) >= 4 + struct.unpack_from("<I", request)[0]

    def answer(self, request: bytes, now_s: float) -> tuple[bytes, bool]:
        """Return the framed reply; the client may send another request on the same connection."""
        try:
            body = json.loads(request[4 : 4 + struct.unpack_from("<I", request)[0]])
        except ValueError:
            body = None
        if isinstance(body, dict) and isinstance(body.get("cmd"), str):
            reply = self._reply(body["cmd"], body, now_s)
        else:
            reply = _reply(-1, "invalid json", now_s)
        packed = json.dumps(reply, separators=(",", ":")).encode()
        return struct.pack("<I", len(packed)) + packed, True

    def _reply(self, command: str, body: Reply, now_s: float) -> Reply:
        if command.startswith("set."):
            return self._write(command, body, now_s)
        reading = self._asic.reading(now_s)
        parameter = body.get("param")
        match command:
            case "get.device.info":
                sections = self._device(reading)
                message = {parameter: sections[parameter]} if parameter in sections else sections
                return _reply(0, message, now_s)
            case "get.miner.status":
                parts = {"summary": self._summary, "pools": self._pools, "edevs": self._edevs}
                wanted = [name for name in str(parameter).split("+") if name in parts]
                if not wanted:
                    return _reply(-2, "invalid param", now_s)
                return _reply(0, {name: parts[name](reading) for name in wanted}, now_s)
            case _:
                return _reply(-2, "invalid command", now_s)

    def _write(self, command: str, body: Reply, now_s: float) -> Reply:
        if self._password is None:
            return _reply(-4, "permission denied", now_s)
        text = f"{command}{self._password}{self._salt}{body.get('ts')}"
        token = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()[:8]
        if body.get("token") != token or body.get("account") != ACCOUNT:
            return _reply(-4, "token check error", now_s)
        parameter = body.get("param")
        match command:
            case "set.miner.service" if parameter in ("stop", "disable"):
                self._asic.sleep(now_s)
            case "set.miner.service" if parameter in ("start", "enable"):
                self._asic.wake(now_s)
            case "set.miner.service" if parameter == "restart":
                self._asic.reboot(now_s)
            case "set.system.reboot":
                self._asic.reboot(now_s)
            case "set.miner.power_limit" if isinstance(parameter, int | float) and 0 < parameter <= 99_999:
                self._asic.set_power_limit(now_s, float(parameter))
            case "set.miner.power_percent" if isinstance(parameter, dict):
                full_w = max((profile.power_w for profile in self._asic.profiles), default=3600.0)
                self._asic.set_power_limit(now_s, full_w * float(parameter.get("percent", 100)) / 100)
            case "set.system.led":
                pass
            case _:
                return _reply(-2, "invalid param", now_s)
        return _reply(0, "ok", now_s)

    def _device(self, reading: AsicReading) -> Reply:
        is_working = reading.state in (AsicState.MINING, AsicState.BOOTING)
        return {
            "network": {"mac": self._asic.mac, "hostname": self._asic.name, "proto": "dhcp"},
            "miner": {
                "working": "true" if is_working else "false",
                "type": whatsminer_type(self._asic.model),
                "hash-board": len(reading.board_hashrates_ths),
                "miner-sn": self._asic.serial_number,
                **{f"pcbsn{n}": f"{self._asic.serial_number}{n}" for n in range(len(reading.board_hashrates_ths))},
            },
            "system": {"api": "3.0.2", "platform": "H616", "fwversion": FIRMWARE_VERSION, "ledstatus": "auto"},
            "power": {
                "mode": "normal",
                "pin": round(reading.power_w or 0.0),
                "fanspeed": reading.fan_speeds_rpm[0] if reading.fan_speeds_rpm else 0,
            },
            "salt": self._salt,
            "error-code": [],
        }

    def _summary(self, reading: AsicReading) -> Reply:
        chips_c = reading.chip_temperatures_c
        summary: Reply = {
            "elapsed": reading.uptime_s,
            "bootup-time": 0,
            "freq-avg": 600 if reading.state is AsicState.MINING else 0,
            "hash-average": round(reading.hashrate_ths, 3),
            "hash-realtime": round(reading.hashrate_ths, 3),
            "factory-hash": round(reading.expected_hashrate_ths, 3),
            "environment-temperature": round(reading.inlet_temperature_c, 1),
            "board-temperature": [round(c, 1) for c in reading.board_temperatures_c],
            "chip-temp-min": round(min(chips_c, default=0.0), 1),
            "chip-temp-avg": round(sum(chips_c) / max(1, len(chips_c)), 1),
            "chip-temp-max": round(max(chips_c, default=0.0), 1),
            "fan-speed-in": reading.fan_speeds_rpm[0] if reading.fan_speeds_rpm else 0,
            "fan-speed-out": reading.fan_speeds_rpm[-1] if reading.fan_speeds_rpm else 0,
            "up-freq-finish": 1 if reading.state is AsicState.MINING else 0,
        }
        if reading.power_w is not None:
            summary["power-realtime"] = round(reading.power_w)
            summary["power-5min"] = round(reading.power_w)
        if reading.power_limit_w is not None:
            summary["power-limit"] = round(reading.power_limit_w)
        return summary

    def _pools(self, reading: AsicReading) -> list[Reply]:
        return [
            {
                "id": 1,
                "url": "stratum+tcp://pool.invalid:3333",
                "account": f"swingbus.{self._asic.name}",
                "status": "alive" if reading.pool_is_alive else "dead",
                "stratum-active": reading.pool_is_alive,
                "reject-rate": 0.0,
            }
        ]

    def _edevs(self, reading: AsicReading) -> list[Reply]:
        boards = max(1, len(reading.board_hashrates_ths))
        return [
            {
                "id": board,
                "slot": board,
                "hash-average": round(rate_ths, 3),
                "factory-hash": round(reading.expected_hashrate_ths / boards, 3),
                "freq": 600 if reading.state is AsicState.MINING else 0,
                "effective-chips": 111,
                "chip-temp-min": round(reading.chip_temperatures_c[board] - 5, 1),
                "chip-temp-avg": round(reading.chip_temperatures_c[board] - 2, 1),
                "chip-temp-max": round(reading.chip_temperatures_c[board], 1),
            }
            for board, rate_ths in enumerate(reading.board_hashrates_ths)
        ]


def _reply(code: int, message: object, now_s: float) -> Reply:
    return {"code": code, "when": int(now_s), "msg": message, "desc": ""}
