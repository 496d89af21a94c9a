"""The LuxOS API (cgminer's, extended) of one simulated miner.

Decides which command means what and what a reply looks like; knows no sockets and no physics. Field names and status
codes follow the vendor's public API pages and what pyasic-rs 0.8.6 reads. Invariant: a write needs the one open
session, and its reply says "S" whether or not the machine obeys.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from swingbus_sim.ports import Asic, AsicReading, AsicState

SESSION_IDLE_S = 60.0  # an idle session is dropped, so a crashed tool cannot lock the miner for ever
VERSION = "2025.4.8.220305"
DESCRIPTION = "LUXminer 2025.4.8.220305-de4ff5f62"
CHIPS_PER_BOARD = 77
Reply = dict[str, Any]


def _status(code: int, message: str, now_s: float, severity: str = "S") -> list[Reply]:
    return [{"Code": code, "Description": DESCRIPTION, "Msg": message, "STATUS": severity, "When": int(now_s)}]


class LuxosApi:
    """Answers for one miner."""

    def __init__(self, asic: Asic) -> None:
        self._asic = asic
        self._session = ""
        self._session_used_s = 0.0
        self._sessions_opened = 0
        self._led = "auto"
        self._profiles = [
            {
                "Profile Name": profile.name,
                "Frequency": profile.frequency_mhz,
                "Hashrate": round(profile.hashrate_ths, 2),
                "Watts": round(profile.power_w),
                "Voltage": 13.0,
                "IsDynamic": False,
                "IsTuned": True,
                "Step": str(step),
            }
            for step, profile in enumerate(asic.profiles)
        ]
        self._reads: dict[str, Callable[[AsicReading, float], Reply]] = {
            "version": self._version,
            "summary": self._summary,
            "stats": self._stats,
            "devs": self._devs,
            "pools": self._pools,
            "groups": self._groups,
            "power": self._power,
            "temps": self._temps,
            "fans": self._fans,
            "config": self._config,
            "profiles": self._profile_list,
            "limits": self._limits,
            "events": self._events,
        }

    def is_whole(self, request: bytes) -> bool:
        """LuxOS closes after one request; a JSON object or a line ends it."""
        return request.rstrip(b" \r\n\0").endswith(b"}") or request.endswith((b"\n", b"\0"))

    def answer(self, request: bytes, now_s: float) -> tuple[bytes, bool]:
        """Return the reply, ended by NUL; the connection closes after it."""
        reply = self._reply(request, now_s)
        return json.dumps(reply, separators=(",", ":")).encode() + b"\0", False

    def _reply(self, request: bytes, now_s: float) -> Reply:
        try:
            body = json.loads(request.decode().strip("\0 \r\n"))
        except (UnicodeDecodeError, json.JSONDecodeError):
            return {"STATUS": _status(23, "Invalid JSON", now_s, "E"), "id": 1}
        command = body.get("command") if isinstance(body, dict) else None
        if not isinstance(command, str) or not command:
            return {"STATUS": _status(24, "Missing JSON 'command'", now_s, "E"), "id": 1}
        parameter = body.get("parameter", "")
        words = [word.strip() for word in parameter.split(",")] if isinstance(parameter, str) and parameter else []
        reading = self._asic.reading(now_s)
        if "+" in command:  # joined reads come back under their own names, each in a list
            joined: Reply = {name: [self._one(name, [], reading, now_s)] for name in command.split("+")}
            joined["id"] = 1
            return joined
        reply = self._one(command, words, reading, now_s)
        reply["id"] = 1
        return reply

    def _one(self, command: str, words: list[str], reading: AsicReading, now_s: float) -> Reply:
        read = self._reads.get(command)
        if read is not None:
            return read(reading, now_s)
        match command:
            case "session":
                self._expire(now_s)
                return {"SESSION": [{"SessionID": self._session}], "STATUS": _status(319, "Session information", now_s)}
            case "logon":
                return self._logon(now_s)
            case "kill":
                self._session = ""
                return {"STATUS": _status(315, "Session killed", now_s)}
            case "voltageget" | "healthchipget" | "profileget":
                return self._get_one(command, words, reading, now_s)
            case "logoff" | "curtail" | "profileset" | "rebootdevice" | "ledset":
                return self._write(command, words, now_s)
            case _:
                return {"STATUS": _status(14, f"Invalid command: {command}", now_s, "E")}

    # ----- sessions and writes ------------------------------------------------------------------------------------

    def _expire(self, now_s: float) -> None:
        if self._session and now_s - self._session_used_s > SESSION_IDLE_S:
            self._session = ""

    def _logon(self, now_s: float) -> Reply:
        self._expire(now_s)
        if self._session:
            return {"STATUS": _status(402, "Another session is already active", now_s, "E")}
        self._sessions_opened += 1
        self._session = f"s{self._sessions_opened:07x}"
        self._session_used_s = now_s
        return {"SESSION": [{"SessionID": self._session}], "STATUS": _status(316, "Session created", now_s)}

    def _write(self, command: str, words: list[str], now_s: float) -> Reply:
        self._expire(now_s)
        if not words or words[0] != self._session or not self._session:
            return {"STATUS": _status(401, "Invalid session id", now_s, "E")}
        self._session_used_s = now_s
        arguments = words[1:]
        match command, arguments:
            case "logoff", _:
                self._session = ""
                return {"STATUS": _status(315, "Session terminated", now_s)}
            case "curtail", ["sleep", *_]:
                self._asic.sleep(now_s)
                return {
                    "CURTAIL": [{"Action": "sleep mode"}],
                    "STATUS": _status(335, "Curtailment command sent", now_s),
                }
            case "curtail", ["wakeup", *_]:
                self._asic.wake(now_s)
                sent = _status(335, "Curtailment command sent", now_s)
                return {"CURTAIL": [{"Action": "wake up"}], "STATUS": sent}
            case "profileset", [name, *_] if any(profile.name == name for profile in self._asic.profiles):
                self._asic.set_profile(now_s, name)
                return {"PROFILE": [{"Profile": name}], "STATUS": _status(321, "Profile Set", now_s)}
            case "profileset", _:
                return {"STATUS": _status(325, "Profile not found", now_s, "E")}
            case "rebootdevice", _:
                self._asic.reboot(now_s)
                return {"STATUS": _status(322, "Rebooting", now_s)}
            case "ledset", [_, state, *_]:
                self._led = state
                return {"STATUS": _status(338, "LED updated", now_s)}
            case _:
                return {"STATUS": _status(403, f"Invalid parameters for {command}", now_s, "E")}

    def _get_one(self, command: str, words: list[str], reading: AsicReading, now_s: float) -> Reply:
        if command == "profileget":
            found = [profile for profile in self._profiles if words and profile["Profile Name"] == words[0]]
            if not found:
                return {"STATUS": _status(325, "Profile not found", now_s, "E")}
            return {"PROFILE": found, "STATUS": _status(326, "Profile information", now_s)}
        try:
            board = int(words[0])
            rate_ths = reading.board_hashrates_ths[board]
        except (IndexError, ValueError):
            return {"STATUS": _status(304, "Invalid board id", now_s, "E")}
        if command == "voltageget":
            volts = 13.1 if reading.state is AsicState.MINING else 0.0
            return {"VOLTAGE": [{"Board": board, "Voltage": volts}], "STATUS": _status(317, "Voltage", now_s)}
        chips = [
            {"Board": board, "Chip": chip, "GHS 1m": round(rate_ths * 1000 / CHIPS_PER_BOARD, 2), "Healthy": "Y"}
            for chip in range(CHIPS_PER_BOARD)
        ]
        return {"CHIPS": chips, "STATUS": _status(318, "Chip health", now_s)}

    # ----- reads --------------------------------------------------------------------------------------------------

    def _version(self, reading: AsicReading, now_s: float) -> Reply:
        model = self._asic.model if self._asic.model.startswith("Antminer") else f"Antminer {self._asic.model}"
        version = {"API": "3.7", "CompileTime": "Tue Apr  8 2025", "LUXminer": VERSION, "Miner": VERSION, "Type": model}
        return {"STATUS": _status(22, "LUXminer versions", now_s), "VERSION": [version]}

    def _summary(self, reading: AsicReading, now_s: float) -> Reply:
        rate_ghs = round(reading.hashrate_ths * 1000, 2)
        summary = {
            "Accepted": reading.accepted_shares,
            "Elapsed": reading.uptime_s,
            "GHS 30m": rate_ghs,
            "GHS 5s": rate_ghs,
            "GHS av": rate_ghs,
            "Hardware Errors": 0,
            "Last getwork": int(now_s),
            "Rejected": reading.rejected_shares,
        }
        return {"STATUS": _status(11, "Summary", now_s), "SUMMARY": [summary]}

    def _stats(self, reading: AsicReading, now_s: float) -> Reply:
        stats: Reply = {
            "Elapsed": reading.uptime_s,
            "GHS 5s": round(reading.hashrate_ths * 1000, 2),
            "GHS av": round(reading.hashrate_ths * 1000, 2),
            "ID": "BTM_SOC0",
            "fan_num": len(reading.fan_speeds_rpm),
            "miner_count": len(reading.board_hashrates_ths),
            "total_rateideal": round(reading.expected_hashrate_ths * 1000, 2),
        }
        for number, rate_ths in enumerate(reading.board_hashrates_ths, start=1):
            stats[f"chain_rate{number}"] = round(rate_ths * 1000, 2)
            pcb = round(reading.board_temperatures_c[number - 1])
            chip = round(reading.chip_temperatures_c[number - 1])
            stats[f"temp_pcb{number}"] = f"{pcb}-{pcb}-{pcb}-{pcb}"
            stats[f"temp_chip{number}"] = f"{chip}-{chip}-{chip}-{chip}"
        for number, rpm in enumerate(reading.fan_speeds_rpm, start=1):
            stats[f"fan{number}"] = rpm
        head = {"CompileTime": "", "Miner": VERSION, "Type": self._asic.model}
        return {"STATS": [head, stats], "STATUS": _status(70, "LUXminer stats", now_s)}

    def _devs(self, reading: AsicReading, now_s: float) -> Reply:
        boards = len(reading.board_hashrates_ths)
        devs = [
            {
                "ASC": board,
                "Board": board,
                "ID": board,
                "Enabled": "Y",
                "MHS 5s": round(rate_ths * 1e6, 1),
                "Nominal MHS": round(reading.expected_hashrate_ths * 1e6 / boards, 1),
                "SerialNumber": f"{self._asic.serial_number}-{board}",
                "Status": "Alive" if reading.state is not AsicState.OFF else "Dead",
                "IsRamping": reading.state is AsicState.BOOTING,
                "Temperature": reading.board_temperatures_c[board],
            }
            for board, rate_ths in enumerate(reading.board_hashrates_ths)
        ]
        return {"DEVS": devs, "STATUS": _status(9, f"{boards} ASC(s)", now_s)}

    def _pools(self, reading: AsicReading, now_s: float) -> Reply:
        pool = {
            "Accepted": reading.accepted_shares,
            "GROUP": 0,
            "POOL": 0,
            "Priority": 0,
            "Quota": 1,
            "Rejected": reading.rejected_shares,
            "Status": "Alive" if reading.pool_is_alive else "Dead",
            "Stratum Active": reading.pool_is_alive,
            "URL": "stratum+tcp://pool.invalid:3333",
            "User": f"swingbus.{self._asic.name}",
        }
        return {"POOLS": [pool], "STATUS": _status(7, "1 Pool(s)", now_s)}

    def _groups(self, reading: AsicReading, now_s: float) -> Reply:
        return {"GROUPS": [{"GROUP": 0, "Name": "default", "Quota": 1}], "STATUS": _status(8, "1 Group(s)", now_s)}

    def _power(self, reading: AsicReading, now_s: float) -> Reply:
        power: Reply = {"PSU": True}
        if reading.power_w is not None:
            power["Watts"] = round(reading.power_w)
        return {"POWER": [power], "STATUS": _status(307, "Power information", now_s)}

    def _temps(self, reading: AsicReading, now_s: float) -> Reply:
        boards = zip(reading.board_temperatures_c, reading.chip_temperatures_c, strict=True)
        temps = []
        for board, (pcb_c, chip_c) in enumerate(boards):
            intake, exhaust = round(pcb_c, 1), round(chip_c, 1)
            row = {"ID": board, "Board": intake, "Chip": exhaust, "TopLeft": exhaust, "BottomLeft": exhaust}
            temps.append(row | {"TopRight": intake, "BottomRight": intake})
        metadata = [{"Label": "Board Exhaust", "TopLeft": ""}, {"Label": "Board Intake", "TopRight": ""}]
        return {"METADATA": metadata, "STATUS": _status(201, "Temperature information", now_s), "TEMPS": temps}

    def _fans(self, reading: AsicReading, now_s: float) -> Reply:
        fans = [{"FAN": n, "ID": n, "RPM": rpm, "Speed": 60} for n, rpm in enumerate(reading.fan_speeds_rpm)]
        control = {"Mode": "Automatic", "Speed": 60}
        return {"FANCTRL": [control], "FANS": fans, "STATUS": _status(202, "Fan information", now_s)}

    def _config(self, reading: AsicReading, now_s: float) -> Reply:
        is_asleep = reading.state is AsicState.SLEEPING
        status = {
            AsicState.OFF: "SHUTDOWN_USER",
            AsicState.BOOTING: "INIT",
            AsicState.MINING: "MINER_TUNED",
            AsicState.SLEEPING: "SLEEP",
        }[reading.state]
        config = {
            "ASC Count": len(reading.board_hashrates_ths),
            "ControlBoardType": "CVITek",
            "CurtailMode": "Sleep" if is_asleep else "None",
            "GreenLed": "auto",
            "Hostname": self._asic.name,
            "IsPowerSupplyOn": not is_asleep and reading.state is not AsicState.OFF,
            "IsPowerTargetSupported": False,
            "MACAddr": self._asic.mac,
            "Model": self._asic.model,
            "Profile": reading.profile or "default",
            "RedLed": self._led,
            "SerialNumber": self._asic.serial_number,
            "SystemStatus": status,
            "UpTime": reading.uptime_s,
        }
        return {"CONFIG": [config], "STATUS": _status(340, "LUXminer config", now_s)}

    def _profile_list(self, reading: AsicReading, now_s: float) -> Reply:
        return {"PROFILES": self._profiles, "STATUS": _status(323, "Profiles", now_s)}

    def _limits(self, reading: AsicReading, now_s: float) -> Reply:
        limits = {"FrequencyStepMax": 100, "FrequencyStepMin": 5, "VoltageStepMax": 1.0, "VoltageStepMin": 0.1}
        return {"LIMITS": [limits], "STATUS": _status(327, "Limits", now_s)}

    def _events(self, reading: AsicReading, now_s: float) -> Reply:
        return {"EVENTS": [], "STATUS": _status(344, "Events", now_s)}
